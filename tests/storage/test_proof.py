"""Proofs that travel: an archive, what it is unpacked to, a release folder; and every forgery."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from storage import proof
from storage.artifacts import Ingested
from storage.digest import Digest
from storage.envelope import encode_json, seal
from storage.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactMissingError,
    ReleaseInvalidError,
    SignatureInvalidError,
)
from storage.export import exporting
from storage.manifest import HEADER, Manifest
from storage.proof import (
    PROOF_SUFFIX,
    Beliefs,
    Proven,
    is_unpacked,
    proof_beside,
    verify_archive,
    verify_bare,
    verify_release_folder,
    verify_unpacked,
)
from storage.proof_archive import ProofParts, proof_bytes, public_keys, write_proof
from storage.records.release_statements import IssuedStatement
from storage.release_statement import ReleaseStatement, build_release
from storage.signing import SigningKey, public_pem
from storage.source import SourceDirectory, SourceLink
from storage.trust import TRUST_TYPE, TrustedKey, establish, revoke
from tests.spoiling import flip

LARGE = b"0123456789abcdef" * (5 << 14)
Members = dict[str, bytes]


@dataclass
class Exported:
    """An artifact of the shop, as an archive."""

    shop: object
    ingested: Ingested
    parts: ProofParts

    @property
    def pin(self) -> frozenset[str]:
        return frozenset({self.shop.root_key.key_id})

    def data(self, *, files: bool = True) -> bytes:
        layout = self.shop.reader.layout if files else None
        return b"".join(write_proof(self.parts, files=layout))

    def verify(self, data: bytes, pin: frozenset[str] | None = None) -> Proven:
        return verify_archive(io.BytesIO(data), Beliefs(pin or self.pin))

    def members(self) -> Members:
        """The files of the archive by their names below its folder."""
        with tarfile.open(fileobj=io.BytesIO(self.data())) as tar:
            return {m.name.partition("/")[2]: tar.extractfile(m).read() for m in tar}


def packed(members: Members, top: str = "art") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(os.path.normpath(Path(top, name)))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def unpack(exported: Exported, folder: Path) -> Path:
    """What tar makes of the archive."""
    (folder / "unpacked").mkdir()
    command = ["tar", "-xf", "-", "-C", folder / "unpacked"]
    subprocess.run(command, input=exported.data(), check=True)
    (top,) = (folder / "unpacked").iterdir()
    return top


def release_of(shop, ingested: Ingested, **facts: object) -> bytes:
    said = {
        "site": "acme-store",
        "env_id": "env_1",
        "environment": "production",
        "sequence": 3,
        "deployment_id": "dep_1",
        "provenance_sha256": ingested.envelope_sha256,
        "previous": None,
        "rollback": False,
        "issued_at": "2026-06-01T00:00:00.000Z",
        **facts,
    }
    body = build_release(
        ReleaseStatement(**said),
        digest=ingested.digest,
        manifest_sha256=ingested.manifest_sha256,
    )
    return seal(body, shop.signing_key).data


@pytest.fixture
def exported(shop, source_files) -> Exported:
    files = source_files(
        {"a/page.html": b"hello", "b.html": b"hello", "run*": b"#!/bin/sh\n", "e": b"", "l": LARGE}
    )
    ingested = shop.ingest([*files, SourceDirectory(b"void"), SourceLink(b"link", b"b.html")])
    manifest = shop.reader.manifest(ingested.digest)
    releases = [release_of(shop, ingested)]
    return Exported(
        shop, ingested, shop.reader.proof(manifest, [ingested.envelope_sha256], releases)
    )


# -- what is right -----------------------------------------------------------------------------


def test_archive_proves_what_was_exported(exported) -> None:
    proven = exported.verify(exported.data())
    assert proven.artifact_id == exported.ingested.artifact_id
    assert proven.is_pinned
    (signed,) = proven.provenance
    assert signed.provenance.commit == "7fd1a60b01f91b314f59955a4e4d4e80d8edf11d"
    assert signed.key_id == exported.shop.signing_key.key_id
    (released,) = proven.releases
    assert (released.release.environment, released.release.sequence) == ("production", 3)


def test_equal_proofs_are_equal_archives_of_a_known_length(exported) -> None:
    assert exported.data() == exported.data()
    assert len(exported.data()) == proof_bytes(exported.parts, with_files=True)
    assert len(exported.data(files=False)) == proof_bytes(exported.parts, with_files=False)


def test_any_tar_unpacks_it(exported, tmp_path: Path) -> None:
    top = unpack(exported, tmp_path)
    assert top.name == exported.ingested.artifact_id
    assert is_unpacked(top)
    assert verify_unpacked(top, Beliefs(exported.pin)) == exported.verify(exported.data())


def test_contents_that_stand_twice_are_in_it_once(exported) -> None:
    blobs = [name for name in exported.members() if name.startswith("blobs/")]
    assert len(blobs) == 4
    assert sum(name.endswith(".x") for name in blobs) == 1


def test_order_of_the_members_does_not_matter(exported) -> None:
    members = dict(reversed(exported.members().items()))
    assert exported.verify(packed(members)) == exported.verify(exported.data())


def test_release_folder_is_held_against_its_proof(exported, tmp_path: Path) -> None:
    folder = tmp_path / "000001-abcd"
    exported.shop.reader.materialise(exported.shop.verify(exported.ingested), folder)
    for data in (exported.data(files=False), exported.data()):
        proven = verify_release_folder(folder, io.BytesIO(data), Beliefs(exported.pin))
        assert proven.artifact_id == exported.ingested.artifact_id
    assert proof_beside(folder) == tmp_path / f"000001-abcd{PROOF_SUFFIX}"
    assert not is_unpacked(folder)
    flip(folder / "a/page.html")
    with pytest.raises(ArtifactCorruptError, match="its bytes are not"):
        verify_release_folder(folder, io.BytesIO(exported.data()), Beliefs(exported.pin))
    flip(folder / "a/page.html")
    (folder / "void" / "more").write_bytes(b"")
    with pytest.raises(ArtifactCorruptError, match="void/more"):
        verify_release_folder(folder, io.BytesIO(exported.data()), Beliefs(exported.pin))


def test_folder_is_held_against_a_manifest_alone(exported, tmp_path: Path) -> None:
    exported.shop.reader.materialise(exported.shop.verify(exported.ingested), tmp_path / "r")
    (tmp_path / "manifest").write_bytes(exported.parts.manifest.data)
    found, manifest = verify_bare(tmp_path / "r", tmp_path / "manifest")
    assert (found, manifest) == (exported.ingested.artifact_id, exported.parts.manifest)
    flip(tmp_path / "r/a/page.html")
    with pytest.raises(ArtifactCorruptError, match="its bytes are not"):
        verify_bare(tmp_path / "r", tmp_path / "manifest")


def test_own_root_is_believed_when_none_is_named(exported) -> None:
    proven = verify_archive(io.BytesIO(exported.data()), Beliefs())
    assert not proven.is_pinned


def test_export_holds_what_it_reads_and_leaves_revoked_releases_out(exported, shop) -> None:
    issued = IssuedStatement(
        envelope_sha256="",
        env_id="env_1",
        sequence=3,
        deployment_id="dep_1",
        key_id=shop.signing_key.key_id,
        provenance_sha256=exported.ingested.envelope_sha256,
        envelope=release_of(shop, exported.ingested).decode(),
        issued_at=0,
    )
    how = {"provenance": [exported.ingested.envelope_sha256]}
    with exporting(
        shop.store, shop.reader, exported.ingested.digest, releases=[issued], **how
    ) as export:
        data = b"".join(export.pieces)
        assert len(data) == export.size_bytes
    assert data == exported.data()
    again = SigningKey.generate()
    establish(shop.reader.layout.trust, root=shop.root_key, signing=again)
    key_id = shop.signing_key.key_id
    revoke(shop.reader.layout.trust, root=shop.root_key, key_id=key_id, reason="stolen")
    with exporting(
        shop.store, shop.reader, exported.ingested.digest, releases=[issued], **how
    ) as export:
        assert b"releases/" not in b"".join(export.pieces)


# -- forgeries ---------------------------------------------------------------------------------


def name_of(members: Members, folder: str) -> str:
    return next(name for name in members if name.startswith(folder))


def drop(folder: str) -> Callable[[Members, Exported], Members]:
    return lambda members, _: {k: v for k, v in members.items() if not k.startswith(folder)}


def add(name: str, data: bytes) -> Callable[[Members, Exported], Members]:
    return lambda members, _: {**members, name: data}


def change(folder: str, data: bytes) -> Callable[[Members, Exported], Members]:
    return lambda members, _: {**members, name_of(members, folder): data}


def flipped_blob(members: Members, _: Exported) -> Members:
    """As long as before."""
    name = next(name for name in members if name.startswith("blobs/") and members[name])
    return {**members, name: bytes([members[name][0] ^ 1]) + members[name][1:]}


def other_provenance(members: Members, exported: Exported) -> Members:
    """The provenance of another artifact: it holds, and is about something else. Case 30."""
    other = exported.shop.ingest({"a": b"other"})
    data = exported.shop.reader.envelope(other.envelope_sha256)
    return {**members, f"provenance/{other.envelope_sha256}.dsse.json": data}


def other_release(members: Members, exported: Exported) -> Members:
    """A release of this artifact that goes by a provenance which is not here."""
    data = release_of(exported.shop, exported.ingested, provenance_sha256="0" * 64)
    return {**members, f"releases/{hashlib.sha256(data).hexdigest()}.dsse.json": data}


def other_manifest(members: Members, exported: Exported) -> Members:
    """The manifest and the files of another artifact under this one's statements."""
    other = exported.shop.ingest({"a": b"hello"})
    return {**members, "manifest": exported.shop.reader.manifest(other.digest).data}


def renamed_envelope(members: Members, _: Exported) -> Members:
    name = name_of(members, "provenance/")
    return {
        ("provenance/" + "0" * 64 + ".dsse.json" if k == name else k): v for k, v in members.items()
    }


def renamed_envelope_alone(members: Members, exported: Exported) -> Members:
    """Without a release that goes by its name."""
    left = {k: v for k, v in members.items() if not k.startswith("releases/")}
    return renamed_envelope(left, exported)


def with_release(data: bytes) -> Members:
    return {f"releases/{hashlib.sha256(data).hexdigest()}.dsse.json": data}


def first_and_last(make: Callable[[int], bytes]) -> Members:
    """Two releases of other sequences, the first and the last of all by their names: whoever only
    remembers how the last one was, or the first, takes the other for good.
    """
    named = sorted((hashlib.sha256(data).hexdigest(), data) for data in map(make, range(4, 60)))
    return {**with_release(named[0][1]), **with_release(named[-1][1])}


def stolen_release(members: Members, exported: Exported) -> Members:
    """Releases by a key whose file is in the archive, and which no generation knows."""
    thief = SigningKey.generate()
    shop = replace(exported.shop, signing_key=thief)
    name = thief.key_id.removeprefix("ed25519:")
    forged = first_and_last(lambda number: release_of(shop, exported.ingested, sequence=number))
    return {**members, **forged, f"keys/{name}.pem": public_pem(thief.public)}


def hidden_key(members: Members, exported: Exported) -> Members:
    """A release whose key's id is a pattern that any key's is found by, and its file a hidden one:
    what lists files does not show it.
    """
    thief = SigningKey.generate()
    body = release_of(replace(exported.shop, signing_key=thief), exported.ingested, sequence=9)
    data = body.replace(thief.key_id.encode(), b"ed25519:.*")
    return {**members, **with_release(data), "keys/.*.pem": public_pem(thief.public)}


def release_by_root(members: Members, exported: Exported) -> Members:
    """A key that is trusted, for something else."""
    shop = replace(exported.shop, signing_key=exported.shop.root_key)
    return {**members, **with_release(release_of(shop, exported.ingested))}


def release_without_role(members: Members, exported: Exported, **limits: object) -> Members:
    """By a key that may speak of provenance only, or for less than is spoken of."""
    key = TrustedKey(exported.shop.signing_key.public)
    limited = replace(key, **(limits or {"roles": ("provenance",)}))
    return {**members, "trust/root.1.json": generation(exported.shop, limited)}


def release_by_another_sites_key(members: Members, exported: Exported) -> Members:
    """The provenance is by a key that may; this one may for other sites."""
    other = SigningKey.generate()
    trusted = TrustedKey(exported.shop.signing_key.public)
    limited = TrustedKey(other.public, sites=("other",))
    shop = replace(exported.shop, signing_key=other)
    return {
        **members,
        **with_release(release_of(shop, exported.ingested)),
        "trust/root.1.json": generation(exported.shop, trusted, limited),
        f"keys/{other.key_id.removeprefix('ed25519:')}.pem": public_pem(other.public),
    }


def generation(shop, *keys: TrustedKey, version: int = 1) -> bytes:
    """A generation of trust as its root key signs it."""
    text = base64.b64encode
    fields = {
        "version": version,
        "rootKeys": {shop.root_key.key_id: text(shop.root_key.public).decode()},
        "keys": {
            key.key_id: {
                "public": text(key.public).decode(),
                "roles": key.roles,
                "builders": key.builders,
                "sites": key.sites,
                "retired": key.retired,
                "revoked": key.revoked,
                "reason": key.reason,
            }
            for key in keys
        },
    }
    return seal(encode_json(fields), shop.root_key, payload_type=TRUST_TYPE).data


def replayed_release(members: Members, exported: Exported) -> Members:
    """Releases of another artifact, signed as they must be."""
    other = exported.shop.ingest({"a": b"other"})
    facts = {"provenance_sha256": exported.ingested.envelope_sha256}
    forged = first_and_last(
        lambda number: release_of(exported.shop, other, sequence=number, **facts)
    )
    return {**members, **forged}


def release_of_another_site(members: Members, exported: Exported) -> Members:
    return {**members, **with_release(release_of(exported.shop, exported.ingested, site="other"))}


def provenance_as_release(members: Members, _: Exported) -> Members:
    return {**members, **with_release(members[name_of(members, "provenance/")])}


def trust_of_another_root(members: Members, exported: Exported) -> Members:
    """The whole of trust by another root key, under the name of the one that is known."""
    thief = SigningKey.generate()
    shop = replace(exported.shop, root_key=thief)
    data = generation(shop, TrustedKey(shop.signing_key.public))
    members = {k: v for k, v in members.items() if not k.startswith("keys/")}
    return {**members, **public_keys([data]), "trust/root.1.json": data}


def second_root_key(members: Members, exported: Exported) -> Members:
    """Root keys beside the one that is known, in the first generation."""
    body = encode_json(
        {
            "version": 1,
            "rootKeys": {
                key.key_id: base64.b64encode(key.public).decode()
                for key in (exported.shop.root_key, SigningKey.generate())
            },
            "keys": {},
        }
    )
    data = seal(body, exported.shop.root_key, payload_type=TRUST_TYPE).data
    return {**members, "trust/root.1.json": data}


def generation_of_another_number(members: Members, exported: Exported) -> Members:
    key = TrustedKey(exported.shop.signing_key.public)
    return {**members, "trust/root.2.json": generation(exported.shop, key, version=1)}


def revoked_key(members: Members, exported: Exported) -> Members:
    key = replace(TrustedKey(exported.shop.signing_key.public), revoked=True, reason="stolen")
    return {**members, "trust/root.2.json": generation(exported.shop, key, version=2)}


def key_of_another_kind(members: Members, exported: Exported) -> Members:
    """An RSA key whose last 32 bytes, its exponent, are those of the root key; trust by it."""
    trusted, thief = exported.shop.root_key, RsaKey.ending_with(exported.shop.root_key.public)
    shop = replace(exported.shop, signing_key=SigningKey.generate())
    body = json.loads(members["trust/root.1.json"])
    shown = json.loads(base64.b64decode(body["payload"]))
    shown["keys"][shop.signing_key.key_id] = {
        **next(iter(shown["keys"].values())),
        "public": base64.b64encode(shop.signing_key.public).decode(),
    }
    payload = encode_json(shown)
    signed = b"DSSEv1 %d %s %d %s" % (len(TRUST_TYPE), TRUST_TYPE.encode(), len(payload), payload)
    data = encode_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": TRUST_TYPE,
            "signatures": [
                {"keyid": trusted.key_id, "sig": base64.b64encode(thief.sign(signed)).decode()}
            ],
        }
    )
    name = "keys/{}.pem"
    return {
        **members,
        **with_release(release_of(shop, exported.ingested, sequence=9)),
        "trust/root.1.json": data,
        name.format(trusted.key_id[8:]): thief.pem,
        name.format(shop.signing_key.key_id[8:]): public_pem(shop.signing_key.public),
    }


@dataclass
class RsaKey:
    """Just enough of one for a forgery: PKCS #1 1.5 with SHA-256, as openssl takes it."""

    modulus: int
    private: int
    pem: bytes

    @classmethod
    def ending_with(cls, exponent: bytes) -> RsaKey:
        public = int.from_bytes(exponent)
        while True:
            p, q = (openssl_prime(1024) for _ in range(2))
            if math.gcd(public, (p - 1) * (q - 1)) == 1:
                break
        numbers = der(0x30, der_number(p * q), der_number(public))
        algorithm = bytes.fromhex("300d06092a864886f70d0101010500")
        body = base64.encodebytes(der(0x30, algorithm, der(0x03, b"\0", numbers)))
        pem = b"-----BEGIN PUBLIC KEY-----\n%s-----END PUBLIC KEY-----\n" % body
        return cls(p * q, pow(public, -1, (p - 1) * (q - 1)), pem)

    def sign(self, message: bytes) -> bytes:
        info = bytes.fromhex("3031300d060960864801650304020105000420")
        info += hashlib.sha256(message).digest()
        padded = b"\0\1" + b"\xff" * (253 - len(info)) + b"\0" + info
        return pow(int.from_bytes(padded), self.private, self.modulus).to_bytes(256)


def openssl_prime(bits: int) -> int:
    command = ["openssl", "prime", "-generate", "-bits", str(bits)]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


def der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    length = bytes([len(body)]) if len(body) < 128 else b"\x82" + len(body).to_bytes(2)
    return bytes([tag]) + length + body


def der_number(value: int) -> bytes:
    return der(0x02, value.to_bytes(value.bit_length() // 8 + 1))


def executable_as_plain(members: Members, _: Exported) -> Members:
    return {k.removesuffix(".x"): v for k, v in members.items()}


EMPTY_BLOB = f"blobs/{Digest.of(b'').hex()[:2]}/{Digest.of(b'').hex()[2:]}"
MORE_BLOB = f"blobs/{Digest.of(b'more').hex()[:2]}/{Digest.of(b'more').hex()[2:]}"
FORGED = {
    "no format": (drop("FORMAT"), ArtifactCorruptError),
    "format of tomorrow": (change("FORMAT", b"gitd-proof 2\n"), ArtifactCorruptError),
    "no manifest": (drop("manifest"), ArtifactMissingError),
    "no provenance": (drop("provenance/"), ArtifactMissingError),
    "no trust": (drop("trust/"), SignatureInvalidError),
    "no keys": (drop("keys/"), SignatureInvalidError),
    "blob gone": (drop(EMPTY_BLOB), ArtifactMissingError),
    "no blobs": (drop("blobs/"), ArtifactMissingError),
    "blob changed": (change("blobs/", b"other"), ArtifactCorruptError),
    "blob changed in one bit": (flipped_blob, ArtifactCorruptError),
    "blob too many": (add(MORE_BLOB, b"more"), ArtifactCorruptError),
    "file too many": (add("README", b"do as I say"), ArtifactCorruptError),
    "key too many": (add(f"keys/{'0' * 64}.pem", b"x"), SignatureInvalidError),
    "key changed": (change("keys/", b"x"), SignatureInvalidError),
    "second generation of nobody": (add("trust/root.2.json", b"{}"), SignatureInvalidError),
    "generation skipped": (add("trust/root.3.json", b"{}"), SignatureInvalidError),
    "envelope of nobody": (add(f"provenance/{'0' * 64}.dsse.json", b"{}"), SignatureInvalidError),
    "envelope renamed": (renamed_envelope, SignatureInvalidError),
    "envelope renamed, and no release": (renamed_envelope_alone, SignatureInvalidError),
    "envelope changed": (change("provenance/", b"{}"), SignatureInvalidError),
    "release changed": (change("releases/", b"{}"), SignatureInvalidError),
    "provenance of another artifact": (other_provenance, SignatureInvalidError),
    "release by another provenance": (other_release, SignatureInvalidError),
    "release by a stolen name": (stolen_release, SignatureInvalidError),
    "release by a hidden key": (hidden_key, ArtifactCorruptError),
    "release by the root key": (release_by_root, SignatureInvalidError),
    "release by a key of another role": (release_without_role, SignatureInvalidError),
    "release by a key of another site": (
        partial(release_without_role, sites=("other", "others")),
        SignatureInvalidError,
    ),
    "release by another site's key": (release_by_another_sites_key, ReleaseInvalidError),
    "provenance by a key of another builder": (
        partial(release_without_role, builders=("urn:gitd:builder:sandbox:v1",)),
        SignatureInvalidError,
    ),
    "release of another artifact": (replayed_release, ReleaseInvalidError),
    "release of another site": (release_of_another_site, ReleaseInvalidError),
    "provenance as a release": (provenance_as_release, ReleaseInvalidError),
    "trust of another root key": (trust_of_another_root, SignatureInvalidError),
    "root key too many": (second_root_key, SignatureInvalidError),
    "generation of another number": (generation_of_another_number, SignatureInvalidError),
    "key that was revoked": (revoked_key, SignatureInvalidError),
    "manifest of another artifact": (other_manifest, SignatureInvalidError),
    "executable without its mark": (executable_as_plain, ArtifactMissingError),
    "statement beyond all bounds": (change("releases/", bytes(3 << 20)), ArtifactCorruptError),
    "path that climbs": (add("../../etc/passwd", b"x"), ArtifactCorruptError),
    "member beside the folder": (add("../mine", b"x"), ArtifactCorruptError),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_forged_archive_is_refused(exported, forgery: str, tmp_path: Path) -> None:
    forge, error = FORGED[forgery]
    members = forge(exported.members(), exported)
    with pytest.raises(error):
        exported.verify(packed(members))
    if any(name.startswith("../") for name in members):
        return  # nobody has such a file in the folder
    top = tmp_path / "unpacked"
    for name, data in members.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
    with pytest.raises(error):
        verify_unpacked(top, Beliefs(exported.pin))


# -- by hand -----------------------------------------------------------------------------------

BY_HAND = re.findall(
    r"^```sh\n(.*?)^```$",
    (Path(__file__).parents[2] / "docs" / "verify.md").read_text().partition("## With b3sum")[2],
    re.MULTILINE | re.DOTALL,
)
# What the page says of some forgeries: each of its steps finds one, and for the reason that it has.
SAID = {
    "format of tomorrow": "another format",
    "blob changed": "WRONG: blobs/",
    "blob too many": "the files are not those of the manifest",
    "manifest of another artifact": "the files are not those of the manifest",
    "file too many": "what no archive has: ./README",
    "release by a hidden key": "what no archive has: ./keys/.*.pem",
    "key changed": "is no key",
    "key too many": "is no key",
    "envelope renamed": "is not what its name says",
    "envelope changed": "is not what its name says",
    "trust of another root key": "did not sign this",
    "root key too many": "trust begins with other root keys",
    "generation of another number": "bears another number",
    "generation skipped": "generation 2 is missing",
    "key that was revoked": "was revoked",
    "provenance of another artifact": "is about something else",
    "provenance by a key of another builder": "is not for urn:gitd:builder:source:v1",
    "release by a stolen name": "the keys are not those that are trusted",
    "release by the root key": "nobody trusts",
    "release by a key of another role": "has not the role release",
    "release by a key of another site": "is not for acme-store",
    "release of another artifact": "is about something else",
    "release of another site": "is about something else",
    "provenance as a release": "is about something else",
    "release by another provenance": "goes by a provenance that is not here",
    "member beside the folder": "not one folder of an artifact",
}
by_hand = pytest.mark.skipif(
    not all(map(shutil.which, ("b3sum", "openssl"))),
    reason="needs b3sum and openssl (Debian: apt install b3sum openssl)",
)


def follow_page(archive: bytes, root_key_id: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Do as docs/verify.md says to whoever has no gitd."""
    (folder / "acme-store.tar").write_bytes(archive)
    return subprocess.run(
        ["bash", "-c", "\n".join(BY_HAND)],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "ROOT_KEY": root_key_id, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@by_hand
def test_page_believes_what_is_right(exported, shop, tmp_path: Path) -> None:
    """Also of a key that was retired since, and of two builds."""
    again = SigningKey.generate()
    establish(shop.reader.layout.trust, root=shop.root_key, signing=again)
    files = {"a": b"hello", "b*": b"#!/bin/sh\n"}
    about = [shop.ingest(files).envelope_sha256, shop.ingest(files).envelope_sha256]
    ingested = shop.ingest(files)
    manifest = shop.reader.manifest(ingested.digest)
    by = {"provenance_sha256": about[0]}
    releases = [release_of(shop, ingested, sequence=number, **by) for number in (3, 4)]
    exported.parts = shop.reader.proof(manifest, about, releases)
    exported.verify(exported.data())
    done = follow_page(exported.data(), shop.root_key.key_id, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(ingested.digest) in done.stdout
    assert done.stdout.count('"gitCommit":"7fd1a60b01f91b314f59955a4e4d4e80d8edf11d"') == 2
    assert sorted(re.findall(r'"sequence":\d+', done.stdout)) == ['"sequence":3', '"sequence":4']
    assert '"name":"production"' in done.stdout


@by_hand
@pytest.mark.parametrize("forgery", FORGED)
def test_forged_archive_is_refused_by_hand(exported, forgery: str, tmp_path: Path) -> None:
    """What mf refuses the page refuses too, and where it does, it says why."""
    members = FORGED[forgery][0](exported.members(), exported)
    top = exported.ingested.artifact_id
    (tmp_path / "mine").write_text("precious")
    done = follow_page(packed(members, top), exported.shop.root_key.key_id, tmp_path)
    assert done.returncode != 0
    assert SAID.get(forgery, "") in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("WRONG")
    assert (tmp_path / "mine").read_text() == "precious"


@by_hand
def test_key_of_another_kind_is_refused(shop_at, tmp_path: Path) -> None:
    """openssl goes by what kind a key says that it is, whatever it is called."""
    # What ends an RSA key is its exponent, which is odd.
    shops = (shop_at(tmp_path / f"shop{number}") for number in itertools.count())
    shop = next(shop for shop in shops if shop.root_key.public[-1] & 1)
    ingested = shop.ingest({"a": b"hello"})
    manifest = shop.reader.manifest(ingested.digest)
    exported = Exported(shop, ingested, shop.reader.proof(manifest, [ingested.envelope_sha256], []))
    archive = packed(key_of_another_kind(exported.members(), exported), ingested.artifact_id)
    with pytest.raises(SignatureInvalidError):
        exported.verify(archive)
    done = follow_page(archive, shop.root_key.key_id, tmp_path)
    assert done.returncode != 0
    assert f"keys/{shop.root_key.key_id[8:]}.pem is no Ed25519 key" in done.stderr


@by_hand
def test_other_root_key_is_not_believed_by_hand(exported, tmp_path: Path) -> None:
    other = SigningKey.generate().key_id
    done = follow_page(exported.data(), other, tmp_path)
    assert done.returncode != 0
    assert f"{other} did not sign this" in done.stderr


@by_hand
def test_link_in_an_archive_leads_nothing_elsewhere_by_hand(exported, tmp_path: Path) -> None:
    """Whoever follows the page writes into no file that the archive names."""
    (tmp_path / "mine").write_text("precious")
    out = io.BytesIO(packed(exported.members(), "art_X"))
    with tarfile.open(fileobj=out, mode="a") as tar:
        for name in ("body", "generation", "wanted", "signed"):
            member = tarfile.TarInfo(f"art_X/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / "mine")
            tar.addfile(member)
    done = follow_page(out.getvalue(), exported.shop.root_key.key_id, tmp_path)
    assert "something that is no file" in done.stderr
    assert (tmp_path / "mine").read_text() == "precious"


@by_hand
def test_link_in_the_place_of_the_folder_is_not_followed_by_hand(exported, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo("art_X")
        member.type, member.linkname = tarfile.SYMTYPE, str(unpack(exported, tmp_path))
        tar.addfile(member)
    done = follow_page(out.getvalue(), exported.shop.root_key.key_id, tmp_path)
    assert done.returncode != 0
    assert "WRONG: art_X is a link" in done.stderr


def test_other_root_key_is_not_believed(exported) -> None:
    with pytest.raises(SignatureInvalidError, match="other root keys"):
        exported.verify(exported.data(), frozenset({SigningKey.generate().key_id}))


def test_key_that_is_revoked_in_the_archive_proves_nothing(exported, shop) -> None:
    """Case 27."""
    establish(shop.reader.layout.trust, root=shop.root_key, signing=SigningKey.generate())
    key_id = shop.signing_key.key_id
    revoke(shop.reader.layout.trust, root=shop.root_key, key_id=key_id, reason="stolen")
    manifest = shop.reader.manifest(exported.ingested.digest)
    exported.parts = shop.reader.proof(manifest, [exported.ingested.envelope_sha256], [])
    with pytest.raises(SignatureInvalidError, match="no trusted key"):
        exported.verify(exported.data())


def test_archive_from_before_a_revocation_is_refused_by_who_knows_of_it(
    exported, shop, tmp_path
) -> None:
    """Whoever stole the key can leave out what revoked it: the chain that is left holds."""
    data, trust = exported.data(), shop.reader.layout.trust
    before = exported.verify(data).keyring
    establish(trust, root=shop.root_key, signing=SigningKey.generate())
    newest = revoke(trust, root=shop.root_key, key_id=shop.signing_key.key_id, reason="stolen")
    assert exported.verify(data).keyring.version == before.version
    for beliefs, reason in (
        (Beliefs(exported.pin, min_generation=newest.version), "ends with generation 1"),
        (Beliefs(exported.pin, min_generation=2), "ends with generation 1"),
        (Beliefs.read(None, 1, trust), "no trusted key"),
    ):
        with pytest.raises(SignatureInvalidError, match=reason):
            verify_archive(io.BytesIO(data), beliefs)
    assert verify_archive(io.BytesIO(data), Beliefs(known=before)).is_pinned
    (tmp_path / "strange").mkdir()
    strange = establish(tmp_path / "strange", root=SigningKey.generate(), signing=shop.signing_key)
    with pytest.raises(SignatureInvalidError, match="not the one that was seen"):
        verify_archive(io.BytesIO(data), Beliefs(known=strange))


def test_signed_link_that_leads_out_is_refused(exported, shop) -> None:
    manifest = Manifest.parse(HEADER + b"l\tl\t11\t/etc/passwd\n")
    provenance = (shop.attest(manifest, "build_x").data,)
    exported.parts = replace(exported.parts, manifest=manifest, provenance=provenance, releases=())
    with pytest.raises(ArtifactCorruptError, match="leads out"):
        exported.verify(exported.data())


def test_members_of_two_folders_are_no_proof(exported) -> None:
    names = list(exported.members().items())
    tops = {f"{'ab'[n % 2]}/{name}": data for n, (name, data) in enumerate(names)}
    with pytest.raises(ArtifactCorruptError, match="is nothing that a proof has"):
        exported.verify(packed(tops, ""))


def test_archive_that_is_cut_short_anywhere_is_refused(exported) -> None:
    data = exported.data()
    ends = [*range(0, 20_000, 511), *range(20_000, len(data) - 1024, len(data) // 20)]
    for end in ends:
        with pytest.raises(ArtifactError):
            exported.verify(data[:end])


def test_flipped_bit_is_refused_or_means_the_same(exported) -> None:
    data = exported.data()
    whole = exported.verify(data)
    for at in [*range(0, 12_000, 97), *range(12_000, len(data), len(data) // 40)]:
        flipped = bytearray(data)
        flipped[at] ^= 4
        try:
            proven = exported.verify(bytes(flipped))
        except ArtifactError:
            continue
        assert proven == whole, at


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no tar at all" * 100,
        packed({}, ""),
        packed({"FORMAT": b"gitd-proof 1\n"}, ""),
        packed({"FORMAT": b"gitd-proof 1\n"}),
        packed({"a/FORMAT": b"gitd-proof 1\n", "b/manifest": b""}, ""),
    ],
)
def test_what_is_no_proof_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        verify_archive(io.BytesIO(data), Beliefs())


def test_statements_that_are_too_long_together_are_refused(
    exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them is not."""
    monkeypatch.setattr(proof, "MANIFEST_BYTES_MAX", 2000)
    monkeypatch.setattr(proof, "STATEMENTS_BYTES_MAX", 0)
    with pytest.raises(ArtifactCorruptError, match="too many statements"):
        verify_archive(io.BytesIO(exported.data()), Beliefs())


def test_name_that_stands_twice_is_refused(exported) -> None:
    members = exported.members()
    blob = name_of(members, "blobs/")
    for name in ("manifest", blob):
        out = io.BytesIO(packed(members))
        with tarfile.open(fileobj=out, mode="a") as tar:
            member = tarfile.TarInfo(f"art/{name}")
            member.size = len(members[name])
            tar.addfile(member, io.BytesIO(members[name]))
        with pytest.raises(ArtifactCorruptError, match="twice"):
            exported.verify(out.getvalue())


@pytest.mark.parametrize("what", ["link", "fifo"])
def test_unpacked_file_that_is_none_is_refused(exported, tmp_path: Path, what: str) -> None:
    top = unpack(exported, tmp_path)
    path = top / "manifest"
    path.rename(tmp_path / "manifest")
    if what == "link":
        path.symlink_to(tmp_path / "manifest")
    else:
        os.mkfifo(path)
    with pytest.raises(ArtifactCorruptError, match="manifest"):
        verify_unpacked(top, Beliefs(exported.pin))
    shutil.rmtree(top)


def test_blob_that_changed_in_the_store_breaks_the_export(exported, shop) -> None:
    path = shop.blob(LARGE)
    path.chmod(0o644)
    path.write_bytes(LARGE[:-1] + b"!")
    pieces = write_proof(exported.parts, files=shop.reader.layout)
    with pytest.raises(ArtifactCorruptError):
        for _ in pieces:
            pass
