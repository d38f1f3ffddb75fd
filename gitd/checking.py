"""`gitd check`: each of what a data folder holds, by itself and together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gitd.config import Config
from gitd.layout import DataFolder
from gitd.stores import open_beside, room_of
from hooks.clock import now_ms, rfc3339
from hooks.deploys.host.state import ReleaseFolder, release_folders
from storage import copies
from storage.check import Finding, check_store
from storage.consequences import Consequence
from storage.counted import counted
from storage.digest import Digest
from storage.errors import JobLogPositionError, RecordsError, StorageError
from storage.git.check_processes import check_repositories
from storage.joblog import JobLogs
from storage.quarantine import Kept
from storage.reader import StoreReader
from storage.records import audit_log, damage, deployments, environments, integrity, releases, sites
from storage.records import scrub as scrub_rows
from storage.records.db import Records, mapped_errors
from storage.reindex import rebuild_index
from storage.repair import Mended, Repairer
from storage.repos import Repositories
from storage.unpacked import verify_tree

SHOWN_COUNT_MAX = 100  # of what is wrong, for people; --json has all
NEWER = "restore newer records, or copy its data away: the site host keeps it for seven days"
KEEP_LOG = "put it back from a backup, or leave it: all else in it is shown, and it goes by its age"
ROLL_AGAIN = "its next roll makes it anew: deploy again, or roll back"


class FindingReport(msgspec.Struct, frozen=True):
    """Something that is wrong: `hurts` says whom, in words, and `advice` what to do."""

    what: str
    fault: str
    hurts: Sequence[str]
    artifacts: Sequence[str]
    environments: Sequence[str]
    advice: str


class MendedReport(msgspec.Struct, frozen=True):
    """A part that is whole again, and where the copy was."""

    what: str
    source: str


class ScrubReport(msgspec.Struct, frozen=True):
    """How far the server is with reading everything once in a while, and what it found so far."""

    parts: int
    due: int
    due_bytes: int
    oldest_read_at: str | None
    read_at: str | None
    found: int
    mended: int


class CheckReport(msgspec.Struct, frozen=True):
    """How much was looked at, by what it is, and what is wrong.

    Attributes:
        faults: A sentence for each of the findings.
        quarantine: The names of the files there.
        audit_head: `SEQUENCE:DIGEST` of the newest line of the audit log: note it elsewhere.
        notes: What is no fault and yet to be known.
    """

    ok: bool
    counts: Mapping[str, int]
    faults: Sequence[str]
    findings: Sequence[FindingReport]
    mended: Sequence[MendedReport]
    quarantine: Sequence[str]
    scrub: ScrubReport
    audit_head: str | None
    notes: Sequence[str]


@dataclass(slots=True)
class _Found:
    counts: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    quarantined: tuple[Kept, ...] = ()
    audit_head: str | None = None
    notes: list[str] = field(default_factory=list)

    def add(self, what: str, fault: str, consequence: Consequence | None = None) -> None:
        self.findings.append(Finding(what, fault, None, consequence or Consequence()))


def check_data(
    folder: DataFolder, records: Records, config: Config, *, is_deep: bool = False
) -> CheckReport:
    """Look at everything; safe beside a running server, and changes nothing.

    `is_deep`: read every stored byte too, of the artifacts, their release folders and the
    repositories.
    """
    return _report(records, config, _look(folder, records, is_deep=is_deep), ())


def repair_data(
    folder: DataFolder, records: Records, config: Config, *, brought: Sequence[Path]
) -> CheckReport:
    """Look at everything, repair what can be, and look again. Safe beside a running server.

    `brought`: archives or folders that may have copies of what is damaged.

    Raises:
        StorageError: The store could not take a copy.
    """
    found = _look(folder, records, is_deep=True)
    room = room_of(folder, config)
    repairer = Repairer(open_beside(folder, records, room), records)
    suspects = [finding.part for finding in found.findings if finding.part is not None]
    repairer.condemn(suspects)
    sources = (*copies_of(folder, records), *map(copies.anything_at, brought))
    mended = repairer.mend(sources)
    records.write(damage.drop_caches)
    if suspects:
        found = _look(folder, records, is_deep=True)
    return _report(records, config, found, mended)


def rebuild_data(folder: DataFolder, records: Records, config: Config) -> str:
    """Make the index of the store again from its files; say for people what that changed.

    Raises:
        StorageError: The system or the database refused.
    """
    done = rebuild_index(open_beside(folder, records, room_of(folder, config)), records)
    return (
        f"the index is made anew: trees {done.trees}, of them known otherwise {done.changed}; "
        f"statements known again {done.statements}; parts found damaged {done.damaged}"
    )


def copies_of(folder: DataFolder, records: Records) -> tuple[copies.Source, ...]:
    """Where this server may have copies of what is damaged in its store."""
    layout = StoreReader(folder.store).layout

    def unpacked() -> dict[Digest, list[Path]]:
        found: dict[Digest, list[Path]] = {}
        for release in release_folders(folder.host):
            found.setdefault(release.digest, []).append(release.path)
        return found

    return (
        copies.twins(layout),
        copies.issued_statements(records),
        copies.release_folders(layout, records, unpacked),
    )


def in_words(report: CheckReport) -> Iterator[str]:
    """The report, line by line, for people."""
    for name, count in report.counts.items():
        yield counted(count, _one(name), name, width=8)
    yield f"{counted(len(report.quarantine), 'file', width=8)} in quarantine"
    yield _scrub_in_words(report.scrub)
    if report.audit_head is not None:
        yield f"  audit: the head is {report.audit_head}"
    for note in report.notes:
        yield f"note: {note}"
    for mended in report.mended:
        yield f"MENDED: {mended.what}: from {mended.source}"
    for finding in report.findings[:SHOWN_COUNT_MAX]:
        yield f"WRONG: {finding.what}: {finding.fault}"
        for line in finding.hurts:
            yield f"       hurts: {line}"
        if finding.advice:
            yield f"       to do: {finding.advice}"
    if len(report.findings) > SHOWN_COUNT_MAX:
        yield f"and {len(report.findings) - SHOWN_COUNT_MAX} more; --json has all"
    yield "all well" if report.ok else counted(len(report.findings), "fault")


def _one(names: str) -> str:
    """One of what a count's name says: `repository without a site`."""
    return re.sub(r"(ie)?s\b", lambda found: "y" if found[1] else "", names, count=1)


def _scrub_in_words(scrub: ScrubReport) -> str:
    if scrub.read_at is None:
        return "  scrub: has read nothing yet"
    said = f"  scrub: {scrub.parts - scrub.due} of {scrub.parts} parts are read as often as wanted"
    if scrub.oldest_read_at is not None:
        said += f", the oldest on {scrub.oldest_read_at[:10]}"
    return f"{said}; {scrub.found} were damaged so far, {scrub.mended} mended"


# -- looking --------------------------------------------------------------------------------------


def _look(folder: DataFolder, records: Records, *, is_deep: bool) -> _Found:
    found = _Found()
    for fault in integrity.faults(records.reader()):
        what, _, text = fault.partition(": ")
        found.add(what, text or fault)
    try:
        with mapped_errors():
            _look_at_the_rest(folder, records, found, is_deep=is_deep)
    except (RecordsError, TypeError, ValueError) as error:
        if not found.findings:
            raise
        # As was said above: there is nothing to go by.
        found.add("database", f"the rest cannot be looked at: {error}")
    return found


def _look_at_the_rest(
    folder: DataFolder, records: Records, found: _Found, *, is_deep: bool
) -> None:
    _look_at_repositories(folder, records, found, is_deep=is_deep)
    # Who asks for every byte asks whether the disk has it, not whether memory has.
    store = check_store(folder.store, records, is_deep=is_deep, from_medium=is_deep)
    found.findings += store.findings
    found.quarantined = store.quarantined
    found.counts |= {
        "artifacts": store.trees,
        "signed statements": store.envelopes,
        "blobs": store.blobs,
        "bytes": store.size_bytes,
        "leftover files": len(store.leftovers),
    }
    _look_at_releases(folder, records, found, is_deep=is_deep)
    _look_at_job_logs(folder, found)
    _look_at_audit_log(records, found)


def _look_at_repositories(
    folder: DataFolder, records: Records, found: _Found, *, is_deep: bool
) -> None:
    known = sites.every(records.reader())
    repositories = Repositories(folder.repositories)
    git_objects = 0
    paths = [repositories.path(site.id) for site in known]
    reports = check_repositories(paths, is_whole=is_deep)
    for site, path, repository in zip(known, paths, reports, strict=True):
        git_objects += repository.objects
        for fault in repository.faults:
            found.add(f"site {site.name}, {path}", fault)
    ids = {site.id for site in known}
    strays = [path for path in folder.repositories.glob("site_*.git") if path.stem not in ids]
    found.counts |= {
        "sites": len(known),
        "git objects": git_objects,
        "repositories without a site": len(strays),
        "broken-off repositories": len(repositories.left_behind()),
    }


def _look_at_releases(
    folder: DataFolder, records: Records, found: _Found, *, is_deep: bool
) -> None:
    """Hold what the site host has unpacked against the manifests, where this user may read it."""
    reader = StoreReader(folder.store)
    count = 0
    for release in release_folders(folder.host):
        environment = environments.get(records.reader(), release.env_id)
        if environment is None and release.is_served:
            _expect_gone(records, release, found)
        if environment is None or not release.is_served:
            continue
        count += 1
        site = sites.find(records.reader(), environment.site_id)
        name = f"{site.name if site else environment.site_id}/{environment.slug}"
        consequence = Consequence((), (name,), (f"what {name} serves",), ROLL_AGAIN)
        try:
            verify_tree(release.path, reader.manifest(release.digest), reads=is_deep)
        except StorageError as error:
            if release in release_folders(folder.host):  # not replaced meanwhile
                found.add(f"release folder {release.path}", str(error), consequence)
        if _is_another(records, release.env_id, release.deployment_id):
            text = "is not what the records say that it runs"
            found.add(f"environment {name}", text, consequence)
    found.counts["release folders"] = count


def _expect_gone(records: Records, release: ReleaseFolder, found: _Found) -> None:
    """What the site host serves of an environment that was never here is newer than the records."""
    if not environments.gone(records.reader(), [release.env_id]):
        consequence = Consequence(hurts=("what its visitors see, and its data",), advice=NEWER)
        found.add(
            f"environment {release.env_id}",
            "the site host serves it, and the records do not know of it",
            consequence,
        )


def _is_another(records: Records, env_id: str, deployment_id: str) -> bool:
    """Whether an environment runs another deployment than its current one, and nothing is under
    way that explains it.
    """
    db = records.reader()
    if deployments.unfinished(db, env_id):
        return False
    current = releases.current(db, env_id)
    return current is not None and current.deployment_id != deployment_id


def _look_at_job_logs(folder: DataFolder, found: _Found) -> None:
    joblogs = JobLogs(folder.joblogs)
    files = joblogs.files()
    for file in files:
        consequence = Consequence(hurts=(f"what is to be read of {file.job_id}",), advice=KEEP_LOG)
        try:
            count = joblogs.damaged_lines(file.job_id)
        except JobLogPositionError:
            continue  # it was removed meanwhile
        except OSError as error:
            found.add(f"job log {joblogs.path(file.job_id)}", str(error), consequence)
            continue
        if count:
            text = f"{count} of its lines cannot be read"
            found.add(f"job log {joblogs.path(file.job_id)}", text, consequence)
    found.counts["job logs"] = len(files)


def _look_at_audit_log(records: Records, found: _Found) -> None:
    consequence = Consequence(hurts=("who changed what is told otherwise than it was",))
    try:
        chain = audit_log.check(records.reader())
    except (TypeError, ValueError) as error:
        found.add("audit log", f"cannot be read: {error}", consequence)
        return
    for fault in chain.faults:
        found.add("audit log", fault, consequence)
    if more := chain.fault_count - len(chain.faults):
        found.add("audit log", f"and {counted(more, 'more fault')}", consequence)
    found.counts["lines of the audit log"] = chain.count
    found.audit_head = chain.noted_head
    held = audit_log.ahead(records.reader(), now_ms())
    if held is not None:
        found.notes.append(
            f"line {held[0]} of the audit log is dated in the future: until that is past and the"
            " line is old, neither it nor any line behind it is forgotten"
        )


# -- reporting ------------------------------------------------------------------------------------


def _report(
    records: Records, config: Config, found: _Found, mended: Sequence[Mended]
) -> CheckReport:
    return CheckReport(
        ok=not found.findings,
        counts=found.counts,
        faults=[str(finding) for finding in found.findings],
        findings=[
            FindingReport(
                what=finding.what,
                fault=finding.fault,
                hurts=finding.consequence.hurts,
                artifacts=finding.consequence.artifacts,
                environments=finding.consequence.environments,
                advice=finding.consequence.advice,
            )
            for finding in found.findings
        ],
        mended=[MendedReport(str(one.part), one.source) for one in mended],
        quarantine=[kept.name for kept in found.quarantined],
        scrub=_scrub_report(records, config),
        audit_head=found.audit_head,
        notes=found.notes,
    )


def _scrub_report(records: Records, config: Config) -> ScrubReport:
    now = now_ms()
    before = now - int(config.store.scrub_every_s * 1000)
    try:
        with mapped_errors():
            scrub = scrub_rows.progress(records.reader(), before, now)
    except RecordsError:  # a database that cannot be read, which is among the findings
        return ScrubReport(0, 0, 0, None, None, 0, 0)
    return ScrubReport(
        parts=scrub.parts,
        due=scrub.due,
        due_bytes=scrub.due_bytes,
        oldest_read_at=rfc3339(scrub.oldest) if scrub.oldest is not None else None,
        read_at=rfc3339(scrub.read_at) if scrub.read_at is not None else None,
        found=scrub.found,
        mended=scrub.mended,
    )
