"""One of several processes that race on a store: it publishes, rolls, reads, collects or scrubs.

Usage: race_child.py ROLE SHOP SEED. Goes on until its standard input ends, and prints a line at
each round; an error is a broken promise of the store, and ends it with a traceback.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import select
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest import KEEP_NOTHING, PREVIEW, Shop, deployment_of, make_shop

from storage.artifacts import Ingested
from storage.collect import Collector, Order
from storage.copies import twins
from storage.errors import ArtifactMissingError
from storage.export import Export, exporting
from storage.gate import Gate
from storage.manifest import Manifest
from storage.materialise import materialise
from storage.model import Deployment, JobStatus
from storage.proof import Beliefs, verify_archive
from storage.records import artifacts, deployments
from storage.repair import Repairer
from storage.scrub import Scrubber, ScrubLimits

CONTENTS = 300
FILES = 8


def tree(pick: random.Random) -> dict[str, bytes]:
    """A tree out of a few contents, so that most are in use, going, or coming back."""
    return {f"f{n}": b"%d" % pick.randrange(CONTENTS) * 50 for n in range(FILES)}


def publish(shop: Shop, pick: random.Random) -> Iterator[str]:
    while True:
        yield str(shop.ingest(tree(pick)).digest)


def roll(shop: Shop, pick: random.Random) -> Iterator[str]:
    """As control and a site host do: what can be deployed is queued, then read without locks."""
    while True:
        ingested = shop.ingest(tree(pick))
        deployment = shop.records.write(lambda db, ingested=ingested: queued(db, ingested))
        if deployment is None:
            yield "expired"
            continue
        verified = shop.reader.verify(ingested.digest, deployment.envelope_sha256)
        unpacked = shop.folder / f"out-{os.getpid()}"
        shop.reader.materialise(verified, unpacked)
        shutil.rmtree(unpacked)
        shop.records.write(
            lambda db, ended=deployment: deployments.end(db, ended.id, JobStatus.FAILED, None, 1)
        )
        yield "rolled"


def queued(db: sqlite3.Connection, ingested: Ingested) -> Deployment | None:
    found = artifacts.of_environment(db, PREVIEW, ingested.artifact_id)
    if found is None or not found.artifact.is_available:
        return None
    envelope = found.attestation.envelope_sha256
    deployment: Deployment = deployment_of(ingested.artifact_id, envelope, "env_1")
    deployments.add(db, deployment)
    return deployment


def read(shop: Shop, pick: random.Random) -> Iterator[str]:
    """As a build does with its cache: whatever can be held stays whole as long as it is held."""
    while True:
        digest = shop.keep_tree(tree(pick), key=str(pick.randrange(3))).digest
        with contextlib.suppress(ArtifactMissingError), shop.store.reading(digest) as manifest:
            unpacked = shop.folder / f"out-{os.getpid()}"
            materialise_whole(shop, manifest, unpacked)
            yield "read"
            continue
        yield "gone"


def export(shop: Shop, pick: random.Random) -> Iterator[str]:
    """As the API does: what is exported is held to its last byte, and proves itself."""
    while True:
        ingested = shop.ingest(tree(pick))
        with contextlib.ExitStack() as stack:
            held = exporting(
                shop.store,
                shop.reader,
                ingested.digest,
                provenance=[ingested.envelope_sha256],
                releases=[],
            )
            try:
                exported = stack.enter_context(held)
            except ArtifactMissingError:
                yield "gone"
                continue
            archive = exported_whole(exported)
        proven = verify_archive(io.BytesIO(archive), Beliefs())
        assert proven.artifact_id == ingested.artifact_id
        yield "exported"


def exported_whole(exported: Export) -> bytes:
    try:
        return b"".join(exported.pieces)
    except ArtifactMissingError as error:
        raise AssertionError("an artifact went while it was exported") from error


def materialise_whole(shop: Shop, manifest: Manifest, unpacked: Path) -> None:
    try:
        materialise(shop.store.layout, manifest, unpacked, durable=False)
    except ArtifactMissingError as error:
        raise AssertionError("a tree went while it was held") from error
    shutil.rmtree(unpacked)


class OpenGate(Gate):
    """A gate that lets the collector pass at any time."""

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        yield


class Reckless(Collector):
    """The collector without the gate: the proof that this race finds what it is there for."""

    def __init__(self, *arguments: object, **more: object) -> None:
        super().__init__(*arguments, **more)  # type: ignore[arg-type]
        self._gate = OpenGate(self._layout)


def collect(shop: Shop, pick: random.Random, *, kind: type[Collector] = Collector) -> Iterator[str]:
    collector = kind(shop.store, shop.records, KEEP_NOTHING)
    while True:
        order = Order(is_hurried=True, is_thorough=not pick.randrange(4), is_forced=True)
        yield str(collector.run(order).blobs)


def flip(shop: Shop, pick: random.Random) -> Iterator[str]:
    """Change a byte of some blob, in place, as a medium or a stranger would."""
    while True:
        shard = pick.choice(list((shop.store.layout.root / "blobs").iterdir()))
        for path in list(shard.iterdir())[:1]:
            with contextlib.suppress(FileNotFoundError):
                path.chmod(0o644)
                with path.open("r+b") as file:
                    file.write(b"#")
        yield "looked"  # always: once all is collected, there is nothing left to change
        time.sleep(0.001)


def scrub(shop: Shop, pick: random.Random) -> Iterator[str]:
    """Read everything again and again, and mend what can be."""
    repairer = Repairer(shop.store, shop.records)
    limits = ScrubLimits(every_ms=-1, bytes_per_s=1 << 40, quarantine_ms=0)
    scrubber = Scrubber(
        repairer, shop.records, [twins(shop.store.layout)], shop.store.layout.trust, limits=limits
    )
    while True:
        turn = scrubber.turn()
        if not pick.randrange(4):
            scrubber.tidy()
        yield str(len(turn.found))


ROLES: dict[str, Callable[[Shop, random.Random], Iterator[str]]] = {
    "publish": publish,
    "roll": roll,
    "read": read,
    "export": export,
    "collect": collect,
    "flip": flip,
    "scrub": scrub,
    "reckless": lambda shop, pick: collect(shop, pick, kind=Reckless),
}


def main() -> None:
    role, folder, seed = sys.argv[1:]
    shop = make_shop(Path(folder))
    shop.builds = iter(range(int(seed) * 10**9, 10**12))
    rounds = ROLES[role](shop, random.Random(int(seed)))
    while not select.select([sys.stdin], [], [], 0)[0]:
        print(next(rounds), flush=True)
    shop.records.close()


if __name__ == "__main__":
    main()
