"""One git repository on disk: its objects, refs, config and places."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from storage.files import sync_directory
from storage.git.config import GitConfig
from storage.git.content_cache import ContentCache
from storage.git.errors import RepositoryNotFoundError, RepositoryUnsupportedError
from storage.git.file_times import is_settled
from storage.git.object_formats import unhex
from storage.git.objects import ObjectStore
from storage.git.refs import RefStore
from storage.git.sharing import Sharing

_EXTENSIONS = (("objectformat", "sha1"), ("objectformat", "sha256"), ("refstorage", "files"))
_FOR_OTHERS = ("noop", "partialclone", "worktreeconfig", "preciousobjects", "relativeworktrees")
OPEN_COUNT_MAX = 64  # repositories kept open; each holds two file descriptors per pack


class Repository:
    """An open repository. Cheap to ask again and again; call `refresh` when a request begins.

    Attributes:
        path: the git directory (`x.git`, or `x/.git`).
        object_format: `sha1`; or `sha256`, and then it is empty.
        sharing: who else may use the files that are written here.
    """

    def __init__(self, path: Path, cache: ContentCache | None = None) -> None:
        self.path = path
        self.objects = ObjectStore(path / "objects", cache)
        self.refs = RefStore(path)
        self.object_format = "sha1"
        self.sharing = Sharing()
        self._config = GitConfig()
        self._config_stamp: tuple[int, int, int] | None = None
        self.refresh()

    def refresh(self) -> None:
        """See what others changed since: packs, alternates, config.

        Raises:
            RepositoryNotFoundError: it is gone.
            RepositoryUnsupportedError: its format is not one that is read here.
            RepositoryCorruptError: its config does not parse.
        """
        try:
            status = os.stat(f"{self.path}/config")  # noqa: PTH116 -- asked at every request
        except FileNotFoundError:
            if not is_repository(self.path):
                raise RepositoryNotFoundError(self.path.name) from None
            self._config, self._config_stamp = GitConfig(), None
            self.object_format, self.sharing = "sha1", Sharing()
        else:
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp != self._config_stamp:
                self._config, self._config_stamp = GitConfig.read(self.path / "config"), None
                self.object_format = _supported_format(self._config)
                self.sharing = Sharing.of(self._config)
                if is_settled(status.st_mtime_ns, time.time_ns()):
                    self._config_stamp = stamp
        self.objects.refresh()
        if self.object_format != "sha1" and not self._is_empty():
            raise RepositoryUnsupportedError(
                f"the repository's objects have {self.object_format.upper()} ids, "
                "and this server reads those of SHA-1 only"
            )

    def is_current(self) -> bool:
        """Say whether `refresh` would find nothing new. A few calls of the system, and no more."""
        try:
            status = os.stat(f"{self.path}/config")  # noqa: PTH116 -- asked at every request
        except FileNotFoundError:
            return False
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        is_usual = self.object_format == "sha1"  # another one is looked into each time
        return is_usual and stamp == self._config_stamp and self.objects.is_current()

    def _is_empty(self) -> bool:
        """Say whether there is nothing that an object's id stands for or in."""
        is_without_objects = not self.objects.packs() and not self.objects.loose_directories()
        is_without_refs = not self.refs.loose_count() and not (self.path / "packed-refs").exists()
        return is_without_objects and is_without_refs

    @property
    def config(self) -> GitConfig:
        return self._config

    @property
    def is_bare(self) -> bool:
        """Whether it has no work tree."""
        return bool(self._config.flag("core.bare", default=self.path.name != ".git"))

    @property
    def is_shallow(self) -> bool:
        """Whether it may lack parents of commits on purpose."""
        return os.path.exists(f"{self.path}/shallow")  # noqa: PTH110 -- asked at every request

    def shallow(self) -> frozenset[bytes]:
        """Return the commits whose parents this repository does not have on purpose."""
        if not self.is_shallow:
            return frozenset()
        try:
            lines = (self.path / "shallow").read_bytes().split()
        except FileNotFoundError:  # gone this moment
            return frozenset()
        return frozenset(unhex(line) for line in lines if len(line) == 40)

    def extend_shallow(self, oids: Iterable[bytes]) -> None:
        """Let the history end at some more commits. Durable when it returns.

        Raises:
            OSError: another process is changing the borders, or the disk is full.
        """
        more = set(oids)
        self._change_shallow(lambda before: before | more)

    def keep_shallow(self, oids: Collection[bytes]) -> None:
        """Let the history end at these commits alone, as far as it did. Durable when it returns.

        Raises:
            OSError: As for `extend_shallow`.
        """
        self._change_shallow(lambda before: before.intersection(oids))

    def _change_shallow(self, change: Callable[[frozenset[bytes]], frozenset[bytes]]) -> None:
        path = self.path / "shallow"
        lock = self.path / "shallow.lock"
        with lock.open("xb") as file:
            try:
                lines = sorted(oid.hex() for oid in change(self.shallow()))
                file.write("".join(f"{line}\n" for line in lines).encode())
                file.flush()
                os.fsync(file.fileno())
                self.sharing.apply(lock)
                if lines:
                    lock.rename(path)
                else:  # git takes a repository with an empty one for shallow
                    path.unlink(missing_ok=True)
                    lock.unlink()
            except OSError:
                lock.unlink(missing_ok=True)
                raise
        sync_directory(self.path)


class RepositoryCache:
    """Keeps recently used repositories open. Safe from any thread."""

    def __init__(self, count_max: int = OPEN_COUNT_MAX) -> None:
        self._count_max = count_max
        self._content = ContentCache()
        self._open: OrderedDict[Path, Repository] = OrderedDict()
        self._lock = threading.Lock()

    def _known(self, path: Path) -> Repository | None:
        with self._lock:
            return self._open.get(path)

    def current(self, path: Path) -> Repository | None:
        """Return what `open` would, where that takes a few calls of the system; else None."""
        repository = self._known(path)
        if repository is None or not repository.is_current():
            return None
        with self._lock:
            if path in self._open:
                self._open.move_to_end(path)
        return repository

    def open(self, path: Path) -> Repository:
        """Return the repository at a git directory, refreshed.

        Raises:
            RepositoryNotFoundError: there is none.
            RepositoryUnsupportedError, RepositoryCorruptError: see `Repository.refresh`.
        """
        repository = self._known(path)
        if repository is None:
            if not is_repository(path):
                raise RepositoryNotFoundError(path.name)
            repository = Repository(path, self._content)
        else:
            repository.refresh()
        with self._lock:
            self._open[path] = repository
            self._open.move_to_end(path)
            while len(self._open) > self._count_max:
                self._open.popitem(last=False)
        return repository


def is_repository(path: str | Path) -> bool:
    """Say whether this directory is a git directory: `objects/`, `refs/` and a HEAD."""
    text = os.fspath(path)
    return (
        os.path.isdir(text + "/objects")  # noqa: PTH112 -- asked at every request
        and os.path.isdir(text + "/refs")  # noqa: PTH112
        and os.path.lexists(text + "/HEAD")
    )


def _supported_format(config: GitConfig) -> str:
    """Return the name of the object format, if all extensions are known."""
    version = config.number("core.repositoryformatversion", default=0)
    if version not in (0, 1):
        raise RepositoryUnsupportedError(f"repository format version {version} is not supported")
    extensions = config.section("extensions.") if version == 1 else {}
    for name, value in extensions.items():
        if name not in _FOR_OTHERS and (name, value.lower()) not in _EXTENSIONS:
            raise RepositoryUnsupportedError(
                f"the repository's extension {name}={value} is not supported"
            )
    return extensions.get("objectformat", "sha1").lower()
