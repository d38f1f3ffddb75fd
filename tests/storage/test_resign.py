"""Statements that are signed again when a key is revoked, and those that must not be."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.custody import Custody
from storage.envelope import IN_TOTO_TYPE, unseal
from storage.errors import SignatureInvalidError, StorageIoError
from storage.records import artifacts, attestations
from storage.resign import resign
from tests.storage.conftest import PREVIEW


@pytest.fixture
def custody(shop) -> Custody:
    """The shop's keys, after a rotation: `shop.signing_key` is the old one."""
    keys = Custody(shop.folder)
    keys.rotate(shop.store.layout.trust)
    return keys


def revoke(shop, custody: Custody) -> None:
    keyring = custody.revoke(shop.store.layout.trust, shop.signing_key.key_id, reason="stolen")
    shop.records.write(lambda db: attestations.revoke(db, keyring.revoked))


def test_statements_before_the_theft_are_saved_and_no_others(shop) -> None:
    """Case 27: the order of admission decides, whatever the statements say of their times."""
    before = shop.ingest({"a": b"before"}, finished_at="2027-01-01T00:00:00.000Z")
    after = shop.ingest({"a": b"after"}, finished_at="2020-01-01T00:00:00.000Z")
    custody = Custody(shop.folder)
    custody.rotate(shop.store.layout.trust)
    db = shop.records.reader()
    sound = attestations.signed_by(db, shop.signing_key.key_id, before=2)
    assert resign(shop.records, shop.reader, custody, sound).count == 1
    revoke(shop, custody)
    kept = artifacts.of_environment(db, PREVIEW, before.artifact_id).attestation
    verified = shop.reader.verify(before.digest, kept.envelope_sha256)
    assert verified.key_id == custody.signing_key().key_id
    assert verified.provenance.finished_at == "2027-01-01T00:00:00.000Z"
    lost = artifacts.of_environment(db, PREVIEW, after.artifact_id).attestation
    assert lost.is_revoked
    with pytest.raises(SignatureInvalidError):
        shop.reader.verify(after.digest, lost.envelope_sha256)


def test_statement_of_a_key_that_is_revoked_already_can_be_signed_again(shop, custody) -> None:
    ingested = shop.ingest({"a": b"x"})
    revoke(shop, custody)
    db = shop.records.reader()
    lost = attestations.signed_by(db, shop.signing_key.key_id)
    assert resign(shop.records, shop.reader, custody, lost).count == 1
    again = artifacts.of_environment(db, PREVIEW, ingested.artifact_id).attestation
    assert shop.reader.verify(ingested.digest, again.envelope_sha256)
    assert not again.is_revoked


def test_statement_that_is_not_what_was_signed_is_not_signed_again(shop, custody) -> None:
    broken = shop.ingest({"a": b"x"})
    gone = shop.ingest({"a": b"y"})
    path = Path(shop.store.layout.envelope(broken.envelope_sha256))
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data.replace(b'"payload":"e', b'"payload":"f'))
    Path(shop.store.layout.envelope(gone.envelope_sha256)).unlink()
    revoke(shop, custody)
    lost = attestations.signed_by(shop.records.reader(), shop.signing_key.key_id)
    done = resign(shop.records, shop.reader, custody, lost)
    assert done.count == 0
    assert [failure.partition(" ")[0] for failure in done.failures] == [
        broken.artifact_id,
        gone.artifact_id,
    ]


def test_file_that_lies_where_a_new_statement_belongs_is_overwritten(shop, custody) -> None:
    """Case 7: no row knows it, so that nobody ever held it against its name."""
    ingested = shop.ingest({"a": b"x"})
    (made_by,) = attestations.signed_by(shop.records.reader(), shop.signing_key.key_id)
    body = unseal(
        shop.reader.envelope(made_by.envelope_sha256),
        payload_type=IN_TOTO_TYPE,
        public_key=lambda _: shop.signing_key.public,
    ).body
    path = Path(shop.store.layout.envelope(custody.seal(body).sha256))
    path.write_bytes(b"torn")
    assert resign(shop.records, shop.reader, custody, [made_by]).count == 1
    kept = artifacts.of_environment(shop.records.reader(), PREVIEW, ingested.artifact_id)
    assert shop.reader.verify(ingested.digest, kept.attestation.envelope_sha256)
    assert kept.attestation.key_id == custody.signing_key().key_id


def test_lock_that_cannot_be_had_is_said_and_changes_nothing(shop, custody) -> None:
    shop.ingest({"a": b"x"})
    made = attestations.signed_by(shop.records.reader(), shop.signing_key.key_id)
    turnstile = Path(shop.store.layout.turnstile)
    turnstile.rename(turnstile.with_name("elsewhere"))
    turnstile.mkdir()
    with pytest.raises(StorageIoError, match="sign statements again"):
        resign(shop.records, shop.reader, custody, made)
    assert attestations.signed_by(shop.records.reader(), shop.signing_key.key_id) == made
