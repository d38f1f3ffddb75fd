"""The records: one sqlite database, one file per table."""
