"""What a commit is, and how it is built: tables."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles import detection
from hooks.builds.profiles.detection import OUTPUT_FOLDERS, is_published
from hooks.builds.profiles.managed_toml import ManagedToml, Profile, clean_folder, parse
from hooks.builds.profiles.plan import Listing
from hooks.builds.wire import Folder, RootEntry, RunCommands

BUILD = '[build]\ncommand = "make"\n'
TEXTS = ("managed.toml", "Procfile", "package.json", "pyproject.toml")
NPM, LOOSE = "npm ci", "npm install --no-package-lock"
VENV = ("install", "python3 -m venv .venv")
PIP = ("install", "pip install -r requirements.txt")
WITHOUT_PIP = ("finish", "python3 -m pip uninstall --quiet --yes pip")
BERRY = "yarn install --immutable"
COMPILE = (
    "PYTHONHASHSEED=0 python3 -m compileall -q -q -f --invalidation-mode unchecked-hash . || true"
)
COMPOSER = (
    "composer install --no-dev --no-interaction --no-progress --prefer-dist --optimize-autoloader"
)
PHP = 'PHP_CLI_SERVER_WORKERS=4 php -d variables_order=EGPCS -S "127.0.0.1:$PORT" -t'
POETRY_APP = '[build-system]\nrequires = ["x"]\n[tool.poetry]\npackage-mode = false'
NUXT = {
    "scripts": {"build": "nuxt build", "generate": "nuxt generate"},
    "dependencies": {"nuxt": "4"},
}
DOCS = {"scripts": {"docs:build": "vitepress build docs"}}
GUNICORN = "gunicorn app:app --bind 127.0.0.1:$PORT"
ADAPTER_AUTO = "@sveltejs/adapter-auto"
CACHES = ("node_modules/.cache", ".next/cache")


def tree(*names, where=".", **texts):
    """A folder: `name` is a file, `name/` a folder, `name@` a link, `name!` a submodule.

    In the keywords a name stands for the file of that name, whatever its ending.
    """
    spelled = {
        "managed_toml": "managed.toml",
        "pyproject": "pyproject.toml",
        "requirements": "requirements.txt",
        "manage": "manage.py",
        "next_config": "next.config.ts",
    }
    files = {spelled.get(name, name): text for name, text in texts.items()}
    if "package" in files:
        files["package.json"] = json.dumps(files.pop("package"))
    kinds = {"/": "dir", "@": "link", "!": "submodule"}
    entries = [
        RootEntry(name.rstrip("/@!"), kinds.get(name[-1], "file")) for name in (*names, *files)
    ]
    return Listing.of(Folder("7ee5" * 10, tuple(entries), files), where)


def plan(*names, toml="", where=".", programs=("pnpm", "yarn"), **texts):
    if toml:
        texts["managed_toml"] = toml
    return detection.detect(tree(*names, where=where, **texts), parse(toml), programs)


def steps(found):
    return [(str(step.name), step.command) for step in found.steps]


def scripts(**named):
    return {"scripts": named}


@pytest.mark.parametrize(
    ("found", "profile", "folder", "command"),
    [
        (plan("index.html"), "static", ".", None),
        (plan("index.html", package={"devDependencies": {"prettier": "3"}}), "static", ".", None),
        (plan("index.html@"), "static", ".", None),
        (plan("index.html", "requirements.txt"), "static", ".", None),
        (plan("index.html", "composer.json"), "static", ".", None),
        (plan("index.html", pyproject="[tool.ruff]"), "static", ".", None),
        (plan(Procfile="web: ./run"), "procfile", ".", None),
        (plan("index.html", Procfile="web: ./run"), "procfile", ".", None),
        (plan("public/", toml='[build]\noutput = "public"'), "static", "public", None),
        (plan("a/", toml='[build]\noutput = "./a//b/"'), "static", "a/b", None),
        (plan("index.php", "a/", toml='[build]\noutput = "a"'), "static", "a", None),
        (plan(toml='[build]\noutput = "."'), "static", ".", None),
        (plan(toml=BUILD + 'output = "dist"'), "static", "dist", "make"),
        (plan("index.html", toml=BUILD), "static", ".", "make"),
        (plan(toml=BUILD, Procfile="web: ./run"), "procfile", ".", "make"),
        (plan(toml=BUILD + 'output = "out"', Procfile="web: ./run"), "procfile", "out", "make"),
        (plan(toml='[run]\nweb = "./a.sh"'), "procfile", ".", None),
        (plan(toml='[build]\nprofile = "static"', Procfile="web: x"), "static", ".", None),
        (plan("a.txt", toml='[build]\nprofile = "static"'), "static", ".", None),
        (plan("index.html", toml="[build]"), "static", ".", None),
        (
            plan("requirements.txt", Procfile="web: x", toml='[build]\nprofile = "procfile"'),
            "procfile",
            ".",
            None,
        ),
    ],
)
def test_static_and_procfile_sites_are_detected(found, profile, folder, command):
    assert (found.profile, found.folder) == (profile, folder)
    assert steps(found) == ([("build", command)] if command else [])
    assert found.is_source == (command is None)


@pytest.mark.parametrize(
    ("found", "install"),
    [
        (plan("package-lock.json", package=scripts(build="x")), NPM),
        (plan("npm-shrinkwrap.json", package=scripts(build="x")), NPM),
        (plan("pnpm-lock.yaml", package=scripts(build="x")), "pnpm install --frozen-lockfile"),
        (
            plan("yarn.lock", package=scripts(build="x")),
            "yarn install --frozen-lockfile --non-interactive",
        ),
        (plan("yarn.lock", ".yarnrc.yml", package=scripts(build="x")), BERRY),
        (
            plan("yarn.lock", package={"packageManager": "yarn@4.1.0", **scripts(build="x")}),
            BERRY,
        ),
        (
            plan("yarn.lock", package={"packageManager": "yarn@1.22.0", **scripts(build="x")}),
            "yarn install --frozen-lockfile --non-interactive",
        ),
        (
            plan(
                *("yarn.lock", "pnpm-lock.yaml", "package-lock.json"),
                package={"packageManager": "pnpm@9.1.0", **scripts(build="x")},
            ),
            "pnpm install --frozen-lockfile",
        ),
        (
            plan(
                package={
                    "packageManager": "pnpm@9",
                    "dependencies": {"a": "1"},
                    **scripts(build="x"),
                }
            ),
            "pnpm install --no-lockfile",
        ),
        (plan(package={"dependencies": {"a": "1"}, **scripts(build="x")}), LOOSE),
        (plan("bun.lock", package={"dependencies": {"a": "1"}, **scripts(build="x")}), LOOSE),
        (plan(package=scripts(build="x")), None),
        *(
            (plan(package={key: value, **scripts(build="x")}), LOOSE)
            for key, value in {
                "devDependencies": {"a": "1"},
                "optionalDependencies": {"a": "1"},
                "peerDependencies": {"a": "1"},
                "workspaces": ["packages/*"],
            }.items()
        ),
        (
            plan("yarn.lock", package={"packageManager": "yarn@10.0.0", **scripts(build="x")}),
            BERRY,
        ),
        (plan("yarn.lock", package={"packageManager": "yarn@2.4.3", **scripts(build="x")}), BERRY),
    ],
)
def test_node_dependencies_are_installed_as_their_lock_file_says(found, install):
    assert found.profile == "node"
    installing = [command for name, command in steps(found) if name == "install"]
    assert installing == ([install] if install else [])


@pytest.mark.parametrize(
    ("found", "web", "expected"),
    [
        (plan(package=scripts(start="node a.js")), "node a.js", []),
        (plan("server.js", package={}), "node server.js", []),
        (plan(package=scripts(start="b", prestart="a")), "(a) && b", []),
        (
            plan("package-lock.json", package=scripts(start="next start", build="next build")),
            "next start",
            [("install", NPM), ("build", "npm run build")],
        ),
        (
            plan(
                "package-lock.json", package={"devDependencies": {"a": "1"}, **scripts(start="b")}
            ),
            "b",
            [("install", NPM), ("finish", "npm prune --omit=dev")],
        ),
        (
            plan("package-lock.json", package=scripts(start="a"), Procfile="web: node b.js"),
            "node b.js",
            [("install", NPM)],
        ),
        (
            plan("package-lock.json", package={}, toml='[run]\nweb = "node c.js"'),
            "node c.js",
            [("install", NPM)],
        ),
        (
            plan(
                "package-lock.json",
                package={"devDependencies": {"a": "1"}, **scripts(start="b")},
                toml='[build]\ninstall = "npm ci --omit=dev"\ncommand = "make"',
            ),
            "b",
            [("install", "npm ci --omit=dev"), ("build", "make")],
        ),
        (
            plan(
                "package-lock.json",
                package=scripts(start="b", build="c"),
                toml="[build]\ninstall = false\ncommand = false",
            ),
            "b",
            [],
        ),
        (
            plan(
                "package-lock.json",
                package=scripts(start="b", build="c"),
                toml="[build]\nfinish = false",
            ),
            "b",
            [("install", NPM), ("build", "npm run build")],
        ),
        (
            plan(package=scripts(start="b"), toml='[build]\nfinish = "rm -r tests"'),
            "b",
            [("finish", "rm -r tests")],
        ),
    ],
)
def test_node_servers_run_their_start_script_with_what_they_need(found, web, expected):
    assert found.profile == "node"
    assert found.run.web == web
    assert steps(found) == expected
    assert (found.folder, found.output_folders, found.is_public) == (".", (), False)


@pytest.mark.parametrize(
    ("found", "folder", "folders"),
    [
        (plan("index.html", package=scripts(build="vite build")), ".", OUTPUT_FOLDERS),
        (plan(package=scripts(build="astro build", start="astro dev")), ".", OUTPUT_FOLDERS),
        (plan(package=scripts(build="b", start="react-scripts start")), ".", OUTPUT_FOLDERS),
        (plan(package=scripts(build="b", start="a"), toml='[build]\noutput = "o"'), "o", ()),
        (plan(package=scripts(), toml=BUILD), ".", OUTPUT_FOLDERS),
    ],
)
def test_node_sites_without_a_server_serve_what_their_build_writes(found, folder, folders):
    assert found.profile == "node"
    assert found.run == RunCommands()
    assert (found.folder, found.output_folders, found.is_public) == (folder, folders, True)


@pytest.mark.parametrize(
    ("toml", "more"),
    [
        ('[build]\noutput = "out"', {}),
        (BUILD, {}),
        ('[run]\nweb = "node x"', {}),
        ("", {"svelte-adapter-bun": "1"}),
    ],
)
def test_sveltekit_project_that_says_where_it_goes_is_built(toml, more):
    package = {"devDependencies": {ADAPTER_AUTO: "7", **more}, **scripts(build="vite build")}
    assert plan(package=package, toml=toml).profile == "node"


@pytest.mark.parametrize(
    ("start", "is_development"),
    [
        ("react-scripts start", True),
        ("PORT=3000 react-scripts start", True),
        ("astro dev --host", True),
        ("astro start", True),
        ("ng serve", True),
        ("nest start", True),
        ("gatsby develop", True),
        ("expo start --web", True),
        ("brunch watch --server", True),
        ("stencil build --dev --watch --serve", True),
        ("stencil build --prod", False),
        ("docusaurus start", True),
        ("vite", True),
        ("vite --host", True),
        ("vite dev", True),
        ("next dev", True),
        ("webpack serve --mode development", True),
        ("webpack-dev-server", True),
        ("npx @11ty/eleventy --serve", True),
        ("parcel index.html", True),
        ("vue-cli-service serve", True),
        ("next start", False),
        ("vite preview", False),
        ("node server.js", False),
        ("node vite.js", False),
        ("node ./parcel-tracker.js", False),
        ("node src/vite/server.js", False),
        ("astro preview", False),
        ("nuxt start", False),
        ("tsx src/index.ts", False),
        ("npm run dev", True),
        ("pnpm dev", True),
        ("yarn dev", True),
        ("yarn serve", False),
        ("npm run serve", False),
        ("npm run nothing", False),
        ("npm run serve && npm run dev", True),
        ("npm run serve 2>&1 && npm run dev", True),
        ("npm run serve & npm run dev", False),
        ('concurrently "npm run serve" "npm run dev"', False),
    ],
)
def test_development_servers_are_not_what_a_site_runs(start, is_development):
    found = plan(package=scripts(build="b", start=start, dev="vite", serve="node dev"))
    assert found.run.web == (None if is_development else start)
    assert any("development server" in note for note in found.notes) == is_development


@pytest.mark.parametrize(
    ("lock", "package", "last"),
    [
        ("package-lock.json", {}, "npm prune --omit=dev"),
        ("pnpm-lock.yaml", {}, "pnpm prune --prod"),
        (
            "yarn.lock",
            {},
            "yarn install --production --frozen-lockfile --ignore-scripts --non-interactive",
        ),
        ("yarn.lock", {"packageManager": "yarn@3.8.0"}, BERRY),
        (
            "yarn.lock",
            {"packageManager": "yarn@4.1.0+sha224.ab"},
            "yarn workspaces focus --all --production",
        ),
    ],
)
def test_development_dependencies_go_before_a_server_runs(lock, package, last):
    found = plan(lock, package={"devDependencies": {"a": "1"}, **package, **scripts(start="b")})
    assert steps(found)[-1][1] == last


@pytest.mark.parametrize(
    ("web", "tool"),
    [
        ("tsx src/index.ts", "tsx"),
        ("node --import tsx src/index.ts", "tsx"),
        ("node --import=tsx src/index.ts", "tsx"),
        ("node -r ts-node/register a.ts", "ts-node"),
        ("node -r @swc-node/register/esm a.ts", "@swc-node/register"),
        ("node_modules/.bin/serve dist", "serve"),
        ("npm run tool", "tsx"),
        ("node tool", None),
        ("node tsx.js", None),
        ("node src/tsx", None),
        ("node server.js", None),
    ],
)
@pytest.mark.parametrize("named_by", ["package.json", "Procfile"])
def test_development_dependencies_stay_where_what_runs_names_one(web, tool, named_by):
    tools = {"tsx": "4", "ts-node": "10", "@swc-node/register": "1", "serve": "14"}
    by_script = named_by == "package.json"
    found = plan(
        "package-lock.json",
        package={
            "devDependencies": tools,
            **scripts(tool="tsx a.ts", **({"start": web} if by_script else {})),
        },
        **({} if by_script else {"Procfile": f"web: {web}"}),
    )
    assert found.run.web == web
    assert (("finish", "npm prune --omit=dev") in steps(found)) == (tool is None)
    said = [note for note in found.notes if note.startswith("development dependencies stay")]
    assert [note.rpartition(" ")[2] for note in said] == ([tool] if tool else [])


@pytest.mark.parametrize(
    ("found", "web"),
    [
        (plan("index.js", package={"main": "index.js"}), "node ./index.js"),
        (plan("a b.js", package={"main": "./a b.js"}), "node './a b.js'"),
        (plan("index.js", package={"main": "index.js", **scripts(test="x")}), "node ./index.js"),
        (plan("server.js", "index.js", package={"main": "index.js"}), "node server.js"),
        (
            plan(package=scripts(**{"start": "nest start", "start:prod": "node dist/main"})),
            "node dist/main",
        ),
        (plan(package=scripts(**{"start": "node a", "start:prod": "node b"})), "node a"),
        (
            plan(package={"dependencies": {"nuxt": "4"}, **scripts(build="nuxt build")}),
            "node .output/server/index.mjs",
        ),
        (plan(package={"dependencies": {"nuxt": "4"}, **scripts(build="nuxt generate")}), None),
        (
            plan(
                package={
                    "devDependencies": {"@sveltejs/adapter-node": "5"},
                    **scripts(build="vite build"),
                }
            ),
            "PROTOCOL_HEADER=x-forwarded-proto node build",
        ),
        (
            plan(
                package={
                    "dependencies": {"@astrojs/node": "9"},
                    **scripts(build="astro build", start="astro dev"),
                }
            ),
            "node dist/server/entry.mjs",
        ),
        (
            plan(
                package={
                    "dependencies": {"@astrojs/node": "9"},
                    **scripts(build="astro build", start="node ./server.mjs"),
                }
            ),
            "node ./server.mjs",
        ),
    ],
)
def test_what_stands_in_for_a_start_script(found, web):
    assert found.profile == "node"
    assert found.run.web == web


@pytest.mark.parametrize(
    ("package", "file"),
    [
        ({"dependencies": {"@astrojs/node": "9"}}, "dist/server/entry.mjs"),
        ({"devDependencies": {"@sveltejs/adapter-node": "5"}}, "build/index.js"),
        ({"dependencies": {"nuxt": "4"}}, ".output/server/index.mjs"),
        ({"devDependencies": {"nitro": "3"}}, ".output/server/index.mjs"),
        (scripts(start="react-router-serve ./build/server/index.js"), "build/server/index.js"),
        (
            scripts(start="cross-env NODE_ENV=production react-router-serve build/./a.js"),
            "build/a.js",
        ),
        (
            scripts(start="NODE_ENV=production remix-serve build/server/index.js"),
            "build/server/index.js",
        ),
    ],
)
def test_program_that_a_build_is_to_make_is_looked_for_then(package, file):
    package = {**package, **scripts(build="x build", **package.get("scripts", {}))}
    found = plan(package=package)
    assert found.web_file == file
    pages = detection.of_pages(found)
    assert (pages.run.web, pages.web_file, pages.is_public) == (None, None, True)
    assert pages.output_folders == OUTPUT_FOLDERS
    for texts in ({"Procfile": f"web: {found.run.web}"}, {"toml": '[run]\nhealth = "/up"'}):
        said = plan(package=package, **texts)
        assert (said.run.web, said.web_file) == (found.run.web, None), "somebody says that it runs"


@pytest.mark.parametrize(
    "start",
    [
        "cd apps/web && react-router-serve ./build/server/index.js",
        "react-router-serve ./build/server/index.js & ./worker",
        "react-router-serve ../../x",
        "react-router-serve a/../../x",
        "react-router-serve /x",
        "remix-serve $SERVER",
    ],
)
def test_program_whose_place_is_not_known_is_not_looked_for(start):
    found = plan(package=scripts(build="x build", start=start))
    assert (found.run.web, found.web_file) == (start, None)


@pytest.mark.parametrize(
    ("named", "command", "folder"),
    [
        ({"docs:build": "vitepress build docs"}, "docs:build", "docs/.vitepress/dist"),
        ({"docs:build": "vitepress build"}, "docs:build", ".vitepress/dist"),
        ({"docs:build": "vuepress build ./docs/"}, "docs:build", "docs/.vuepress/dist"),
        ({"build": "vitepress build src"}, "build", "src/.vitepress/dist"),
        (
            {"build": "npm run docs:build", "docs:build": "vitepress build docs"},
            "build",
            "docs/.vitepress/dist",
        ),
        ({"build": "yarn vitepress build docs --base /a/"}, "build", "docs/.vitepress/dist"),
        (
            {"docs:build": "npm run lib && vitepress build", "lib": "vite build"},
            "docs:build",
            ".vitepress/dist",
        ),
        ({"build": "vite build", "docs:build": "vitepress build docs"}, "build", None),
    ],
)
def test_pages_of_vitepress_are_built_and_found(named, command, folder):
    found = plan("docs/", package=scripts(**named))
    assert found.profile == "node"
    assert steps(found) == [("build", f"npm run {command}")]
    assert found.output_folders == ((folder,) if folder else ()) + OUTPUT_FOLDERS


@pytest.mark.parametrize(
    "named",
    [
        {"build": "vite build && npm run docs:build", "docs:build": "vitepress build docs"},
        {"build": "npm run site", "site": "vite build && vitepress build docs"},
        {"build": "concurrently 'vite build' 'vitepress build docs'"},
    ],
)
def test_pages_about_what_is_built_beside_them_come_last(named):
    found = plan("docs/", package=scripts(**named))
    assert found.output_folders == (*OUTPUT_FOLDERS, "docs/.vitepress/dist")


@pytest.mark.parametrize(
    ("found", "profile", "web"),
    [
        (plan("index.html", package=DOCS), "static", None),
        (plan("a.js", package={"main": "a.js", **DOCS}), "node", "node ./a.js"),
        (plan("web/", package=DOCS, toml='[build]\noutput = "web"'), "static", None),
        (plan("app.py", requirements="gunicorn", package=DOCS), "python", GUNICORN),
    ],
)
def test_pages_about_a_project_are_not_built_where_it_is_served_itself(found, profile, web):
    assert (found.profile, found.run.web) == (profile, web)
    assert not any("docs:build" in command for _, command in steps(found))


def test_pages_are_built_where_their_folder_is_asked_for():
    toml = '[build]\noutput = "docs/.vitepress/dist"'
    found = plan("docs/", package=DOCS, toml=toml)
    assert (found.profile, found.folder) == ("node", "docs/.vitepress/dist")
    assert steps(found) == [("build", "npm run docs:build")]


@pytest.mark.parametrize(
    ("config", "web"),
    [
        ('const config = {\n  output: "export",\n};', None),
        ("module.exports = { output: 'export' }", None),
        ('const config = {\n  // output: "export",\n};', "next start"),
        ('const config = {\n  output: "standalone",\n};', "next start"),
        ("", "next start"),
    ],
)
def test_next_that_exports_files_has_them_served(config, web):
    package = scripts(build="next build", start="next start")
    found = plan(package=package, next_config=config)
    assert found.run.web == web
    assert found.output_folders == (() if web else OUTPUT_FOLDERS)
    start = scripts(build="next build", start="node server.js")
    assert plan(package=start, next_config=config).run.web == "node server.js"


@pytest.mark.parametrize(
    ("names", "package"),
    [
        ((), {"main": "index.js"}),
        (("index.js",), {}),
        (("index.js",), {"main": "index.js", **scripts(start="vite")}),
    ],
)
def test_main_that_is_not_there_or_not_alone_is_no_server(names, package):
    with pytest.raises(BuildFailedError, match="without a build script or a server to start"):
        plan(*names, package=package)


@pytest.mark.parametrize(
    ("command", "package"),
    [
        ("node index.js", {"main": "index.js"}),
        ("npx nuxt generate", NUXT),
        ("npm run generate", NUXT),
    ],
)
def test_command_that_writes_files_is_not_what_builds_a_program(command, package):
    found = plan("index.js", package=package, toml=f'[build]\ncommand = "{command}"\n')
    assert (found.run.web, found.output_folders) == (None, OUTPUT_FOLDERS)


def test_other_command_that_builds_a_program_has_it_run():
    found = plan(package=NUXT, toml='[build]\ncommand = "npm run build && ./more"\n')
    assert found.run.web == "node .output/server/index.mjs"


@pytest.mark.parametrize(
    ("command", "is_run"),
    [
        ("node dist/main", True),
        ("NODE_ENV=production node dist/main", True),
        ("vite preview", False),
        ("npm run build && serve -s dist -l 3000", False),
        ("./node_modules/.bin/serve dist", False),
    ],
)
def test_look_at_files_is_no_server_where_start_is_one_for_development(command, is_run):
    found = plan(package=scripts(build="vite build", start="vite", **{"start:prod": command}))
    assert found.run.web == (command if is_run else None)


def test_main_beside_a_page_is_a_script_of_that():
    assert plan("index.html", "index.js", package={"main": "index.js"}).profile == "static"


@pytest.mark.parametrize("client", ["pnpm", "yarn"])
def test_corepack_brings_a_client_that_the_machine_lacks(client):
    lock = {"pnpm": "pnpm-lock.yaml", "yarn": "yarn.lock"}[client]
    found = plan(lock, package=scripts(build="x"), programs=["corepack"])
    first, second, third = steps(found)
    assert first == ("install", f'corepack enable --install-directory "$HOME/bin" {client}')
    assert second[1].startswith(f"{client} install")
    assert third == ("build", f"{client} run build")
    assert len(plan(lock, package=scripts(build="x"), programs=["corepack", client]).steps) == 2


def test_caches_of_a_build_are_no_part_of_a_release_whose_program_was_built():
    both = scripts(start="next start", build="next build")
    assert plan(package=both).left_out == CACHES
    assert plan(package=both, toml='[build]\ncache = [".next/cache"]').left_out == CACHES
    assert plan(package=both, toml="[build]\nfinish = false").left_out == ()
    assert plan(package=scripts(start="node a")).left_out == ()


def test_corepack_brings_no_npm():
    found = plan("package-lock.json", package=scripts(build="x"), programs=["corepack"])
    assert steps(found) == [("install", NPM), ("build", "npm run build")]


@pytest.mark.parametrize(
    ("found", "install", "by"),
    [
        (plan("requirements.txt", Procfile="web: gunicorn a"), [VENV, PIP], "requirements.txt"),
        (
            plan(pyproject="[build-system]\n[project]", Procfile="web: a"),
            [VENV, ("install", "pip install -e .")],
            "pyproject.toml",
        ),
    ],
)
def test_python_dependencies_go_into_an_environment_below_the_site(found, install, by):
    assert found.profile == "python"
    assert found.by == (by,)
    assert steps(found) == [*install, WITHOUT_PIP, ("finish", COMPILE)]


@pytest.mark.parametrize(
    ("found", "install"),
    [
        (
            plan("requirements.txt", Procfile="web: a", programs=["uv"]),
            ["uv venv", "uv pip install -r requirements.txt"],
        ),
        (
            plan(pyproject="[project]", Procfile="web: a", programs=["uv"]),
            ["uv venv", "uv pip install -r pyproject.toml"],
        ),
        (
            plan("uv.lock", "requirements.txt", pyproject="[project]", Procfile="web: a"),
            ["uv sync --locked --no-dev"],
        ),
    ],
)
def test_uv_installs_where_the_machine_has_it_and_what_it_locked(found, install):
    assert steps(found) == [*(("install", each) for each in install), ("finish", COMPILE)]


def test_package_that_uv_built_keeps_no_time_of_it():
    found = plan(pyproject="[build-system]", Procfile="web: a", programs=["uv"])
    assert [command for _, command in steps(found)[:2]] == ["uv venv", "uv pip install -e ."]
    assert [command.split()[0] for _, command in steps(found)[2:]] == ["find", "PYTHONHASHSEED=0"]


def test_python_project_that_is_no_package_gets_what_it_depends_on():
    found = plan(pyproject="[project]", Procfile="web: a")
    (_, (_, install), *_) = steps(found)
    assert install.startswith("python3 -c 'import tomllib;")
    assert install.endswith("> /tmp/requirements.txt && pip install -r /tmp/requirements.txt")


def test_poetry_project_that_is_no_package_may_say_how_it_is_installed():
    found = plan(pyproject=POETRY_APP, Procfile="web: a", toml='[build]\ninstall = "x"')
    assert ("install", "x") in steps(found)
    locked = plan("requirements.txt", pyproject=POETRY_APP, Procfile="web: a")
    assert PIP in steps(locked)


@pytest.mark.parametrize(
    ("programs", "brings"), [(["uv"], "uv tool install"), ([], 'python3 -m venv "$HOME/poetry"')]
)
def test_poetry_installs_what_it_locked(programs, brings):
    found = plan("poetry.lock", pyproject=POETRY_APP, Procfile="web: a", programs=programs)
    assert found.by == ("poetry.lock",)
    assert found.notes == ()
    (_, bringing), (_, install), *rest = steps(found)
    assert brings in bringing
    assert "poetry install --only main" in install
    assert ("finish", COMPILE) in rest
    assert "--no-root" not in install
    no_package = plan("poetry.lock", pyproject="[project]", Procfile="web: a", programs=programs)
    assert steps(no_package)[1][1] == f"{install} --no-root", "Poetry would install it as one"
    both = plan("poetry.lock", "requirements.txt", pyproject=POETRY_APP, Procfile="web: a")
    assert PIP in steps(both)


def test_install_command_of_ones_own_finds_an_environment():
    found = plan(
        "requirements.txt", Procfile="web: a", toml='[build]\ninstall = "pip install -r a/b.txt"'
    )
    assert steps(found) == [VENV, ("install", "pip install -r a/b.txt"), ("finish", COMPILE)]
    found = plan("uv.lock", Procfile="web: a", toml='[build]\ninstall = "uv sync"')
    assert steps(found) == [("install", "uv sync"), ("finish", COMPILE)]
    found = plan("uv.lock", Procfile="web: a", toml="[build]\ninstall = false")
    assert found.is_source


def test_python_tool_that_writes_files_needs_no_web_process():
    found = plan("requirements.txt", toml='[build]\ncommand = "mkdocs build"\noutput = "site"')
    assert (found.profile, found.folder, found.run) == ("python", "site", RunCommands())
    assert steps(found) == [VENV, PIP, ("build", "mkdocs build")]


@pytest.mark.parametrize(
    ("found", "web", "expected", "is_public"),
    [
        (plan("index.php"), f"{PHP} .", [], True),
        (plan("index.php", "index.html"), f"{PHP} .", [], True),
        (
            plan("composer.json", "public/"),
            f'exec env {PHP} public "$router"',
            [("install", COMPOSER)],
            False,
        ),
        (
            plan("composer.json", "web/", "x/"),
            f'exec env {PHP} web "$router"',
            [("install", COMPOSER)],
            False,
        ),
        (
            plan("composer.json", "index.php", "webroot/", "config/", "src/"),
            f'exec env {PHP} webroot "$router"',
            [("install", COMPOSER)],
            False,
        ),
        (plan("index.php", "webroot/"), f"{PHP} .", [], True),
        (
            plan("composer.json", "index.php", "webroot/", "src/"),
            f"{PHP} .",
            [("install", COMPOSER)],
            True,
        ),
        (
            plan("composer.json", "index.php", "public/"),
            f"{PHP} .",
            [("install", COMPOSER)],
            True,
        ),
        (
            plan("composer.json", "index.php", Procfile="web: frankenphp run"),
            "frankenphp run",
            [("install", COMPOSER)],
            False,
        ),
        (
            plan(
                "composer.json", "public/", "package-lock.json", package=scripts(build="vite build")
            ),
            f'exec env {PHP} public "$router"',
            [
                ("install", COMPOSER),
                ("install", NPM),
                ("build", "npm run build"),
                ("finish", "rm -rf node_modules"),
            ],
            False,
        ),
    ],
)
def test_php_sites_run_php_and_install_what_composer_says(found, web, expected, is_public):
    assert (found.profile, found.is_public) == ("php", is_public)
    assert found.run.web.splitlines()[-1] == web
    assert steps(found) == expected


def test_php_frameworks_write_where_they_may_and_know_that_they_are_deployed():
    laravel = plan("composer.json", "composer.lock", "artisan", "public/")
    first, second, _, last = laravel.run.web.splitlines()
    assert 'LARAVEL_STORAGE_PATH="${LARAVEL_STORAGE_PATH:-/data/storage}"' in first
    assert 'VIEW_COMPILED_PATH="${VIEW_COMPILED_PATH:-/tmp/views}"' in first
    assert 'LOG_CHANNEL="${LOG_CHANNEL:-stderr}"' in first
    assert "framework/sessions" in second
    assert laravel.explanation.endswith(f"install; runs ... {last}")
    said = "Laravel's storage is in /data/storage, from Laravel 10 on, and its log where `mf logs`"
    assert laravel.notes == (f"{said} looks",)
    symfony = plan("composer.json", "symfony.lock", "public/")
    production = 'export APP_ENV="${APP_ENV:-prod}" APP_DEBUG="${APP_DEBUG:-0}"'
    assert symfony.run.web.splitlines()[0] == production
    assert steps(symfony) == [("install", f"{production} && {COMPOSER}")]


@pytest.mark.parametrize("framework", ["artisan", "symfony.lock"])
def test_release_command_of_a_php_framework_knows_where_it_runs_as_the_server_does(framework):
    names, release = ("composer.json", "composer.lock", framework), "release: php x migrate"
    found = plan(*names, "public/", Procfile=release)
    *before, last = found.run.release.splitlines()
    assert before
    assert found.run.web.splitlines()[: len(before)] == before
    assert last == "php x migrate"
    moved = plan(*names, "web/", Procfile=f"web: heroku-php-apache2 web/\n{release}")
    assert moved.run.release == found.run.release
    own = plan(*names, "public/", Procfile=f"web: frankenphp run\n{release}")
    assert own.run.release == "php x migrate"


@pytest.mark.parametrize(
    "texts",
    [
        {"Procfile": "web: frankenphp run"},
        {"Procfile": "web: heroku-php-apache2"},
        {"toml": '[build]\nprofile = "php"\noutput = "public"'},
    ],
)
def test_where_laravel_writes_is_not_said_of_a_server_that_is_not_told(texts):
    found = plan("composer.json", "composer.lock", "artisan", "public/", **texts)
    assert not any("Laravel" in note for note in found.notes)


def test_folder_named_webroot_makes_no_php_site_of_a_node_server():
    found = plan("composer.json", "webroot/", "src/", package=scripts(start="node server.js"))
    assert found.profile == "node"


@pytest.mark.parametrize(
    ("web", "folder"),
    [
        ("heroku-php-apache2 web/", "web"),
        ("vendor/bin/heroku-php-nginx -C nginx.conf ./public", "public"),
        ("vendor/bin/heroku-php-apache2 -i php.ini -v pub/www/", "pub/www"),
        ("heroku-php-apache2", "."),
        ("heroku-php-apache2 'a b'", "'a b'"),
        ("heroku-php-nginx -C 'my conf/nginx.conf' web/", "web"),
        ("heroku-php-apache2 '' public", "."),
        ('heroku-php-apache2 "$DOCROOT"', '"$DOCROOT"'),
        ("heroku-php-apache2 ${BASE}/public/", '"${BASE}/public"'),
        ("heroku-php-apache2 '$(id)'", "'$(id)'"),
    ],
)
def test_server_of_php_that_is_elsewhere_is_stood_in_for(web, folder):
    found = plan("composer.json", "composer.lock", "x/", Procfile=f"release: ./go\nweb: {web}")
    expected = f"{PHP} ." if folder == "." else f'exec env {PHP} {folder} "$router"'
    assert found.profile == "php"
    assert found.run.web.splitlines()[-1] == expected
    assert found.run.release == "./go"
    assert found.notes == (f"{web.split()[0]} is none of this server's: PHP's own server runs",)
    assert found.by == ("Procfile", "composer.json", "composer.lock")


def test_server_of_php_that_is_elsewhere_decides_by_itself():
    web = "heroku-php-apache2 www/"
    assert plan("www/", Procfile=f"web: {web}").by == ("Procfile",)
    assert plan("www/", toml=f'[run]\nweb = "{web}"').by == ("managed.toml",)


def test_what_stands_in_for_a_server_of_php_runs_whatever_else_is_said():
    web = "web: heroku-php-apache2 web/"
    output = plan("index.php", "web/", Procfile=web, toml='[build]\noutput = "web"')
    assert (output.folder, output.run.web, output.is_public) == ("web", f"{PHP} web", False)
    other = plan("index.php", Procfile=web, toml='[build]\nprofile = "procfile"')
    assert (other.run.web, other.notes) == ("heroku-php-apache2 web/", ())


@pytest.mark.parametrize(
    "web",
    ["php -S x -t web", "./heroku-php-apache2.sh web", "frankenphp run", "heroku-php-nginx 'a"],
)
def test_server_of_ones_own_runs_as_it_stands(web):
    assert plan("composer.json", "index.php", Procfile=f"web: {web}").run.web == web


@pytest.mark.parametrize(
    ("web", "profile"),
    [
        ("gunicorn app:app", "python"),
        ("python3 -m app", "python"),
        (".venv/bin/python app.py", "python"),
        ("PYTHONPATH=src A=1 uvicorn app:app", "python"),
        ("exec env A=1 gunicorn app:app", "python"),
        ("node server.js", "node"),
        ("npx next start", "node"),
    ],
)
def test_program_that_serves_decides_between_two_languages(web, profile):
    found = plan("requirements.txt", package={}, Procfile=f"web: {web}")
    assert found.profile == profile


@pytest.mark.timeout(20)
def test_script_that_is_run_again_and_again_is_looked_at_once():
    again, long = "npm run a;" * 800, "x " * 100_000
    found = plan(package={"devDependencies": {"x": "1"}, **scripts(start=again, a=long)})
    assert found.run.web == again
    assert "development dependencies stay, for what runs needs x" in found.notes


@pytest.mark.parametrize("start", [{"start": "node a"}, {}])
def test_node_project_may_have_a_pyproject_that_is_no_toml(start):
    found = plan("app.py", pyproject="{{ name }}", package=scripts(build="b", **start))
    assert (found.profile, found.run.web) == ("node", start.get("start"))


@pytest.mark.parametrize(("names", "pyproject"), [((), "{{ name }}"), (["pyproject.toml@"], None)])
def test_pyproject_that_none_reads_may_be_as_it_likes(names, pyproject):
    texts = {"requirements": "gunicorn\nwhitenoise\n"}
    if pyproject is not None:
        texts["pyproject"] = pyproject
    assert plan(*names, "mkdocs.yml", toml=BUILD, **texts).output_folders == OUTPUT_FOLDERS
    assert plan(*names, "app.py", **texts).run.web.startswith("gunicorn app:app")
    assert plan(*names, manage="", Procfile="web: gunicorn a", **texts).run.web == "gunicorn a"


def test_page_beside_a_python_program_and_a_worker_is_not_served_with_its_source():
    with pytest.raises(BuildFailedError, match="has no `web:` line"):
        plan("index.html", "app.py", requirements="gunicorn\n", Procfile="worker: python w.py")


def test_small_print_of_a_package_json_is_read():
    locked = plan("package-lock.json", package={"dependencies": {"a": "1"}, **scripts(start="b")})
    assert locked.notes == ()
    assert plan("server.js", package=scripts(start="vite", build="b")).run.web is None
    text = json.dumps(scripts(start="node a", build=""))
    assert steps(plan(**{"package.json": f"\ufeff{text}"})) == []


def test_folder_named_public_makes_no_php_site_without_composer():
    assert plan("public/", package=scripts(build="b")).profile == "node"


def test_python_program_that_depends_on_nothing_needs_no_client():
    found = plan("app.py", toml='[build]\nprofile = "python"', Procfile="web: python3 app.py")
    assert [need.programs for need in found.needs] == [("python3",)]


def test_php_site_whose_output_is_named_serves_files_and_runs_nothing():
    found = plan("index.php", "a/", toml='[build]\nprofile = "php"\noutput = "a"')
    assert (found.profile, found.folder, found.run) == ("php", "a", RunCommands())


def test_package_that_builds_nothing_for_a_python_site_is_not_installed():
    package = {"dependencies": {"a": "1"}, **scripts(lint="x")}
    found = plan("requirements.txt", "package-lock.json", package=package, Procfile="web: uwsgi a")
    assert steps(found) == [VENV, PIP, WITHOUT_PIP, ("finish", COMPILE)]


def test_assets_of_a_python_site_are_built_and_their_packages_left_out():
    found = plan(
        *("requirements.txt", "package-lock.json"),
        package=scripts(build="webpack"),
        Procfile="web: gunicorn a",
    )
    assert steps(found) == [
        VENV,
        PIP,
        ("install", NPM),
        ("build", "npm run build"),
        ("finish", "rm -rf node_modules"),
        WITHOUT_PIP,
        ("finish", COMPILE),
    ]


@pytest.mark.parametrize(
    ("found", "run"),
    [
        (plan(Procfile="web: ./run --x 'a: b' \n"), RunCommands(web="./run --x 'a: b'")),
        (plan(Procfile="web: a\r\nrelease: b\r\n"), RunCommands(web="a", release="b")),
        (plan(Procfile="\ufeff# hello\n\nweb:a"), RunCommands(web="a")),
        (plan(toml='[run]\nweb = "b"', Procfile="web: a\nrelease: c"), RunCommands("b", "c")),
        (
            plan(toml='[run]\nhealth = "/up"\nrelease = "d"', Procfile="web: a\nrelease: c"),
            RunCommands("a", "d", "/up"),
        ),
        (
            plan(package=scripts(start="a"), toml='[run]\nhealth = "/up"\nrelease = "d"'),
            RunCommands("a", "d", "/up"),
        ),
        (plan(package=scripts(start="a"), Procfile="release: b"), RunCommands("a", "b")),
        (plan("index.php", Procfile="release: b"), RunCommands(f"{PHP} .", "b")),
        (plan("index.html"), RunCommands()),
    ],
)
def test_run_commands_come_from_the_procfile_and_managed_toml_wins(found, run):
    assert found.run == run


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (plan("index.html"), "static, by index.html: serves the whole tree, as committed"),
        (
            plan("public/", toml='[build]\noutput = "public"'),
            "static, by managed.toml: serves public, as committed",
        ),
        (plan(Procfile="web: ./run"), "procfile, by Procfile: runs ./run"),
        (
            plan(toml='[run]\nweb = """\ncd x\n./run"""'),
            "procfile, by managed.toml: runs ... ./run",
        ),
        (
            plan("yarn.lock", package=scripts(build="b")),
            "node, by package.json and yarn.lock: install, build; serves what the build writes",
        ),
        (
            plan("requirements.txt", Procfile="web: gunicorn a"),
            "python, by requirements.txt: install, finish; runs gunicorn a",
        ),
        (
            plan(toml=BUILD + 'output = "out"', Procfile="web: ./run"),
            "procfile, by Procfile: build; runs ./run, from out",
        ),
        (
            plan("index.html", where="apps/web"),
            "static, by apps/web/index.html: serves the whole of apps/web, as committed",
        ),
    ],
)
def test_one_line_tells_what_decided_and_what_follows(found, line):
    assert found.explanation == line


@pytest.mark.parametrize(
    ("found", "note"),
    [
        (
            plan(Procfile="web: a\nworker: b"),
            "Procfile: worker is not run, only web and release are: let the web command start it,",
        ),
        (
            plan(Procfile="clock: c\nweb: a\nworker: b"),
            "Procfile: clock and worker are not run, only web and release are: let the web command",
        ),
        (
            plan(toml='[build]\nprofile = "static"', Procfile="release: b"),
            "Procfile: release is ignored: files alone are served, and nothing runs",
        ),
        (
            plan(toml='[build]\nprofile = "static"', Procfile="web: a"),
            "Procfile: web is ignored: files alone are served, and nothing runs",
        ),
        (
            plan(toml='[build]\nprofile = "static"', Procfile="worker: a"),
            "Procfile: worker is ignored: files alone are served, and nothing runs",
        ),
        (plan("index.html", toml='[run]\nhealth = "/up"'), "run.health is ignored"),
        (plan(package={"dependencies": {"a": "1"}, **scripts(start="b")}), "there is no package-l"),
        (plan("bun.lock", package=scripts(start="b")), "bun.lock is not read"),
        (
            plan(package=scripts(build="b", start="vite \ud800")),
            r"scripts.start is a development server, and is not run: 'vite \ud800'",
        ),
        (plan("composer.json", "public/"), "there is no composer.lock"),
        (plan("requirements.txt", "poetry.lock", Procfile="web: a"), "poetry.lock is not read"),
        (
            plan("pdm.lock", pyproject="[project]", Procfile="web: a"),
            "pdm.lock is not read: `pdm export --prod -o requirements.txt` pins its versions",
        ),
        (plan("Pipfile.lock", Procfile="web: a"), "Pipfile.lock is not read, and nothing is inst"),
        (plan("Pipfile", Procfile="web: a"), "Pipfile is not read, and nothing is installed: co"),
        (plan("poetry.lock", Procfile="web: a"), "poetry.lock is not read, and nothing is inst"),
        (
            plan(pyproject='[tool.poetry]\nname = "a"', Procfile="web: a"),
            "pyproject.toml is not read, and nothing is installed: commit what `poetry export -o",
        ),
    ],
)
def test_what_is_left_out_is_said(found, note):
    assert any(line.startswith(note) for line in found.notes)


@pytest.mark.parametrize(
    ("found", "programs"),
    [
        (plan("index.html"), []),
        (plan(Procfile="web: node a.js"), []),
        (plan(package=scripts(start="node a.js")), ["node"]),
        (plan("package-lock.json", package=scripts(start="a")), ["node", "npm"]),
        (plan("pnpm-lock.yaml", package=scripts(start="a")), ["node", "pnpm"]),
        (plan("yarn.lock", package=scripts(start="a")), ["node", "yarn"]),
        (plan("uv.lock", Procfile="web: a"), ["python3", "uv"]),
        (plan("requirements.txt", Procfile="web: a"), ["python3", "python3"]),
        (
            plan("requirements.txt", Procfile="web: a", toml='[build]\ninstall = "x"'),
            ["python3"],
        ),
        (plan("composer.json", "public/"), ["php", "composer"]),
        (plan("index.php"), ["php"]),
        (
            plan("composer.json", "public/", package=scripts(build="x")),
            ["php", "composer", "node", "npm"],
        ),
    ],
)
def test_plan_names_the_programs_that_the_machine_must_have(found, programs):
    assert [need.programs[0] for need in found.needs] == programs


@pytest.mark.parametrize(
    ("names", "texts", "code", "words"),
    [
        ((), {}, "build.undetected", ("index.html", "Procfile", "managed.toml", "[build] root")),
        ((), {"package": {}}, "build.undetected", ("package.json, without a build script",)),
        (
            (),
            {"package": {}, "toml": '[build]\nprofile = "node"'},
            "build.undetected",
            ("neither a build script nor one that starts",),
        ),
        ((), {"toml": '[build]\nprofile = "node"'}, "build.undetected", ("has a package.json",)),
        (
            (),
            {"package": scripts(start="vite")},
            "build.undetected",
            ("without a build script or a server",),
        ),
        (
            (),
            {"package": {"devDependencies": {ADAPTER_AUTO: "7"}, **scripts(build="vite build")}},
            "build.undetected",
            ("package.json has @sveltejs/adapter-auto", "sv add sveltekit-adapter=adapter:node"),
        ),
        (("requirements.txt",), {}, "build.undetected", ("gunicorn app:app", "$PORT")),
        ((), {"pyproject": "[project]"}, "build.undetected", ("gunicorn app:app",)),
        (
            ("composer.json",),
            {},
            "build.undetected",
            ("no index.php, and no folder public or web beside composer.json",),
        ),
        (("hugo.toml",), {}, "build.undetected", ("There is a hugo.toml:", '= "hugo"')),
        (("Pipfile",), {}, "build.undetected", ("Pipfile is not read", "pipenv requirements >")),
        (
            ("composer.json",),
            {"toml": '[build]\nprofile = "php"'},
            "build.undetected",
            ("no index.php", "-t FOLDER"),
        ),
        (("index.html/",), {}, "build.undetected", ("index.html",)),
        ((), {"Procfile": "release: x"}, "build.undetected", ("The Procfile has no `web:`",)),
        (
            (),
            {"Procfile": "release: x", "package": scripts(build="y")},
            "build.undetected",
            ("The Procfile has no `web:`",),
        ),
        (
            ("a/",),
            {
                "Procfile": "release: x",
                "package": scripts(start="y"),
                "toml": '[build]\noutput="a"',
            },
            "build.undetected",
            ("The Procfile has no `web:`",),
        ),
        (("index.html",), {"Procfile": "# nothing"}, "build.undetected", ("web:",)),
        (
            (),
            {"toml": '[build]\nprofile = "procfile"'},
            "build.undetected",
            ("There is no Procfile",),
        ),
        ((), {"toml": "[run]\nhealth='/x'"}, "build.undetected", ("sets neither",)),
        ((), {"Procfile": "web: a\nnonsense"}, "build.config_invalid", ("line 2",)),
        ((), {"Procfile": "web: a\nweb: b"}, "build.config_invalid", ("line 2", "second")),
        ((), {"Procfile": "web:"}, "build.config_invalid", ("line 1",)),
        ((), {"Procfile": "web: a\0b"}, "build.config_invalid", ("line 1",)),
        (("Procfile/",), {}, "build.config_invalid", ("Procfile", "plain file")),
        (("package.json",), {}, "build.config_invalid", ("package.json", "UTF-8")),
        (
            ("requirements.txt",),
            {"package": {}, "Procfile": "web: ./start"},
            "build.config_invalid",
            ("package.json and requirements.txt", "'start'", "node or python"),
        ),
        (
            ("yarn.lock", "package-lock.json"),
            {"package": scripts(build="x")},
            "build.config_invalid",
            ("package-lock.json and yarn.lock", "packageManager"),
        ),
        ((), {"package": ["x"]}, "build.config_invalid", ("package.json must be an object",)),
        ((), {"package": {"scripts": 1}}, "build.config_invalid", ("scripts must be",)),
        (
            (),
            {"package": scripts(start="\ud800")},
            "build.config_invalid",
            ("scripts.start is not Unicode",),
        ),
        (
            (),
            {"package": scripts(start="a\0b")},
            "build.config_invalid",
            ("scripts.start is longer", "holds a NUL"),
        ),
        (
            (),
            {"package": scripts(start="x" * 9000)},
            "build.config_invalid",
            ("scripts.start is longer",),
        ),
        (
            (),
            {"pyproject": POETRY_APP, "Procfile": "web: a"},
            "build.config_invalid",
            ("pyproject.toml says package-mode = false", "commit poetry.lock"),
        ),
        (
            ("Dockerfile",),
            {},
            "build.undetected",
            ("There is a Dockerfile: images are not built here; add a Procfile",),
        ),
        (("go.mod", "main.go"), {}, "build.undetected", ("There is a go.mod:", "go build")),
        (("Cargo.toml",), {}, "build.undetected", ("There is a Cargo.toml:", "cargo build")),
        (("Gemfile",), {}, "build.undetected", ("There is a Gemfile:", "bundle install")),
        (("x",), {"pyproject": "[["}, "build.config_invalid", ("pyproject.toml is not TOML",)),
        (
            (),
            {"toml": '[build]\noutput = "dist"'},
            "build.output_missing",
            ("'dist'", "build.command"),
        ),
        (("x",), {"toml": '[build]\noutput = "x/y"'}, "build.output_invalid", ("'x/y'",)),
        (("x@",), {"toml": '[build]\noutput = "x"'}, "build.output_invalid", ("'x'",)),
    ],
)
def test_what_cannot_be_built_says_what_was_looked_for(names, texts, code, words):
    with pytest.raises(BuildFailedError) as caught:
        plan(*names, **texts)
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "nul", '{"scripts": {"start": "\\ud8'])
def test_package_json_that_is_none_is_refused_by_its_path(text):
    listing = Listing({"package.json": "file"}, {"package.json": text}, "apps/web")
    with pytest.raises(BuildFailedError) as caught:
        detection.detect(listing, ManagedToml(), ())
    assert caught.value.code == "build.config_invalid"
    assert "apps/web/package.json" in str(caught.value)


def test_package_json_of_a_site_that_says_what_it_is_may_be_as_it_likes():
    found = plan("index.html", toml='[build]\nprofile = "static"', **{"package.json": "{"})
    assert found.is_source


def test_names_in_a_sub_folder_are_told_by_their_path():
    listing = Listing({"README": "file"}, {}, "apps/web")
    with pytest.raises(BuildFailedError, match="Looked in the folder 'apps/web' for"):
        detection.detect(listing, ManagedToml(), ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[build]\ncomand = "x"', ("`build.comand`", "did you mean `build.command`?")),
        ('[biuld]\ncommand = "x"', ("`biuld`", "did you mean `build`?")),
        ('[run]\nzzz = "x"', ("`run.zzz`", "known: web, release, health")),
        ('command = "x"', ("unknown key `command`",)),
        ('build = "x"', ("`build` must be a table",)),
        ("[build]\ncommand = 3", ("`build.command` must be text",)),
        ("[build]\ncommand = true", ("`build.command` must be text",)),
        ('[build]\ncommand = ["make"]', ("`build.command` must be text",)),
        ('[build]\ncommand = " "', ("`build.command` is empty",)),
        ('[build]\ninstall = ""', ("`build.install` is empty", "`install = false`")),
        (f'[build]\ncommand = "{"x" * 9000}"', ("`build.command` is longer",)),
        ('[build]\ncommand = "a\\u0000b"', ("`build.command`",)),
        ('[build]\nprofile = "statik"', ("did you mean `static`?",)),
        ('[build]\nprofile = "docker"', ("known: static, node, python, php, procfile",)),
        ('[build]\noutput = "/etc"', ("`build.output` must be a folder inside", "'/etc'")),
        ('[build]\noutput = "a/../../b"', ("`build.output`",)),
        (f'[build]\noutput = "{"a/" * 2048}"', ("`build.output` is longer than 4095 bytes",)),
        ('[build]\nroot = "../x"', ("`build.root` must be a folder inside",)),
        ('[build]\nlfs = "fetch"', ('`build.lfs` can only be "ignore"', "'fetch'")),
        ("[build]\nsubmodules = false", ("`build.submodules` must be text",)),
        ('[run]\nhealth = "up"', ("`run.health` must be a path",)),
        ('[run]\nhealth = "/a b"', ("`run.health` must be a path",)),
        ('[sites]\nacme = "/x"', ("`sites.acme` must be a folder inside",)),
        ("[sites]\nacme = 1", ("`sites.acme` must be text",)),
        (
            "[sites]\n" + "\n".join(f'a{number} = "x"' for number in range(1001)),
            ("[sites] names more than 1000 sites",),
        ),
        ('[build]\nfacts = ["commit", "time"]', ("`build.facts` must be a list of some of",)),
        ('[build]\nfacts = "commit"', ("`build.facts` must be a list",)),
        ('[build]\ncache = "node_modules"', ("`build.cache` must be a list of at most 20",)),
        (
            f"[build]\ncache = {[f'a{number}' for number in range(21)]}",
            ("`build.cache` must be a list of at most 20 folders",),
        ),
        ('[build]\ncache = ["a", "./"]', ("`build.cache` cannot be the whole site",)),
        ('[build]\ncache = ["a/../../b"]', ("`build.cache` must be a folder inside",)),
        ('[build]\ncache = ["/etc"]', ("`build.cache` must be a folder inside",)),
        ("[build]\ncache = [1]", ("`build.cache` must be text",)),
        ('[build]\nvariables = "TOKEN"', ("`build.variables` must be a list of names",)),
        ("[build]\nvariables = [1]", ("`build.variables` must be a list of names",)),
        ('[build]\nvariables = ["A B"]', ("`build.variables`: 'A B': A name has letters",)),
        (
            '[build]\nvariables = ["LD_PRELOAD"]',
            ("`build.variables`: 'LD_PRELOAD': LD_PRELOAD is the platform's own",),
        ),
        (
            f"[build]\nvariables = {[f'A{number}' for number in range(65)]}",
            ("`build.variables` has more than 64 names",),
        ),
        ('[build]\noutput = "a\\u0007b"', ("`build.output` must be a folder inside",)),
        ("[build\n", ("is not TOML", "line 1")),
        (f"[build]\ncommand = {'9' * 10_000}", ("is not TOML",)),
        (f"a = {'[' * 5_000}{']' * 5_000}", ("is not TOML",)),
        ("a" + ".a" * 32 + " = 1", ("a key has more than 32 parts",)),
        ("[" + " . ".join(["a", '"b.c"', "'d'"] * 11) + "]", ("a key has more than 32 parts",)),
    ],
)
def test_wrong_managed_toml_is_refused_with_the_key_and_the_nearest_known(text, words):
    with pytest.raises(BuildFailedError) as caught:
        parse(text)
    assert caught.value.code == "build.config_invalid"
    for word in ("managed.toml", *words):
        assert word in str(caught.value)


def test_lists_of_managed_toml_have_each_thing_once():
    found = parse(
        '[build]\nfacts = ["environment", "commit", "commit"]\n'
        'cache = ["a//b/", "./c", "a/b"]\nvariables = ["B", "A", "B"]\n'
    )
    assert found.facts == ("commit", "environment")
    assert found.cache == ("a/b", "c")
    assert found.variables == ("B", "A")
    most = [f"a{number}" for number in range(20)]
    assert parse(f"[build]\ncache = {most}\nvariables = {most}").cache == tuple(most)


def test_every_key_of_managed_toml_is_read():
    found = parse(
        '\ufeff[build]\nroot = "web/"\nprofile = "procfile"\ninstall = "make deps"\n'
        'command = "make all"\noutput = "dist/"\nsubmodules = "ignore"\nlfs = "ignore"\n'
        '[run]\nweb = "./web"\nrelease = "./release"\nhealth = "/up?x=1"\n'
        '[sites]\nacme-api = "api"\n'
    )
    assert found == ManagedToml(
        root="web",
        profile=Profile.PROCFILE,
        install="make deps",
        command="make all",
        output="dist",
        ignores_submodules=True,
        ignores_lfs=True,
        web="./web",
        release="./release",
        health="/up?x=1",
        sites={"acme-api": "api"},
    )


@pytest.mark.parametrize(
    ("text", "site", "root"),
    [
        ("", "acme", "."),
        ('[build]\nroot = "web"', "acme", "web"),
        ('[build]\nroot = "web"\n[sites]\nacme-api = "api"', "acme", "web"),
        ('[build]\nroot = "web"\n[sites]\nacme-api = "./srv//api/"', "acme-api", "srv/api"),
        ('[build]\nroot = "web"\n[sites]\nacme = "."', "acme", "."),
    ],
)
def test_site_of_a_monorepo_has_its_folder(text, site, root):
    assert parse(text).root_of(site) == root


def test_settings_in_the_sites_folder_win_key_by_key():
    outer = parse('[build]\nroot = "web"\ninstall = "a"\ncommand = "b"\n[run]\nhealth = "/up"')
    inner = parse('[build]\ncommand = false\n[run]\nweb = "c"', where="web/managed.toml")
    both = outer.overridden_by(inner)
    assert (both.install, both.command, both.web, both.health) == ("a", False, "c", "/up")


@pytest.mark.parametrize("text", ['[build]\nroot = "x"', '[sites]\nacme = "x"'])
def test_settings_in_the_sites_folder_lead_nowhere_else(text):
    with pytest.raises(BuildFailedError, match="only the managed"):
        parse(text, where="web/managed.toml")


def test_many_dots_in_a_command_are_no_long_key():
    command = "cp " + " ".join(f"a{n}.b.c" for n in range(50)) + " ..." + "." * 99
    assert parse(f'[build]\ncommand = "{command}"').command == command


@given(st.text(max_size=200))
def test_any_text_parses_or_is_refused_as_the_commits_fault(text):
    with contextlib.suppress(BuildFailedError):
        parse(text)


@given(
    st.sets(
        st.sampled_from(
            [
                "index.html",
                "index.php",
                "requirements.txt",
                "uv.lock",
                "public/",
                "composer.json",
                "package-lock.json",
                "yarn.lock",
                "server.js",
                "poetry.lock",
            ]
        )
    ),
    st.sampled_from([None, {}, scripts(build="b"), scripts(start="s"), scripts(start="vite")]),
    st.sampled_from([None, "web: node x", "web: ./x\nrelease: y", "worker: z"]),
    st.sampled_from(
        [
            "",
            BUILD,
            '[build]\noutput = "public"',
            "[build]\ninstall = false",
            *(f'[build]\nprofile = "{profile}"' for profile in Profile),
        ]
    ),
)
def test_every_tree_has_a_plan_that_serves_something_or_fails_as_the_commits_fault(
    names, package, procfile, toml
):
    texts = {} if package is None else {"package": package}
    if procfile is not None:
        texts["Procfile"] = procfile
    try:
        found = plan(*names, toml=toml, **texts)
    except BuildFailedError:
        return
    assert found.by
    assert found.run.web is not None or found.is_public
    if found.profile is Profile.PHP and found.run.web is None:
        assert found.folder != "." or found.output_folders, "sources are shown to nobody"
    assert "\n" not in found.explanation


@given(st.text(alphabet="ab./ \n", max_size=30))
def test_clean_folder_never_leaves_the_root(path):
    try:
        clean = clean_folder(path)
    except ValueError:
        return
    assert clean == "." or all(part not in ("", ".", "..") for part in clean.split("/"))
    assert clean_folder(clean) == clean


@pytest.mark.parametrize(
    ("path", "published"),
    [
        ("index.html", True),
        ("css/style.css", True),
        ("a.b/c", True),
        ("docs/managed.toml", True),
        ("managed.toml", False),
        ("managed.toml/x", True),
        (".gitignore", False),
        (".github/workflows/ci.yml", False),
        (".env", False),
        ("sub/.env", False),
        ("sub/.git/config", False),
        (".well-known", True),
        (".well-known/security.txt", True),
        (".well-known/.secret", False),
        ("sub/.well-known/x", False),
        (".well-knownish", False),
    ],
)
def test_static_site_publishes_no_hidden_files(path, published):
    assert is_published(path) == published
