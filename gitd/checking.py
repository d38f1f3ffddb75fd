"""`gitd check`: records, repositories and store against each other."""

from __future__ import annotations

from dataclasses import dataclass

from gitd.layout import DataFolder
from storage.check import check_store
from storage.git.check import check_repository
from storage.records import sites
from storage.records.db import Records
from storage.repos import Repositories


@dataclass(frozen=True, slots=True)
class CheckReport:
    """How much was looked at, by what it is, and what is wrong, a sentence each."""

    counts: dict[str, int]
    faults: tuple[str, ...]


def check_data(folder: DataFolder, records: Records, *, is_deep: bool = False) -> CheckReport:
    """Look at everything; safe beside a running server.

    Reads every stored byte of the artifacts, and `is_deep` those of the repositories too.
    """
    faults: list[str] = []
    (integrity,) = records.reader().execute("PRAGMA integrity_check").fetchone()
    if integrity != "ok":
        faults.append(f"{folder.database}: {integrity}")
    known = sites.every(records.reader())
    repositories = Repositories(folder.repositories)
    git_objects = 0
    for site in known:
        path = repositories.path(site.id)
        repository = check_repository(path, is_whole=is_deep)
        git_objects += repository.objects
        faults += [f"site {site.name}, {path}: {fault}" for fault in repository.faults]
    ids = {site.id for site in known}
    strays = [path for path in folder.repositories.glob("site_*.git") if path.stem not in ids]
    store = check_store(folder.store, records)
    counts = {
        "sites": len(known),
        "git objects": git_objects,
        "repositories without a site": len(strays),
        "artifacts": store.trees,
        "signed statements": store.envelopes,
        "blobs": store.blobs,
        "bytes": store.size_bytes,
        "leftover files": len(store.leftovers),
    }
    return CheckReport(counts, (*faults, *store.problems))
