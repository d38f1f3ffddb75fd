"""`gitd key`: API keys, made, shown and revoked without the API."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gitd.beside import beside, data_option, fail, json_option, note, open_records, print_json
from gitd.command_groups import Group
from gitd.durations import seconds_of
from gitd.families import FAMILIES, Family

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from storage.model import ApiKey
    from storage.records.db import Records


@click.group(cls=Group)
def key() -> None:
    """API keys, without the API."""


@key.command("create")
@data_option
@click.option("--label", required=True, help="What the key is for, for people.")
@click.option("--preset", help="A usual set of scopes: read-only, deploy-bot, ci-terraform.")
@click.option("--scope", "scopes", multiple=True, help="A scope such as deployments:write.")
@click.option(
    "--family",
    type=click.Choice(FAMILIES),
    default="personal",
    show_default=True,
    help="Whose key it is: a person's, or a service's.",
)
@click.option("--site", "site_name", help="Bind the key to this site.")
@click.option("--env", "env_name", help="Bind the key to this environment of the site.")
@click.option("--cidr", "cidrs", multiple=True, help="Only from this network.")
@click.option("--expires-in", default="90d", show_default=True, help="Such as 12h, 90d or 4w.")
@json_option
def key_create(  # noqa: PLR0913 - one parameter per option
    *,
    data: Path,
    label: str,
    preset: str | None,
    scopes: tuple[str, ...],
    family: str,
    site_name: str | None,
    env_name: str | None,
    cidrs: tuple[str, ...],
    expires_in: str,
    as_json: bool,
) -> None:
    """Make an API key and print its secret, once."""
    from gitd.api_keys import mint
    from gitd.scopes import expand_scopes
    from hooks.clock import rfc3339
    from storage.records import api_keys

    if env_name is not None and site_name is None:
        raise click.UsageError("--env names an environment of a site: give --site too.")
    ttl_ms = _duration_ms(expires_in)
    folder = beside(data)
    with _as_usage(), open_records(folder) as records:
        site_id, env_id = _binding(records, site_name, env_name, data)
        secret, made = mint(
            label,
            expand_scopes(scopes, preset=preset),
            site_id=site_id,
            env_id=env_id,
            ttl_ms=ttl_ms,
            cidrs=cidrs,
            family=Family.of(family),
        )

        def add(db: sqlite3.Connection) -> None:
            api_keys.add(db, made)
            _note(db, "created", made.id, site_id, env_id)

        records.write(add)
    if as_json:
        print_json({**_facts(made), "secret": secret.reveal()})
    else:
        click.echo(secret.reveal())
        until = rfc3339(made.expires_at)
        click.echo(f"{made.id}, until {until}. The secret is not shown again.", err=True)


@key.command("revoke")
@click.argument("key_id")
@data_option
@click.option("--with-made", is_flag=True, help="The keys that it made too, and that those made.")
@json_option
def key_revoke(key_id: str, data: Path, *, with_made: bool, as_json: bool) -> None:
    """End an API key at once."""
    from hooks.clock import now_ms
    from storage.records import api_keys

    def revoke(db: sqlite3.Connection) -> list[str]:
        key = api_keys.get(db, key_id)
        if key is None:
            return []
        ended = [key, *(api_keys.made_by(db, key_id) if with_made else ())]
        for each in ended:
            api_keys.revoke(db, each.id, now_ms())
            _note(db, "revoked", each.id, each.site_id, each.env_id)
        return [each.id for each in ended]

    with open_records(beside(data)) as records:
        revoked = records.write(revoke)
        if not revoked:
            fail(f"there is no key {key_id}; their ids begin with key_")
    if as_json:
        print_json({"id": key_id, "revoked": True, "with": revoked[1:]})
    else:
        for each in revoked:
            click.echo(f"{each} is revoked.")


@key.command("list")
@data_option
@json_option
def key_list(data: Path, *, as_json: bool) -> None:
    """Show the keys, what they may do and when they were used; never a secret."""
    from storage.records import api_keys

    with open_records(beside(data)) as records:
        reader = records.reader()
        keys = api_keys.every(reader)
        if as_json:
            print_json([_facts(item) for item in keys])
            return
        for item in keys:
            for line in _in_words(reader, item):
                click.echo(line)


def _note(
    db: sqlite3.Connection, what: str, key_id: str, site_id: str | None, env_id: str | None
) -> None:
    from storage.model import Action

    note(db, Action(f"api_key.{what}"), key_id, site_id=site_id, env_id=env_id)


@contextlib.contextmanager
def _as_usage() -> Iterator[None]:
    """A key that cannot be made like that was asked for in the wrong way."""
    from gitd.errors import KeyInvalidError

    try:
        yield
    except KeyInvalidError as error:
        raise click.UsageError(str(error)) from error


def _facts(item: ApiKey) -> dict[str, object]:
    from hooks.clock import now_ms, rfc3339

    times = {"revoked_at": item.revoked_at, "last_used_at": item.last_used_at}
    return {
        "id": item.id,
        "label": item.label,
        "hint": item.hint,
        "family": Family(item.family).word,
        "scopes": item.scopes,
        "site_id": item.site_id,
        "env_id": item.env_id,
        "cidrs": item.cidrs,
        "created_by": item.created_by,
        "created_at": rfc3339(item.created_at),
        "expires_at": rfc3339(item.expires_at),
        **{name: None if at is None else rfc3339(at) for name, at in times.items()},
        "is_active": item.revoked_at is None and item.expires_at > now_ms(),
    }


def _in_words(db: sqlite3.Connection, item: ApiKey) -> list[str]:
    facts = _facts(item)
    used = f"last used {facts['last_used_at']}" if item.last_used_at else "never used"
    state = f"until {facts['expires_at']}" if facts["is_active"] else "ended"
    limits = [f"scopes {', '.join(item.scopes)}"]
    if item.site_id is not None:
        limits.append(f"only {_bound_to(db, item)}")
    if item.cidrs:
        limits.append(f"only from {', '.join(item.cidrs)}")
    if item.created_by is not None:
        limits.append(f"made by {item.created_by}")
    return [f"{item.id}  {item.hint}  {state}  {used}  {item.label}", f"    {'; '.join(limits)}"]


def _bound_to(db: sqlite3.Connection, item: ApiKey) -> str:
    from storage.records import environments, sites

    site = sites.find(db, item.site_id or "")
    words = f"site {site.name if site is not None else item.site_id}"
    if item.env_id is None:
        return words
    environment = environments.get(db, item.env_id)
    return f"{words}, environment {environment.slug if environment is not None else item.env_id}"


def _binding(
    records: Records, site_name: str | None, env_name: str | None, data: Path
) -> tuple[str | None, str | None]:
    from storage.records import environments, sites

    if site_name is None:
        return None, None
    found = sites.find(records.reader(), site_name)
    if found is None:
        make = shlex.join(["gitd", "site", "create", site_name, "--data", str(data)])
        fail(f"there is no site {site_name}; make it with: {make}")
    if env_name is None:
        return found.id, None
    environment = environments.find(records.reader(), found.id, env_name)
    if environment is None:
        fail(f"{site_name} has no environment {env_name}")
    return found.id, environment.id


def _duration_ms(text: str) -> int:
    try:
        return seconds_of(text) * 1000
    except ValueError as error:
        raise click.UsageError(f"--expires-in: {error}") from error
