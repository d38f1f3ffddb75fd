"""Trusted keys: generations that sign each other, rotation, revocation, tampering."""

from __future__ import annotations

import base64
import json
import resource
from pathlib import Path

import pytest

from storage.envelope import encode_json, seal
from storage.errors import (
    ReleaseInvalidError,
    ReleaseKeyRetiredError,
    SignatureInvalidError,
    StorageError,
)
from storage.provenance import SANDBOX_BUILDER, SOURCE_BUILDER
from storage.signing import SigningKey
from storage.trust import (
    TRUST_TYPE,
    Keyring,
    TrustedKey,
    begin_anew,
    establish,
    introduce,
    load_keyring,
    revoke,
)
from storage.trust_memory import TrustMemory
from tests.spoiling import flip

ROOT, KEY, NEXT, THIEF = (SigningKey(bytes([n]) * 32) for n in (1, 2, 3, 4))
PIN = frozenset({ROOT.key_id})
TRUSTED = {
    "public": base64.b64encode(KEY.public).decode(),
    "roles": ["provenance", "release"],
    "builders": [SOURCE_BUILDER],
    "sites": ["*"],
    "retired": False,
    "revoked": False,
    "reason": None,
}
"""What a generation says of `KEY`."""


def resign(folder: Path, version: int, key: SigningKey, /, **fields: object) -> None:
    """Write a generation as a thief would: changed, and signed by `key`."""
    path = folder / f"root.{version}.json"
    newest = max(folder.glob("root.*.json"))
    body = json.loads(base64.b64decode(json.loads(newest.read_bytes())["payload"]))
    sealed = seal(encode_json({**body, **fields}), key, payload_type=TRUST_TYPE)
    if path.exists():
        path.unlink()
    path.write_bytes(sealed.data)


def test_first_generation_trusts_the_signing_key(tmp_path: Path) -> None:
    keyring = establish(tmp_path, root=ROOT, signing=KEY)
    assert load_keyring(tmp_path, root_key_ids=PIN) == keyring
    assert keyring.provenance_key(KEY.key_id) == KEY.public
    assert keyring.provenance_key(ROOT.key_id) is None
    assert keyring.provenance_key(THIEF.key_id) is None


def test_establishing_again_changes_nothing(tmp_path: Path) -> None:
    assert establish(tmp_path, root=ROOT, signing=KEY) == establish(
        tmp_path, root=ROOT, signing=KEY
    )
    assert [path.name for path in tmp_path.iterdir()] == ["root.1.json"]


def test_rotation_keeps_what_the_old_key_signed(tmp_path: Path) -> None:
    establish(tmp_path, root=ROOT, signing=KEY)
    keyring = establish(tmp_path, root=ROOT, signing=NEXT)
    assert keyring == load_keyring(tmp_path, root_key_ids=PIN)
    assert keyring.version == 2
    assert keyring.provenance_key(KEY.key_id) == KEY.public
    assert keyring.keys[KEY.key_id].retired
    assert keyring.provenance_key(NEXT.key_id) == NEXT.public


def test_retired_key_is_not_taken_into_use_again(tmp_path: Path) -> None:
    establish(tmp_path, root=ROOT, signing=KEY)
    establish(tmp_path, root=ROOT, signing=NEXT)
    for use in (establish, introduce):
        with pytest.raises(SignatureInvalidError, match="retired"):
            use(tmp_path, root=ROOT, signing=KEY)


def test_revoked_key_vouches_for_nothing(tmp_path: Path) -> None:
    establish(tmp_path, root=ROOT, signing=KEY)
    keyring = revoke(tmp_path, root=ROOT, key_id=KEY.key_id, reason="was on a lost disk")
    assert load_keyring(tmp_path, root_key_ids=PIN) == keyring
    assert keyring.provenance_key(KEY.key_id) is None
    assert keyring.keys[KEY.key_id].reason == "was on a lost disk"
    with pytest.raises(SignatureInvalidError, match="no key"):
        revoke(tmp_path, root=ROOT, key_id=THIEF.key_id, reason="")


def test_revoked_key_is_not_taken_into_use_again_and_asks_for_no_generation(tmp_path: Path) -> None:
    """Also one that nothing had retired before."""
    establish(tmp_path, root=ROOT, signing=KEY)
    introduce(tmp_path, root=ROOT, signing=NEXT)
    keyring = revoke(tmp_path, root=ROOT, key_id=KEY.key_id, reason="stolen")
    for use in (establish, introduce):
        with pytest.raises(SignatureInvalidError, match="retired or revoked"):
            use(tmp_path, root=ROOT, signing=KEY)
    assert establish(tmp_path, root=None, signing=NEXT) == keyring


def test_only_a_root_key_writes_a_generation(tmp_path: Path) -> None:
    establish(tmp_path, root=ROOT, signing=KEY)
    with pytest.raises(SignatureInvalidError):
        establish(tmp_path, root=THIEF, signing=THIEF)
    with pytest.raises(SignatureInvalidError):
        revoke(tmp_path, root=THIEF, key_id=KEY.key_id, reason="")


def test_key_speaks_for_its_builders_and_sites_only() -> None:
    key = TrustedKey(KEY.public, builders=(SOURCE_BUILDER,), sites=("acme-store",))
    keyring = Keyring(1, {}, {KEY.key_id: key})
    allowed = keyring.authorize({KEY.key_id}, builder=SOURCE_BUILDER, site="acme-store")
    assert allowed == KEY.key_id
    for builder, site in ((SANDBOX_BUILDER, "acme-store"), (SOURCE_BUILDER, "other")):
        with pytest.raises(SignatureInvalidError):
            keyring.authorize({KEY.key_id}, builder=builder, site=site)


def test_key_without_the_role_vouches_for_no_provenance() -> None:
    keyring = Keyring(1, {}, {KEY.key_id: TrustedKey(KEY.public, roles=("release",))})
    assert keyring.provenance_key(KEY.key_id) is None


def test_retired_key_releases_nothing_new() -> None:
    """Case 26: what it signed before stays valid, what it signs too late does not."""
    keyring = Keyring(1, {}, {KEY.key_id: TrustedKey(KEY.public, retired=True)})
    how = {"site": "acme-store"}
    assert keyring.authorize_release({KEY.key_id}, is_new=False, **how) == KEY.key_id
    with pytest.raises(ReleaseKeyRetiredError):
        keyring.authorize_release({KEY.key_id}, is_new=True, **how)


def test_key_of_another_site_or_role_releases_nothing() -> None:
    for key in (
        TrustedKey(KEY.public, sites=("other",)),
        TrustedKey(KEY.public, roles=("provenance",)),
    ):
        keyring = Keyring(1, {}, {KEY.key_id: key})
        with pytest.raises(ReleaseInvalidError):
            keyring.authorize_release({KEY.key_id}, site="acme-store", is_new=False)


def test_folder_without_a_generation_trusts_nobody(tmp_path: Path) -> None:
    with pytest.raises(SignatureInvalidError, match="no trusted keys"):
        load_keyring(tmp_path, root_key_ids=None)


@pytest.mark.parametrize("at", range(0, 1000, 37))
def test_flipped_bit_is_refused(tmp_path: Path, at: int) -> None:
    establish(tmp_path, root=ROOT, signing=KEY)
    path = tmp_path / "root.1.json"
    flip(path, at)
    with pytest.raises(SignatureInvalidError):
        load_keyring(tmp_path, root_key_ids=PIN)


def test_thief_cannot_sign_a_generation(tmp_path: Path) -> None:
    establish(tmp_path, root=ROOT, signing=KEY)
    resign(tmp_path, 1, THIEF)
    with pytest.raises(SignatureInvalidError):
        load_keyring(tmp_path, root_key_ids=None)


def test_thief_cannot_begin_anew_with_a_root_of_his_own(tmp_path: Path) -> None:
    establish(tmp_path, root=THIEF, signing=THIEF)
    with pytest.raises(SignatureInvalidError, match="other root keys"):
        load_keyring(tmp_path, root_key_ids=PIN)


def test_thief_cannot_have_a_key_used_by_generations_of_his_own(tmp_path: Path) -> None:
    """They trust the key that is to be used already, so that nothing has to be written."""
    establish(tmp_path, root=THIEF, signing=KEY)
    for use in (establish, introduce):
        with pytest.raises(SignatureInvalidError, match="other root keys"):
            use(tmp_path, root=ROOT, signing=KEY)
    with pytest.raises(SignatureInvalidError, match="other root keys"):
        load_keyring(tmp_path, root_key_ids=frozenset({THIEF.key_id, ROOT.key_id}))


def test_trust_that_begins_anew_forgets_no_key_and_no_revocation(tmp_path: Path) -> None:
    """Where the root key is lost: nothing of before could add a generation any more."""
    establish(tmp_path, root=ROOT, signing=KEY)
    establish(tmp_path, root=ROOT, signing=NEXT)
    before = revoke(tmp_path, root=ROOT, key_id=KEY.key_id, reason="stolen")
    other, new = (SigningKey(bytes([n]) * 32) for n in (5, 6))
    keyring = begin_anew(tmp_path, root=other, signing=new, before=before)
    assert [path.name for path in tmp_path.iterdir()] == ["root.1.json"]
    assert keyring == load_keyring(tmp_path, root_key_ids=frozenset({other.key_id}))
    assert {name: key.state for name, key in keyring.keys.items()} == {
        KEY.key_id: "revoked",
        NEXT.key_id: "retired",
        new.key_id: "active",
    }


@pytest.mark.parametrize("payload", [b"null", b"5", b'"\xc3\xa9"', b'"e"', b'"e30="'])
def test_generation_without_a_statement_is_refused(tmp_path: Path, payload: bytes) -> None:
    (tmp_path / "root.1.json").write_bytes(b'{"payload":%s}' % payload)
    with pytest.raises(SignatureInvalidError):
        load_keyring(tmp_path, root_key_ids=PIN)


def test_thief_cannot_put_a_root_key_beside_the_one_that_is_known(tmp_path: Path) -> None:
    """Each of a generation's root keys may sign it."""
    establish(tmp_path, root=ROOT, signing=KEY)
    roots = {key.key_id: b64(key.public) for key in (ROOT, THIEF)}
    resign(tmp_path, 1, THIEF, rootKeys=roots)
    with pytest.raises(SignatureInvalidError, match="other root keys"):
        load_keyring(tmp_path, root_key_ids=PIN)


def test_thief_cannot_append_a_generation_with_a_root_of_his_own(tmp_path: Path) -> None:
    establish(tmp_path, root=ROOT, signing=KEY)
    roots = {THIEF.key_id: base64.b64encode(THIEF.public).decode()}
    resign(tmp_path, 2, THIEF, version=2, rootKeys=roots)
    with pytest.raises(SignatureInvalidError):
        load_keyring(tmp_path, root_key_ids=PIN)


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 1},
        {"version": 3},
        {"version": "2"},
        {"keys": []},
        {"keys": {KEY.key_id: {}}},
        {"rootKeys": None},
        {"rootKeys": {KEY.key_id: base64.b64encode(ROOT.public).decode()}},
        {"rootKeys": []},
        {"keys": {KEY.key_id: {**TRUSTED, "public": base64.b64encode(NEXT.public).decode()}}},
        {"keys": {KEY.key_id: {**TRUSTED, "retired": "no"}}},
        {"keys": {KEY.key_id: {**TRUSTED, "revoked": 0}}},
        {"keys": {KEY.key_id: {**TRUSTED, "revoked": None}}},
    ],
)
def test_malformed_generation_is_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    establish(tmp_path, root=ROOT, signing=KEY)
    resign(tmp_path, 2, ROOT, **{"version": 2, **fields})
    with pytest.raises(SignatureInvalidError):
        load_keyring(tmp_path, root_key_ids=PIN)


def test_generation_left_out_is_refused(tmp_path: Path) -> None:
    establish(tmp_path, root=ROOT, signing=KEY)
    establish(tmp_path, root=ROOT, signing=NEXT)
    revoke(tmp_path, root=ROOT, key_id=KEY.key_id, reason="stolen")
    (tmp_path / "root.2.json").unlink()
    with pytest.raises(SignatureInvalidError, match="missing"):
        load_keyring(tmp_path, root_key_ids=PIN)


# -- what a host remembers -----------------------------------------------------------------------


def chain(folder: Path) -> None:
    """Three generations: KEY, then NEXT, then KEY revoked."""
    establish(folder, root=ROOT, signing=KEY)
    establish(folder, root=ROOT, signing=NEXT)
    revoke(folder, root=ROOT, key_id=KEY.key_id, reason="stolen")


def test_generations_that_were_taken_away_are_missed(tmp_path: Path) -> None:
    """Case 28: a downgrade takes a revocation back."""
    trust = tmp_path / "trust"
    trust.mkdir()
    chain(trust)
    TrustMemory(tmp_path / "seen").take(load_keyring(trust, root_key_ids=PIN))
    (trust / "root.3.json").unlink()
    older = load_keyring(trust, root_key_ids=PIN)
    for _ in range(2):  # and remembered still when it is tried again
        with pytest.raises(SignatureInvalidError, match="generation 3 was seen before"):
            TrustMemory(tmp_path / "seen").take(older)


def test_another_generation_of_the_same_number_is_noticed(tmp_path: Path) -> None:
    """Case 28: each is signed by the root key, and only one of them was seen first."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, key in ((one, NEXT), (other, THIEF)):
        folder.mkdir()
        establish(folder, root=ROOT, signing=KEY)
        establish(folder, root=ROOT, signing=key)
    memory = TrustMemory(tmp_path / "seen")
    memory.take(load_keyring(one, root_key_ids=PIN))
    memory.take(load_keyring(one, root_key_ids=PIN))
    with pytest.raises(SignatureInvalidError, match="not the one"):
        memory.take(load_keyring(other, root_key_ids=PIN))


def test_longer_chain_of_a_stranger_is_not_what_follows_on_what_was_seen(tmp_path: Path) -> None:
    """Case 28: where no root key is pinned, its first generation vouches for itself."""
    own, strange = tmp_path / "own", tmp_path / "strange"
    own.mkdir()
    strange.mkdir()
    establish(own, root=ROOT, signing=KEY)
    for signing in (KEY, NEXT):
        establish(strange, root=THIEF, signing=signing)
    memory = TrustMemory(tmp_path / "seen")
    memory.take(load_keyring(own, root_key_ids=None))
    with pytest.raises(SignatureInvalidError, match="generation 1 is not the one"):
        memory.take(load_keyring(strange, root_key_ids=None))
    establish(own, root=ROOT, signing=NEXT)
    memory.take(load_keyring(own, root_key_ids=None))


def test_memory_without_a_digest_still_counts(tmp_path: Path) -> None:
    trust = tmp_path / "trust"
    trust.mkdir()
    keyring = establish(trust, root=ROOT, signing=KEY)
    memory = TrustMemory(tmp_path / "seen")
    (tmp_path / "seen").write_bytes(b'{"version":2}')
    with pytest.raises(SignatureInvalidError, match="generation 2 was seen before"):
        memory.take(keyring)
    memory.take(establish(trust, root=ROOT, signing=NEXT))


def test_memory_goes_on_with_the_generations(tmp_path: Path) -> None:
    trust = tmp_path / "trust"
    trust.mkdir()
    memory = TrustMemory(tmp_path / "seen")
    for signing in (KEY, NEXT):
        memory.take(establish(trust, root=ROOT, signing=signing))
    assert b'"version":2' in (tmp_path / "seen").read_bytes()


@pytest.mark.parametrize("data", [b"{", b'{"version":1,"sha256":"\xff"}'])
def test_memory_that_cannot_be_read_trusts_nobody(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "seen").write_bytes(data)
    (tmp_path / "trust").mkdir()
    keyring = establish(tmp_path / "trust", root=ROOT, signing=KEY)
    with pytest.raises(SignatureInvalidError, match="cannot read"):
        TrustMemory(tmp_path / "seen").take(keyring)


def test_memory_that_cannot_be_written_remembers_what_it_did(tmp_path: Path) -> None:
    trust = tmp_path / "trust"
    trust.mkdir()
    memory = TrustMemory(tmp_path / "seen")
    memory.take(establish(trust, root=ROOT, signing=KEY))
    newer = establish(trust, root=ROOT, signing=NEXT)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(StorageError):
            memory.take(newer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert b'"version":1' in (tmp_path / "seen").read_bytes()
    memory.take(newer)


def test_memory_that_is_no_file_trusts_nobody(tmp_path: Path) -> None:
    """It is not as if nothing had been seen."""
    trust = tmp_path / "trust"
    trust.mkdir()
    keyring = establish(trust, root=ROOT, signing=KEY)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("folder", "link"):
        with pytest.raises(SignatureInvalidError, match="cannot read"):
            TrustMemory(tmp_path / name).take(keyring)


# -- a root key that follows on another ----------------------------------------------------------


def hand_on(folder: Path, *signers: SigningKey) -> None:
    """Write generation 2, in which NEXT takes the place of ROOT as the root key."""
    resign(folder, 2, signers[0], version=2, rootKeys={NEXT.key_id: b64(NEXT.public)})
    if len(signers) > 1:
        path = folder / "root.2.json"
        envelope = json.loads(path.read_bytes())
        body = base64.b64decode(envelope["payload"])
        envelope["signatures"] = [
            json.loads(seal(body, key, payload_type=TRUST_TYPE).data)["signatures"][0]
            for key in signers
        ]
        path.write_bytes(encode_json(envelope))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_root_key_is_replaced_by_both_together(tmp_path: Path) -> None:
    establish(tmp_path, root=ROOT, signing=KEY)
    hand_on(tmp_path, ROOT, NEXT)
    assert load_keyring(tmp_path, root_key_ids=PIN).roots.keys() == {NEXT.key_id}


@pytest.mark.parametrize("signers", [(ROOT,), (NEXT,), (ROOT, ROOT), (NEXT, THIEF)])
def test_root_key_is_not_replaced_by_one_of_them(
    tmp_path: Path, signers: tuple[SigningKey, ...]
) -> None:
    """Case 28: signed only by the old or only by the new key, or by one of them twice."""
    establish(tmp_path, root=ROOT, signing=KEY)
    hand_on(tmp_path, *signers)
    with pytest.raises(SignatureInvalidError):
        load_keyring(tmp_path, root_key_ids=PIN)


def test_generation_of_a_later_number_is_no_next_one(tmp_path: Path) -> None:
    """Case 28: a number is skipped."""
    establish(tmp_path, root=ROOT, signing=KEY)
    resign(tmp_path, 3, ROOT, version=3)
    with pytest.raises(SignatureInvalidError, match="missing"):
        load_keyring(tmp_path, root_key_ids=PIN)
