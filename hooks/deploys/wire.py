"""What control and the site host say to each other, over HTTP on a Unix socket.

| call | body | answer |
|---|---|---|
| `GET /v1/desired?hears=coming,logs` | | NDJSON without end: a `Snapshot`, then the others |
| `GET /v1/configs/DEPLOYMENT` | | `Config`; 404 when that is not what is desired, or has none |
| `POST /v1/gone` | `EnvironmentIds` | `EnvironmentIds`: those that were there, and were removed |
| `POST /v1/reports` | `Report` | `{}` |
| `POST /v1/log` | `RollLog` | `{}` |
| `POST /v1/program-logs/ID` | NDJSON of `LogPiece`s, after an empty line | `{}` at the end |

A host is told no `Coming` and no `LogWanted` unless it says that it `hears` those. Each call may be
repeated, but for the last: an `ID` is good for one. Times are RFC 3339 in UTC with milliseconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from blake3 import blake3

from storage.digest import Digest
from storage.release_statement import SEQUENCE_MAX

PING_EVERY_S = 5.0
"""Control sends a `Ping` this often, so that a host can tell a quiet control from a dead one."""


class ArtifactPin(msgspec.Struct, frozen=True):
    """The very artifact to run: `digest` is `blake3:<hex>`, `envelope` the SHA-256 in hex of the
    signed statement that speaks for it.
    """

    id: str
    digest: str
    envelope: str


class Desired(msgspec.Struct, frozen=True):
    """What an environment should serve. Without an artifact it has nothing to run yet.

    `release_command`: run the release's `release` command, if it has one, before the switch.
    `release`: the envelope of the release statement, as JSON; a control that signs none (0.1) gives
    none. `url`: where the environment answers. `is_suspended`: it has something to run, and is not
    to serve it now.
    """

    env_id: str
    site: str
    slug: str
    kind: Literal["production", "staging", "preview"]
    hostnames: tuple[str, ...]
    deployment_id: str | None
    artifact: ArtifactPin | None
    release_command: bool = False
    release: str | None = None
    url: str = ""
    is_suspended: bool = False


class Config(msgspec.Struct, frozen=True):
    """What the programs of a release are given. It prints as nothing of it.

    `salt`, 32 bytes in hexadecimal, makes its digest one that tells nothing to who has that alone.
    """

    version: int
    salt: str
    secrets: dict[str, str]
    plain: dict[str, str]

    def __repr__(self) -> str:
        return f"Config({self.version}, ***)"


def config_digest(config: Config) -> Digest:
    """The digest of a config's values, as a release statement has it."""
    told = [config.version, sorted(config.secrets.items()), sorted(config.plain.items())]
    return Digest(blake3(msgspec.json.encode(told), key=bytes.fromhex(config.salt)).digest())


class Snapshot(msgspec.Struct, frozen=True, tag_field="type", tag="snapshot"):
    """Every environment that control knows of. What is not in it may be gone, or newer than
    control's records: `POST /v1/gone` tells.
    """

    environments: tuple[Desired, ...]


class Changed(msgspec.Struct, frozen=True, tag_field="type", tag="environment"):
    environment: Desired


class Removed(msgspec.Struct, frozen=True, tag_field="type", tag="removed"):
    env_id: str


class EnvironmentIds(msgspec.Struct, frozen=True):
    env_ids: tuple[str, ...]


class Coming(msgspec.Struct, frozen=True, tag_field="type", tag="coming"):
    """A roll may follow within moments: of the artifact `digest`, or of nobody knows yet which.

    It binds nobody: a host may make ready for it, and need not.
    """

    env_id: str
    digest: str | None = None


class LogWanted(msgspec.Struct, frozen=True, tag_field="type", tag="log_wanted"):
    """Somebody reads what the programs of an environment print: send it under this `id`.

    From the last so many `lines` on, or from what came `after` that position; with `follow`, go on
    with what is printed from then on.
    """

    id: str
    env_id: str
    lines: int
    follow: bool
    after: str | None = None


class LogPiece(msgspec.Struct, frozen=True):
    """Whole lines of what programs printed, each with its time before it. They begin at the byte
    `offset` of the log's `file`.
    """

    file: str
    offset: int
    data: bytes


class Ping(msgspec.Struct, frozen=True, tag_field="type", tag="ping"):
    pass


DesiredMessage = Snapshot | Changed | Removed | Coming | LogWanted | Ping


class RollFailure(msgspec.Struct, frozen=True):
    """Why a roll failed: a dotted code that never changes, and a sentence for people."""

    code: str
    message: str


class RollLogLine(msgspec.Struct, frozen=True):
    line: str
    at: str
    stage: str


class RollLog(msgspec.Struct, frozen=True):
    """Lines of a roll's log. `first` is the index, from 0, of the first of them in the whole
    attempt, so that a batch sent twice is kept once. `progress` is 0 to 100. `attempt`: another
    each time that a host begins the roll, which may say other things then; one of 0.1 has none.
    """

    deployment_id: str
    first: int
    progress: int
    lines: tuple[RollLogLine, ...]
    attempt: Annotated[str, msgspec.Meta(max_length=32, pattern="^[0-9a-f]*$")] = ""


class LastExit(msgspec.Struct, frozen=True):
    """How a program ended the last time. It has no `status` where it could not be started."""

    status: int | None
    message: str
    at: str


class Running(msgspec.Struct, frozen=True):
    """How the web process of a release stands. `restarts`: in a row, without a minute between
    them in which it ran on. `first_answer`: the status of its `GET /` before it got visitors, where
    it answered within a second.
    """

    state: Literal["starting", "serving", "restarting"]
    restarts: Annotated[int, msgspec.Meta(ge=0)]
    last_exit: LastExit | None
    first_answer: int | None = None

    @property
    def is_broken(self) -> bool:
        """Whether who deployed it is to be told of that answer.

        400 is what frameworks say to a `Host` that is not among those that they are set to.
        """
        status = self.first_answer
        return status is not None and (status == 400 or status >= 500)


class Report(msgspec.Struct, frozen=True):
    """How a deployment stands at the host. `timings`: seconds by phase of the roll.

    `sequence`: of the release statement that the environment goes by; 0 when it never had one.
    `statement`: the SHA-256 in hex of its envelope. `serves`: the deployment that it serves now,
    whatever this report is about. `log`: lines of the roll that were not sent by themselves.
    `running`: how its web process stands, if it has one; it is reported again when that changes.
    """

    env_id: str
    deployment_id: str
    status: Literal["serving", "failed"]
    error: RollFailure | None = None
    timings: dict[str, float] = {}
    sequence: Annotated[int, msgspec.Meta(ge=0, le=SEQUENCE_MAX)] = 0
    statement: str | None = None
    serves: str | None = None
    log: RollLog | None = None
    running: Running | None = None
