"""Runtimes: the programs of the machine that builds and sites use, and where they find their own.

The sandbox shows what is below /usr: what the operator installed there is what there is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles.plan import Need
from hooks.builds.sandbox.spec import APP_DIR, HOME_DIR

RUNTIME_MISSING = "build.runtime_missing"
PROGRAMS = ("uv", "pnpm", "yarn", "corepack")
"""Those that, where they are there, do what others would do otherwise."""
MACHINE_PATH = "/usr/local/bin:/usr/bin:/bin"
_OWN = (".venv/bin", "node_modules/.bin", "vendor/bin")
SITE_PATH = ":".join([*(f"{APP_DIR}/{folder}" for folder in _OWN), MACHINE_PATH])
"""Where a web process finds programs: those that its dependencies brought come first."""
BUILD_PATH = f"{HOME_DIR}/bin:{SITE_PATH}"

BUILD_ENVIRON = {
    "PATH": BUILD_PATH,
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_COMPILE": "1",
    "PIP_NO_INPUT": "1",
    "PIP_PROGRESS_BAR": "off",
    "PYTHONDONTWRITEBYTECODE": "1",
    "UV_LINK_MODE": "copy",
    "UV_NO_PROGRESS": "1",
    "UV_PYTHON_DOWNLOADS": "never",
    "UV_PYTHON_PREFERENCE": "only-system",
    "COMPOSER_NO_INTERACTION": "1",
    "COREPACK_DEFAULT_TO_LATEST": "0",
    "COREPACK_ENABLE_DOWNLOAD_PROMPT": "0",
    "YARN_NODE_LINKER": "node-modules",
    "YARN_ENABLE_TELEMETRY": "0",
    "npm_config_audit": "false",
    "npm_config_fund": "false",
    "npm_config_progress": "false",
    "npm_config_update_notifier": "false",
}
"""What tells the profiles' programs that nobody watches, and that files must not differ by chance.

`COREPACK_DEFAULT_TO_LATEST`: the newest client may want another Node than there is; where nobody
names one, it is the one that corepack comes with, whose digest it knows. `YARN_NODE_LINKER`:
Plug'n'Play would need Yarn wherever the program runs.
"""


def available() -> frozenset[str]:
    """Return those of `PROGRAMS` that builds find. Blocking, some stats."""
    return frozenset(name for name in PROGRAMS if shutil.which(name, path=MACHINE_PATH))


def require(needs: Iterable[Need], *, path: str = MACHINE_PATH) -> None:
    """Look for the programs that a plan needs. Blocking, some stats.

    Raises:
        BuildFailedError: `build.runtime_missing`, naming the program and what brings it.
    """
    for need in needs:
        found = [there for name in need.programs if (there := shutil.which(name, path=path))]
        if not found:
            program = " or ".join(need.programs)
            raise _missing(f"{program}, which is not installed on this server", need)
        if need.module is not None and not _has_module(Path(found[0]), need.module):
            raise _missing(f"{need.module} of {found[0]}, which is not installed", need)


def _missing(what: str, need: Need) -> BuildFailedError:
    return BuildFailedError(
        RUNTIME_MISSING,
        f"This build needs {what}: its operator has to install {need.packages} (below /usr, where"
        " builds and sites see it). Another way to build it can stand in managed.toml.",
    )


def _has_module(python: Path, module: str) -> bool:
    """Say whether an interpreter's own library has a module, without running it."""
    real = python.resolve()
    libraries = (real.parent.parent / lib / real.name for lib in ("lib", "lib64"))
    return any((library / module).is_dir() for library in libraries)
