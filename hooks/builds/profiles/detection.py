"""Profiles: what a commit is, told from the names in its site's folder and the text of a few files.

Pure: nothing is run to find out. What the tree says is a recipe of its profile; `managed.toml`
overrides each part of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from functools import cached_property

from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles import advice, node, node_server, php, python, python_server
from hooks.builds.profiles.managed_toml import CONFIG_INVALID, ManagedToml, Profile
from hooks.builds.profiles.package_json import PACKAGE_JSON, Package
from hooks.builds.profiles.plan import (
    INDEX,
    MANAGED_TOML,
    PROCFILE,
    Listing,
    Plan,
    Recipe,
    Step,
    StepName,
)
from hooks.builds.wire import RunCommands

OUTPUT_MISSING = "build.output_missing"
OUTPUT_INVALID = "build.output_invalid"
OUTPUT_FOLDERS = ("dist", "build", "out", "_site", ".output/public", "public")
"""Where the usual tools put what they build."""
PUBLISHED_DOT_FOLDER = ".well-known"  # Source: RFC 8615
_PROCFILE_LINE = re.compile(r"([A-Za-z0-9_-]+)\s*:\s*(.*\S)\s*")
_PROCFILE_KNOWN = ("web", "release")
_BEFORE_PROGRAM = re.compile(r"[A-Za-z_]\w*=\S*|exec|env")
_PROGRAMS = {
    Profile.NODE: ("node", "npm", "npx", "pnpm", "yarn", "next", "nuxt", "tsx", "ts-node"),
    Profile.PYTHON: (
        *("python", "python3", "gunicorn", "uvicorn", "hypercorn", "daphne", "granian"),
        *("waitress-serve", "flask", "fastapi", "uwsgi", "streamlit", "uv"),
    ),
    Profile.PHP: ("php", "php-fpm", "frankenphp", "rr"),
}


def detect(listing: Listing, config: ManagedToml, programs: Collection[str]) -> Plan:
    """Decide how a commit is built. `programs`: those of the machine, of `runtimes.PROGRAMS`.

    Raises:
        BuildFailedError: `build.config_invalid`, `build.undetected`, or `build.output_missing`
            when the output is a folder that the commit does not have.
    """
    return _Detection(listing, config, programs).plan()


def of_pages(plan: Plan) -> Plan:
    """Return the plan of a site whose build made no `web_file`: its pages are what is served."""
    return replace(
        plan, run=RunCommands(), web_file=None, output_folders=OUTPUT_FOLDERS, is_public=True
    )


def is_published(path: str) -> bool:
    """Say whether a static site shows `path`, which is relative to the folder that it serves.

    Not shown: `managed.toml`, and what begins with a dot (`.git*`, `.env`, ...) at any depth,
    except below `.well-known` in the root.
    """
    first, *rest = path.split("/")
    if first == MANAGED_TOML and not rest:
        return False
    hidden = [part for part in rest if part.startswith(".")]
    return not hidden and (not first.startswith(".") or first == PUBLISHED_DOT_FOLDER)


class _Detection:
    """What is known of the commit, and what follows from it."""

    def __init__(self, listing: Listing, config: ManagedToml, programs: Collection[str]) -> None:
        self._listing = listing
        self._programs = programs
        self._config = config
        self._procfile = _procfile(listing)
        self._web = config.web or self._procfile.get("web")
        self._php_root = php.document_root(listing)
        self._elsewhere: str | None = None
        may_be_php = config.profile in (None, Profile.PHP)
        if may_be_php and self._web is not None and (root := php.served_folder(self._web)):
            self._elsewhere, self._web, self._php_root = self._web, None, root

    @cached_property
    def _package(self) -> Package | None:
        """Read where it matters: a static site's may be as it likes."""
        return Package.read(self._listing)

    def plan(self) -> Plan:
        config = self._config
        profile = config.profile or self._guess()
        web = None if profile is Profile.STATIC else self._web
        if profile is Profile.PROCFILE and web is None:
            raise advice.without_web(self._listing)
        recipe = self._recipe(profile)
        # What a Procfile has run is never shown as it stands.
        if web is None and (config.output is None or self._elsewhere is not None):
            web = recipe.web
        steps = self._steps(recipe)
        is_own = web is not None and web == recipe.web
        web_notes = recipe.web_notes if is_own else ()
        ignored = self._ignored(web)
        notes = [*self._not_here(), *self._unrun(web), *recipe.notes, *web_notes, *ignored]
        run = RunCommands()
        if web is not None:
            release = config.release or self._procfile.get("release")
            if release is not None and is_own:
                release = "\n".join((*recipe.environment, release))
            run = RunCommands(web=web, release=release, health=config.health)
        folder, output_folders = self._output(profile, recipe, web, steps)
        is_by_itself = run == RunCommands(web=recipe.web)
        return Plan(
            profile,
            run,
            by=self._by(profile, recipe),
            root=self._listing.where,
            tree=self._listing.tree,
            steps=steps,
            folder=folder,
            output_folders=output_folders,
            web_file=recipe.web_file if is_by_itself else None,
            needs=recipe.needs + (recipe.client_needs if config.install is None else ()),
            left_out=recipe.left_out if config.finish is None else (),
            is_public=web is None or (recipe.is_public and is_own),
            facts=config.facts or (),
            cache=config.cache or (),
            ignores_submodules=bool(config.ignores_submodules),
            ignores_lfs=bool(config.ignores_lfs),
            variables=config.variables or (),
            notes=tuple(notes),
        )

    # -- which profile --------------------------------------------------------------------------

    def _guess(self) -> Profile:
        if self._web is not None:
            return self._guess_by_web(self._web)
        config, listing = self._config, self._listing
        if self._elsewhere is not None:
            return Profile.PHP
        if listing.has_file(PROCFILE) and not self._has_server():
            raise advice.without_web(listing)
        if config.output is None and self._php_root is not None:
            return Profile.PHP
        if self._python_serves():
            return Profile.PYTHON
        if self._package is not None and self._node_makes_it(self._package):
            return Profile.NODE
        python_file = python.dependency_file(listing)
        if config.command and python_file:
            return Profile.PYTHON
        if config.output is not None or config.command or listing.has_file(INDEX):
            return Profile.STATIC
        if python_file:
            raise advice.serves_nothing(listing, Profile.PYTHON)
        raise advice.undetected(listing)

    def _guess_by_web(self, web: str) -> Profile:
        """Several languages in one tree: the one of the program that serves."""
        languages = {
            Profile.NODE: PACKAGE_JSON if self._package is not None else None,
            Profile.PYTHON: python.dependency_file(self._listing),
            Profile.PHP: self._listing.first_file(php.COMPOSER_JSON),
        }
        found = {profile: name for profile, name in languages.items() if name}
        if len(found) <= 1:
            return next(iter(found), Profile.PROCFILE)
        words = (word for word in web.split() if not _BEFORE_PROGRAM.fullmatch(word))
        program = next(words, "").rpartition("/")[2]
        for profile in found:
            if program in _PROGRAMS[profile]:
                return profile
        raise BuildFailedError(
            CONFIG_INVALID,
            f"{' and '.join(self._listing.path(name) for name in found.values())} are both there,"
            f" and {program!r} does not tell which of them it needs: set build.profile in"
            f" managed.toml to {' or '.join(found)}",
        )

    def _node_makes_it(self, package: Package) -> bool:
        """Say whether the package is more than the tools of those who write the site."""
        config = self._config
        if config.command or "build" in package.scripts:
            return True
        if config.output is None and self._node_server(package) is not None:
            return True
        pages = node_server.pages_folder(package)  # those of the whole site, or of what it is about
        is_asked_for = config.output in (None, pages) and not self._listing.has_file(INDEX)
        return pages is not None and is_asked_for

    def _has_server(self) -> bool:
        """Say whether the project itself names what serves it, so that a Procfile need not."""
        if self._config.output is not None:
            return False
        is_php = self._php_root is not None
        return self._node_serves() or is_php or self._python_serves()

    def _node_serves(self) -> bool:
        package = self._package
        return package is not None and self._node_server(package) is not None

    def _node_server(self, package: Package) -> str | None:
        return node_server.server(self._listing, package, self._config.command or None)

    def _python_serves(self) -> bool:
        """Say whether a Python project is served by its own program, and by no other.

        Beside a page it is not: what such a commit has was served as files before. Nor is a script
        that serves itself beside what Node builds: it may be there for something else.
        """
        if self._config.output is not None or self._listing.has_file(INDEX):
            return False
        try:
            if python.dependency_file(self._listing) is None:
                return False
        except BuildFailedError:  # its pyproject.toml is no TOML, which nothing of Node's reads
            if self._package is None:
                raise
            return False
        package, listing = self._package, self._listing
        if package is not None and python_server.application_server(listing) is None:
            return python_server.server(listing) is not None and not self._node_makes_it(package)
        return python_server.server(listing) is not None and not self._node_serves()

    # -- what to do -----------------------------------------------------------------------------

    def _recipe(self, profile: Profile) -> Recipe:
        listing = self._listing
        match profile:
            case Profile.NODE:
                return self._node_recipe()
            case Profile.PROCFILE:
                return Recipe(notes=python.unread(listing))
            case Profile.PYTHON:
                if self._config.install is None:
                    python.refuse_package_mode(listing)
                return self._with_assets(self._python_recipe())
            case Profile.PHP:
                return self._with_assets(php.recipe(listing, self._php_root))
            case _:
                return Recipe()

    def _node_recipe(self) -> Recipe:
        listing, package = self._listing, self._package
        if package is None:
            raise advice.without_package(listing)
        web = self._web
        if web is None and self._config.output is None:
            web = self._node_server(package)
            if web is None and self._config.command is None:
                node_server.refuse_adapter_auto(listing, package)
        recipe = node.recipe(listing, package, self._programs, web=web)
        if web is None or self._web is not None:
            return recipe
        build = self._config.command or package.scripts.get("build", "")
        return replace(recipe, web_file=node_server.made_file(package, build, web))

    def _python_recipe(self) -> Recipe:
        listing = self._listing
        web = self._web
        if web is None and self._config.output is None:
            web = python_server.server(listing)
        recipe = python.recipe(listing, self._programs, runs=web is not None)
        build = python_server.COLLECT_STATIC if python_server.collects_static(listing) else None
        return replace(recipe, build=(build,) if build else (), web=web)

    def _with_assets(self, recipe: Recipe) -> Recipe:
        """Let a `package.json` beside another language build what visitors' browsers get."""
        package = self._package
        if package is None or "build" not in package.scripts:
            return recipe
        assets = node.recipe(self._listing, package, self._programs, web=None)
        return replace(
            recipe,
            by=(*recipe.by, *assets.by),
            install=(*recipe.install, *assets.install),
            build=(*assets.build, *recipe.build),
            prune=("rm -rf node_modules", *recipe.prune),
            client_needs=(*recipe.client_needs, *assets.needs, *assets.client_needs),
            notes=(*recipe.notes, *assets.notes),
        )

    def _steps(self, recipe: Recipe) -> tuple[Step, ...]:
        config = self._config
        install, finish = recipe.install, (*recipe.prune, *recipe.finish)
        if config.install is not None:
            install = (*recipe.prepare, config.install) if config.install else ()
            finish = recipe.finish
        build = recipe.build
        if config.command is not None:
            build = (config.command,) if config.command else ()
        if not install and not build:
            finish = ()
        if config.finish is not None:
            finish = (config.finish,) if config.finish else ()
        steps = ((StepName.INSTALL, install), (StepName.BUILD, build), (StepName.FINISH, finish))
        return tuple(Step(name, command) for name, commands in steps for command in commands)

    def _output(
        self, profile: Profile, recipe: Recipe, web: str | None, steps: tuple[Step, ...]
    ) -> tuple[str, tuple[str, ...]]:
        """Return the folder that becomes the artifact, or those that the build may fill."""
        folder = self._config.output
        if folder is None and web is None:
            is_whole = profile is Profile.STATIC and self._listing.has_file(INDEX)
            if not is_whole and any(step.name is StepName.BUILD for step in steps):
                said = (recipe.output_folder,) if recipe.output_folder else ()
                usual_first = recipe.builds_more
                return ".", (*OUTPUT_FOLDERS, *said) if usual_first else (*said, *OUTPUT_FOLDERS)
            if profile is not Profile.STATIC:
                raise advice.serves_nothing(self._listing, profile)
        folder = folder or "."
        if not steps:
            _require_folder(folder, self._listing)
        return folder, ()

    # -- what to say ----------------------------------------------------------------------------

    def _by(self, profile: Profile, recipe: Recipe) -> tuple[str, ...]:
        config, path = self._config, self._listing.path
        if config.profile is not None:
            return ("managed.toml",)
        by = [path(name) for name in recipe.by]
        if profile is Profile.PROCFILE:
            by = ["managed.toml" if config.web else path(PROCFILE)]
        elif self._elsewhere is not None:
            by.insert(0, "managed.toml" if config.web else path(PROCFILE))
        elif profile is Profile.STATIC:
            by = ["managed.toml" if config.output or config.command else path(INDEX)]
        return tuple(by)

    def _not_here(self) -> list[str]:
        if self._elsewhere is None:
            return []
        return [f"{self._elsewhere.split()[0]} is none of this server's: PHP's own server runs"]

    def _unrun(self, web: str | None) -> list[str]:
        unrun = [name for name in self._procfile if name not in _PROCFILE_KNOWN]
        if web is None or not unrun:
            return []
        are, them = ("is", "it") if len(unrun) == 1 else ("are", "them")
        note = (
            f"Procfile: {' and '.join(unrun)} {are} not run, only web and release are:"
            f" let the web command start {them}, or run {them} elsewhere"
        )
        return [note]

    def _ignored(self, web: str | None) -> list[str]:
        if web is not None:
            return []
        config = self._config
        keys = {"run.web": config.web, "run.release": config.release, "run.health": config.health}
        keys |= {f"Procfile: {name}": command for name, command in self._procfile.items()}
        return [
            f"{key} is ignored: files alone are served, and nothing runs"
            for key, value in keys.items()
            if value is not None
        ]


def _procfile(listing: Listing) -> dict[str, str]:
    """Return the Procfile's commands by process type."""
    commands: dict[str, str] = {}
    name = listing.path(PROCFILE)
    for number, line in enumerate((listing.text(PROCFILE) or "").splitlines(), start=1):
        if not line.strip("\ufeff \t") or line.lstrip("\ufeff \t").startswith("#"):
            continue
        match = _PROCFILE_LINE.fullmatch(line.strip("\ufeff \t"))
        if match is None or "\0" in line:
            raise BuildFailedError(
                CONFIG_INVALID, f"{name}: line {number} is not `type: command`: {line[:80]!r}"
            )
        kind, command = match.groups()
        if kind in commands:
            raise BuildFailedError(CONFIG_INVALID, f"{name}: line {number}: a second {kind!r}")
        commands[kind] = command
    return commands


def _require_folder(folder: str, listing: Listing) -> None:
    first = folder.partition("/")[0]
    if first == "." or listing.has_folder(first):
        return
    if first in listing.kinds:
        raise BuildFailedError(OUTPUT_INVALID, f"The output {folder!r} is no folder.")
    raise BuildFailedError(
        OUTPUT_MISSING,
        f"The commit has no folder {listing.path(folder)!r}, and no build.command in managed.toml"
        " makes it.",
    )
