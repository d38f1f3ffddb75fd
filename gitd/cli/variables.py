"""mf variables, mf secrets: what builds and programs are given, by site and environment."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from gitd.cli.answers import Fields, as_fields, text_at
from gitd.cli.client import NO_QUERY, Query, endpoint
from gitd.cli.options import ListGroup, json_option, list_options, site_option
from gitd.cli.screen import may_ask
from gitd.cli.session import Session
from gitd.cli.tables import Column, Kind, print_page
from gitd.cli.value_files import read_values
from gitd.terminal import printable

VALUE_BYTES_MAX = 32 * 1024
SECRET_COLUMNS = (
    Column("NAME", "name"),
    Column("FOR", "used_in"),
    Column("SET FOR", "scope", rank=1),
    Column("UPDATED", "updated_at", Kind.TIME, rank=2),
)
COLUMNS = (SECRET_COLUMNS[0], Column("VALUE", "value"), *SECRET_COLUMNS[1:])


@dataclass(frozen=True, slots=True)
class _Holder:
    """A site, or an environment of it when one is named."""

    site: str
    env: str | None

    def endpoint(self, *names: str) -> str:
        where = ("environments", self.env) if self.env is not None else ()
        return endpoint("sites", self.site, *where, *names)

    def __str__(self) -> str:
        return f"{self.env} of {self.site}" if self.env is not None else self.site


def _holder_options(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def run(*args: object, site: str, env: str | None, **kwargs: object) -> None:
        command(*args, holder=_Holder(site, env), **kwargs)

    env_option = click.option(
        "--env", metavar="ENV", help="For this environment alone; else for all of the site."
    )
    return site_option(env_option(run))


_exact_option = click.option(
    "--exact", is_flag=True, help="Keep the line end that closes standard input."
)


_empty_option = click.option(
    "--allow-empty", is_flag=True, help="Take an empty standard input for an empty value."
)
_file_option = click.option(
    "--from-file",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Set what this file has, lines of NAME=value, in one change; `-` is standard input.",
)


_for_option = click.option(
    "--for",
    "used_in",
    type=click.Choice(["build", "run", "both"]),
    help="Who is given it: builds that declare it, what runs, or both. [default: as it was; build]",
)
_roll_option = click.option(
    "--roll/--no-roll",
    default=True,
    help="Roll what runs again, so that it is given this; else with its next deployment.",
)


@dataclass(frozen=True, slots=True)
class _Setting:
    """How values are set: `use` as in the request's body."""

    query: Query
    use: Fields


def _setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """`setting`, from --for and --roll."""

    @functools.wraps(command)
    def run(*args: object, used_in: str | None, roll: bool, **kwargs: object) -> None:
        use: Fields = {"used_in": used_in} if used_in is not None else {}
        command(*args, setting=_Setting(_rolling(roll=roll), use), **kwargs)

    return _for_option(_roll_option(run))


_NOTHING = "There is no value on standard input"
_WHICH = "Say what is to be set"
_GIVEN_TO = {
    "build": "builds that declare it get it",
    "run": "what runs gets it",
    "both": "what runs gets it, and builds that declare it",
}


@click.group(cls=ListGroup)
def variables() -> None:
    """Variables: values that may be seen, for builds that declare them and for what runs."""


@click.group(cls=ListGroup)
def secrets() -> None:
    """Secrets: values that are never shown again, for builds and for what runs."""


@variables.command("list")
@_holder_options
@list_options
@click.pass_obj
def list_variables(session: Session, holder: _Holder, limit: int | None) -> None:
    """List variables with their values; for an environment, what holds there."""
    page = session.api.some(holder.endpoint("variables"), limit)
    session.show(page.items, lambda: print_page(page, COLUMNS, what="variables"))


@secrets.command("list")
@_holder_options
@list_options
@click.pass_obj
def list_secrets(session: Session, holder: _Holder, limit: int | None) -> None:
    """List the names of secrets; for an environment, what holds there."""
    page = session.api.some(holder.endpoint("secrets"), limit)
    session.show(page.items, lambda: print_page(page, SECRET_COLUMNS, what="secrets"))


@variables.command("set")
@click.argument("given", nargs=-1, metavar="NAME [VALUE] | NAME=VALUE...")
@_holder_options
@_setting_options
@_exact_option
@_file_option
@json_option
@click.pass_obj
def set_variable(
    session: Session,
    holder: _Holder,
    given: Sequence[str],
    setting: _Setting,
    *,
    exact: bool,
    file: Path | None,
) -> None:
    """Set a variable, to VALUE or to what is on standard input; or some in one change."""
    if file is not None:
        _expect_file_alone(is_more=bool(given) or exact)
        body = {"values": read_values(file), **setting.use}
        _set_several(session, "variables", body, setting.query, holder)
        return
    if not given:
        raise click.UsageError(f"{_WHICH}, as NAME=VALUE, or a --from-file.")
    name, *values = given
    if "=" in name:
        body = {"values": _pairs(given), **setting.use}
        _set_several(session, "variables", body, setting.query, holder)
        return
    if len(values) > 1:
        raise click.UsageError(
            "One variable is set by NAME VALUE, and several by NAME=VALUE NAME=VALUE."
        )
    value = values[0] if values else _read(name, is_secret=False, is_exact=exact)
    if not values and not value:
        raise click.UsageError(f"{_NOTHING}; if it should be empty, give '' as the VALUE.")
    path, body = holder.endpoint("variables", name), {"value": value, **setting.use}
    _set(session, path, body, setting.query, holder)


@secrets.command("set", options_metavar="[OPTIONS]")
@click.argument("name", required=False)
@click.argument("values", nargs=-1, metavar="")
@_holder_options
@_setting_options
@_exact_option
@_empty_option
@_file_option
@json_option
@click.pass_obj
def set_secret(
    session: Session,
    holder: _Holder,
    name: str | None,
    values: Sequence[str],
    setting: _Setting,
    *,
    exact: bool,
    allow_empty: bool,
    file: Path | None,
) -> None:
    """Set a secret, to what is typed or on standard input: arguments are seen by others. Or some in
    one change, from a file.
    """
    if file is not None:
        _expect_file_alone(is_more=name is not None or exact)
        several = read_values(file)
        empty = [each for each, value in several.items() if not value]
        if empty and not allow_empty:
            raise click.UsageError(
                f"{', '.join(empty)}: there is no value; if it should be empty, say --allow-empty."
            )
        body = {"values": several, **setting.use}
        _set_several(session, "secrets", body, setting.query, holder)
        return
    if name is None:
        raise click.UsageError(f"{_WHICH}, by its NAME, or a --from-file.")
    if values or "=" in name:
        raise click.UsageError(
            "A secret's value is no argument, which other users of this machine can see, and the "
            "shell keeps: leave it out to be asked for it, or give it on standard input. Several "
            "are set --from-file."
        )
    value = _read(name, is_secret=True, is_exact=exact)
    if not value and not allow_empty:
        raise click.UsageError(f"{_NOTHING}; if it should be empty, say --allow-empty.")
    path, body = holder.endpoint("secrets", name), {"value": value, **setting.use}
    _set(session, path, body, setting.query, holder)


@variables.command("unset")
@click.argument("name")
@_holder_options
@_roll_option
@json_option
@click.pass_obj
def unset_variable(session: Session, holder: _Holder, name: str, *, roll: bool) -> None:
    """Delete a variable. An environment then has its site's again."""
    path = holder.endpoint("variables", name)
    _unset(session, path, _rolling(roll=roll), f"{name} for {holder}")


@secrets.command("unset")
@click.argument("name")
@_holder_options
@_roll_option
@json_option
@click.pass_obj
def unset_secret(session: Session, holder: _Holder, name: str, *, roll: bool) -> None:
    """Delete a secret. An environment then has its site's again."""
    path = holder.endpoint("secrets", name)
    _unset(session, path, _rolling(roll=roll), f"{name} for {holder}")


def _rolling(*, roll: bool) -> Query:
    return NO_QUERY if roll else {"roll": "false"}


def _pairs(given: Sequence[str]) -> dict[str, str]:
    """Read NAME=VALUE, each name once."""
    several: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise click.UsageError(f"{each} is no NAME=VALUE, as the first one is.")
        if name in several:
            raise click.UsageError(f"{name} is given twice.")
        several[name] = value
    return several


def _read(name: str, *, is_secret: bool, is_exact: bool) -> str:
    """Ask for a value, or read it where nobody can be asked."""
    if may_ask():
        return str(click.prompt(name, hide_input=is_secret, err=True))
    data = sys.stdin.buffer.read(VALUE_BYTES_MAX + 3)
    if not is_exact:
        data = data.removesuffix(b"\n").removesuffix(b"\r")
    if len(data) > VALUE_BYTES_MAX:
        raise click.UsageError(f"A value has at most {VALUE_BYTES_MAX:,} bytes.")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise click.UsageError("A value is text in UTF-8: encode other bytes, as base64.") from None


def _set(session: Session, path: str, body: Fields, query: Query, holder: _Holder) -> None:
    made = as_fields(session.api.put(path, body, query), "value")

    def for_people() -> None:
        _say_set([made], holder, is_told="used_in" in body)
        _say_jobs(made)

    session.show(made, for_people)


def _expect_file_alone(*, is_more: bool) -> None:
    if is_more:
        raise click.UsageError("With --from-file all is in the file: no NAME, and no --exact.")


def _set_several(session: Session, kind: str, body: Fields, query: Query, holder: _Holder) -> None:
    made = as_fields(session.api.patch(holder.endpoint(kind), body, query), "values")
    listed = made.get(kind)
    several = [as_fields(each, "value") for each in listed] if isinstance(listed, list) else []

    def for_people() -> None:
        _say_set(several, holder, is_told="used_in" in body)
        _say_jobs(made)

    session.show(made, for_people)


def _say_set(made: Sequence[Fields], holder: _Holder, *, is_told: bool) -> None:
    """Say who is given what was set, and how else what runs would be."""
    for each in made:
        used_in = text_at(each, "used_in")
        given_to = _GIVEN_TO.get(used_in, used_in)
        click.echo(printable(f"{text_at(each, 'name')} for {holder} is set: {given_to}"))
    if not is_told and any(text_at(each, "used_in") == "build" for each in made):
        click.echo("what runs does not: set it with --for run, or --for both")


def _unset(session: Session, path: str, query: Query, what: str) -> None:
    deleted = as_fields(session.api.delete(path, query), "value")

    def for_people() -> None:
        click.echo(printable(f"{what} is no more"))
        _say_jobs(deleted)

    session.show(deleted, for_people)


def _say_jobs(changed: Fields) -> None:
    """Name the jobs by which what runs is given the change."""
    jobs = changed.get("jobs")
    for job_id in jobs if isinstance(jobs, list) else []:
        click.echo(printable(f"rolling it out: mf jobs wait {job_id}"))
