"""What a sandbox runs, and what it may see and use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hooks.builds.sandbox.limits import Limits

APP_DIR = "/app"  # where a build finds its source, and a site its release: paths stay true
HOME_DIR = "/home/app"
IN_MEMORY = ("/tmp", "/dev/shm")  # noqa: S108 - the sandbox's own


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or folder of the machine, and where the sandbox sees it."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What to run, and what it may see.

    `argv[0]` is looked up in the sandbox's PATH. `environ` is added to a small base (PATH, HOME,
    LANG, ...) and wins over it. `binds` are made in their order. Without a bind at `HOME_DIR` the
    home is a folder in memory, of at most `limits.tmp_bytes`. `network`: share the machine's.
    `listen_port`: a port of the sandbox's own loopback that `Sandbox.listener` listens on.
    `is_background`: others come first, for the processor and when memory runs out. `limits` count
    for all processes together; the sandbox is ended when it exceeds one.
    """

    argv: tuple[str, ...]
    binds: tuple[Bind, ...] = ()
    cwd: str = APP_DIR
    environ: Mapping[str, str] = field(default_factory=dict)
    network: bool = False
    listen_port: int | None = None
    is_background: bool = False
    hostname: str = "build"
    limits: Limits = field(default_factory=Limits)

    @property
    def home_is_in_memory(self) -> bool:
        return all(bind.target != HOME_DIR for bind in self.binds)
