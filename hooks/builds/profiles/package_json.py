"""A `package.json`: what is read of it. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles.managed_toml import CONFIG_INVALID
from hooks.builds.profiles.plan import Listing

PACKAGE_JSON = "package.json"
_DOCS_BUILD = "docs:build"
_PAGES = re.compile(r"\b(?:vitepress|vuepress) build\b")


@dataclass(frozen=True, slots=True)
class Package:
    """What is read of a `package.json`."""

    scripts: dict[str, str]
    has_dependencies: bool
    dependencies: frozenset[str]
    dev_dependencies: frozenset[str]
    main: str
    """The file that is the package, as `index.js`; empty where it is not said."""
    manager: str
    """`packageManager`, such as `pnpm@9.1.0`; empty where it is not said."""

    @property
    def build_script(self) -> str | None:
        """The name of the script that builds: `build`, or what makes nothing but pages.

        Source: VitePress, "Getting Started", whose setup names it `docs:build`.
        """
        if "build" in self.scripts:
            return "build"
        return _DOCS_BUILD if _PAGES.search(self.scripts.get(_DOCS_BUILD, "")) else None

    @classmethod
    def read(cls, listing: Listing) -> Package | None:
        """Return the `package.json` of a folder, None where it has none.

        Raises:
            BuildFailedError: `build.config_invalid`.
        """
        text = listing.text(PACKAGE_JSON)
        if text is None:
            return None
        where = listing.path(PACKAGE_JSON)
        try:
            document = json.loads(text.removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            raise BuildFailedError(CONFIG_INVALID, f"{where} is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise BuildFailedError(CONFIG_INVALID, f"{where} must be an object")
        main, manager = document.get("main"), document.get("packageManager")
        return cls(
            scripts=_scripts(document, where),
            has_dependencies=any(
                document.get(key)
                for key in (
                    "dependencies",
                    "devDependencies",
                    "optionalDependencies",
                    "peerDependencies",
                    "workspaces",
                )
            ),
            dependencies=_names(document, "dependencies"),
            dev_dependencies=_names(document, "devDependencies"),
            main=main if isinstance(main, str) else "",
            manager=manager if isinstance(manager, str) else "",
        )


def _names(document: dict[str, Any], key: str) -> frozenset[str]:
    names = document.get(key)
    return frozenset(names) if isinstance(names, dict) else frozenset()


def _scripts(document: dict[str, Any], where: str) -> dict[str, str]:
    scripts = document.get("scripts") or {}
    if not isinstance(scripts, dict):
        raise BuildFailedError(CONFIG_INVALID, f"{where}: scripts must be an object")
    return {name: script for name, script in scripts.items() if isinstance(script, str) and script}
