"""Consequences: whom a damaged part of the store hurts, and what to do about it, for people."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from storage.counted import counted
from storage.digest import Digest
from storage.parts import Part, PartKind
from storage.records import damage
from storage.records.damage import Hurt

_COMMIT_CHARS = 12


@dataclass(frozen=True, slots=True)
class Consequence:
    """What a damaged part means.

    Attributes:
        artifacts: Those that cannot be deployed with it.
        environments: Those that run one of these, as `site/environment`.
        hurts: A line for each thing that is hurt.
        advice: What to do.
    """

    artifacts: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    hurts: tuple[str, ...] = ()
    advice: str = ""


class Consequences:
    """The consequences of damage, as the records stand. Remembers: make one for each report."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._trees: dict[Digest, tuple[Hurt | None, list[str]]] = {}

    def of(self, part: Part) -> Consequence:
        """Say what it means that a part is damaged."""
        found = [self._of_tree(digest) for digest in damage.trees_of(self._db, part)]
        hurt = list({one.artifact_id: one for one, _ in found if one is not None}.values())
        caches = sorted({site for _, sites in found for site in sites})
        lines = [_line(one) for one in hurt]
        if part.kind is not PartKind.ENVELOPE:
            lines += [f"a build cache of {site}" for site in caches]
        return Consequence(
            artifacts=tuple(one.artifact_id for one in hurt),
            environments=tuple(sorted({name for one in hurt for name in one.running})),
            hurts=tuple(lines) or ("nothing that is kept",),
            advice=_advice(hurt, lines),
        )

    def _of_tree(self, digest: Digest) -> tuple[Hurt | None, list[str]]:
        if digest not in self._trees:
            hurt = damage.hurt(self._db, digest)
            self._trees[digest] = (hurt, damage.caches_of(self._db, digest))
        return self._trees[digest]


def _line(hurt: Hurt) -> str:
    sites = ", ".join(hurt.sites) or "a site that is gone"
    said = f"artifact {hurt.artifact_id} of {sites}"
    if hurt.running:
        said += f"; runs on {', '.join(hurt.running)}"
    if hurt.releases:
        said += f"; {counted(hurt.releases, 'release')}"
    return said


def _advice(hurt: list[Hurt], lines: list[str]) -> str:
    if not lines:
        return "nothing: the collector takes it away"
    builds = []
    for one in hurt:
        if one.commits:
            site, _, commit = one.commits[0].partition(" ")
            builds.append(f"{commit[:_COMMIT_CHARS]} of {site}")
    if not builds:
        return "gitd check --repair"
    again = f"build {builds[0]} again"
    more = f" (and {len(builds) - 1} more)" if len(builds) > 1 else ""
    return f"gitd check --repair; where no other copy is found: {again}{more}"
