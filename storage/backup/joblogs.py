"""Job logs in a backup: each as it is, or, where it cannot be read, as the backup before has it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from storage.backup.earlier import Earlier
from storage.backup.manifest import ManifestWriter
from storage.backup.places import JOBLOGS
from storage.backup.pool import Pool, reading
from storage.backup.repositories import Listed
from storage.errors import BackupDamagedError
from storage.joblog import SUFFIX


class JobLogCopier:
    """Copies the logs of a folder.

    Attributes:
        found: Why a log, or a folder of them, could not be read, by its path below the folder.
    """

    def __init__(self, root: Path, earlier: Earlier, pool: Pool, writer: ManifestWriter) -> None:
        self._root = root
        self._earlier = earlier
        self._pool = pool
        self._writer = writer
        self.found: dict[str, str] = {}

    def run(self) -> None:
        """Copy them all. What cannot be read stops none of the others.

        Raises:
            OSError: The system refused.
        """
        for folder in sorted(self._root.glob("*")):
            with self._noting(folder):
                with reading(folder):
                    paths = sorted(folder.glob(f"*{SUFFIX}"))
                for path in paths:
                    with self._noting(path):
                        self._add(path)

    def _add(self, path: Path) -> None:
        with reading(path):
            status = path.lstat()
        name = f"{path.parent.name}/{path.name}"
        item = Listed(name, 0o600, status.st_mtime_ns, status.st_size)
        self._writer.add(self._earlier.or_copied(f"{JOBLOGS}/{name}", path, item, self._pool))

    @contextlib.contextmanager
    def _noting(self, path: Path) -> Iterator[None]:
        """Go on past what cannot be read; the backup before may have it, if less of it."""
        try:
            yield
        except FileNotFoundError:
            pass  # too old by now
        except BackupDamagedError as error:
            name = path.relative_to(self._root).as_posix()
            entries = self._earlier.at(f"{JOBLOGS}/{name}", self._pool)
            for entry in entries:
                self._writer.add(entry)
            known = "; what the backup before has of it is in this one" if entries else ""
            self.found[name] = f"{error}: move it away{known}"
