"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import click

from gitd.cli.client import endpoint
from gitd.cli.session import Session
from gitd.cli.stream import PATIENCE_S
from gitd.command_groups import Group

F = TypeVar("F", bound=Callable[..., object])
R = TypeVar("R")
IDEMPOTENCY_KEY_CHARS_MAX = 255
LIST_ITEMS = 20
PUSH_POLICIES = ("override", "wait", "all")
INHERITED = "default"


def site_or_checkouts(session: Session | None, given: str | None) -> str | None:
    """What was given; or else the site of the checkout that this is run in."""
    return session.site_of_checkout() if given is None and session is not None else given


def _given_site(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    site = site_or_checkouts(context.find_object(Session), value)
    if site is None:
        raise click.MissingParameter(ctx=context, param=parameter)
    return site


site_option = click.option(
    "--site",
    metavar="SITE",
    envvar="FORGE_SITE",
    show_envvar=True,
    callback=_given_site,
    help="The site's name or id. Without it, the one that the checkout is pushed to.",
)


class _EnvironmentName(click.types.StringParamType):
    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None) -> str:  # noqa: ARG002 - click's signature
        return "Say which, as `--env production`; `mf env --site SITE` lists them."


env_option = click.option(
    "--env",
    required=True,
    metavar="ENV",
    type=_EnvironmentName(),
    help="The environment's slug or id, as `production`.",
)


def _set_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    if value:
        context.find_object(Session).as_json = True  # type: ignore[union-attr]


json_option = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_set_json,
    help="Print the API's data as JSON, and nothing else.",
)


def _all_or_limit(context: click.Context, _parameter: click.Parameter, value: int) -> int | None:
    return None if context.params.pop("all_items", False) else value


def list_options(command: F) -> F:
    """`limit`: how many items, None for all of them."""
    for option in (
        click.option(
            "--limit",
            default=LIST_ITEMS,
            show_default=True,
            type=click.IntRange(min=1),
            callback=_all_or_limit,
            help="Show at most so many.",
        ),
        click.option("--all", "all_items", is_flag=True, is_eager=True, help="Show all there are."),
        json_option,
    ):
        command = option(command)
    return command


def _key(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str:
    if value is None:
        return str(uuid.uuid4())
    if not 0 < len(value) <= IDEMPOTENCY_KEY_CHARS_MAX or not value.isascii():
        raise click.BadParameter(f"1 to {IDEMPOTENCY_KEY_CHARS_MAX} ASCII characters.")
    if not value.isprintable() or value != value.strip():
        raise click.BadParameter("No control characters, and no spaces at its ends.")
    return value


idempotency_option = click.option(
    "--idempotency-key",
    metavar="KEY",
    callback=_key,
    help="The same key with the same request never does the work twice (kept for 24 hours). "
    "By default each run has its own.",
)


def _policy(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> dict[str, str | None]:
    if value is None:
        return {}
    return {"when_pushed_again": None if value == INHERITED else value}


policy_option = click.option(
    "--when-pushed-again",
    "policy",
    type=click.Choice([*PUSH_POLICIES, INHERITED]),
    callback=_policy,
    help="What a newer push does to the builds of older ones: `override` ends them, `wait` lets "
    "the running one finish, `all` builds every one; `default` is the wider setting.",
)
"""`policy`: what it changes, in the body of a request that changes a site or an environment."""


def expect_changes(changes: Mapping[str, object]) -> None:
    """Raises click.UsageError when a command that changes settings was given none."""
    if not changes:
        raise click.UsageError("Nothing to change: give one of the options that --help lists.")


@dataclass(frozen=True, slots=True)
class Following:
    """How a job is followed: `patience_s` is how long the server may be away."""

    is_quiet: bool
    patience_s: float


def following_options(command: Callable[..., R]) -> Callable[..., R]:
    """`following`, of what follows a job."""

    @functools.wraps(command)
    def run(*args: object, quiet: bool, patience: float, **kwargs: object) -> R:
        return command(*args, following=Following(quiet, patience), **kwargs)

    for option in (
        click.option(
            "--patience",
            default=PATIENCE_S,
            show_default=True,
            metavar="SECONDS",
            type=click.FloatRange(min=0),
            help="How long to go on trying while the server is away.",
        ),
        click.option("-q", "--quiet", is_flag=True, help="Show no log and no progress."),
    ):
        run = option(run)
    return run


def starting_options(command: Callable[..., R]) -> Callable[..., R]:
    """What a command that starts a job has: `wait`, `following`, `idempotency_key`."""
    for option in (
        json_option,
        idempotency_option,
        following_options,
        click.option("-w", "--wait", is_flag=True, help="Follow the job and end as it ends."),
    ):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Place:
    """An environment of a site, each named as the user named it."""

    site: str
    env: str

    def endpoint(self, *names: str) -> str:
        """A path below the environment."""
        return endpoint("sites", self.site, "environments", self.env, *names)


def place_options(command: Callable[..., R]) -> Callable[..., R]:
    """`place`, from --site and --env."""

    @functools.wraps(command)
    def run(*args: object, site: str, env: str, **kwargs: object) -> R:
        return command(*args, place=Place(site, env), **kwargs)

    return site_option(env_option(run))


class ListGroup(Group):
    """A group of commands about one kind of thing; without one of them it lists."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        asks_for_help = bool(args) and args[0] in self.get_help_option_names(ctx)
        if not args or (args[0].startswith("-") and not asks_for_help):
            args = ["list", *args]
        return super().parse_args(ctx, args)
