"""One operation of our store in a process of its own, so that time and memory are of it alone.

    python -m bench.store_ours OPERATION FOLDER ARGUMENTS...

Prints JSON: seconds of the clock and of the processor, and the most memory that the process had.
The start of the interpreter is not counted: the store is part of a server.
"""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import sys
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from gitd import starting
from hooks.deploys.host.state import EnvironmentFolder, EnvironmentState, ServedState
from hooks.deploys.wire import ArtifactPin
from storage.artifacts import ArtifactStore, Ingested
from storage.check import check_store
from storage.digest import Digest
from storage.envelope import IN_TOTO_TYPE, Envelope, seal, unseal
from storage.errors import StorageError
from storage.ids import artifact_id
from storage.manifest import Manifest
from storage.model import Artifact, Attestation
from storage.proof_archive import write_proof
from storage.provenance import SOURCE_BUILDER, Provenance, RunCommands, build_provenance
from storage.reader import StoreReader, VerifiedArtifact
from storage.records import artifacts
from storage.records.db import Records
from storage.release_statement import ReleaseStatement, build_release
from storage.repair import Repairer
from storage.scan import scan_directory
from storage.scrub import Scrubber, ScrubLimits
from storage.signing import SigningKey
from storage.source import Limits, SourceEntry
from storage.tar import scan_tar
from storage.trust import establish
from storage.unpacked import verify_tree

SITE = "acme-store"
TIME = "2026-01-01T00:00:00.000Z"
SEALS = 200
SWITCHES = 200


class Bench:
    """A store in a folder, as control and a site host have it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.records = Records.open(folder / "gitd.db")
        self.store = ArtifactStore.open(folder / "store", self.records, group=None)
        self.key = SigningKey.load_or_create(folder / "signing.key")
        root = SigningKey.load_or_create(folder / "root.key")
        establish(self.store.layout.trust, root=root, signing=self.key)
        self.reader = StoreReader(folder / "store")
        self.environment = EnvironmentFolder(folder / "environment")

    # -- in --------------------------------------------------------------------------------------

    def ingest(self, tree: Iterable[SourceEntry]) -> Ingested:
        return self.store.ingest(tree, limits=Limits(), attest=self._attest, record=self._record)[0]

    def _attest(self, manifest: Manifest) -> Envelope:
        facts = Provenance(
            site=SITE,
            ref="refs/heads/main",
            commit="7fd1a60b01f91b314f59955a4e4d4e80d8edf11d",
            profile="static",
            run=RunCommands(),
            build_id=f"build_{time.time_ns()}",
            builder=SOURCE_BUILDER,
            started_at=TIME,
            finished_at=TIME,
            tree="4b825dc642cb6eb9a060e54bf8d69288fbee4904",
            environment="production",
            settings={"output": "."},
            toolchain={},
            gitd_version="0.1.0",
        )
        return seal(build_provenance(facts, manifest), self.key)

    def _record(self, db: sqlite3.Connection, ingested: Ingested) -> None:
        artifacts.add(
            db,
            Artifact(
                ingested.artifact_id,
                str(ingested.digest),
                ingested.manifest_sha256,
                ingested.files,
                ingested.size_bytes,
                0,
            ),
        )
        artifacts.attest(
            db,
            Attestation(
                envelope_sha256=ingested.envelope_sha256,
                artifact_id=ingested.artifact_id,
                site_id="site_1",
                build_id=ingested.envelope_sha256[:20],
                key_id=ingested.key_id,
                signature=ingested.signature,
                profile="static",
                ref=None,
                commit="7fd1a60b01f91b314f59955a4e4d4e80d8edf11d",
                created_at=0,
            ),
        )
        (self.folder / "newest").write_text(f"{ingested.digest} {ingested.envelope_sha256}")

    # -- out -------------------------------------------------------------------------------------

    def newest(self) -> tuple[Digest, str]:
        digest, envelope = (self.folder / "newest").read_text().split()
        return Digest.parse(digest), envelope

    def verified(self) -> VerifiedArtifact:
        return self.reader.verify(*self.newest(), site=SITE)

    def unpack(self, name: str, beside: str | None = None) -> None:
        self._unpack(self.verified(), name, beside)

    def _unpack(self, verified: VerifiedArtifact, name: str, beside: str | None) -> None:
        out = self.environment.releases
        out.mkdir(parents=True, exist_ok=True)
        previous = out / beside if beside else None
        self.reader.materialise(verified, out / name, beside=previous)

    def roll(self, name: str, beside: str) -> None:
        """All that the site host does for a roll of a static site, but for the talk about it.

        And control's statement: it signs what it knows from the records, and reads no manifest.
        """
        digest, envelope = self.newest()
        verified = self.verified()
        statement = self._release_statement(verified, envelope)
        state = EnvironmentState("env_1", SITE, "production", "production", ())
        self.reader.verify_release(statement, verified, env_id="env_1", above=0, now_ms=0)
        self._unpack(verified, name, beside)
        parts = self.reader.proof(verified.manifest, [envelope], [statement])
        self.environment.write_proof(name, b"".join(write_proof(parts, files=None)))
        served = ServedState(
            "dep_1", ArtifactPin(artifact_id(digest), str(digest), envelope), name, 0
        )
        self.environment.write(state.serving(served, 1))

    def _release_statement(self, verified: VerifiedArtifact, envelope: str) -> bytes:
        said = ReleaseStatement(
            site=SITE,
            env_id="env_1",
            environment="production",
            sequence=1,
            deployment_id="dep_1",
            provenance_sha256=envelope,
            previous=None,
            rollback=False,
            issued_at=TIME,
            expires_at=None,
        )
        digest, sha256 = verified.digest, verified.manifest_sha256
        return seal(build_release(said, digest=digest, manifest_sha256=sha256), self.key).data

    def switch(self) -> None:
        """Switch from one release to another and back, durably, as a roll does at its end."""
        pins = [
            ArtifactPin(artifact_id(one), str(one), "0" * 64)
            for one in map(Digest.of, (b"one", b"two"))
        ]
        names = ["000001-one", "000002-two"]
        state = EnvironmentState("env_1", SITE, "production", "production", ())
        self.environment.prepare(state)
        for number in range(SWITCHES):
            served = ServedState("dep_1", pins[number % 2], names[number % 2], 0)
            state = state.serving(served, number)
            self.environment.write(state)

    # -- proof -----------------------------------------------------------------------------------

    def scrub(self) -> None:
        """Read all that is stored from the medium, at no pace but the medium's."""
        limits = ScrubLimits(every_ms=0, bytes_per_s=1 << 60)
        repairer, trust = Repairer(self.store, self.records), self.store.layout.trust
        scrubber = Scrubber(repairer, self.records, [], trust, limits=limits)
        parts = scrubber.progress().parts
        while parts > 0:
            turn = scrubber.turn()
            assert not turn.found, turn.found
            parts -= turn.parts

    def check(self) -> None:
        report = check_store(self.folder / "store", self.records)
        assert report.is_sound, report.problems

    def hold_folder(self, name: str) -> None:
        verify_tree(self.environment.releases / name, self.verified().manifest)

    def seal_and_unseal(self) -> None:
        key, body = self.key, b"{" + b" " * 2000 + b"}"
        for _ in range(SEALS):
            sealed = seal(body, key)
            unseal(sealed.data, payload_type=IN_TOTO_TYPE, public_key=lambda _: key.public)


def _from_tar(bench: Bench, path: str) -> None:
    with Path(path).open("rb") as stream:
        bench.ingest(scan_tar(stream, is_file=True))


def _from_folder(bench: Bench, path: str) -> None:
    bench.ingest(scan_directory(Path(path), owner_uid=os.geteuid()))


OPERATIONS: dict[str, Callable[..., object]] = {
    "folder": _from_folder,
    "tar": _from_tar,
    "unpack": Bench.unpack,
    "roll": Bench.roll,
    "switch": Bench.switch,
    "check": Bench.check,
    "scrub": Bench.scrub,
    "hold": Bench.hold_folder,
    "seal": Bench.seal_and_unseal,
}


def write_tar(root: Path, path: Path) -> None:
    """Pack a tree as a builder does."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(root, arcname="", recursive=True)


def main(operation: str, folder: str, *arguments: str) -> int:
    starting.prepare()  # as all our processes: garbage is looked for less often
    bench = Bench(Path(folder))
    began, cpu = time.perf_counter(), time.process_time()
    try:
        OPERATIONS[operation](bench, *arguments)
    except StorageError as error:
        raise SystemExit(f"{operation}: {error}") from error
    took = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    json.dump({"wall_s": took[0], "cpu_s": took[1], "peak_bytes": peak}, sys.stdout)
    bench.records.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
