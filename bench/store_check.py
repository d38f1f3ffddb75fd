"""The full check of a store, side by side with `b3sum` over the same blobs.

10,000 files, 193 MB, in 400 folders, as a build of a large site yields: mostly small ones, some of
a megabyte. The check reads every blob, and holds manifest, references and signature against each
other and against the records beside.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.disk import journalled
from bench.measure import in_turn, report
from storage.artifacts import ArtifactStore
from storage.check import check_store
from storage.envelope import Envelope, seal
from storage.manifest import Manifest
from storage.model import Artifact, Attestation
from storage.provenance import SOURCE_BUILDER, Provenance, RunCommands, build_provenance
from storage.records import artifacts
from storage.records.db import Records
from storage.signing import SigningKey
from storage.source import Limits, SourceFile
from storage.trust import establish

FILES = 10_000
SIZE_BYTES = 193_300_000
LARGE = 60  # of a megabyte
ROUNDS = 7
TARGET = 1.3


def main() -> int:
    if shutil.which("b3sum") is None:
        print("skipped: there is no b3sum")
        return 0
    with journalled(1 << 30) as folder, Records.open(folder / "gitd.db") as records:
        _fill(folder, records)
        root = folder / "store"
        blobs = sorted(str(path) for path in (root / "blobs").rglob("*") if path.is_file())
        print(f"{len(blobs):,} blobs")

        def check(_: int) -> None:
            found = check_store(root, records)
            assert found.is_sound, found.problems
            assert found.blobs == len(blobs)

        def b3sum(_: int) -> None:
            subprocess.run(["b3sum", *blobs], stdout=subprocess.DEVNULL, check=True)

        pair = in_turn("full check, and b3sum of its blobs", check, b3sum, rounds=ROUNDS)
        report("full check", [pair])
        ratio = min(pair.ours_s) / min(pair.peer_s)
        print(f"the fastest of each: x{ratio:.2f} (target x{TARGET})")
    if ratio > TARGET:
        print(f"MISSED: the check took {ratio:.2f} times as long as b3sum")
        return 1
    return 0


def _fill(folder: Path, records: Records) -> None:
    store = ArtifactStore.open(folder / "store", records, group=None)
    key = SigningKey.load_or_create(folder / "signing.key")
    establish(store.layout.trust, root=SigningKey.load_or_create(folder / "root.key"), signing=key)

    def attest(manifest: Manifest) -> Envelope:
        facts = Provenance(
            site="large",
            ref="refs/heads/main",
            commit="7fd1a60b01f91b314f59955a4e4d4e80d8edf11d",
            profile="static",
            run=RunCommands(),
            build_id="build_1",
            builder=SOURCE_BUILDER,
            started_at="2026-01-01T00:00:00.000Z",
            finished_at="2026-01-01T00:00:05.000Z",
            tree="4b825dc642cb6eb9a060e54bf8d69288fbee4904",
            environment="production",
            gitd_version="0.1.0",
        )
        return seal(build_provenance(facts, manifest), key)

    def record(db: object, kept: object) -> None:
        artifact = Artifact(
            kept.artifact_id,
            str(kept.digest),
            kept.manifest_sha256,
            kept.files,
            kept.size_bytes,
            0,
        )
        artifacts.add(db, artifact)
        attestation = Attestation(
            envelope_sha256=kept.envelope_sha256,
            artifact_id=kept.artifact_id,
            site_id="site_1",
            build_id="build_1",
            key_id=kept.key_id,
            signature=kept.signature,
            profile="static",
            ref=None,
            commit="7fd1a60b01f91b314f59955a4e4d4e80d8edf11d",
            created_at=0,
        )
        artifacts.attest(db, attestation)

    store.ingest(_tree(), limits=Limits(), attest=attest, record=record)


def _tree() -> Iterator[SourceFile]:
    pick = random.Random(1)
    small = (SIZE_BYTES - LARGE * (1 << 20)) // (FILES - LARGE)
    for n in range(FILES):
        size = 1 << 20 if n < LARGE else pick.randrange(small // 8, small * 15 // 8)
        data = pick.randbytes(size)
        path = b"d%03d/f%05d" % (n % 400, n)
        yield SourceFile(path, len(data), executable=False, read=lambda data=data: data)


if __name__ == "__main__":
    raise SystemExit(main())
