"""The check of a store finds what is wrong, names it, and keeps quiet otherwise."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.check import check_store
from storage.digest import Digest
from storage.envelope import seal
from storage.layout import blob_mtime
from storage.records import release_statements
from storage.records.release_statements import IssuedStatement
from storage.release_statement import ReleaseStatement, build_release
from storage.trust import revoke
from tests.spoiling import rewrite

SITE = {"index.html": b"hello", "run*": b"#!/bin/sh\n"}


def check(shop):
    return check_store(shop.folder / "store", shop.records)


def test_sound_store_has_no_problems(shop) -> None:
    shop.ingest(SITE)
    report = check(shop)
    assert report.is_sound
    assert (report.blobs, report.trees, report.envelopes, report.size_bytes) == (2, 1, 1, 15)
    assert report.leftovers == ()


def test_empty_store_is_sound(shop) -> None:
    assert check(shop).is_sound


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "missing": ("is missing", lambda path: path.unlink()),
    "short": ("4 bytes instead of 5", lambda path: rewrite(path, b"hell")),
    "mode": ("mode 0644", lambda path: path.chmod(0o644)),
    "written to": ("written to", lambda path: rewrite(path, b"hellO", is_hidden=False)),
    "time": ("written to", lambda path: os.utime(path, (0, 0))),
    "link": ("", lambda path: (path.unlink(), path.symlink_to("/etc/passwd"))),
}


@pytest.mark.parametrize(("says", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_blob_is_named(shop, says: str, damage: Callable[[Path], object]) -> None:
    shop.ingest(SITE)
    path = shop.blob(b"hello")
    damage(path)
    (problem,) = check(shop).problems
    assert path.parent.name + path.name in problem
    assert says in problem


def test_forged_time_does_not_hide_other_bytes(shop) -> None:
    shop.ingest(SITE)
    path = shop.blob(b"hello")
    rewrite(path, b"hellO")
    os.utime(path, (blob_mtime(Digest.of(b"hello")),) * 2)
    (problem,) = check(shop).problems
    assert "other bytes" in problem


def test_damaged_manifest_and_envelope_are_named(shop) -> None:
    ingested = shop.ingest(SITE)
    rewrite(Path(shop.store.layout.tree(ingested.digest)), b"cas-tree")
    problems = check(shop).problems
    assert [problem.split()[0] for problem in problems] == ["manifest"]
    Path(shop.store.layout.envelope(ingested.envelope_sha256)).unlink()
    assert len(check(shop).problems) == 2


def test_records_that_disagree_with_a_manifest_are_named(shop) -> None:
    shop.ingest(SITE)
    shop.records.write(
        lambda db: db.execute("DELETE FROM ref WHERE blob_id = (SELECT MIN(id) FROM blob)")
    )
    (problem,) = check(shop).problems
    assert "otherwise than its manifest" in problem


def test_statement_by_a_key_that_is_revoked_is_named(shop) -> None:
    ingested = shop.ingest(SITE)
    key_id = shop.signing_key.key_id
    revoke(shop.store.layout.trust, root=shop.root_key, key_id=key_id, reason="stolen")
    (problem,) = check(shop).problems
    assert problem.startswith(f"envelope {ingested.envelope_sha256}: ")
    assert "no trusted key signed" in problem


@pytest.mark.parametrize("env_id", ["env_1", "env_2"])
def test_release_statement_of_another_environment_is_named(world, env_id: str) -> None:
    """Statements are held against what they are kept for."""
    shop = world.shop
    ingested = shop.ingest(SITE)
    world.release(ingested)
    (deployment,) = shop.records.reader().execute("SELECT id FROM deployment").fetchone()
    statement = ReleaseStatement(
        site="acme-store",
        env_id=env_id,
        environment="main",
        sequence=1,
        deployment_id=deployment,
        provenance_sha256=ingested.envelope_sha256,
        previous=None,
        rollback=False,
        issued_at="2026-01-01T00:00:00Z",
    )
    body = build_release(
        statement, digest=ingested.digest, manifest_sha256=ingested.manifest_sha256
    )
    envelope = seal(body, shop.signing_key)
    Path(shop.store.layout.envelope(envelope.sha256)).write_bytes(envelope.data)
    Path(shop.store.layout.envelope(envelope.sha256)).chmod(0o444)
    issued = IssuedStatement(
        envelope.sha256,
        "env_1",
        1,
        deployment,
        envelope.key_id,
        ingested.envelope_sha256,
        envelope.data.decode(),
        0,
    )
    world.write(lambda db: release_statements.add(db, issued))
    problems = check(shop).problems
    if env_id == "env_1":
        assert problems == ()
    else:
        (problem,) = problems
        assert problem.startswith("release of acme-store/main: the release statement is for main")


def test_files_without_rows_are_leftovers_and_no_problem(shop) -> None:
    shop.ingest(SITE)
    (shop.store.layout.root / "blobs" / "00" / ("0" * 62)).write_text("orphan")
    report = check(shop)
    assert report.is_sound
    assert report.leftovers == ("blobs/00/" + "0" * 62,)


def test_check_of_a_store_in_use_finds_nothing(shop) -> None:
    stop = threading.Event()

    def work() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            shop.ingest({f"f{n}": b"%d %d" % (turn, n) for n in range(20)})

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(10):
            report = check(shop)
            assert (report.problems, report.leftovers) == ((), ())
    finally:
        stop.set()
        thread.join()
