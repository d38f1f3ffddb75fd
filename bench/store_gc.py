"""The collector against its targets: a large store in the records, a smaller one on the disk.

The large one has a million blobs and ten million references of 200 trees, in rows alone: how long
the mark takes, and how long it takes to forget a tree. The other has 20,000 real blobs to sweep,
durably: how fast, and how long the gate is held.
"""

from __future__ import annotations

import contextlib
import functools
import random
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from bench.disk import journalled
from bench.measure import quantiles, timed
from storage.artifacts import ArtifactStore, KeptTree
from storage.audit import TABLES
from storage.collect import Collector, Order
from storage.digest import Digest
from storage.gate import Gate
from storage.records import garbage, integrity
from storage.records.db import Records
from storage.retention import Retention
from storage.source import Limits, SourceFile

BLOBS = 1_000_000
TREES = 200
REFS_EACH = 50_000
ROUNDS = 3
SWEPT = 20_000

MARK_TARGET_S = 1.0
AUDIT_TARGET_S = 15.0
SWEEP_TARGET = 8_000  # blobs a second
GATE_TARGET_S = 0.050  # the 95th percentile


def main() -> int:
    with journalled(3 << 30) as folder:
        missed = _sweep(folder) + _rows(folder)
    for line in missed:
        print(f"MISSED: {line}")
    return 1 if missed else 0


# -- a million blobs in the records ---------------------------------------------------------------


def _rows(folder: Path) -> list[str]:
    with Records.open(folder / "large.db") as records:
        took = timed(lambda: records.write(_fill))
        records.checkpoint()
        size = (folder / "large.db").stat().st_size
        print(f"{BLOBS:,} blobs, {BLOBS * 10:,} references: {took:.0f} s to make, {size >> 20} MiB")
        marks = [timed(lambda: garbage.unreferred_blobs(records.reader())) for _ in range(ROUNDS)]
        found = len(garbage.unreferred_blobs(records.reader()))
        print(f"mark, {found:,} found: {min(marks):.2f} s (target {MARK_TARGET_S} s)")
        torn_s = timed(lambda: [integrity.torn(records.reader(), table) for table in TABLES])
        print(f"check of the tables that decide, before anything goes: {torn_s:.1f} s")
        drops = [_drop(records, number) for number in range(ROUNDS)]
        print(f"forget a tree of {REFS_EACH:,}: {min(drops):.2f} s")
    missed = []
    if min(marks) > MARK_TARGET_S:
        missed.append(f"mark took {min(marks):.2f} s")
    return missed


def _fill(db: sqlite3.Connection) -> None:
    """Neighbouring trees share nearly all of their blobs, as successive builds of a site do."""
    pick = random.Random(1)
    rows = ((number, pick.randbytes(32) + b"f", 4000) for number in range(BLOBS))
    db.executemany("INSERT INTO blob(id, key, size_bytes) VALUES(?,?,?)", rows)
    step = (BLOBS - REFS_EACH) // TREES
    for tree in range(TREES):
        digest = Digest.of(b"%d" % tree)
        db.execute(
            "INSERT INTO tree(id, digest, sha256, files, size_bytes, manifest_bytes, state)"
            " VALUES(?,?,?,?,?,?,0)",
            (tree, digest, b"", REFS_EACH, 0, 0),
        )
        first = tree * step
        refs = ((blob, tree) for blob in range(first, first + REFS_EACH))
        db.executemany("INSERT INTO ref(blob_id, tree_id) VALUES(?,?)", refs)


def _drop(records: Records, tree: int) -> float:
    digest = Digest.of(b"%d" % tree)
    records.write(lambda db: garbage.condemn_trees(db, [digest]))

    def release() -> None:
        count = 1
        while count:
            count, _ = records.write(lambda db: garbage.release_refs(db, digest, limit_count=2000))

    return timed(release)


# -- real blobs on the disk -----------------------------------------------------------------------


class _Timed(Gate):
    """Notes how long the collector holds the gate."""

    def __init__(self, gate: Gate, held_s: list[float]) -> None:
        self._inner = gate
        self._held_s = held_s

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        with self._inner.collecting():
            began = time.perf_counter()
            yield
            self._held_s.append(time.perf_counter() - began)


def _sweep(folder: Path) -> list[str]:
    rates: list[float] = []
    held_s: list[float] = []
    audits: list[float] = []
    for number in range(ROUNDS):
        shop = folder / f"shop{number}"
        with Records.open(shop / "gitd.db") as records:
            store = ArtifactStore.open(shop / "store", records, group=None)
            store.keep_tree(_tree(number), limits=Limits(), record=_forget)
            collector = Collector(store, records, Retention())
            collector._gate = _Timed(collector._gate, held_s)  # noqa: SLF001 - a bench looks inside
            audits += [_audit(store, collector) for _ in range(ROUNDS)]
            records.checkpoint()
            began = time.perf_counter()
            done = collector.run(Order(is_hurried=True, is_forced=True))
            rates.append(done.blobs / (time.perf_counter() - began))
        shutil.rmtree(shop)
    print(f"sweep: {max(rates):,.0f} blobs/s, durable (target {SWEEP_TARGET:,})")
    print(quantiles("gate held", held_s) + f"  (target {GATE_TARGET_S * 1000:.0f} ms at p95)")
    audit_s = min(audits) * TREES * REFS_EACH / SWEPT
    print(f"audit of {TREES} trees of {REFS_EACH:,}: {audit_s:.1f} s (target {AUDIT_TARGET_S} s)")
    missed = []
    if audit_s > AUDIT_TARGET_S:
        missed.append(f"the audit would take {audit_s:.1f} s")
    if max(rates) < SWEEP_TARGET:
        missed.append(f"the sweep made {max(rates):,.0f} blobs/s")
    if sorted(held_s)[int(len(held_s) * 0.95)] > GATE_TARGET_S:
        missed.append("the gate was held too long")
    return missed


def _audit(store: ArtifactStore, collector: Collector) -> float:
    """Hold the manifest against the references, as for a tree that stays."""
    (digest,) = store._records.reader().execute("SELECT digest FROM tree").fetchone()  # noqa: SLF001
    return timed(lambda: collector._audit.check_tree(Digest(digest)))  # noqa: SLF001


def _tree(number: int) -> Iterator[SourceFile]:
    for n in range(SWEPT):
        data = b"%d of %d" % (n, number) * 100
        path = b"d%03d/f%05d" % (n % 400, n)
        yield SourceFile(path, len(data), executable=False, read=functools.partial(bytes, data))


def _forget(_: sqlite3.Connection, __: KeptTree) -> None:
    """No row asks for the tree: it is garbage from the start."""


if __name__ == "__main__":
    raise SystemExit(main())
