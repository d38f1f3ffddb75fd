"""The session: what one run of `mf` knows from its options and its environment."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import click

from gitd.cli.client import Api, is_loopback, server_url
from gitd.cli.exits import CliError, report

NO_KEY = (
    "No key: set FORGE_TOKEN to an API key. On the server's machine "
    "`gitd key create --label NAME --preset deploy-bot --data DIR` makes one."
)


@dataclass(slots=True)
class Session:
    """`url` and `token` are as given, and looked at when a request needs them."""

    url: str
    token: str | None = field(repr=False)
    as_json: bool = False
    _api: Api | None = field(default=None, init=False)

    @property
    def api(self) -> Api:
        """The server's API, ready for requests.

        Raises:
            click.UsageError: The address or the token cannot be one, or there is none.
        """
        if self._api is None:
            url, token = server_url(self.url), _checked_token(self.token)
            if url.startswith("http:") and not is_loopback(url) and sys.stderr.isatty():
                click.echo(f"Warning: the key travels to {url} unencrypted.", err=True)
            self._api = Api(url, token)
        return self._api

    def close(self) -> None:
        if self._api is not None:
            self._api.close()

    def show(self, value: object, for_people: Callable[[], None]) -> None:
        """Print a command's outcome: the API's data for programs, or what `for_people` prints."""
        if self.as_json:
            print_json(value)
        else:
            for_people()

    def report(self, error: click.ClickException) -> None:
        """Say why the command ends, in the form that was asked for."""
        if self.as_json and isinstance(error, CliError):
            click.echo(json.dumps(error.fields()), err=True)
        else:
            report(error)


def print_json(value: Mapping[str, object] | Sequence[object] | object) -> None:
    """Print on standard output: indented for eyes, on one line for programs.

    All is ASCII, so that neither the locale nor the terminal can spoil it.
    """
    click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


def _checked_token(token: str | None) -> str:
    secret = (token or "").strip()
    if not secret:
        raise click.UsageError(NO_KEY)
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise click.UsageError("FORGE_TOKEN is no API key: it has spaces or odd characters.")
    return secret
