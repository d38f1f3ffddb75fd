"""Variables and secrets: set for a site or for one of its environments.

An environment's own wins over its site's, name by name. Values are sealed before they are written
down, and opened only to be given to what may have them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec

from hooks import config_rolls, named
from hooks.errors import InvalidRequestError, NotFoundError, RefusedError
from hooks.job_changes import JobChanges
from hooks.jobs import Jobs
from hooks.variable_rules import NAME_CHARS_MAX, name_fault, value_fault
from storage.model import Action, ActorRef, Environment, Job, Site, Variable, VariableUse
from storage.records import variables
from storage.sealing import Vault

T = TypeVar("T")
PLACE_COUNT_MAX = 100
PLACE_BYTES_MAX = 256 * 1024  # sealed; Linux takes 2 MiB of environment, and arguments with it


@dataclass(frozen=True, slots=True)
class Values:
    """Values by name, opened: what a process gets. They are never printed."""

    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    plain: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class BuildValues:
    """What a build gets of what it declares.

    Attributes:
        missing: Declared, and set nowhere; or set for what runs alone.
        run_only: Those of `missing` that are set for what runs.
        undeclared: Set for builds, and not declared: they are not given.
        digest: Of the names and values that are given. It tells nothing of them to whoever lacks
            the server's key; equal for equal ones.
    """

    values: Values = field(default_factory=Values)
    missing: tuple[str, ...] = ()
    run_only: tuple[str, ...] = ()
    undeclared: tuple[str, ...] = ()
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A value that is to be set."""

    name: str
    value: str = field(repr=False)
    is_secret: bool
    used_in: VariableUse | None


class Variables:
    """The variables and secrets of one server."""

    def __init__(self, jobs: Jobs, vault: Vault) -> None:
        self._jobs = jobs
        self.vault = vault

    async def put(
        self,
        site: Site,
        environment: Environment | None,
        name: str,
        value: str,
        *,
        is_secret: bool,
        used_in: VariableUse | None = None,
        roll_by: ActorRef | None = None,
    ) -> tuple[Variable, list[Job]]:
        """Set a value for a site, or for one environment of it; it replaces the one there.

        Without `used_in` it is used as the one there, or else in builds. With `roll_by`, what runs
        where it changes what programs are given is rolled again, on that actor's word; the answer
        has the jobs.

        Raises:
            InvalidRequestError: The name or the value cannot be one.
            RefusedError: `variable.other_kind`, `variable.too_many`.
            NotFoundError: The site or the environment is gone.
        """
        env_id = environment.id if environment is not None else None

        def put(changes: JobChanges) -> Variable:
            draft = _Draft(name=name, value=value, is_secret=is_secret, used_in=used_in)
            made = self._put(changes, site, env_id, draft)
            _check_room(variables.of_place(changes.db, site.id, env_id))
            return made

        return await self._change(put, site, environment, roll_by)

    async def put_all(
        self,
        site: Site,
        environment: Environment | None,
        values: Mapping[str, str],
        *,
        is_secret: bool,
        used_in: VariableUse | None = None,
        roll_by: ActorRef | None = None,
    ) -> tuple[list[Variable], list[Job]]:
        """Set several values at once, or none of them: what runs never has some of them alone.

        `values` by name; the answer is in their order. The rest and the errors: as for `put`, with
        the name in what an error says.
        """
        env_id = environment.id if environment is not None else None

        def put(changes: JobChanges) -> list[Variable]:
            made = []
            for name, value in values.items():
                draft = _Draft(name=name, value=value, is_secret=is_secret, used_in=used_in)
                try:
                    made.append(self._put(changes, site, env_id, draft))
                except InvalidRequestError as error:
                    message = f"{name[:NAME_CHARS_MAX]}: {error}"
                    raise InvalidRequestError(message, param="values") from error
            _check_room(variables.of_place(changes.db, site.id, env_id))
            return made

        return await self._change(put, site, environment, roll_by)

    def _put(self, changes: JobChanges, site: Site, env_id: str | None, draft: _Draft) -> Variable:
        """Set one value, in the caller's transaction."""
        name, is_secret = draft.name, draft.is_secret
        if fault := name_fault(name):
            raise InvalidRequestError(f"{fault}.", param="name")
        there = variables.find(changes.db, site.id, env_id, name)
        used = draft.used_in or (there.used_in if there is not None else VariableUse.BUILD)
        if fault := value_fault(draft.value, is_secret=is_secret, used_in=used):
            raise InvalidRequestError(f"{fault}.", param="value")
        if there is not None and there.is_secret != is_secret:
            kind = "secret" if there.is_secret else "variable"
            raise RefusedError(
                "variable.other_kind", f"{name} is a {kind} here: delete that first."
            )
        unsealed = Variable(site.id, env_id, name, is_secret, used, b"", changes.now)
        sealed = self.vault.seal(draft.value.encode(), place=unsealed.place)
        made = replace(unsealed, sealed=sealed)
        variables.put(changes.db, made)
        action = Action.SECRET_SET if is_secret else Action.VARIABLE_SET
        changes.note(action, name, site_id=site.id, env_id=env_id)
        return made

    async def delete(
        self,
        site: Site,
        environment: Environment | None,
        name: str,
        *,
        is_secret: bool,
        roll_by: ActorRef | None = None,
    ) -> list[Job]:
        """Forget a value. `roll_by` and the answer: as for `put`.

        Raises:
            NotFoundError: There is none of that name and kind at that very place, or that is gone.
        """
        env_id = environment.id if environment is not None else None

        def delete(changes: JobChanges) -> None:
            there = variables.find(changes.db, site.id, env_id, name)
            if there is None or there.is_secret != is_secret:
                raise NotFoundError("secret" if is_secret else "variable", name)
            variables.delete(changes.db, site.id, env_id, name)
            action = Action.SECRET_DELETED if is_secret else Action.VARIABLE_DELETED
            changes.note(action, name, site_id=site.id, env_id=env_id)

        return (await self._change(delete, site, environment, roll_by))[1]

    async def _change(
        self,
        change: Callable[[JobChanges], T],
        site: Site,
        environment: Environment | None,
        roll_by: ActorRef | None,
    ) -> tuple[T, list[Job]]:
        """Commit a change, together with the rolls that it asks for."""
        env_id = environment.id if environment is not None else None

        def commit(changes: JobChanges) -> tuple[T, list[Job]]:
            named.expect_site(changes.db, site)
            if environment is not None:
                named.expect(changes.db, environment)
            if roll_by is None:
                return change(changes), []

            def digest_of(environment: Environment) -> str:
                return self.digest(self.for_run(changes.db, site.id, environment.id))

            where = config_rolls.concerned(changes.db, site.id, env_id)
            before = {environment.id: digest_of(environment) for environment in where}
            changed = change(changes)
            jobs = config_rolls.queue_rolls(changes, where, before, digest_of, roll_by)
            return changed, jobs

        return await self._jobs.commit(commit)

    def value_of(self, variable: Variable) -> str:
        """Open a value.

        Raises:
            SealBrokenError: See `Vault.unseal`.
        """
        return self.vault.unseal(variable.sealed, place=variable.place).decode()

    def for_build(
        self, db: sqlite3.Connection, site_id: str, env_id: str, declared: Sequence[str]
    ) -> BuildValues:
        """Return what a build of an environment gets of the names that it declares.

        Raises:
            SealBrokenError: See `Vault.unseal`.
        """
        found = {each.name: each for each in effective(db, site_id, env_id)}
        for_builds = {name: each for name, each in found.items() if each.used_in.is_build}
        given = [for_builds[name] for name in sorted({*declared} & for_builds.keys())]
        values = Values(
            {each.name: self.value_of(each) for each in given if each.is_secret},
            {each.name: self.value_of(each) for each in given if not each.is_secret},
        )
        names = {each.name for each in given}
        missing = tuple(name for name in dict.fromkeys(declared) if name not in names)
        return BuildValues(
            values,
            missing,
            run_only=tuple(name for name in missing if name in found),
            undeclared=tuple(name for name in for_builds if name not in names),
            digest=self.digest(values),
        )

    def for_run(self, db: sqlite3.Connection, site_id: str, env_id: str) -> Values:
        """Return what the programs of an environment get: all that is set for what runs.

        Raises:
            SealBrokenError: See `Vault.unseal`.
        """
        given = [each for each in effective(db, site_id, env_id) if each.used_in.is_run]
        return Values(
            {each.name: self.value_of(each) for each in given if each.is_secret},
            {each.name: self.value_of(each) for each in given if not each.is_secret},
        )

    def digest(self, values: Values) -> str:
        """Return a digest that tells nothing of the values to whoever lacks the server's key."""
        told = [sorted(values.secrets.items()), sorted(values.plain.items())]
        return self.vault.digest(msgspec.json.encode(told))


def effective(db: sqlite3.Connection, site_id: str, env_id: str) -> list[Variable]:
    """What holds for an environment, by name: its own, and its site's where it has none."""
    held = {each.name: each for each in variables.of_place(db, site_id, None)}
    held |= {each.name: each for each in variables.of_place(db, site_id, env_id)}
    return [held[name] for name in sorted(held)]


def _check_room(there: Sequence[Variable]) -> None:
    size_bytes = sum(len(each.sealed) for each in there)
    if len(there) > PLACE_COUNT_MAX or size_bytes > PLACE_BYTES_MAX:
        raise RefusedError(
            "variable.too_many",
            f"A site, and each environment, has at most {PLACE_COUNT_MAX} variables and secrets,"
            f" of {PLACE_BYTES_MAX // 1024} KiB together.",
        )
