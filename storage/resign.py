"""Signing statements again: the same words under the key that signs now.

For what a revoked key signed while it was known to be safe: the records say which statements those
are, and the store still has exactly the bytes that the key signed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.custody import Custody
from storage.envelope import IN_TOTO_TYPE, Envelope, unseal
from storage.errors import ArtifactError
from storage.files import mapped_errors, write_atomic
from storage.gate import Gate
from storage.layout import STATEMENT_MODE
from storage.model import Attestation
from storage.reader import StoreReader
from storage.records import attestations
from storage.records.db import Records


@dataclass(frozen=True, slots=True)
class Resigned:
    """How many statements were signed again, and which could not be: a sentence each."""

    count: int
    failures: tuple[str, ...]


def resign(
    records: Records, reader: StoreReader, custody: Custody, statements: Sequence[Attestation]
) -> Resigned:
    """Sign these statements again. Durable when it returns; all of them count at once.

    Each must be what its key signed, whether that is trusted still or not. Releases that name one
    of them name its successor from then on.

    Raises:
        StorageError: The system or the database refused; none of them counts then.
    """
    # Behind the gate, from the first file to the rows: or the collector could take the new files
    # for leftovers.
    with mapped_errors("sign statements again"), Gate(reader.layout).publishing():
        signed, failures = _write_again(reader, custody, statements)
        records.write(lambda db: _replace(db, signed))
    return Resigned(len(signed), tuple(failures))


def _write_again(
    reader: StoreReader, custody: Custody, statements: Sequence[Attestation]
) -> tuple[list[tuple[str, Envelope]], list[str]]:
    publics = {name: key.public for name, key in reader.keyring().keys.items()}
    signed: list[tuple[str, Envelope]] = []
    failures: list[str] = []
    for made_by in statements:
        try:
            data = reader.envelope(made_by.envelope_sha256)
            body = unseal(data, payload_type=IN_TOTO_TYPE, public_key=publics.get).body
        except ArtifactError as error:
            failures.append(f"{made_by.artifact_id} of {made_by.build_id}: {error}")
            continue
        envelope = custody.seal(body)
        # Over whatever lies there: what no row knows may be torn, or its name not durable.
        path = Path(reader.layout.envelope(envelope.sha256))
        write_atomic(path, envelope.data, mode=STATEMENT_MODE)
        signed.append((made_by.envelope_sha256, envelope))
    return signed, failures


def _replace(db: sqlite3.Connection, signed: Sequence[tuple[str, Envelope]]) -> None:
    for old_sha256, new in signed:
        attestations.replace(
            db,
            old_sha256,
            new_sha256=new.sha256,
            key_id=new.key_id,
            signature=new.signature,
        )
