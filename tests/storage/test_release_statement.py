"""Release statements: which of them let an artifact run where, and every one that must not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from storage.artifacts import Ingested
from storage.digest import Digest
from storage.envelope import Envelope, encode_json, seal
from storage.errors import (
    ReleaseElsewhereError,
    ReleaseExpiredError,
    ReleaseInvalidError,
    ReleaseKeyRetiredError,
    ReleaseReplayedError,
)
from storage.release_statement import (
    SEQUENCE_MAX,
    ConfigPin,
    ReleaseStatement,
    build_release,
    parse_release,
)
from storage.signing import SigningKey
from storage.trust import TrustedKey, establish, revoke
from tests.storage.test_proof import generation

NOW_MS = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp() * 1000)
ENV = "env_1"


@dataclass
class Release:
    """An artifact of the shop, and what may be said of it."""

    shop: object
    ingested: Ingested

    def said(self, **facts: object) -> ReleaseStatement:
        stated = {
            "site": "acme-store",
            "env_id": ENV,
            "environment": "production",
            "sequence": 7,
            "deployment_id": "dep_1",
            "provenance_sha256": self.ingested.envelope_sha256,
            "previous": Digest.of(b"before"),
            "rollback": False,
            "issued_at": "2026-06-01T00:00:00.000Z",
        }
        return ReleaseStatement(**{**stated, **facts})

    def body(self, **facts: object) -> bytes:
        return build_release(
            self.said(**facts),
            digest=self.ingested.digest,
            manifest_sha256=self.ingested.manifest_sha256,
        )

    def sealed(self, key: SigningKey | None = None, **facts: object) -> bytes:
        return seal(self.body(**facts), key or self.shop.signing_key).data

    def check(self, data: bytes, *, above: int | None = 6, env_id: str = ENV) -> ReleaseStatement:
        verified = self.shop.verify(self.ingested)
        return self.shop.reader.verify_release(
            data, verified, env_id=env_id, above=above, now_ms=NOW_MS
        )


@pytest.fixture
def release(shop) -> Release:
    return Release(shop, shop.ingest({"index.html": b"hello"}))


def test_statement_says_what_was_put_into_it(release) -> None:
    for facts in ({}, {"previous": None}, {"rollback": True}, {"expires_at": "2030-01-01T00:00Z"}):
        assert release.check(release.sealed(**facts)) == release.said(**facts)


def test_sequence_only_grows(release) -> None:
    """Case 31: an older statement, or an equal one, was valid once; a rollback is a new one."""
    for sequence in (1, 5, 6):
        with pytest.raises(ReleaseReplayedError, match="went by 6"):
            release.check(release.sealed(sequence=sequence))
    assert release.check(release.sealed(sequence=9, rollback=True)).rollback


def test_statement_that_was_gone_by_before_needs_not_be_new(release) -> None:
    assert release.check(release.sealed(sequence=1), above=None).sequence == 1


def test_clock_decides_on_nothing_but_expiry(release) -> None:
    """Case 25: ten years off either way changes nothing, unless the statement ends by then."""
    for issued_at in ("2016-01-01T00:00:00.000Z", "2036-01-01T00:00:00.000Z", "no time at all"):
        assert release.check(release.sealed(issued_at=issued_at))
    for expires_at in ("2026-06-01T00:00:00.001Z", "2026-06-01T02:00:01+02:00"):
        assert release.check(release.sealed(expires_at=expires_at))
    for expires_at in ("2026-06-01T00:00:00.000Z", "2016-01-01T00:00:00Z"):
        for above in (6, None):
            with pytest.raises(ReleaseExpiredError, match=expires_at):
                release.check(release.sealed(expires_at=expires_at), above=above)


def test_statement_for_another_environment_is_refused(release) -> None:
    """Case 31."""
    with pytest.raises(ReleaseElsewhereError, match="production"):
        release.check(release.sealed(), env_id="env_2")


def test_statement_about_another_artifact_is_refused(release, shop) -> None:
    """Case 30: both statements hold, each for its own artifact."""
    other = Release(shop, shop.ingest({"index.html": b"other"}))
    for about, to in ((release, other), (other, release)):
        with pytest.raises(ReleaseInvalidError):
            to.check(about.sealed())


def test_statement_that_goes_by_another_provenance_is_refused(release, shop) -> None:
    """Case 30: another build made equal content, on a builder that was trusted more."""
    again = Release(shop, shop.ingest({"index.html": b"hello"}))
    assert again.ingested.digest == release.ingested.digest
    with pytest.raises(ReleaseInvalidError, match="another provenance"):
        release.check(again.sealed())


def test_statement_for_another_site_is_refused(release) -> None:
    """Case 30."""
    with pytest.raises(ReleaseInvalidError):
        release.check(release.sealed(site="other"))


def test_provenance_is_no_release_and_a_release_no_provenance(release, shop) -> None:
    """Case 29: both are in-toto statements by one key, so that the signatures hold."""
    provenance = shop.reader.envelope(release.ingested.envelope_sha256)
    with pytest.raises(ReleaseInvalidError):
        release.check(provenance)


def test_only_trusted_keys_release(release, shop) -> None:
    for key in (SigningKey.generate(), shop.root_key):
        with pytest.raises(ReleaseInvalidError, match="no trusted key"):
            release.check(release.sealed(key))


def test_key_releases_by_its_role_alone(release, shop) -> None:
    releasing, building = SigningKey.generate(), SigningKey.generate()
    keys = (
        TrustedKey(shop.signing_key.public),
        TrustedKey(releasing.public, roles=("release",)),
        TrustedKey(building.public, roles=("provenance",)),
    )
    path = shop.store.layout.trust / "root.2.json"
    path.write_bytes(generation(shop, *keys, version=2))
    assert release.check(release.sealed(releasing)) == release.said()
    with pytest.raises(ReleaseInvalidError, match="no trusted key"):
        release.check(release.sealed(building))


def test_retired_key_releases_nothing_new(release, shop) -> None:
    """Case 26: what a host went by before stays good, what the key signs too late does not."""
    establish(shop.store.layout.trust, root=shop.root_key, signing=SigningKey.generate())
    assert release.check(release.sealed(), above=None)
    with pytest.raises(ReleaseKeyRetiredError):
        release.check(release.sealed(sequence=100))


def test_late_provenance_of_a_retired_key_has_nobody_to_release_it(release, shop) -> None:
    """Case 26: it holds by itself, and a release by an active key names another one."""
    successor = SigningKey.generate()
    establish(shop.store.layout.trust, root=shop.root_key, signing=successor)
    late = Release(shop, shop.ingest({"index.html": b"late"}))
    with pytest.raises(ReleaseKeyRetiredError):
        late.check(late.sealed())
    with pytest.raises(ReleaseInvalidError):
        late.check(release.sealed(successor))


def test_revoked_key_releases_nothing_and_never_did(release, shop) -> None:
    """Case 27."""
    sealed = release.sealed()
    successor = SigningKey.generate()
    verified = shop.verify(release.ingested)
    establish(shop.store.layout.trust, root=shop.root_key, signing=successor)
    key_id = shop.signing_key.key_id
    revoke(shop.store.layout.trust, root=shop.root_key, key_id=key_id, reason="stolen")
    with pytest.raises(ReleaseInvalidError, match="no trusted key"):
        shop.reader.verify_release(sealed, verified, env_id=ENV, above=None, now_ms=NOW_MS)


def edit(*path: str | int, value: object) -> Callable[[dict], None]:
    def change(statement: dict) -> None:
        *parents, last = path
        inner = statement
        for key in parents:
            inner = inner[key]
        inner[last] = value

    return change


UNSOUND = {
    "statement type": edit("_type", value="https://in-toto.io/Statement/v0.1"),
    "predicate type": edit("predicateType", value="urn:gitd:release:v2"),
    "wrong blake3": edit("subject", 0, "digest", "blake3", value="0" * 64),
    "blake3 right, sha256 wrong": edit("subject", 0, "digest", "sha256", value="0" * 64),
    "one digest only": lambda said: said["subject"][0]["digest"].pop("sha256"),
    "a third digest": edit("subject", 0, "digest", "md5", value="0" * 32),
    "two subjects": lambda said: said["subject"].append(said["subject"][0]),
    "no subject": edit("subject", value=[]),
    "unknown field": edit("predicate", "force", value=True),
    "field left out": lambda said: said["predicate"].pop("rollback"),
    "unknown field of the environment": edit("predicate", "environment", "kind", value="x"),
    "sequence 0": edit("predicate", "sequence", value=0),
    "sequence below 0": edit("predicate", "sequence", value=-7),
    "sequence beyond all bounds": edit("predicate", "sequence", value=1 << 53),
    "sequence with a fraction": edit("predicate", "sequence", value=7.0),
    "sequence as text": edit("predicate", "sequence", value="7"),
    "sequence as a flag": edit("predicate", "sequence", value=True),
    "rollback as a number": edit("predicate", "rollback", value=0),
    "unknown field of the provenance": edit("predicate", "provenance", "sha512", value="x"),
    "unknown field of what was before": edit("predicate", "previous", "sha256", value="x"),
    "environment as text": edit("predicate", "environment", value=ENV),
    "previous is no digest": edit("predicate", "previous", "blake3", value="00"),
    "expiry is no time": edit("predicate", "expiresAt", value="never"),
    "expiry without a zone": edit("predicate", "expiresAt", value="2030-01-01T00:00:00"),
    "expiry in a leap second": edit("predicate", "expiresAt", value="2016-12-31T23:59:60Z"),
    "expiry as a number": edit("predicate", "expiresAt", value=1 << 40),
    "no predicate": edit("predicate", value=[]),
    "predicate as text": edit("predicate", value="config"),
}


@pytest.mark.parametrize("change", UNSOUND.values(), ids=UNSOUND)
def test_unsound_statement_is_refused_even_when_it_is_signed(
    release, shop, change: Callable[[dict], None]
) -> None:
    """Cases 29 and 30."""
    statement = json.loads(release.body())
    change(statement)
    sealed: Envelope = seal(encode_json(statement), shop.signing_key)
    with pytest.raises(ReleaseInvalidError):
        release.check(sealed.data, above=None)


CONFIG = ("predicate", "config")
UNSOUND_CONFIG = {
    "as text": edit(*CONFIG, value="x"),
    "as nothing": edit(*CONFIG, value=None),
    "unknown field": edit(*CONFIG, "salt", value="x"),
    "unknown field of the digest": edit(*CONFIG, "digest", "sha256", value="x"),
    "digest is none": edit(*CONFIG, "digest", "blake3", value="00"),
    "version 0": edit(*CONFIG, "version", value=0),
    "version beyond all bounds": edit(*CONFIG, "version", value=1 << 53),
    "version as a flag": edit(*CONFIG, "version", value=True),
    "version as text": edit(*CONFIG, "version", value="1"),
}


@pytest.mark.parametrize("change", UNSOUND_CONFIG.values(), ids=UNSOUND_CONFIG)
def test_unsound_config_is_refused_even_when_it_is_signed(
    release, shop, change: Callable[[dict], None]
) -> None:
    """Programs are given what it names, and nothing else."""
    config = ConfigPin(3, Digest.of(b"values"))
    assert release.check(release.sealed(config=config)).config == config
    statement = json.loads(release.body(config=config))
    change(statement)
    with pytest.raises(ReleaseInvalidError):
        release.check(seal(encode_json(statement), shop.signing_key).data)


def test_key_that_stands_twice_is_refused(release, shop) -> None:
    """Case 29: two readers would read two sequences."""
    body = release.body().replace(b'"sequence":7', b'"sequence":7,"sequence":8')
    with pytest.raises(ReleaseInvalidError, match="twice"):
        release.check(seal(body, shop.signing_key).data)


@pytest.mark.parametrize("sequence", [0, SEQUENCE_MAX + 1])
def test_statement_that_nobody_would_take_is_not_written(release, sequence: int) -> None:
    with pytest.raises(ReleaseInvalidError):
        release.sealed(sequence=sequence)


def test_statement_is_read_from_exactly_the_bytes_that_were_signed(release) -> None:
    body = release.body()
    about = {"digest": release.ingested.digest, "manifest_sha256": release.ingested.manifest_sha256}
    assert parse_release(body, **about) == release.said()
    with pytest.raises(ReleaseInvalidError):
        parse_release(body + b"{}", **about)
