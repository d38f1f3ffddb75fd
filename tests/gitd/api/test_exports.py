"""Exports of artifacts: whole, bounded to what a key may see, and never a broken one that ends."""

from __future__ import annotations

import io
from pathlib import Path

import aiohttp
import pytest

from storage.digest import Digest
from storage.proof import Beliefs, verify_archive
from storage.records import attestations, release_statements


async def export_of(acme) -> str:
    release = await acme.release(b"hello")
    return f"{acme.production}/artifacts/{release['artifact_id']}/export"


async def test_export_is_an_archive_that_proves_itself(acme) -> None:
    path = await export_of(acme)
    heard = await acme.service.get(path)
    assert heard.status == 200
    assert heard.headers["Content-Type"] == "application/x-tar"
    assert int(heard.headers["Content-Length"]) == len(heard.raw)
    proven = verify_archive(io.BytesIO(heard.raw), Beliefs(acme.service.custody.root_key_ids()))
    assert proven.artifact_id == path.split("/")[-2]
    assert proven.provenance[0].provenance.commit
    assert [released.release.environment for released in proven.releases] == ["production"]
    assert (await acme.service.get(path)).raw == heard.raw


async def test_releases_in_it_are_those_of_the_environment(acme) -> None:
    path = (await export_of(acme)).replace("/production/", "/staging/")
    heard = await acme.service.get(path)
    proven = verify_archive(io.BytesIO(heard.raw), Beliefs())
    assert proven.releases == ()


async def test_head_says_how_long_it_is(acme) -> None:
    path = await export_of(acme)
    heard = await acme.service.call("HEAD", path)
    assert (heard.status, heard.raw) == (200, b"")
    assert int(heard.headers["Content-Length"]) == len((await acme.service.get(path)).raw)


async def test_export_needs_the_right_to_read(acme) -> None:
    path = await export_of(acme)
    for scope, status in (("sites:read", 403), ("deployments:read", 200)):
        heard = await acme.service.get(path, secret=acme.service.key(scope))
        assert heard.status == status, scope


async def test_artifact_that_is_none_is_not_found(acme) -> None:
    heard = await acme.service.get(f"{acme.production}/artifacts/art_{'0' * 26}/export")
    assert (heard.status, heard.code) == (404, "artifact.not_found")


async def test_revoked_artifact_is_not_exported(acme) -> None:
    path = await export_of(acme)
    (key_id,) = acme.service.reader.keyring().keys
    acme.service.records.write(lambda db: attestations.revoke(db, {key_id}))
    heard = await acme.service.get(path)
    assert (heard.status, heard.code) == (409, "artifact.revoked")


async def build_again(acme, where: str) -> None:
    """The same content once more: another statement about the same artifact."""
    acme.service.commit(acme.id, {"index.html": b"hello"})
    heard = await acme.service.post(f"{where}/builds", {"ref": "main", "clean": True})
    assert heard.status == 202
    await acme.service.build()


async def test_what_a_revoked_key_signed_is_not_in_it(acme) -> None:
    """Nor the releases that go by it."""
    service = acme.service
    path = await export_of(acme)
    (old,) = service.reader.keyring().keys
    new = service.custody.rotate(service.reader.layout.trust).key_id
    await build_again(acme, acme.production)
    service.records.write(lambda db: attestations.revoke(db, {old}))
    proven = verify_archive(io.BytesIO((await service.get(path)).raw), Beliefs())
    assert [one.key_id for one in proven.provenance] == [new]
    assert proven.releases == ()


async def test_what_only_a_preview_said_is_not_in_it(acme) -> None:
    service = acme.service
    path = await export_of(acme)
    made = {"kind": "preview", "branch": "topic"}
    preview = (await service.post(f"{acme.path}/environments", made)).data["slug"]
    await build_again(acme, f"{acme.path}/environments/{preview}")
    count = "SELECT COUNT(*) FROM attestation"
    assert service.records.reader().execute(count).fetchone()[0] == 2
    proven = verify_archive(io.BytesIO((await service.get(path)).raw), Beliefs())
    assert [one.provenance.environment for one in proven.provenance] == ["production"]
    assert len(proven.releases) == 1


async def test_file_that_is_gone_from_the_store_is_said(acme) -> None:
    path = await export_of(acme)
    reader = acme.service.records.reader()
    (row,) = reader.execute("SELECT envelope_sha256 FROM attestation").fetchall()
    Path(acme.service.reader.layout.envelope(row["envelope_sha256"])).unlink()
    heard = await acme.service.get(path)
    assert (heard.status, heard.code) == (500, "artifact.missing")


async def test_file_that_changed_in_the_store_breaks_the_answer_off(acme) -> None:
    path = await export_of(acme)
    blob = Path(acme.service.reader.layout.blob(Digest.of(b"hello"), executable=False))
    blob.chmod(0o644)
    blob.write_bytes(b"hullo")
    with pytest.raises(aiohttp.ClientPayloadError):
        await acme.service.get(path)


async def test_only_so_many_statements_are_in_it(acme) -> None:
    path = await export_of(acme)
    env_id = await acme.env_id("production")
    artifact_id = path.split("/")[-2]
    found = release_statements.of_artifact(
        acme.service.records.reader(), env_id, artifact_id, limit_count=1
    )
    assert [one.sequence for one in found] == [1]
