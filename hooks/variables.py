"""Variables and secrets: set for a site or for one of its environments, and given to builds.

An environment's own wins over its site's, name by name. Values are sealed before they are written
down, and opened only to be given to what may have them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from hooks.errors import InvalidRequestError, NotFoundError, RefusedError
from hooks.jobs import JobChanges, Jobs
from hooks.variable_rules import name_fault, value_fault
from storage.model import Environment, Site, Variable, VariableUse
from storage.records import variables
from storage.sealing import Vault

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


class Variables:
    """The variables and secrets of one server."""

    def __init__(self, jobs: Jobs, vault: Vault) -> None:
        self._jobs = jobs
        self._vault = vault

    async def put(
        self,
        site: Site,
        environment: Environment | None,
        name: str,
        value: str,
        *,
        is_secret: bool,
        used_in: VariableUse,
    ) -> Variable:
        """Set a value for a site, or for one environment of it; it replaces the one there.

        Raises:
            InvalidRequestError: The name or the value cannot be one.
            RefusedError: `variable.other_kind`, `variable.too_many`.
        """
        if fault := name_fault(name):
            raise InvalidRequestError(f"{fault}.", param="name")
        if fault := value_fault(value, is_secret=is_secret, used_in=used_in):
            raise InvalidRequestError(f"{fault}.", param="value")
        env_id = environment.id if environment is not None else None
        draft = Variable(site.id, env_id, name, is_secret, used_in, b"", 0)
        sealed = self._vault.seal(value.encode(), place=draft.place)

        def change(changes: JobChanges) -> Variable:
            there = variables.find(changes.db, site.id, env_id, name)
            if there is not None and there.is_secret != is_secret:
                kind = "secret" if there.is_secret else "variable"
                raise RefusedError(
                    "variable.other_kind", f"{name} is a {kind} here: delete that first."
                )
            made = Variable(site.id, env_id, name, is_secret, used_in, sealed, changes.now)
            variables.put(changes.db, made)
            _check_room(variables.of_place(changes.db, site.id, env_id))
            return made

        return await self._jobs.commit(change)

    async def delete(
        self, site: Site, environment: Environment | None, name: str, *, is_secret: bool
    ) -> None:
        """Forget a value.

        Raises:
            NotFoundError: There is none of that name and kind at that very place.
        """
        env_id = environment.id if environment is not None else None

        def change(changes: JobChanges) -> None:
            there = variables.find(changes.db, site.id, env_id, name)
            if there is None or there.is_secret != is_secret:
                raise NotFoundError("secret" if is_secret else "variable", name)
            variables.delete(changes.db, site.id, env_id, name)

        await self._jobs.commit(change)

    def value_of(self, variable: Variable) -> str:
        """Open a value.

        Raises:
            SealBrokenError: See `Vault.unseal`.
        """
        return self._vault.unseal(variable.sealed, place=variable.place).decode()

    def for_build(
        self, db: sqlite3.Connection, site_id: str, env_id: str, declared: Sequence[str]
    ) -> BuildValues:
        """Return what a build of an environment gets of the names that it declares.

        Raises:
            SealBrokenError: See `Vault.unseal`.
        """
        found = {each.name: each for each in effective(db, site_id, env_id)}
        given = [found[name] for name in sorted({*declared} & found.keys()) if _builds(found[name])]
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
            undeclared=tuple(n for n, each in found.items() if _builds(each) and n not in names),
            digest=self._digest(values),
        )

    def _digest(self, values: Values) -> str:
        told = [sorted(values.secrets.items()), sorted(values.plain.items())]
        return self._vault.digest(msgspec.json.encode(told))


def effective(db: sqlite3.Connection, site_id: str, env_id: str) -> list[Variable]:
    """What holds for an environment, by name: its own, and its site's where it has none."""
    held = {each.name: each for each in variables.of_place(db, site_id, None)}
    held |= {each.name: each for each in variables.of_place(db, site_id, env_id)}
    return [held[name] for name in sorted(held)]


def _builds(variable: Variable) -> bool:
    return variable.used_in is not VariableUse.RUN


def _check_room(there: Sequence[Variable]) -> None:
    size_bytes = sum(len(each.sealed) for each in there)
    if len(there) > PLACE_COUNT_MAX or size_bytes > PLACE_BYTES_MAX:
        raise RefusedError(
            "variable.too_many",
            f"A site, and each environment, has at most {PLACE_COUNT_MAX} variables and secrets,"
            f" of {PLACE_BYTES_MAX // 1024} KiB together.",
        )
