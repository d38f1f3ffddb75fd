"""What storage can fail with.

StorageError
├── RecordsError              the database refused, or is closed
│   └── RecordConflictError   a rule of the tables (unique, foreign key) was broken
"""

from __future__ import annotations


class StorageError(Exception):
    """Root of all that storage raises on purpose."""


class RecordsError(StorageError):
    """The database refused a statement, or is closed."""


class RecordConflictError(RecordsError):
    """A change broke a rule of the tables: unique, foreign key, check."""
