"""Drafts: a folder is unpacked before it is known which tree is wanted, and amended to that.

A draft holds a tree that was verified byte by byte when it was unpacked. Most of the next tree is
usually the same: only what differs is removed and unpacked anew, verified as ever.
"""
# Plain strings: a push has thousands of files, and a Path costs as much as the call.
# ruff: noqa: PTH101, PTH102, PTH104

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from storage.files import mapped_errors
from storage.layout import Layout
from storage.manifest import DirectoryEntry, Manifest
from storage.materialise import unpack_entries
from storage.unpacked import FOLDER_MODE, OPEN_FOLDER

_PRIVATE_MODE = 0o700


class Draft:
    """The folder `path`, which holds exactly `manifest`. Only its owner can enter it.

    Its methods block; after one that raised, it is to be discarded.
    """

    def __init__(self, layout: Layout, manifest: Manifest, path: Path) -> None:
        self.manifest = manifest
        self.path = path
        self._layout = layout

    @classmethod
    def unpack(
        cls, layout: Layout, manifest: Manifest, path: Path, *, beside: Path | None
    ) -> Draft:
        """Unpack a tree as the new folder `path`. Not durable. See `storage.materialise`.

        Raises:
            As `storage.materialise.materialise`. Then nothing is left of it.
        """
        with mapped_errors(f"unpack into {path}"):
            os.mkdir(path, _PRIVATE_MODE)
            try:
                with _opened(path) as root:
                    unpack_entries(layout, manifest.entries, root, beside=beside)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise
        return cls(layout, manifest, path)

    def amend(self, manifest: Manifest) -> None:
        """Make it hold another tree: what is in both as it is in both stays untouched.

        Raises:
            As `storage.materialise.materialise`.
        """
        was = {entry.path: entry for entry in self.manifest.entries}
        now = {entry.path: entry for entry in manifest.entries}
        with mapped_errors(f"amend {self.path}"), _opened(self.path) as root:
            for entry in reversed(self.manifest.entries):  # what lies in a folder before that
                if now.get(entry.path) == entry:
                    continue
                if isinstance(entry, DirectoryEntry):
                    os.rmdir(entry.path, dir_fd=root)
                else:
                    os.unlink(entry.path, dir_fd=root)
            differing = [entry for entry in manifest.entries if was.get(entry.path) != entry]
            unpack_entries(self._layout, differing, root)
        self.manifest = manifest

    def place(self, dest: Path) -> None:
        """Let it be the new folder `dest`, in the same folder as it.

        Raises:
            StorageIoError: `dest` exists, or the system refused.
        """
        with mapped_errors(f"unpack into {dest}"):
            if os.path.lexists(dest):
                raise FileExistsError(errno.EEXIST, "there is something already", str(dest))
            os.chmod(self.path, FOLDER_MODE)
            os.rename(self.path, dest)

    def discard(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    fd = os.open(folder, OPEN_FOLDER)
    try:
        yield fd
    finally:
        os.close(fd)
