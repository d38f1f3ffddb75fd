"""What it costs to find whose word counts, where one artifact was built and deployed very often.

Counted in steps of the database's machine, which are the same wherever it runs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlite_utils import Database

from storage.model import SYSTEM, Artifact, Attestation, Build, EnvironmentKind, JobStatus, Site
from storage.records import artifacts, builds, deployments, environments, sites, vouching
from storage.records.db import Records
from storage.records.migrations import MIGRATIONS
from tests.new_records import open_records
from tests.storage.conftest import PREVIEW, deployment_of

PRODUCTION = replace(
    PREVIEW,
    id="env_production",
    slug="production",
    kind=EnvironmentKind.PRODUCTION,
    hostname="production",
)
OTHER = replace(PREVIEW, id="env_other", slug="other", hostname="other")
MANY = vouching.STATEMENTS_MAX + 1


class History:
    """What one artifact went through on a site with an environment of production and previews."""

    def __init__(self, path: Path) -> None:
        self.records = open_records(path)
        self.count = 0
        self.artifact_id = "art_1"
        """What is built and deployed from now on."""
        self.records.write(self._begin)

    @property
    def db(self) -> sqlite3.Connection:
        return self.records.reader()

    def _begin(self, db: sqlite3.Connection) -> None:
        sites.add(db, Site("site_1", "acme-store", "main", 0))
        for each in (PRODUCTION, PREVIEW, OTHER):
            environments.add(db, each)
        for number in range(1, 5):
            artifacts.add(db, Artifact(f"art_{number}", f"blake3:{number}", "", 1, 1, 0))

    def add(self, count: int, environment=PREVIEW, *, found: str | None = None, runs=True) -> str:
        """Builds for the environment that were deployed there (`runs`: and served); the last one's
        statement. `found`: the statement that they found made, instead of one of their own.
        """

        def change(db: sqlite3.Connection) -> str:
            for _ in range(count):
                self.count += 1
                self._build(db, environment.id, made := self._statement(found))
                if found is None:
                    artifacts.attest(db, made)
                self._deploy(db, environment.id, made.envelope_sha256, runs=runs)
            return made.envelope_sha256

        return self.records.write(change)

    def deploy(self, environment, envelope_sha256: str) -> None:
        self.records.write(lambda db: self._deploy(db, environment.id, envelope_sha256, runs=True))

    def _statement(self, found: str | None) -> Attestation:
        number = f"{self.count:06}"
        name = found or f"envelope_{number}"
        made_by = (
            self.artifact_id,
            "site_1",
            f"build_{number}",
            "key",
            "",
            "static",
            None,
            "0" * 40,
            0,
        )
        return Attestation(name, *made_by)

    def _build(self, db: sqlite3.Connection, env_id: str, made: Attestation) -> None:
        facts = {"id": made.build_id, "site_id": "site_1", "env_id": env_id, "job_id": "job_1"}
        facts |= {"commit": made.commit, "status": JobStatus.RUNNING, "actor": SYSTEM}
        facts |= {"clean": False, "deploys": True, "pushed": True, "cached": False}
        facts |= {"timings": {}, "created_at": 0}
        build = Build(**{**dict.fromkeys(Build.__slots__), **facts})
        builds.add(db, build)
        builds.succeed(db, build.id, made, deployment_id=None, timings={}, at=0)

    def _deploy(self, db: sqlite3.Connection, env_id: str, envelope: str, *, runs: bool) -> None:
        made = deployment_of(self.artifact_id, envelope, env_id)
        deployments.add(db, made)
        if runs:
            deployments.succeed(db, made.id, f"rel_of_{made.id}", 0)

    def best(self, environment=PRODUCTION, **options) -> str | None:
        found = vouching.best(self.db, environment, "art_1", **options)
        return found and found.attestation.envelope_sha256

    def listed(self, environment=PRODUCTION, **options) -> list[str]:
        page = artifacts.page(
            self.db, environment, newest=None, last=None, limit_count=50, **options
        )
        return [item.attestation.envelope_sha256 for item in page.items]

    def pages(self, between: Callable[[], object]) -> Iterator[str]:
        """The artifacts that production lists, one a page; something happens between any two."""
        page = artifacts.page(self.db, PRODUCTION, newest=None, last=None, limit_count=1)
        while page.items:
            yield page.items[0].artifact.id
            between()
            place = {"newest": page.newest, "last": page.last}
            page = artifacts.page(self.db, PRODUCTION, **place, limit_count=1)

    def steps(self, read: Callable[[], object]) -> int:
        taken = 0

        def step() -> int:
            nonlocal taken
            taken += 1
            return 0

        self.db.set_progress_handler(step, 50)
        read()
        self.db.set_progress_handler(None, 0)
        return taken


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History(tmp_path / "gitd.db")
    yield made
    made.records.close()


READS = {
    "best": lambda of: of.best(),
    "best of a preview": lambda of: of.best(PREVIEW),
    "best of its own": lambda of: of.best(PREVIEW, only_its_own=True),
    "page": lambda of: of.listed(),
    "page of a preview": lambda of: of.listed(PREVIEW),
    "page of its own": lambda of: of.listed(PREVIEW, only_its_own=True),
}


@pytest.mark.parametrize("is_found", [False, True], ids=["made", "found"])
def test_twice_the_history_costs_twice_as_much_and_not_four_times(history, is_found) -> None:
    """Also where builds find what others made, so that many have given one statement."""

    def grow() -> dict[str, int]:
        for _ in range(5):
            own = history.add(12, PRODUCTION)
            first = history.add(12, OTHER, runs=False)
            for where in (PRODUCTION, PREVIEW) if is_found else ():
                history.add(12, where, found=own if where is PRODUCTION else first)
            history.add(12)
        return {
            name: history.steps(lambda read=read: read(history)) for name, read in READS.items()
        }

    once = grow()
    twice = grow()
    assert min(once.values()) > 0
    assert {name for name in READS if twice[name] > 2.5 * once[name]} == set()


def test_pushes_to_a_preview_crowd_nothing_out_and_cost_production_no_more(history) -> None:
    own = history.add(1, PRODUCTION, runs=False)
    reads = (history.best, history.listed, lambda: history.listed(PREVIEW, only_its_own=True))
    history.add(MANY, OTHER)
    once = [history.steps(read) for read in reads]
    newest = history.add(MANY, OTHER)
    twice = [history.steps(read) for read in reads]
    assert [more < 1.2 * steps for more, steps in zip(twice, once, strict=True)] == [True] * 3
    assert (history.best(), history.listed()) == (own, [own])
    assert history.best(OTHER) == newest
    assert history.best(PREVIEW) == own


@pytest.mark.parametrize("pushes", [1, vouching.WALKED_MAX], ids=["near", "far"])
def test_list_goes_on_behind_what_does_not_count_to_its_end(history, pushes) -> None:
    """However much of that lies between two pages, and whatever is built meanwhile."""
    for name in ("art_1", "art_2", "art_3"):
        history.artifact_id = name
        history.add(2, PRODUCTION, runs=False)
        history.add(pushes, OTHER)
    history.artifact_id = "art_1"
    found = history.add(1, OTHER)
    history.add(1, PRODUCTION, found=found, runs=False)  # counts as of when it was made
    history.artifact_id = "art_4"
    promoted = history.add(1, PREVIEW)
    history.deploy(PRODUCTION, promoted)
    history.add(pushes, OTHER)
    pages = history.pages(lambda: history.add(1, PRODUCTION, runs=False))
    assert list(pages) == ["art_4", "art_1", "art_3", "art_2"]
    assert history.listed(PREVIEW, only_its_own=True) == [promoted]


def test_promoted_statement_is_not_crowded_out(history) -> None:
    promoted = history.add(1, OTHER)
    history.add(MANY, OTHER)
    assert history.listed() == []
    history.deploy(PRODUCTION, promoted)
    assert (history.best(), history.listed()) == (promoted, [promoted])


def test_what_a_preview_was_given_is_not_crowded_out_for_who_knows_it_alone(history) -> None:
    given = history.add(1, OTHER)
    history.deploy(PREVIEW, given)
    history.add(MANY, OTHER)
    assert history.best(PREVIEW, only_its_own=True) == given


def test_what_canceled_builds_gave_before_an_update_counts_after_it(tmp_path: Path) -> None:
    path = tmp_path / "gitd.db"
    made = History(path)
    given = made.add(1, PRODUCTION, runs=False)
    made.records.write(lambda db: db.execute("DELETE FROM deployment"))
    made.records.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:  # as it was before
        db.execute(
            "UPDATE build SET status = 'canceled', envelope_sha256 = NULL, artifact_id = NULL"
        )
        db.execute("DELETE FROM _sqlite_migrations WHERE name = 'vouching'")
        db.execute("DROP INDEX build_artifact")
        db.execute("DROP INDEX deployment_goes_by")
        assert [step.name for step in MIGRATIONS.pending(Database(db))] == ["vouching"]
    with Records.open(path) as made.records:
        assert (made.best(), made.listed()) == (given, [given])
