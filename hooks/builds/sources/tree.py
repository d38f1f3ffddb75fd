"""A build's tree of files: unpacked from the commit, and packed again as the output."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles.detection import OUTPUT_INVALID, OUTPUT_MISSING
from hooks.builds.profiles.plan import INDEX
from hooks.builds.sandbox.disk_allowance import DiskAllowance
from hooks.builds.sandbox.limits import in_units
from hooks.builds.sources.lfs import is_pointer, pointers_found
from hooks.builds.sources.originals import Originals
from storage import tar
from storage.counted import counted
from storage.errors import TreeError, TreeTooLargeError
from storage.files import write_all
from storage.links import escaping_link
from storage.manifest import LinkEntry
from storage.scan import OnFile, scan_directory
from storage.source import (
    Draft,
    Limits,
    SourceDirectory,
    SourceEntry,
    SourceFile,
    SourceLink,
    check_path,
)

OUTPUT_TOO_LARGE = "build.output_too_large"
UNCHANGED_BYTES_MAX = 4 << 20  # of the names of unchanged files; those beyond are sent whole
_REMOVE_TIMEOUT_S = 600.0
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEPER_MAX = 3


class StoppedError(Exception):
    """The work in a thread was told to stop."""


@dataclass(frozen=True, slots=True)
class TreeSize:
    files: int
    size_bytes: int

    def __str__(self) -> str:
        files = counted(self.files, "file")
        for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if self.size_bytes >= size:
                return f"{files}, {self.size_bytes / size:.1f} {unit}"
        return f"{files}, {self.size_bytes} bytes"


def unpack(
    stream: BinaryIO,
    folder: Path,
    *,
    allowance: DiskAllowance,
    is_stopped: Callable[[], bool],
    ignores_lfs: bool = False,
    on_file: OnFile | None = None,
    is_new: bool = True,
) -> TreeSize:
    """Unpack a commit's tar into the new folder `folder`. Blocking: call it in a thread.

    Nothing is written outside `folder`: every parent is a directory made here. Not synced.
    All of it has one time, the moment that this began: tools that compare times find none newer
    than another. `on_file` is told the path and status of each file, once it is written. Not
    `is_new`: the folder is one that was unpacked before, nobody has changed since, and has none of
    these names; they get its time.

    Raises:
        BuildFailedError: `build.output_invalid`, when a name cannot be in any artifact;
            `build.lfs_pointers`, unless `ignores_lfs`; `build.limit_exceeded`, when it takes more
            of the disk than `allowance` has.
        StoppedError: `is_stopped` said so.
    """
    pointers: list[str] = []
    if is_new:
        folder.mkdir(mode=0o755)
    draft = Draft(Limits())
    top, made = os.fsencode(folder), {b""}
    at_ns = time.time_ns() if is_new else folder.stat().st_mtime_ns
    files = size_bytes = 0
    with _mapped_errors(), allowance.full_disk_told():
        for entry in tar.scan_tar(stream):
            _go_on_unless(is_stopped)
            draft.admit(entry)
            path = b"%b/%b" % (top, entry.path)
            if is_new or not (isinstance(entry, SourceDirectory) and os.path.isdir(path)):  # noqa: PTH112 - bytes
                allowance.take(entry.size_bytes if isinstance(entry, SourceFile) else 0)
            _make_parents(folder, entry, made)
            if isinstance(entry, SourceFile):
                if _write_file(path, entry, at_ns, is_stopped, on_file):
                    pointers.append(os.fsdecode(entry.path))
                files += 1
                size_bytes += entry.size_bytes
            elif isinstance(entry, SourceLink):
                os.symlink(entry.target, path)  # noqa: PTH211 - bytes
                _set_time(path, at_ns)
        for name in made:  # last: what is made in a folder sets its time
            _set_time(b"%b/%b" % (top, name), at_ns)
    if pointers and not ignores_lfs:
        raise pointers_found(pointers)
    return TreeSize(files, size_bytes)


def remove_paths(
    folder: Path,
    paths: Iterable[bytes],
    on_removed: Callable[[bytes], None],
    *,
    is_stopped: Callable[[], bool],
) -> None:
    """Remove files and links of a tree that nobody has changed since it was unpacked, with the
    folders that are empty then. Blocking. `on_removed` is told the path of each, of folders too.
    Folders that stay keep the tree's time.

    Raises:
        OSError: One of them is not there, or is more than an empty folder.
        StoppedError: `is_stopped` said so.
    """
    top, parents, changed = os.fsencode(folder), set(), set()
    at_ns = folder.stat().st_mtime_ns
    for path in paths:
        _go_on_unless(is_stopped)
        try:
            os.unlink(b"%b/%b" % (top, path))  # noqa: PTH108 - bytes
        except IsADirectoryError:
            os.rmdir(b"%b/%b" % (top, path))  # noqa: PTH106 - that of a submodule
        on_removed(path)
        parents.add(path.rpartition(b"/")[0])
    for parent in sorted(parents, key=len, reverse=True):
        path = parent
        changed.add(path)
        while path:
            try:
                os.rmdir(b"%b/%b" % (top, path))  # noqa: PTH106
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                break
            on_removed(path)
            path = path.rpartition(b"/")[0]
            changed.add(path)
    for path in changed:
        with contextlib.suppress(FileNotFoundError):  # removed, as an empty one
            _set_time(b"%b/%b" % (top, path), at_ns)


@dataclass(slots=True)
class Output:
    """The part of the tree that becomes the artifact, found fit to be one.

    Attributes:
        size: of all of it.
        entries: all that is in it.
        unchanged: the paths of those that are the commit's files as they were, in the order of
            `entries`.
    """

    size: TreeSize
    entries: list[SourceEntry] = field(default_factory=list)
    unchanged: list[bytes] = field(default_factory=list)

    def chunks(self) -> Iterator[bytes]:
        """Give all but the unchanged files as a tar, in chunks of about a megabyte; as often as
        wanted. Blocking.

        Raises:
            BuildFailedError: `build.output_invalid`, when something cannot be read.
        """
        left_out = frozenset(self.unchanged)
        with _mapped_errors():
            yield from tar_chunks(entry for entry in self.entries if entry.path not in left_out)


def tar_chunks(entries: Iterable[SourceEntry]) -> Iterator[bytes]:
    """Give entries as a tar, in chunks of about a megabyte. Blocking."""
    return tar.chunks(piece for entry in entries for piece in _tar_pieces(entry))


def find_output(
    tree: Path,
    folder: str,
    *,
    size_bytes_max: int,
    is_shown: Callable[[str], bool] | None,
    is_stopped: Callable[[], bool],
    originals: Originals | None = None,
) -> Output:
    """Look through the output folder of a finished build. Blocking: call it in a thread.

    Everything that could write to `tree` must be dead. `is_shown`: which paths are part of it; all
    without it. What is not may be of any kind, a socket too.
    `originals`: the files of `tree` that need not be sent where they are unchanged.

    Raises:
        BuildFailedError: `build.output_missing`; `build.output_too_large`; or
            `build.output_invalid`, naming the path that cannot be in an artifact.
        StoppedError: `is_stopped` said so.
    """
    root = real_folder(tree, folder)
    draft = Draft(Limits(size_bytes_max=size_bytes_max, file_bytes_max=size_bytes_max))
    kept: list[SourceEntry] = []
    unchanged = _Unchanged(originals, folder)
    files = size_bytes = 0

    def refuse(error: TreeError) -> None:
        if is_shown is None or is_shown(error.path):
            raise error

    with _mapped_errors():
        for entry in scan_directory(
            root, owner_uid=os.geteuid(), on_refused=refuse, on_file=unchanged.look
        ):
            _go_on_unless(is_stopped)
            if is_shown is not None and not is_shown(os.fsdecode(entry.path)):
                continue
            if isinstance(entry, SourceFile):
                files += 1
                size_bytes += entry.size_bytes
                _check_size(size_bytes, size_bytes_max)
            draft.admit(entry)
            kept.append(entry)
    links = (LinkEntry(each.path, each.target) for each in kept if isinstance(each, SourceLink))
    if link := escaping_link(links):
        raise BuildFailedError(
            OUTPUT_INVALID,
            f"{os.fsdecode(link.path)}: the link to {os.fsdecode(link.target)!r} leads out of the"
            " output; make it relative, to something inside.",
        )
    if not files:
        raise BuildFailedError(OUTPUT_MISSING, f"The output {folder!r} has no files in it.")
    return Output(TreeSize(files, size_bytes), kept, unchanged.among(kept))


class _Unchanged:
    """The files of the output that are the commit's, as far as they are few enough to be named."""

    def __init__(self, originals: Originals | None, folder: str) -> None:
        self._originals = originals
        self._prefix = b"" if folder == "." else os.fsencode(folder) + b"/"
        self._found: set[bytes] = set()

    def look(self, path: bytes, status: os.stat_result) -> None:
        if self._originals is not None and self._originals.has(self._prefix + path, status):
            self._found.add(path)

    def among(self, entries: Iterable[SourceEntry]) -> list[bytes]:
        left_bytes = UNCHANGED_BYTES_MAX
        return [
            entry.path
            for entry in entries
            if entry.path in self._found and (left_bytes := left_bytes - len(entry.path)) >= 0
        ]


def _check_size(size_bytes: int, size_bytes_max: int) -> None:
    if size_bytes > size_bytes_max:
        raise output_too_large(size_bytes_max)


def output_too_large(size_bytes_max: int) -> BuildFailedError:
    """Return what says that an output has more bytes than it may."""
    return BuildFailedError(
        OUTPUT_TOO_LARGE,
        f"output: its files are larger than {in_units(size_bytes_max)} together"
        " (builders.output_bytes_max).",
    )


def filled_folder(tree: Path, folders: Sequence[str]) -> str:
    """Return the first of `folders` with an `index.html`, below the tree of a finished build.

    Some tools put their files one or two folders deeper, each alone in its parent. Blocking.

    Raises:
        BuildFailedError: `build.output_missing`: none has; `build.output_invalid`: the path of it
            is no text, or too long.
    """
    for folder in folders:
        path = folder
        for _ in range(_DEEPER_MAX):
            names = _names(tree / path)
            if INDEX in names:
                with _mapped_errors():
                    check_path(os.fsencode(path))
                return path
            inner = [name for name, is_folder in names.items() if is_folder]
            if len(inner) != 1:
                break
            path = f"{path}/{inner[0]}"
    raise BuildFailedError(
        OUTPUT_MISSING,
        f"None of {', '.join(folders)} holds an {INDEX} after the build: set build.output in"
        " managed.toml to the folder that it writes, or say what runs, with a `web:` line in a"
        " Procfile.",
    )


def remove_tree(path: Path) -> None:
    """Remove a folder and everything in it, however deep and whatever its modes. Blocking.

    Nothing is done when there is no such folder. The owner of the files, or root, must call.
    """
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except (OSError, RecursionError):
        for argv in (["/bin/chmod", "-R", "u+rwX"], ["/bin/rm", "-rf", "--one-file-system"]):
            subprocess.run(
                [*argv, "--", str(path)],
                env={},
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_REMOVE_TIMEOUT_S,
            )


def _names(folder: Path) -> dict[str, bool]:
    """The names in a folder, and which are folders themselves. Nothing where there is none."""
    if folder.is_symlink():
        return {}
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    except OSError:
        return {}


def _make_parents(folder: Path, entry: SourceEntry, made: set[bytes]) -> None:
    """Make the directories that `entry` lies in; the draft knows that nothing else is there."""
    path = entry.path if isinstance(entry, SourceDirectory) else entry.path.rpartition(b"/")[0]
    if path in made:
        return
    (folder / os.fsdecode(path)).mkdir(mode=0o755, parents=True, exist_ok=True)
    while path:
        made.add(path)
        path = path.rpartition(b"/")[0]


def _go_on_unless(is_stopped: Callable[[], bool]) -> None:
    if is_stopped():
        raise StoppedError


def _set_time(path: bytes, at_ns: int) -> None:
    os.utime(path, ns=(at_ns, at_ns), follow_symlinks=False)


def _write_file(
    path: bytes,
    entry: SourceFile,
    at_ns: int,
    is_stopped: Callable[[], bool],
    on_file: OnFile | None,
) -> bool:
    """Write a file, and return whether it is a pointer of Git LFS: those come whole."""
    data = entry.read()
    fd = os.open(path, _CREATE, 0o755 if entry.executable else 0o644)
    try:
        if isinstance(data, bytes):
            write_all(fd, data)
        else:
            for piece in data:
                _go_on_unless(is_stopped)
                write_all(fd, piece)
        os.utime(fd, ns=(at_ns, at_ns))
        if on_file is not None:  # the status has the `ctime` that this left
            on_file(entry.path, os.fstat(fd))
    finally:
        os.close(fd)
    return isinstance(data, bytes) and is_pointer(data)


def _contents(entry: SourceFile) -> Iterator[bytes]:
    data = entry.read()
    if isinstance(data, bytes):
        yield data
    else:
        yield from data


def _tar_pieces(entry: SourceEntry) -> Iterator[bytes]:
    if isinstance(entry, SourceFile):
        mode = 0o755 if entry.executable else 0o644
        yield tar.encode_header(entry.path, tar.FILE, mode, size_bytes=entry.size_bytes)
        yield from _contents(entry)
        yield bytes(-entry.size_bytes % tar.BLOCK_BYTES)
    elif isinstance(entry, SourceLink):
        yield tar.encode_header(entry.path, tar.LINK, 0o644, target=entry.target)
    else:
        yield tar.encode_header(entry.path, tar.DIRECTORY, 0o755)


def real_folder(tree: Path, folder: str) -> Path:
    """Find the output folder without following a link, which could lead anywhere."""
    root = tree
    for part in folder.split("/") if folder != "." else ():
        root = root / part
        try:
            mode = root.lstat().st_mode
        except FileNotFoundError as error:
            raise BuildFailedError(
                OUTPUT_MISSING,
                f"The build made no folder {folder!r}: build.output in managed.toml must name the"
                " folder that the command writes.",
            ) from error
        except OSError as error:
            raise BuildFailedError(
                OUTPUT_INVALID, f"The output {folder!r} cannot be read: {error.strerror}."
            ) from error
        if not stat.S_ISDIR(mode):
            what = "a link" if stat.S_ISLNK(mode) else "no folder"
            raise BuildFailedError(
                OUTPUT_INVALID, f"The output {folder!r} is not taken: {root.name!r} is {what}."
            )
    return root


@contextlib.contextmanager
def _mapped_errors() -> Iterator[None]:
    """Tell the author of the commit what storage refuses of their tree."""
    try:
        yield
    except TreeTooLargeError as error:
        raise BuildFailedError(OUTPUT_TOO_LARGE, f"{error}.") from error
    except TreeError as error:
        raise BuildFailedError(OUTPUT_INVALID, f"{error}.") from error
