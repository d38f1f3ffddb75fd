"""The site host's state: what each environment serves and which release folders it keeps.

environments/<env_id>/
state.json            the truth; replaced atomically
releases/<seq>-<8 hex of the digest>/    unpacked artifacts
releases/<the same>.proof                what shows that they are what was built
current -> releases/…                    for people and tools
data/                 the web process's own, writable
logs/web.log          what it says
config-<deployment>   what it is given, sealed
unclaimed             for how many seconds control has not known of it, while it does not
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog

from hooks.builds.sources.tree import remove_tree
from hooks.deploys.wire import ArtifactPin, Desired
from storage.digest import Digest
from storage.errors import DigestInvalidError, StorageError
from storage.files import mapped_errors, read_bounded, remove_drafts, write_atomic
from storage.proof_archive import PROOF_SUFFIX

KEEP_COUNT: Final = 5
"""Release folders kept per environment: those used last, so that a rollback has nothing to copy."""

_ASIDE = ".aside-"
_CURRENT_DRAFT = ".current."
_ENV_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_STATE_BYTES_MAX = 1 << 20
_log = structlog.get_logger()

FolderName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,254}\Z")]
"""One plain name: control reads these states too, and goes nowhere that a host likes to send it."""


class KeptRelease(msgspec.Struct, frozen=True):
    """An unpacked artifact in the folder `releases/<folder>`."""

    folder: FolderName
    digest: str


class ServedState(msgspec.Struct, frozen=True):
    """What is served, and from which folder.

    `modified_s`: what static files have as `Last-Modified`, in seconds since 1970. `release`: the
    envelope of the release statement that it was switched by; a host of version 0.1 knew none.
    """

    deployment_id: str
    artifact: ArtifactPin
    folder: FolderName
    modified_s: int
    release: str | None = None


class EnvironmentState(msgspec.Struct, frozen=True):
    """`kept`: the release folders, the one used last at the end. `sequence`: the last number given
    to one. `release_sequence`: that of the release statement that the environment went by last; 0
    before it went by any. `withdrawn_sha256`: of the statement of what was withdrawn, while nothing
    is served; it may be gone by again.
    """

    env_id: str
    site: str
    slug: str
    kind: str
    hostnames: tuple[str, ...]
    served: ServedState | None = None
    kept: tuple[KeptRelease, ...] = ()
    sequence: int = 0
    release_sequence: int = 0
    withdrawn_sha256: str | None = None
    format: int = 1
    url: str = ""

    def named_as(self, desired: Desired) -> EnvironmentState:
        return msgspec.structs.replace(
            self,
            site=desired.site,
            slug=desired.slug,
            kind=desired.kind,
            hostnames=desired.hostnames,
            url=desired.url,
        )

    def serving(self, served: ServedState, release_sequence: int = 0) -> EnvironmentState:
        """Return the state after the switch to `served`, with the folders that are kept then."""
        used = KeptRelease(served.folder, served.artifact.digest)
        others = tuple(kept for kept in self.kept if kept.folder != served.folder)
        return msgspec.structs.replace(
            self,
            served=served,
            kept=(*others, used)[-KEEP_COUNT:],
            release_sequence=max(release_sequence, self.release_sequence),
            withdrawn_sha256=None,
        )

    def folder_of(self, digest: Digest) -> str | None:
        """Return the folder that holds this artifact, if one is kept."""
        text = str(digest)
        return next((kept.folder for kept in self.kept if kept.digest == text), None)

    def with_a_folder_more(self) -> EnvironmentState:
        return msgspec.structs.replace(self, sequence=self.sequence + 1)

    def without_folder(self, folder: str) -> EnvironmentState:
        return msgspec.structs.replace(
            self, kept=tuple(kept for kept in self.kept if kept.folder != folder)
        )


class EnvironmentFolder:
    """An environment's folder. Its methods block; one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.releases = path / "releases"
        self.data = path / "data"
        self.web_log = path / "logs" / "web.log"
        self._unclaimed = path / "unclaimed"

    def prepare(self, state: EnvironmentState) -> None:
        """Make what is missing, and remove what a crash left: half made, or not in the state."""
        with mapped_errors(f"prepare {self.path}"):
            for folder in (self.path, self.releases, self.data, self.web_log.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_drafts(self.path)
            for draft in self.path.glob(f"{_CURRENT_DRAFT}*"):
                draft.unlink()
            self.put_aside(state)
            remove_folders(self.releases.glob(f"{_ASIDE}*"))

    def read(self) -> EnvironmentState | None:
        """Return the state; None when there is none that can be read: nothing was served yet."""
        try:
            data = read_bounded(self.path / "state.json", size_bytes_max=_STATE_BYTES_MAX)
            state = msgspec.json.decode(data, type=EnvironmentState)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _log.error("environment_state_unreadable", path=str(self.path), reason=str(error))
            return None
        return state if state.env_id == self.path.name else None

    def write(self, state: EnvironmentState) -> None:
        """Replace the state, durably, and let `current` point at what it says is served.

        Trouble with `current` is none of the environment's: nothing is served by it.
        """
        with mapped_errors(f"write the state of {self.path}"):
            write_atomic(self.path / "state.json", msgspec.json.encode(state), mode=0o600)
        try:
            self._point(state.served)
        except OSError as error:
            _log.warning("current_not_pointed", path=str(self.path), reason=str(error))

    def replace(self, before: EnvironmentState, after: EnvironmentState) -> None:
        """Write `after`. When that fails, `before` is the state again, however far it went: a state
        that the next start would read and nobody knows of would be served then.
        """
        try:
            self.write(after)
        except BaseException:
            try:
                self.write(before)
            except StorageError as error:
                _log.error("environment_state_unclear", path=str(self.path), reason=str(error))
            raise

    def _point(self, served: ServedState | None) -> None:
        current = self.path / "current"
        target = f"releases/{served.folder}" if served is not None else None
        with contextlib.suppress(OSError):
            if str(current.readlink()) == target:
                return
        if target is None:
            current.unlink(missing_ok=True)
            return
        draft = self.path / f"{_CURRENT_DRAFT}{secrets.token_hex(6)}"
        draft.symlink_to(target)
        draft.rename(current)

    def write_proof(self, folder: str, data: bytes) -> None:
        """Put the proof of a release folder beside it. Not durable: it can be made again."""
        path = self.releases / f"{folder}{PROOF_SUFFIX}"
        draft = self.releases / f"{_ASIDE}{secrets.token_hex(8)}{PROOF_SUFFIX}"
        with mapped_errors(f"write {path}"):
            try:
                draft.write_bytes(data)
                draft.rename(path)
            finally:
                draft.unlink(missing_ok=True)

    def draft_path(self) -> Path:
        """Return where a release folder may be made; what is left of one the next start removes."""
        return self.releases / f"{_ASIDE}{secrets.token_hex(8)}"

    def put_aside(self, state: EnvironmentState) -> list[Path]:
        """Rename the release folders that the state neither keeps nor serves; return them.

        Takes no time, however large they are. They are to be removed; the next `prepare` does it
        otherwise. Their proofs go at once.
        """
        kept = {kept.folder for kept in state.kept}
        if state.served is not None:
            kept.add(state.served.folder)
        aside = []
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.releases):  # noqa: PTH208 - names alone are wanted
                if name.removesuffix(PROOF_SUFFIX) in kept:
                    continue
                if name.endswith(PROOF_SUFFIX):
                    (self.releases / name).unlink(missing_ok=True)
                    continue
                if name.startswith(_ASIDE):
                    continue
                path = self.releases / f"{_ASIDE}{secrets.token_hex(8)}"
                (self.releases / name).rename(path)
                aside.append(path)
        return aside

    def note_unclaimed(self, more_s: float) -> float | None:
        """Note that control did not know of it for `more_s` seconds more; return how many that are.
        These count from the second time on: at the first, it is not known since when.

        None where nothing can be lost: it serves nothing, and has no data.
        """
        state = self.read()
        is_served = state is not None and state.served is not None
        with mapped_errors(f"look into {self.path}"):
            has_data = self.data.is_dir() and any(self.data.iterdir())
        if not is_served and not has_data:
            return None
        try:
            kept_s = float(read_bounded(self._unclaimed, size_bytes_max=64)) + more_s
        except (OSError, ValueError):
            kept_s = 0.0
        with mapped_errors(f"write {self._unclaimed}"):
            write_atomic(self._unclaimed, b"%.0f" % kept_s, mode=0o600)
        return kept_s

    def note_claimed(self) -> None:
        with mapped_errors(f"remove {self._unclaimed}"):
            self._unclaimed.unlink(missing_ok=True)

    def remove(self) -> bool:
        """Remove the environment with its data; say whether nothing of it is left. Its state goes
        first: nothing half removed is ever served again. What is no folder goes too; where a link
        leads stays as it is.
        """
        reason = "something of it cannot be removed"
        try:
            if self.path.is_symlink() or not self.path.is_dir():
                self.path.unlink(missing_ok=True)
            else:
                (self.path / "state.json").unlink(missing_ok=True)
                remove_tree(self.path)
        except (OSError, subprocess.SubprocessError) as error:
            reason = str(error)
        # What its visitors left there is to go too: the next start tries again.
        is_left = os.path.lexists(self.path)
        if is_left:
            _log.error("environment_not_removed", path=str(self.path), reason=reason)
        return not is_left


def remove_folders(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


class HostFolder:
    """The site host's folder: one folder per environment."""

    def __init__(self, root: Path) -> None:
        self._environments = root / "environments"
        self._environments.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_drafts(root)

    def environment(self, env_id: str) -> EnvironmentFolder:
        if not _ENV_ID.fullmatch(env_id):
            raise ValueError(f"not the id of an environment: {env_id!r}")
        return EnvironmentFolder(self._environments / env_id)

    def unclaimed(self, named: Collection[str]) -> list[str]:
        """Return the names of the folders that belong to none of the environments that control
        `named`; those that do are not unclaimed any more.
        """
        names = set(os.listdir(self._environments))  # noqa: PTH208 - names alone are wanted
        claimed = names.intersection(named)
        for name in sorted(claimed):
            try:
                self.stranger(name).note_claimed()
            except StorageError as error:
                _log.warning("environment_claim_not_noted", env_id=name, reason=str(error))
        return sorted(names - claimed)

    def stranger(self, name: str) -> EnvironmentFolder:
        """Return a folder by its name, whatever that is."""
        return EnvironmentFolder(self._environments / name)

    def known(self) -> Iterator[tuple[EnvironmentFolder, EnvironmentState]]:
        """Yield the environments that have a state; folders without one are leftovers."""
        for path in sorted(self._environments.iterdir()):
            folder = EnvironmentFolder(path)
            state = folder.read()
            if state is not None:
                yield folder, state


@dataclass(frozen=True, slots=True)
class ReleaseFolder:
    """An unpacked artifact that an environment serves, or keeps. `deployment_id` is what is served
    there, whichever folder this is.
    """

    env_id: str
    path: Path
    digest: Digest
    is_served: bool
    deployment_id: str


def release_folders(root: Path) -> list[ReleaseFolder]:
    """Return the release folders of a site host, as its states name them; changes nothing.

    None where there is no host's folder, or where this process may not look into it. The host owns
    what lies there, and is trusted with none of it: what is not as it must be is left out, and the
    log says so.
    """
    found = []
    with contextlib.suppress(FileNotFoundError, PermissionError):
        for path in sorted((root / "environments").iterdir()):
            folder = EnvironmentFolder(path)
            if path.is_symlink() or folder.releases.is_symlink():
                _log.error("environment_state_unreadable", path=str(path), reason="it is a link")
                continue
            state = folder.read()
            if state is None or state.served is None:
                continue
            try:
                found += _release_folders(folder, state, state.served)
            except DigestInvalidError as error:
                _log.error("environment_state_unreadable", path=str(path), reason=str(error))
    return found


def _release_folders(
    folder: EnvironmentFolder, state: EnvironmentState, served: ServedState
) -> list[ReleaseFolder]:
    digests = {kept.folder: kept.digest for kept in state.kept}
    digests[served.folder] = served.artifact.digest
    return [
        ReleaseFolder(
            env_id=state.env_id,
            path=folder.releases / name,
            digest=Digest.parse(digest),
            is_served=name == served.folder,
            deployment_id=served.deployment_id,
        )
        for name, digest in digests.items()
    ]
