"""Custody of private keys: made, rotated beside a server that signs, kept away, handed over."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import trust
from storage.custody import Custody
from storage.envelope import IN_TOTO_TYPE, Envelope, encode_json, seal, unseal
from storage.errors import KeyFileError, SignatureInvalidError
from storage.sealing import Vault
from storage.signing import SigningKey
from storage.trust import TRUST_TYPE, Keyring, load_keyring
from tests.crashing import needs_strace
from tests.waiting import wait_for, waiters_of


class Keys:
    """The keys of a server, and its trust."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "keys"
        self.trust = root / "trust"
        self.credentials = root / "credentials"
        for path in (self.folder, self.trust, self.credentials):
            path.mkdir()

    def server(self) -> Custody:
        """What a start of the server opens."""
        custody = Custody(self.folder)
        custody.open(self.trust)
        return custody

    def hand_over(self) -> Custody:
        """A start with a credential, as the service manager gives it."""
        path = self.credentials / "signing.key"
        if not path.exists():
            SigningKey.load_or_create(path)
            path.chmod(0o440)
        custody = Custody(self.folder, credentials=self.credentials)
        custody.open(self.trust)
        return custody

    @property
    def keyring(self) -> Keyring:
        return load_keyring(self.trust, root_key_ids=Custody(self.folder).root_key_ids())

    @property
    def active(self) -> list[str]:
        return [name for name, key in self.keyring.keys.items() if key.is_active]

    def holds(self, envelope: Envelope) -> bool:
        try:
            public_key = self.keyring.provenance_key
            return bool(unseal(envelope.data, payload_type=IN_TOTO_TYPE, public_key=public_key))
        except SignatureInvalidError:
            return False


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


# -- the first start, and later ones -----------------------------------------------------------


def test_first_start_makes_keys_that_are_trusted(keys: Keys) -> None:
    server = keys.server()
    assert keys.active == [server.signing_key().key_id]
    assert keys.holds(server.seal(b"{}"))
    modes = {path.name: path.stat().st_mode & 0o777 for path in keys.folder.iterdir()}
    assert modes == {"signing.key": 0o400, "root.key": 0o400, "root.pub": 0o444, "lock": 0o600}


def test_later_start_changes_nothing(keys: Keys) -> None:
    key_id = keys.server().signing_key().key_id
    assert keys.server().signing_key().key_id == key_id
    assert keys.keyring.version == 1


def test_keys_of_an_earlier_version_get_what_they_lack(keys: Keys) -> None:
    """gitd 0.1 wrote no public half of the root key, and trusted keys for provenance alone."""
    root = SigningKey.load_or_create(keys.folder / "root.key")
    signing = SigningKey.load_or_create(keys.folder / "signing.key")
    old = {
        "public": base64.b64encode(signing.public).decode(),
        "roles": ["provenance"],
        "builders": ["urn:gitd:builder:source:v1", "urn:gitd:builder:sandbox:v1"],
        "sites": ["*"],
        "retired": False,
        "revoked": False,
        "reason": None,
    }
    roots = {root.key_id: base64.b64encode(root.public).decode()}
    body = encode_json({"version": 1, "rootKeys": roots, "keys": {signing.key_id: old}})
    (keys.trust / "root.1.json").write_bytes(seal(body, root, payload_type=TRUST_TYPE).data)
    keys.server()
    assert keys.active == [signing.key_id]
    assert keys.keyring.release_key(signing.key_id) == signing.public
    assert keys.keyring.version == 2


@pytest.mark.parametrize("name", ["signing.key", "root.key"])
def test_key_that_others_may_read_keeps_the_server_from_starting(keys: Keys, name: str) -> None:
    keys.server()
    (keys.folder / name).chmod(0o440)
    with pytest.raises(KeyFileError, match=f"{name}.*0440"):
        keys.server()


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="gives a file away")
def test_key_that_belongs_to_another_user_keeps_the_server_from_starting(keys: Keys) -> None:
    keys.server()
    os.chown(keys.folder / "signing.key", 60600, -1)
    with pytest.raises(KeyFileError, match="belongs to the user 60600"):
        keys.server()


def test_lost_signing_key_is_said_and_made_anew_on_request_only(keys: Keys) -> None:
    keys.server()
    (keys.folder / "signing.key").unlink()
    with pytest.raises(KeyFileError, match="gitd signing-key rotate"):
        keys.server()
    rotated = Custody(keys.folder).rotate(keys.trust)
    assert keys.server().signing_key().key_id == rotated.key_id


# -- rotation ----------------------------------------------------------------------------------


def test_rotation_is_taken_up_by_a_server_that_runs(keys: Keys) -> None:
    """Case 26: the new key signs at once, and what the old one signed stays valid."""
    server = keys.server()
    before = server.seal(b"{}")
    rotated = Custody(keys.folder).rotate(keys.trust)
    after = server.seal(b"{}")
    assert (before.key_id, after.key_id) == (before.key_id, rotated.key_id)
    assert keys.holds(before)
    assert keys.holds(after)
    assert keys.active == [rotated.key_id]


def test_private_half_of_the_old_key_is_gone_after_a_rotation(keys: Keys) -> None:
    keys.server()
    old = (keys.folder / "signing.key").read_bytes()
    Custody(keys.folder).rotate(keys.trust)
    assert old not in [path.read_bytes() for path in keys.folder.iterdir()]
    assert not (keys.folder / "signing.key.next").exists()


def test_no_moment_of_a_rotation_leaves_signatures_that_do_not_hold(keys: Keys) -> None:
    server = keys.server()
    is_over = threading.Event()
    sealed: list[Envelope] = []

    def sign() -> None:
        while not is_over.is_set():
            sealed.append(server.seal(b"{}"))

    signer = threading.Thread(target=sign)
    signer.start()
    for _ in range(5):
        Custody(keys.folder).rotate(keys.trust)
    is_over.set()
    signer.join()
    last = server.seal(b"{}")
    assert len({envelope.key_id for envelope in [*sealed, last]}) > 1
    assert all(keys.holds(envelope) for envelope in {e.key_id: e for e in sealed}.values())


def test_rotations_at_the_same_time_leave_one_key_that_signs(keys: Keys) -> None:
    server = keys.server()
    threads = [
        threading.Thread(target=Custody(keys.folder).rotate, args=(keys.trust,)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keys.active == [server.signing_key().key_id]


def test_rotation_that_was_cut_short_before_the_key_had_its_place(keys: Keys) -> None:
    server = keys.server()
    following = SigningKey.load_or_create(keys.folder / "signing.key.next")
    root = SigningKey.load(keys.folder / "root.key")
    trust.introduce(keys.trust, root=root, signing=following)
    assert keys.holds(server.seal(b"{}"))
    rotated = Custody(keys.folder).rotate(keys.trust)
    assert rotated.key_id == following.key_id
    assert keys.active == [following.key_id]


def test_rotation_that_was_cut_short_and_followed_by_a_start(keys: Keys) -> None:
    keys.server()
    following = SigningKey.load_or_create(keys.folder / "signing.key.next")
    root = SigningKey.load(keys.folder / "root.key")
    trust.introduce(keys.trust, root=root, signing=following)
    restarted = keys.server()
    assert keys.active == [restarted.signing_key().key_id]
    rotated = Custody(keys.folder).rotate(keys.trust)
    assert rotated.key_id != following.key_id
    assert keys.active == [rotated.key_id]


def test_rotation_that_was_cut_short_after_the_key_had_its_place(keys: Keys) -> None:
    keys.server()
    following = SigningKey.load_or_create(keys.folder / "signing.key.next")
    root = SigningKey.load(keys.folder / "root.key")
    trust.introduce(keys.trust, root=root, signing=following)
    (keys.folder / "signing.key.next").rename(keys.folder / "signing.key")
    assert keys.server().signing_key().key_id == following.key_id
    assert keys.active == [following.key_id]


def changes_of(keys: Keys) -> dict[str, Callable[[], object]]:
    """Whatever changes keys or trust, by others than the server that runs."""
    retired = keys.server().signing_key().key_id
    custody = Custody(keys.folder)
    custody.rotate(keys.trust)
    return {
        "open": lambda: custody.open(keys.trust),
        "rotate": lambda: custody.rotate(keys.trust),
        "revoke": lambda: custody.revoke(keys.trust, retired, reason="stolen"),
    }


@pytest.mark.parametrize("name", ["open", "rotate", "revoke"])
def test_who_changes_keys_waits_for_others_who_do(keys: Keys, name: str) -> None:
    changing = threading.Thread(target=changes_of(keys)[name])
    with Custody(keys.folder).locked():
        before = keys.keyring.version
        changing.start()
        wait_for(lambda: waiters_of(keys.folder / "lock") or not changing.is_alive())
        assert changing.is_alive()
        assert keys.keyring.version == before
    changing.join()


@pytest.mark.parametrize("name", ["open", "rotate"])
def test_what_a_crash_left_half_written_is_removed(keys: Keys, name: str) -> None:
    """There may be a private key in it."""
    change = changes_of(keys)[name]
    drafts = [
        keys.folder / ".signing.key.0123456789ab",
        keys.trust / ".root.9.json.0123456789ab",
    ]
    for path in drafts:
        path.write_bytes(b"half of it")
    change()
    assert not any(path.exists() for path in drafts)


def test_key_that_looks_like_the_one_before_it_is_another(keys: Keys) -> None:
    """As long, and as old: what was put back from a copy may be."""
    server = keys.server()
    path, other = keys.folder / "signing.key", keys.folder / "other.key"
    before, status = server.signing_key().key_id, path.stat()
    SigningKey.load_or_create(other)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)
    assert server.signing_key().key_id == SigningKey.load(path).key_id != before


# -- revocation --------------------------------------------------------------------------------


def test_revoked_key_proves_nothing_from_then_on(keys: Keys) -> None:
    """Case 27."""
    server = keys.server()
    sealed = server.seal(b"{}")
    beside = Custody(keys.folder)
    beside.rotate(keys.trust)
    beside.revoke(keys.trust, sealed.key_id, reason="was on a lost disk")
    assert not keys.holds(sealed)
    assert keys.holds(server.seal(b"{}"))
    assert keys.keyring.revoked == {sealed.key_id}


# -- a root key that is kept elsewhere ---------------------------------------------------------


def test_server_runs_without_the_root_key(keys: Keys, tmp_path: Path) -> None:
    keys.server()
    (keys.folder / "root.key").rename(tmp_path / "root.key")
    server = keys.server()
    assert keys.holds(server.seal(b"{}"))
    assert not (keys.folder / "root.key").exists()
    with pytest.raises(KeyFileError, match="--root-key"):
        Custody(keys.folder).rotate(keys.trust)
    root = SigningKey.load(tmp_path / "root.key")
    rotated = Custody(keys.folder).rotate(keys.trust, root=root)
    assert server.signing_key().key_id == rotated.key_id


def test_trust_of_another_root_key_keeps_the_server_from_starting(keys: Keys) -> None:
    """It has generations of its own, in which the signing key is trusted."""
    signing = keys.server().signing_key()
    (keys.folder / "root.key").unlink()
    (keys.trust / "root.1.json").unlink()
    trust.establish(keys.trust, root=SigningKey.generate(), signing=signing)
    with pytest.raises(SignatureInvalidError, match="other root keys"):
        keys.server()


def test_another_root_key_changes_nothing(keys: Keys) -> None:
    keys.server()
    public = (keys.folder / "root.pub").read_bytes()
    (keys.folder / "root.key").rename(keys.folder / "kept")
    SigningKey.load_or_create(keys.folder / "root.key")
    Custody(keys.folder).open(keys.trust)
    assert (keys.folder / "root.pub").read_bytes() == public
    with pytest.raises(SignatureInvalidError):
        Custody(keys.folder).rotate(keys.trust, root=SigningKey.generate())
    assert keys.keyring.version == 1


def test_trust_without_any_word_on_its_root_is_not_believed(keys: Keys) -> None:
    keys.server()
    (keys.folder / "root.key").unlink()
    (keys.folder / "root.pub").unlink()
    with pytest.raises(KeyFileError, match=r"root\.pub"):
        keys.server()


# -- keys that the service manager hands over --------------------------------------------------


def test_credential_signs_and_is_never_written_to_a_disk(keys: Keys) -> None:
    server = keys.hand_over()
    assert keys.holds(server.seal(b"{}"))
    private = (keys.credentials / "signing.key").read_bytes()
    assert private not in [path.read_bytes() for path in keys.folder.iterdir()]
    assert not (keys.folder / "signing.key").exists()


def test_credential_takes_the_place_of_the_file(keys: Keys) -> None:
    old = keys.server().signing_key().key_id
    new = keys.hand_over().signing_key().key_id
    assert old != new
    assert keys.active == [new]


def test_root_key_may_be_a_credential_too(keys: Keys) -> None:
    made = SigningKey.load_or_create(keys.credentials / "root.key")
    (keys.credentials / "root.key").chmod(0o440)
    keys.hand_over()
    assert not (keys.folder / "root.key").exists()
    assert keys.keyring.roots.keys() == {made.key_id}


def test_credential_that_cannot_be_read_is_not_passed_over(keys: Keys) -> None:
    keys.server()
    (keys.credentials / "signing.key").symlink_to("nowhere")
    with pytest.raises(KeyFileError, match="cannot read the key"):
        Custody(keys.folder, credentials=keys.credentials).open(keys.trust)


def test_credential_that_all_may_read_is_refused(keys: Keys) -> None:
    SigningKey.load_or_create(keys.credentials / "signing.key")
    (keys.credentials / "signing.key").chmod(0o444)
    with pytest.raises(KeyFileError, match="0444"):
        keys.hand_over()


def test_credential_is_rotated_where_it_comes_from(keys: Keys) -> None:
    old = keys.hand_over().signing_key().key_id
    with pytest.raises(KeyFileError, match="service manager"):
        Custody(keys.folder).rotate(keys.trust)
    (keys.credentials / "signing.key").unlink()
    new = keys.hand_over().signing_key().key_id
    assert keys.active == [new]
    assert keys.keyring.keys[old].retired


def test_credential_that_is_handed_over_no_more_is_missed(keys: Keys) -> None:
    keys.hand_over()
    with pytest.raises(KeyFileError, match="LoadCredential"):
        keys.server()


def test_credential_that_retires_the_key_of_the_file_removes_that(keys: Keys) -> None:
    keys.server()
    keys.hand_over()
    assert not (keys.folder / "signing.key").exists()


def test_file_of_the_very_key_that_is_handed_over_stays(keys: Keys) -> None:
    server = keys.server()
    shutil.copy(keys.folder / "signing.key", keys.credentials / "signing.key")
    assert keys.hand_over().signing_key().key_id == server.signing_key().key_id
    assert (keys.folder / "signing.key").exists()


def test_file_of_a_key_that_nothing_retired_stays(keys: Keys) -> None:
    keys.hand_over()
    made = SigningKey.load_or_create(keys.folder / "signing.key")
    keys.hand_over()
    assert SigningKey.load(keys.folder / "signing.key").key_id == made.key_id


def test_file_that_the_credential_retired_does_not_take_its_place_again(keys: Keys) -> None:
    keys.server()
    shutil.copy(keys.folder / "signing.key", keys.folder / "kept")
    keys.hand_over()
    (keys.folder / "kept").rename(keys.folder / "signing.key")
    for _ in range(2):  # whoever is started again is told the same again
        with pytest.raises(KeyFileError, match=r"LoadCredential.*remove .*external.*rotate"):
            keys.server()
    (keys.folder / "external").unlink()
    with pytest.raises(SignatureInvalidError, match="gitd signing-key rotate"):
        keys.server()
    made = Custody(keys.folder).rotate(keys.trust).key_id
    assert keys.server().signing_key().key_id == made
    assert keys.active == [made]


def test_file_takes_the_place_of_the_credential(keys: Keys) -> None:
    keys.hand_over()
    SigningKey.load_or_create(keys.folder / "signing.key")
    server = keys.server()
    assert keys.active == [server.signing_key().key_id]
    Custody(keys.folder).rotate(keys.trust)


def traced(calls: str, program: str, keys: Keys) -> str:
    """The named system calls of a program that is told where the keys and their trust are."""
    trace = keys.folder.parent / "trace"
    strace = ("strace", "-y", "-qq", "-e", f"trace={calls}", "-o", trace)
    subprocess.run([*strace, sys.executable, "-c", program, keys.folder, keys.trust], check=True)
    return trace.read_text()


ROTATE = """
import sys
from pathlib import Path
from storage.custody import Custody
folder, trust = map(Path, sys.argv[1:])
Custody(folder).rotate(trust)
"""


@needs_strace
def test_new_key_is_trusted_before_it_signs_and_in_its_place_for_good_before_the_old_one_is_retired(
    keys: Keys,
) -> None:
    """Or hosts refused what is signed meanwhile, and no start after a power cut had a key."""
    keys.server()
    happened = traced("fsync,?rename,?renameat,?renameat2,?link,?linkat", ROTATE, keys)
    steps = {
        "trusted": rf'link.*"{keys.trust}/root\.2\.json"',
        "in place": rf'rename.*"{keys.folder}/signing\.key"',
        "retired": rf'link.*"{keys.trust}/root\.3\.json"',
    }
    at = {step: next(re.finditer(call, happened)).start() for step, call in steps.items()}
    assert sorted(at, key=lambda step: at[step]) == list(steps)
    assert f"<{keys.folder}>) = 0" in happened[at["in place"] : at["retired"]]


START = """
import sys
from pathlib import Path
from storage.custody import Custody
from storage.sealing import Vault
folder, trust = map(Path, sys.argv[1:])
Custody(folder).open(trust)
Vault.open(folder, may_create=False)
"""


@needs_strace
def test_start_makes_durable_what_one_before_it_was_killed_before_syncing(keys: Keys) -> None:
    """A key whose name a power cut takes away is lost, with all that it signed or sealed since."""
    keys.server()
    Vault.open(keys.folder, may_create=True)
    synced = re.findall(r"fsync\(\d+<(.*)>\) += 0", traced("fsync", START, keys))
    at = synced.index(str(keys.trust))
    assert str(keys.folder) in synced[:at]
    assert str(keys.folder) in synced[at:], "the one that opens what is sealed does so, too"
