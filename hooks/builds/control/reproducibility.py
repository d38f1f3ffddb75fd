"""Whether a clean build gave what the same inputs gave before, file by file."""

from __future__ import annotations

from storage.artifacts import ArtifactStore, Ingested
from storage.digest import Digest
from storage.errors import ArtifactMissingError
from storage.manifest import DirectoryEntry, Entry, Manifest
from storage.model import Attestation
from storage.records import artifacts
from storage.records.db import Records

DIFFERENCES_SHOWN_MAX = 20


def compared(
    store: ArtifactStore, records: Records, kept: Ingested, before: Attestation
) -> list[str]:
    """Say whether a clean build gave what the same inputs gave `before`, and else what not."""
    which = f"{before.build_id}, which had the same inputs"
    if kept.artifact_id == before.artifact_id:
        return [f"reproducible: identical to what {which}, gave"]
    was = artifacts.get(records.reader(), before.artifact_id)
    assert was is not None, "kept by a foreign key"
    try:
        with (
            store.reading(Digest.parse(was.digest)) as old,
            store.reading(kept.digest) as new,
        ):
            differing = differences(old, new)
    except ArtifactMissingError:
        return [f"not reproducible: differs from what {which}, gave; that is gone meanwhile"]
    more = len(differing) - DIFFERENCES_SHOWN_MAX
    return [
        f"not reproducible: {len(differing)} of its files differ from what {which}, gave",
        *(f"  {each}" for each in differing[:DIFFERENCES_SHOWN_MAX]),
        *([f"  ... and {more} more"] if more > 0 else []),
    ]


def differences(old: Manifest, new: Manifest) -> list[str]:
    """Say of each path that is not the same in both trees what became of it, in order."""
    was, now = _by_path(old), _by_path(new)
    said = []
    for path in sorted(was.keys() | now.keys()):
        if was.get(path) != now.get(path):
            what = "added" if path not in was else "missing" if path not in now else "changed"
            said.append(f"{what} {path.decode()}")
    return said


def _by_path(manifest: Manifest) -> dict[bytes, Entry]:
    entries = manifest.entries
    return {entry.path: entry for entry in entries if not isinstance(entry, DirectoryEntry)}
