"""Variables and secrets, of a site and of its environments. Source: contract §5."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import msgspec

from gitd.api import answers
from gitd.api.endpoint import Call, ListReply, Reply
from gitd.api.paging import PageQuery, list_name, read_cursor, write_cursor
from gitd.api.reading import NoBody
from hooks.variables import Variables as AllVariables
from hooks.variables import effective
from storage.model import Job, Variable, VariableUse
from storage.records import variables

Text = Annotated[str, msgspec.Meta(description="Unicode text without NUL, of at most 32 KiB.")]


class RollQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    roll: Annotated[
        bool,
        msgspec.Meta(description="Whether what runs is rolled again, to be given what changed."),
    ] = True


class VariableBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    value: Text
    used_in: Annotated[
        VariableUse | None,
        msgspec.Meta(description="`build`, `run` or `both`; as it was by default, or else builds."),
    ] = None

    def __repr__(self) -> str:
        return "VariableBody(***)"


class VariablesBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`values` by name: all of them are set, or none. `used_in` goes for each, as for one."""

    values: Annotated[dict[str, Text], msgspec.Meta(min_length=1)]
    used_in: VariableUse | None = None

    def __repr__(self) -> str:
        return "VariablesBody(***)"


Setter = Callable[[Call[RollQuery, VariableBody]], Awaitable[Reply]]


class Variables:
    """Each handler is for variables or for secrets, at a site or at an environment of it."""

    def __init__(self, all_variables: AllVariables) -> None:
        self._variables = all_variables

    def lister(
        self, *, is_secret: bool
    ) -> Callable[[Call[PageQuery, NoBody]], Awaitable[ListReply]]:
        """List what is set: for an environment what holds there, its site's defaults too."""

        async def show(call: Call[PageQuery, NoBody]) -> ListReply:
            place = call.found_environment
            if place is None:
                found = variables.of_place(call.db, call.site.id, None)
            else:
                found = effective(call.db, call.site.id, place.id)
            env_id = place.id if place is not None else None
            name = list_name("variables", call.site.id, env_id, str(is_secret))
            (after,) = read_cursor(call.query.cursor, name)
            of_kind = [v for v in found if v.is_secret is is_secret and v.name > (after or "")]
            page = of_kind[: call.query.limit]
            has_more = len(page) < len(of_kind)
            cursor = write_cursor(name, page[-1].name) if has_more else None
            return ListReply([self._shown(each) for each in page], cursor)

        return show

    def setter(self, *, is_secret: bool) -> Setter:
        async def put(call: Call[RollQuery, VariableBody]) -> Reply:
            made, jobs = await self._variables.put(
                call.site,
                call.found_environment,
                call.named(_kind(is_secret=is_secret)),
                call.body.value,
                is_secret=is_secret,
                used_in=call.body.used_in,
                roll_by=call.actor.ref if call.query.roll else None,
            )
            return Reply(self._shown(made, jobs))

        return put

    def several_setter(
        self, *, is_secret: bool
    ) -> Callable[[Call[RollQuery, VariablesBody]], Awaitable[Reply]]:
        """Set some in one change, which asks for one roll wherever it asks for any."""

        async def patch(call: Call[RollQuery, VariablesBody]) -> Reply:
            made, jobs = await self._variables.put_all(
                call.site,
                call.found_environment,
                call.body.values,
                is_secret=is_secret,
                used_in=call.body.used_in,
                roll_by=call.actor.ref if call.query.roll else None,
            )
            ids = _ids(jobs)
            if is_secret:
                secrets = [answers.secret(each, ids) for each in made]
                return Reply(answers.ChangedSecrets(secrets, ids))
            shown = [answers.variable(each, call.body.values[each.name], ids) for each in made]
            return Reply(answers.ChangedVariables(shown, ids))

        return patch

    def deleter(self, *, is_secret: bool) -> Callable[[Call[RollQuery, NoBody]], Awaitable[Reply]]:
        async def delete(call: Call[RollQuery, NoBody]) -> Reply:
            name = call.named(_kind(is_secret=is_secret))
            jobs = await self._variables.delete(
                call.site,
                call.found_environment,
                name,
                is_secret=is_secret,
                roll_by=call.actor.ref if call.query.roll else None,
            )
            return Reply(answers.DeletedValue(name, _ids(jobs)))

        return delete

    def _shown(
        self, variable: Variable, jobs: Sequence[Job] = ()
    ) -> answers.Variable | answers.Secret:
        if variable.is_secret:
            return answers.secret(variable, _ids(jobs))
        return answers.variable(variable, self._variables.value_of(variable), _ids(jobs))


def _ids(jobs: Sequence[Job]) -> list[str]:
    return [job.id for job in jobs]


def _kind(*, is_secret: bool) -> str:
    return "secret" if is_secret else "variable"
