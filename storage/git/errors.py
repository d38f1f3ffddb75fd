"""What a git repository on disk can fail with.

StorageError
└── RepositoryError               root of this package
    ├── RepositoryNotFoundError   no repository there
    ├── RepositoryUnsupportedError  its objects or refs are kept in a way that is not read here
    ├── RepositoryCorruptError    a file of the repository is not what its format says
    │   └── ObjectMissingError    an object that must be there is not
    ├── PackOutgrownError         a pack needs more memory than its worker may take
    ├── RefNotFoundError          no branch, tag, ref or commit of that name
    ├── PackInvalidError          a received pack was refused; the message is for the pusher
    │   └── PackTooLargeError     ... because a bound was exceeded
    └── RefUpdateError            a ref could not be changed; carries git's two wordings
        └── RefNotDurableError    ... or it was, and a power cut may undo it
"""

from __future__ import annotations

from storage.errors import StorageError


class RepositoryError(StorageError):
    """Root of all that a git repository fails with."""


class RepositoryNotFoundError(RepositoryError):
    """No repository there."""


class RepositoryUnsupportedError(RepositoryError):
    """The repository keeps its objects or refs in a way that is not read here."""


class RepositoryCorruptError(RepositoryError):
    """A file of the repository is not what its format says."""


class ObjectMissingError(RepositoryCorruptError):
    """An object that must be there is not."""

    def __init__(self, oid: bytes) -> None:
        super().__init__(f"object {oid.hex()} is missing")
        self.oid = oid


class PackOutgrownError(RepositoryError):
    """Work on a pack needs more memory than it may take here: do it in a process of its own."""


class RefNotFoundError(RepositoryError):
    """No branch, tag, full ref or commit of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no branch, tag, ref or commit is named '{name}'")
        self.name = name


class PackInvalidError(RepositoryError):
    """A received pack was refused.

    `str(error)` is what the pusher reads as `remote:` line; `unpack_status` is the reason behind
    `unpack` in the report.
    """

    def __init__(self, message: str, *, unpack_status: str = "index-pack abnormal exit") -> None:
        super().__init__(message)
        self.unpack_status = unpack_status


class PackTooLargeError(PackInvalidError):
    """A received pack exceeds a bound."""


class RefUpdateError(RepositoryError):
    """A ref could not be changed.

    `reason` is the word of the report (`ng <ref> <reason>`); `str(error)` is the sentence for the
    side band.
    """

    def __init__(self, message: str, *, reason: str = "failed to update ref") -> None:
        super().__init__(message)
        self.reason = reason


class RefNotDurableError(RefUpdateError):
    """A ref has moved, and could not be synced: after a power cut it may be where it was.

    Nobody can tell which: what the disk failed to take once it may say to have taken the next time.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="moved, but a power cut may undo it")
