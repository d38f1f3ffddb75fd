"""The data folder: what lies where, and who may read it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from gitd.errors import StartError
from storage.backup.places import is_unfinished


@dataclass(frozen=True, slots=True)
class DataFolder:
    """The folder that a server keeps everything in."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "gitd.db"

    @property
    def repositories(self) -> Path:
        return self.root / "repos"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def joblogs(self) -> Path:
        return self.root / "joblogs"

    @property
    def scratch(self) -> Path:
        return self.root / "tmp"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def host(self) -> Path:
        return self.root / "host"

    @property
    def builders_socket(self) -> Path:
        return self.run / "builders.sock"

    @property
    def hosts_socket(self) -> Path:
        return self.run / "hosts.sock"

    def slot(self, name: str) -> Path:
        return self.root / "builder" / name

    def is_new(self) -> bool:
        """Whether no server was ever started here.

        Raises:
            StartError: This user may not look into it.
        """
        self.require_access()
        return not self.database.exists() and not self.repositories.exists()

    def prepare(self) -> None:
        """Make what is missing. Control alone may read it, but for what children work with.

        Raises:
            StartError: The folder is another user's, or cannot be made.
        """
        self.require_access()
        for path, mode in (
            (self.root, 0o711),
            (self.repositories, 0o700),
            (self.keys, 0o700),
            (self.joblogs, 0o700),
            (self.scratch, 0o700),
            (self.run, 0o711),
            (self.root / "builder", 0o711),
        ):
            _make(path, mode)

    def require_server(self) -> None:
        """For commands beside a server: make none where there is none.

        Raises:
            StartError: No server has ever been started here, or another user's was.
        """
        try:
            if self.is_new():
                raise StartError(
                    f"{self.root} is no data folder of gitd: there is no {self.database.name} in "
                    "it. Name the one of the server; a new one is made by: gitd serve --data DIR"
                )
        except OSError as error:
            raise StartError(f"cannot look into {self.root}: {error.strerror}") from error

    def require_access(self) -> None:
        """Say so at once where the folder is another user's.

        Raises:
            StartError: This user may not look into it.
        """
        mine = os.access(self.root, os.R_OK | os.X_OK, effective_ids=True)
        try:
            if mine or not self.root.exists():
                return
        except PermissionError:
            pass  # a folder above it is closed
        raise StartError(
            f"{self.root} is closed to this user: run this as the user whose server it is, or as"
            " root."
        )

    def check_whole(self) -> None:
        """Never make a new database beside what a lost one knew of.

        An empty one says that there are no environments, and the site host would remove all that
        it has, with the data of their processes.

        Raises:
            StartError: The database is gone or empty, and there are repositories; or a restore
                broke off.
        """
        if is_unfinished(self.root):
            raise StartError(
                f"A restore into {self.root} did not come to its end. Run the same gitd restore"
                " again, which goes on where it was; or remove the folder to begin anew."
            )
        is_there = self.database.exists() and self.database.stat().st_size > 0
        if not is_there and any(self.repositories.iterdir()):
            raise StartError(
                f"{self.database} is gone or empty, but {self.repositories} has repositories. "
                "Put the database back from a copy; to begin anew, choose another --data."
            )

    def give(self, path: Path, uid: int) -> None:
        """Make `path` a folder of `uid` alone."""
        _make(path, 0o700)
        if os.geteuid() == 0:
            os.chown(path, uid, uid)

    def check_reachable(self) -> None:
        """Children with uids of their own must be able to walk to this folder.

        What is not there yet is made so that they can, and so is our own folder.

        Raises:
            StartError: A folder on the way is closed to others.
        """
        for folder in (self.root, *self.root.parents):
            if not folder.exists() or (
                folder == self.root and folder.stat().st_uid == os.geteuid()
            ):
                continue
            if not folder.stat().st_mode & stat.S_IXOTH:
                raise StartError(
                    f"The builders and the site host run as users of their own and cannot reach "
                    f"{self.root}: {folder} is closed to others. Choose another --data, such as "
                    f"/var/lib/gitd, or open the way with: chmod o+x {folder}"
                )


def _make(path: Path, mode: int) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        status = path.stat()
        if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) != mode:
            path.chmod(mode)
    except OSError as error:
        raise StartError(f"cannot make {path}: {error.strerror}") from error
