"""Repositories on their way in and out: under other names, so that none is ever half there.

A crash leaves such folders. One that is being made is locked by its maker: whoever tidies up takes
only what nobody makes any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_COMING = ".new-"
_GOING = ".gone-"


@contextlib.contextmanager
def coming(root: Path, site_id: str) -> Iterator[Path]:
    """A new folder to make a repository in, until it is renamed; nothing of it is left else.

    Raises:
        OSError: The system refused.
    """
    path, lock = _made(root, site_id)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def send_off(path: Path) -> None:
    """Delete a repository, from its name first; one that is not there is fine."""
    grave = path.with_name(f"{_GOING}{path.stem}-{os.urandom(4).hex()}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)


def left_behind(root: Path) -> list[Path]:
    """The folders that nobody is making any more, and those that are not quite deleted."""
    found = []
    for path in _all(root):
        with _locked(path) as is_left:
            if is_left:
                found.append(path)
    return found


def remove_left_behind(root: Path) -> list[Path]:
    """Remove these; return what is there still."""
    for path in _all(root):
        with _locked(path) as is_left:
            if is_left:
                shutil.rmtree(path, ignore_errors=True)
    return left_behind(root)


def _made(root: Path, site_id: str) -> tuple[Path, int]:
    while True:
        path = root / f"{_COMING}{site_id}-{os.getpid()}-{os.urandom(4).hex()}"
        path.mkdir(mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                return path, lock
            os.close(lock)  # somebody tidied up before it was locked


def _all(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if path.name.startswith((_COMING, _GOING))]
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Keep everybody from making something there; say whether nobody is at it already."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        yield False  # it is in place or gone meanwhile, or nothing of ours
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_free = True
    except BlockingIOError:
        is_free = False
    try:
        yield is_free
    finally:
        os.close(lock)
