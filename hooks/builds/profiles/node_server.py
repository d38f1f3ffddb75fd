"""What serves a Node project: its start script, or what stands in for one. Pure."""

from __future__ import annotations

import posixpath
import re
import shlex
from dataclasses import dataclass

from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles.package_json import PACKAGE_JSON, Package
from hooks.builds.profiles.plan import INDEX, Listing, checked_command
from hooks.builds.wire import NEXT_CONFIGS

UNDETECTED = "build.undetected"
# Source: npm-scripts(7), "npm start": without the script, `node server.js` where there is one.
_DEFAULT_SERVER = "server.js"
# That of a generator that has a development server at `npm start`: Nest's. Others look there at
# files that were built, on a port of its own, as `vite preview` is: it counts where it is `node`.
_START_PROD = "start:prod"
_NODE = re.compile(r"(?<![^\s(;&|])node\s")


@dataclass(frozen=True, slots=True)
class BuiltServer:
    """A program that a framework builds: the command that runs it, and the file that it is."""

    command: str
    file: str


# Their setup leaves these in `start` where the configuration says that there is no server (`ssr`).
# Source: React Router, "Single Page App (SPA)". In a longer command, as one that begins with `cd`,
# the file may be anywhere.
_SERVED = re.compile(
    r"(?:(?:cross-env|\w+=[^\s;&|]+) )*(?:react-router|remix)-serve ([\w.][\w./-]*)"
)
# What some frameworks build is a program, and which is told by what the package depends on. Behind
# a proxy SvelteKit has to be told where the visitor's scheme stands.
# Source: @sveltejs/adapter-node, "Environment variables"; @astrojs/node, "standalone"; nitro.
_BUILT_SERVERS = {
    "@sveltejs/adapter-node": BuiltServer(
        "PROTOCOL_HEADER=x-forwarded-proto node build", "build/index.js"
    ),
    "@astrojs/node": BuiltServer("node dist/server/entry.mjs", "dist/server/entry.mjs"),
    **dict.fromkeys(
        ("nuxt", "nitro", "nitropack"),
        BuiltServer("node .output/server/index.mjs", ".output/server/index.mjs"),
    ),
}
_ADAPTER_AUTO = "@sveltejs/adapter-auto"
_WRITES_FILES = re.compile(r"\b(?:nuxt|nuxi) generate\b")
_DEVELOPMENT_SERVER = re.compile(
    r"\b(?:"
    r"(?:react-scripts|craco|react-app-rewired|docusaurus) start"
    r"|(?:astro|gatsby) (?:dev|develop|start)|ng serve|gatsby develop|ember serve"
    r"|(?:expo|nest) start|brunch watch|sapper dev|stencil build\b.{0,200}--serve"
    r"|(?:next|nuxt|nuxi|vitepress|vuepress|remix|rsbuild|umi|max|quasar|snowpack) dev"
    r"|vue-cli-service serve|webpack(?:-cli)? serve|webpack-dev-server|live-server"
    r"|eleventy\b.{0,200}--serve|parcel(?! build)|vite(?! (?:build|preview))"
    r")(?![\w.:/-])"
)
# Where pages go, below the folder that they are read from.
# Source: VitePress, "Deploy Your VitePress Site"; VuePress, "dest".
_PAGES = re.compile(r"\b(vitepress|vuepress) build(?: ([\w./][\w./-]{0,200}))?")
_PAGES_ALONE = re.compile(r"(?:npx |pnpm (?:exec )?|yarn )?(?:vitepress|vuepress) build\b[^;&|]*")
# Source: Next.js, "Static exports": `next start` ends with an error then.
_NEXT_START = re.compile(r"\bnext start\b")
_NEXT_EXPORT = re.compile(r"""^(?!\s*[/*]).*\boutput\s*:\s*["'`]export["'`]""", re.MULTILINE)
_RUN = re.compile(r"\b(?:npm run|(?:pnpm|yarn)(?: run)?) ([\w:.-]+)")
# What starts several programs at once: one of them may be the server.
_BESIDE = re.compile(r"\b(?:concurrently|npm-run-all|run-p)\b|(?<![&>])&(?!&)")
_WORD = re.compile(r"[\w@./:-]+")


def server(listing: Listing, package: Package, build: str | None) -> str | None:
    """Return the command that serves: `npm start`, or what stands in for it; None without one.

    A development server is none. `build`: the command that is run instead of the build script.
    """
    start_prod = package.scripts.get(_START_PROD, "")
    starts = ["start", _START_PROD] if _NODE.search(start_prod) else ["start"]
    for name in starts:
        start = package.scripts.get(name)
        if start is not None and not _serves_nothing(listing, package, start):
            before = package.scripts.get(f"pre{name}")
            command = f"({before}) && {start}" if before else start
            return checked_command(command, f"{listing.path(PACKAGE_JSON)}: scripts.{name}")
    if "start" not in package.scripts and listing.has_file(_DEFAULT_SERVER):
        return f"node {_DEFAULT_SERVER}"
    build = build or package.scripts.get("build")
    if build is None:
        return _main(listing, package)
    built = built_server(package, build)
    return built.command if built is not None else None


def made_file(package: Package, build: str, web: str) -> str | None:
    """Return the file that `web` runs where `build` is to make it, None where that is not known.

    The path leads to nothing above the package.
    """
    if found := _SERVED.fullmatch(web.strip()):
        path = posixpath.normpath(found[1])
        return None if path.partition("/")[0] == ".." else path
    built = built_server(package, build)
    return built.file if built is not None and built.command == web else None


def built_server(package: Package, build: str) -> BuiltServer | None:
    """Return the program that `build` makes of what the package depends on, None for files alone.

    Whether it does is seen when it has run: the adapter of a server may be there and not in use.
    """
    if any(map(_WRITES_FILES.search, _commands(package, build))):
        return None
    depends_on = package.dependencies | package.dev_dependencies
    return next((_BUILT_SERVERS[name] for name in _BUILT_SERVERS if name in depends_on), None)


def pages_folder(package: Package) -> str | None:
    """Return the folder that VitePress or VuePress writes to when the package is built by it."""
    script = package.scripts.get(package.build_script or "", "")
    found = next(filter(None, map(_PAGES.search, _commands(package, script))), None)
    if found is None:
        return None
    source = (found[2] or "").strip("./")
    return "/".join(filter(None, (source, f".{found[1]}", "dist")))


def builds_pages_alone(package: Package) -> bool:
    """Say whether what `pages_folder` finds is all that is built, or made for pages alone."""
    if package.build_script != "build":
        return True
    said = filter(None, _commands(package, package.scripts["build"]))
    return all(_RUN.fullmatch(each) or _PAGES_ALONE.fullmatch(each) for each in said)


def is_development(package: Package, command: str) -> bool:
    """Say whether a command starts a development server, be it by another script."""
    commands = [command] if _BESIDE.search(command) else _commands(package, command)
    return any(map(_DEVELOPMENT_SERVER.search, commands))


def needed_tools(package: Package, web: str) -> list[str]:
    """Return the development dependencies that a command names, as `tsx` in `tsx server.ts`."""
    said = " ".join(_commands(package, web))
    words = {word for part in _WORD.findall(said) for word in _parts(part)}
    return sorted(package.dev_dependencies & words)


def refuse_adapter_auto(listing: Listing, package: Package) -> None:
    """Refuse a SvelteKit project as its generator leaves it: its build would write no site.

    Raises:
        BuildFailedError: `build.undetected`, with what to do.
    """
    names = package.dependencies | package.dev_dependencies
    if [name for name in names if "adapter" in name] == [_ADAPTER_AUTO]:
        raise BuildFailedError(
            UNDETECTED,
            f"{listing.path(PACKAGE_JSON)} has {_ADAPTER_AUTO}, which knows the clouds of a few"
            " companies and writes nothing elsewhere: run `npx sv add"
            " sveltekit-adapter=adapter:node`, or adapter:static for a site of files alone.",
        )


def _serves_nothing(listing: Listing, package: Package, start: str) -> bool:
    """Say whether a command is a development server, or one that refuses to serve the project."""
    if is_development(package, start):
        return True
    configs = [listing.files.get(name, "") for name in NEXT_CONFIGS]
    return bool(_NEXT_START.search(start)) and any(map(_NEXT_EXPORT.search, configs))


def _main(listing: Listing, package: Package) -> str | None:
    """Return how to run a package that is one file, as `npm init` has it.

    Nothing is built then: the file would not be what the developer wrote. Beside a page it is a
    script of that.
    """
    name = package.main.removeprefix("./")
    if not listing.has_file(name) or "start" in package.scripts or listing.has_file(INDEX):
        return None
    return checked_command(f"node {shlex.quote(f'./{name}')}", listing.path(PACKAGE_JSON))


def _commands(package: Package, command: str) -> list[str]:
    """Return a command, and the scripts that it has a package manager run."""
    names = dict.fromkeys(_RUN.findall(command))  # each once, however often it is run
    return [command, *(package.scripts.get(name, "") for name in names)]


def _parts(word: str) -> tuple[str, ...]:
    """Return the packages that a word of a command may name: `a`, `a/b` of `a`, `x/.bin/a`."""
    first, _, rest = word.partition("/")
    return word, first, "/".join([first, rest.partition("/")[0]]), word.partition("/.bin/")[2]
