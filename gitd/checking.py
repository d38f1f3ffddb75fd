"""`gitd check`: records, repositories and store against each other."""

from __future__ import annotations

from dataclasses import dataclass

from gitd.layout import DataFolder
from storage.check import check_store
from storage.records import sites
from storage.records.db import Records
from storage.repos import Repositories


@dataclass(frozen=True, slots=True)
class CheckReport:
    """How much was looked at, by what it is, and what is wrong, a sentence each."""

    counts: dict[str, int]
    faults: tuple[str, ...]


def check_data(folder: DataFolder, records: Records) -> CheckReport:
    """Look at everything. Reads every stored byte; safe beside a running server."""
    faults: list[str] = []
    (integrity,) = records.reader().execute("PRAGMA integrity_check").fetchone()
    if integrity != "ok":
        faults.append(f"{folder.database}: {integrity}")
    known = sites.every(records.reader())
    repositories = Repositories(folder.repositories)
    faults += [
        f"site {site.name} has no repository {repositories.path(site.id)}"
        for site in known
        if not repositories.exists(site.id)
    ]
    ids = {site.id for site in known}
    strays = [path for path in folder.repositories.glob("site_*.git") if path.stem not in ids]
    store = check_store(folder.store, records)
    counts = {
        "sites": len(known),
        "repositories without a site": len(strays),
        "artifacts": store.trees,
        "signed statements": store.envelopes,
        "blobs": store.blobs,
        "bytes": store.size_bytes,
        "leftover files": len(store.leftovers),
    }
    return CheckReport(counts, (*faults, *store.problems))
