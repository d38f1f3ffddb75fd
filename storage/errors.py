"""What storage can fail with.

StorageError
├── JobLogPositionError       a job's log has no entry that ends there
├── RecordsError              the database refused, or is closed
│   └── RecordConflictError   a rule of the tables (unique, foreign key) was broken
├── StorageFullError          the disk has no room, or nearly none
├── StorageIoError            the disk, or its permissions, refused
├── StoreUnusableError        a folder is no artifact store of a format we know
├── StoreChangedError         blobs went away during an ingest: repeat it
├── QuotaExceededError        a site would have more in the store than it may
├── CollectorBusyError        somebody collects already
├── CollectionRefusedError    the collector will not delete: something looks wrong
├── BackupError               a backup cannot be made, or not be used like that
│   └── BackupDamagedError    what was backed up is not what its manifest says
├── KeyFileError              a private key cannot be used
├── SealBrokenError           a sealed value does not open
├── DigestInvalidError        a text is no digest
├── AuditLogInvalidError      what should be an exported audit log is none
├── TreeError                 a tree offered for ingest cannot become an artifact
│   ├── TreeInvalidError      it holds what no artifact may hold
│   └── TreeTooLargeError     it is beyond a limit
│       └── TreeBytesError        that of the bytes of all its files together
└── ArtifactError             a stored artifact may not be used
    ├── ArtifactMissingError  a part of it is not there
    ├── ArtifactCorruptError  a part of it is not what its digest says
    │   └── ManifestInvalidError  its manifest is not one
    └── SignatureInvalidError nobody whom we trust vouches for it
        └── ReleaseInvalidError    nobody whom we trust says that it may run there
            ├── ReleaseKeyRetiredError        by a key that may release nothing new
            ├── ReleaseElsewhereError         it is for another environment
            ├── ReleaseReplayedError          the environment went by a newer one
            └── ReleaseExpiredError           its time is over
"""

from __future__ import annotations


class StorageError(Exception):
    """Root of all that storage raises on purpose."""


class RecordsError(StorageError):
    """The database refused a statement, or is closed."""


class JobLogPositionError(StorageError):
    """A reader named a place in a job's log that is not the end of an entry."""

    def __init__(self, job_id: str, position: int) -> None:
        super().__init__(f"the log of {job_id} has no entry that ends at {position}")
        self.job_id = job_id
        self.position = position


class RecordConflictError(RecordsError):
    """A change broke a rule of the tables: unique, foreign key, check."""


class StorageFullError(StorageError):
    """The disk has no room, or less than is kept free. What was begun is undone."""


class StorageIoError(StorageError):
    """The operating system refused or failed a file operation.

    Attributes:
        code: The `errno`, or None.
    """

    def __init__(self, message: str, *, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class StoreUnusableError(StorageError):
    """The folder is not an artifact store, or has a format that this program does not know."""


class StoreChangedError(StorageError):
    """Blobs that an ingest counted on were collected meanwhile. Repeating it is right."""


class QuotaExceededError(StorageError):
    """A site's artifacts would be larger together than they may be. Nothing was kept."""


class CollectorBusyError(StorageError):
    """Another collector is at work on the store."""


class CollectionRefusedError(StorageError):
    """The collector will not delete: so much would go, or so little fits, that it looks wrong."""


class BackupError(StorageError):
    """A backup cannot be made, or not be used like that. The message says what to do."""


class BackupDamagedError(BackupError):
    """A file of a backup is gone, or other than its manifest says."""


class SealBrokenError(StorageError):
    """A sealed value does not open with this key, at this place."""


class KeyFileError(StorageError):
    """A private key is unreadable, malformed, or readable by others."""


class DigestInvalidError(StorageError):
    """A text is not the exact form `blake3:` and 64 lower-case hexadecimal digits."""


class AuditLogInvalidError(StorageError):
    """What should be lines of an audit log is something else."""


class TreeError(StorageError):
    """A tree offered for ingest cannot become an artifact.

    Attributes:
        path: The entry at fault, relative to the root, in printable form; empty for the whole.
        reason: What is wrong with it.
    """

    def __init__(self, path: bytes, reason: str) -> None:
        self.path = printable(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}" if path else reason)


class TreeInvalidError(TreeError):
    """The tree holds what no artifact may hold: a device, an escaping link, a bad name."""


class TreeTooLargeError(TreeError):
    """The tree has too many files or bytes."""


class TreeBytesError(TreeTooLargeError):
    """The files of the tree have more bytes together than they may: a bound that callers set."""


class ArtifactError(StorageError):
    """A stored artifact may not be used."""


class ArtifactMissingError(ArtifactError):
    """A manifest, an envelope or a blob is not in the store."""


class ArtifactCorruptError(ArtifactError):
    """Stored or unpacked bytes, names or modes are not what the manifest says.

    Attributes:
        path: The entry at fault in printable form; empty for the manifest itself.
    """

    def __init__(self, path: bytes, reason: str) -> None:
        self.path = printable(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}" if path else reason)


class ManifestInvalidError(ArtifactCorruptError):
    """The bytes are not a manifest."""

    def __init__(self, reason: str) -> None:
        super().__init__(b"", f"manifest: {reason}")


class SignatureInvalidError(ArtifactError):
    """The envelope, its signature, its statement or the trusted keys do not hold."""


class ReleaseInvalidError(SignatureInvalidError):
    """The statement of a release does not hold, or is about another artifact or site."""


class ReleaseKeyRetiredError(ReleaseInvalidError):
    """A new statement of a release bears a signature of a key that was retired."""


class ReleaseElsewhereError(ReleaseInvalidError):
    """The statement of a release is for another environment."""


class ReleaseReplayedError(ReleaseInvalidError):
    """The statement of a release is not newer than what the environment went by."""


class ReleaseExpiredError(ReleaseInvalidError):
    """The statement of a release says that it holds no longer."""


def printable(path: bytes) -> str:
    """Return a path from a hostile tree for use in a message: no control bytes, bounded."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)[
        :300
    ]
