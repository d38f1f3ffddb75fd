"""mf variables, mf secrets: what builds are given of a site's and its environments' values."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass

import click

from gitd.cli.answers import Fields, as_fields, text_at
from gitd.cli.client import endpoint
from gitd.cli.options import ListGroup, json_option, list_options, site_option
from gitd.cli.screen import may_ask, printable
from gitd.cli.session import Session
from gitd.cli.tables import Column, Kind, print_page

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


@click.group(cls=ListGroup)
def variables() -> None:
    """Variables: values that may be seen, for builds that declare them."""


@click.group(cls=ListGroup)
def secrets() -> None:
    """Secrets: values that are never shown again, for builds that declare them."""


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
@click.argument("name")
@click.argument("value", required=False)
@_holder_options
@_exact_option
@json_option
@click.pass_obj
def set_variable(
    session: Session, holder: _Holder, name: str, value: str | None, *, exact: bool
) -> None:
    """Set a variable, to VALUE or to what is on standard input."""
    if value is None:
        value = _read(name, is_secret=False, is_exact=exact)
    _set(session, holder.endpoint("variables", name), {"value": value}, f"{name} for {holder}")


@secrets.command("set")
@click.argument("name")
@_holder_options
@_exact_option
@json_option
@click.pass_obj
def set_secret(session: Session, holder: _Holder, name: str, *, exact: bool) -> None:
    """Set a secret, to what is typed or on standard input: arguments are seen by others."""
    value = _read(name, is_secret=True, is_exact=exact)
    _set(session, holder.endpoint("secrets", name), {"value": value}, f"{name} for {holder}")


@variables.command("unset")
@click.argument("name")
@_holder_options
@json_option
@click.pass_obj
def unset_variable(session: Session, holder: _Holder, name: str) -> None:
    """Delete a variable. An environment then has its site's again."""
    _unset(session, holder.endpoint("variables", name), f"{name} for {holder}")


@secrets.command("unset")
@click.argument("name")
@_holder_options
@json_option
@click.pass_obj
def unset_secret(session: Session, holder: _Holder, name: str) -> None:
    """Delete a secret. An environment then has its site's again."""
    _unset(session, holder.endpoint("secrets", name), f"{name} for {holder}")


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


def _set(session: Session, path: str, body: Fields, what: str) -> None:
    made = as_fields(session.api.put(path, body), "value")

    def for_people() -> None:
        click.echo(printable(f"{what} is set: {text_at(made, 'used_in')}s that declare it get it"))

    session.show(made, for_people)


def _unset(session: Session, path: str, what: str) -> None:
    deleted = session.api.delete(path)
    session.show(deleted, lambda: click.echo(printable(f"{what} is no more")))
