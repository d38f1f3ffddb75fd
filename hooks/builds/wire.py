"""What control and a builder slot say to each other, over HTTP on a Unix socket.

| call | body | answer |
|---|---|---|
| `POST /v1/lease` | `LeaseRequest` | 200 `Lease`, or 204 after `wait_s` without work |
| `GET /v1/jobs/{job_id}/folder?path=` | | 200 `Folder` of the commit, or 404 |
| `GET /v1/jobs/{job_id}/source?folder=&submodules=&base=` | | its files, or 422 `BuildError` |
| `GET /v1/jobs/{job_id}/egress` | | `Egress`: what the build command may reach |
| `POST /v1/jobs/{job_id}/variables` | `Declared` | `Given`, or 422 `BuildError` |
| `POST /v1/jobs/{job_id}/log` | `LogBatch` | `{}` |
| `POST /v1/jobs/{job_id}/heartbeat` | `Heartbeat` | `HeartbeatAnswer` |
| `POST /v1/jobs/{job_id}/cache` | `CacheRequest` | `CacheAnswer` |
| `GET /v1/jobs/{job_id}/cache?digest=` | | that cache as a tar |
| `PUT /v1/jobs/{job_id}/cache?profile=&key=` | tar of what to keep | `CacheAnswer` |
| `PUT /v1/jobs/{job_id}/output` | tar of the output tree | `{}` |
| `POST /v1/jobs/{job_id}/finish` | `Finish` | `{}` |
| `POST /v1/jobs/{job_id}/give-back` | | `{}`: the slot stops, another may build |

A source is a folder of the commit with the submodules in it; with `submodules=ignore` their folders
are empty. It comes as a tar, and the header `Gitd-Source` has its `SourceHead`. `base` is the git
tree of a folder that the slot has: what makes the wanted one of that may come instead. There may be
several, up to `BASES_COUNT_MAX`.

Calls about a job carry the lease's id in the header `Gitd-Lease`. 410 on any of them: the lease is
lost, end the build and forget it. A heartbeat is held for `wait_s`, and answered at once when the
build is to end. Every call may be repeated. Times are RFC 3339 in UTC with milliseconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from hooks.stages import Mark

CONFIG_FILES = ("managed.toml", "Procfile", "package.json", "pyproject.toml")
"""The files of a folder whose text travels with its names, when they are there."""
VERSION_FILES = (".nvmrc", ".node-version", ".python-version", "runtime.txt")
"""So does the text of these, which change nothing: what they ask for is compared."""
NEXT_CONFIGS = ("next.config.js", "next.config.mjs", "next.config.ts")
HINT_FILES = ("requirements.txt", "manage.py", *NEXT_CONFIGS)
"""And of these, where nothing else says what serves. Beside a page they are as other files."""
CONFIG_FILE_BYTES_MAX = 256 * 1024
LEASE_HEADER = "Gitd-Lease"
SOURCE_HEADER = "Gitd-Source"
BASES_COUNT_MAX = 4  # more are not looked at
FACTS_COUNT_MAX = 64
FACT_NAME_CHARS_MAX = 64


_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=FACT_NAME_CHARS_MAX)]
_Value = Annotated[str, msgspec.Meta(max_length=256)]
Facts = Annotated[dict[_Name, _Value], msgspec.Meta(max_length=FACTS_COUNT_MAX)]
"""Facts by name that end up in the signed provenance."""
Settings = Annotated[
    dict[_Name, Annotated[str, msgspec.Meta(max_length=16384)]], msgspec.Meta(max_length=16)
]


class LeaseRequest(msgspec.Struct, frozen=True):
    """`toolchain`: the programs that the slot's builds find, each with its version."""

    slot: str
    wait_s: float = 30
    toolchain: Facts = {}


class RootEntry(msgspec.Struct, frozen=True):
    name: str
    kind: Literal["file", "dir", "link", "submodule"]


class Folder(msgspec.Struct, frozen=True):
    """The names in a folder of the commit. `tree` is its git tree's id: equal for equal content."""

    tree: str
    entries: tuple[RootEntry, ...]
    files: dict[str, str]


class SourceHead(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a source is. `files` are the regular ones, and `size_bytes` is their size.

    `tree`: the id of its git tree, which says all of it; none where submodules lie in it.
    `removed_bytes`: where it is what changes a base, so many bytes before the tar have the paths
    that go first, each with a zero byte behind it. Folders that are empty then go too.
    `base`: which of those that were named it changes, from 0.
    """

    files: int = 0
    size_bytes: int = 0
    tree: str | None = None
    removed_bytes: int | None = None
    base: int = 0


class SandboxLimits(msgspec.Struct, frozen=True):
    """What the command of one build may use, as the settings of the same names have it."""

    memory_bytes_max: int = 1 << 30
    process_count_max: int = 512
    cpu_s_max: int = 1800
    tmp_bytes_max: int = 256 << 20
    disk_bytes_max: int = 4 << 30
    disk_free_bytes_min: int = 512 << 20
    file_bytes_max: int = 1 << 30
    processors_free_min: int = 1
    write_bytes_per_s_max: int = 32 << 20
    write_burst_bytes_max: int = 1 << 30
    log_chars_max: int = 4 << 20


class Lease(msgspec.Struct, frozen=True):
    """A build to run. Heartbeats keep the lease for `lease_s` seconds each.

    `lease_id` is the right to it: who held the build before has another one.
    `root_entries`, `files` and `tree` are those of the commit's root: see `Folder`.
    """

    job_id: str
    lease_id: str
    build_id: str
    site: str
    environment: str
    ref: str | None
    commit: str
    clean: bool
    timeout_s: int
    lease_s: float
    output_bytes_max: int
    root_entries: tuple[RootEntry, ...]
    files: dict[str, str]
    tree: str = ""
    limits: SandboxLimits = SandboxLimits()
    cache_bytes_max: int = 2 << 30


Reach = Literal["public", "private", "loopback"]
"""How far the addresses of a name may lie: each includes the one before."""


class AllowedHost(msgspec.Struct, frozen=True):
    """A host that builds may reach on one port.

    `host`: a name in lower case, `*.` and a name for all below it, or a network as `10.1.0.0/16`.
    `source`: who says so: a setting, or a package client of the machine.
    """

    host: str
    port: int
    source: str
    reach: Reach = "public"


class Egress(msgspec.Struct, frozen=True):
    """What the command of a build may reach; without a host: nothing, not even a proxy.

    `ca_bundle`: a file of the machine with the certificates that are trusted.
    `home_files` and `environ`: settings for package clients; files as text, by their path below
    the home. Bytes are counted over all connections of the build; one that is idle is closed
    after `idle_s`.
    """

    allow: tuple[AllowedHost, ...] = ()
    ca_bundle: str | None = None
    home_files: dict[str, str] = {}
    environ: dict[str, str] = {}
    up_bytes_max: int = 64 << 20
    down_bytes_max: int = 4 << 30
    connections_max: int = 128
    idle_s: float = 120.0


class Declared(msgspec.Struct, frozen=True):
    """The names that the commit declares: a build is given no others."""

    names: tuple[str, ...]


class Given(msgspec.Struct, frozen=True):
    """The values of variables and secrets, by name, for one build alone: never written to a disk.

    `undeclared`: names that are set for builds, and not declared. `digest`: of what is given, by a
    key of control's.
    """

    secrets: dict[str, str] = {}
    plain: dict[str, str] = {}
    undeclared: tuple[str, ...] = ()
    digest: str = ""

    def __repr__(self) -> str:
        return f"Given({', '.join([*self.secrets, *self.plain])})"


class CacheRequest(msgspec.Struct, frozen=True):
    """`key`: what the dependencies are decided by, such as lock files, each with its digest."""

    profile: str
    key: Facts


class CacheAnswer(msgspec.Struct, frozen=True):
    """`said` is for the log. `digest`: of the cache to use; `is_hit`: it has the very same key.

    `is_borrowed`: it is of other environments of the site, and this build takes no other's place.
    """

    said: str
    digest: str | None = None
    is_hit: bool = False
    is_borrowed: bool = False


class BatchLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """`mark`: the line says that its stage begins, or ends after so many `seconds`."""

    line: str
    at: str
    stage: str
    mark: Mark = ""
    seconds: float | None = None


class LogBatch(msgspec.Struct, frozen=True):
    """`first` is the index, from 0, of the first of these lines in the whole build's log."""

    first: int
    lines: tuple[BatchLine, ...]


class Heartbeat(msgspec.Struct, frozen=True):
    """`wait_s`: how long the answer may wait for something to tell."""

    slot: str
    phase: str = ""
    progress: int = 0
    wait_s: float = 0


class HeartbeatAnswer(msgspec.Struct, frozen=True):
    canceled: bool


class RunCommands(msgspec.Struct, frozen=True):
    web: str | None = None
    release: str | None = None
    health: str | None = None


class BuildError(msgspec.Struct, frozen=True):
    code: str
    message: str
    exit_status: int | None = None


class Unchanged(msgspec.Struct, frozen=True):
    """Files of an output that are the commit's still, and not in its tar: by their paths in the
    output, which is the folder `folder` of what the build read of the commit.
    """

    folder: str = "."
    paths: tuple[str, ...] = ()


class Finish(msgspec.Struct, frozen=True):
    """How the build ended. `output` says where the tree is: sent before, or a source folder.

    `folder` is what the build read of the commit, and with the output `source` the artifact.
    `unchanged`: what belongs to a tar that was sent, and is not in it.
    `is_public`: only what a static site may publish is taken of it.

    For the provenance: `settings`, what the build was told (its command and output); `toolchain`,
    as when it was leased; `cache_inputs`, what was restored from caches, each with its digest.
    `log`: its last lines, perhaps some that were sent already.
    """

    slot: str
    status: Literal["succeeded", "failed"]
    profile: str | None = None
    run: RunCommands = RunCommands()
    output: Literal["source", "tar"] = "tar"
    folder: str = "."
    is_public: bool = True
    ignores_submodules: bool = False
    ignores_lfs: bool = False
    timings: dict[str, float] = {}
    error: BuildError | None = None
    settings: Settings = {}
    toolchain: Facts = {}
    cache_inputs: Facts = {}
    unchanged: Unchanged = Unchanged()
    log: LogBatch | None = None
