"""The session: what one run of `mf` knows from its options and its environment."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import click

from gitd.cli import checkout
from gitd.cli.client import Api, is_loopback, server_url
from gitd.cli.exits import fields_of, report
from gitd.terminal import printable

DEFAULT_URL = "http://127.0.0.1:8080"  # where an embedded `gitd serve` listens
NO_KEY = (
    "No key: set FORGE_TOKEN to an API key, or let git's credential helper have one. On the "
    "server's machine `gitd key create --label NAME --preset deploy-bot --data DIR` makes one."
)


@dataclass(slots=True)
class Session:
    """`url` and `token` are as given, and looked at when a request needs them.

    Without a URL a token goes to the default address alone: whoever made the checkout that this is
    run in could have named any server. Without both it is the checkout's, with the key that git's
    credential helper has for that server.
    """

    url: str | None
    token: str | None = field(repr=False)
    as_json: bool = False
    _api: Api | None = field(default=None, init=False)
    _remotes: list[checkout.Remote] | None = field(default=None, init=False)
    _site: checkout.Remote | None = field(default=None, init=False)
    _has_said_default: bool = field(default=False, init=False)

    @property
    def api(self) -> Api:
        """The server's API, ready for requests.

        Raises:
            click.UsageError: The address or the token cannot be one, or there is none.
        """
        if self._api is None:
            url = self.server
            token = _checked_token(self.token or self._git_key(url))
            self._say_what_is_used()
            if url.startswith("http:") and not is_loopback(url) and sys.stderr.isatty():
                click.echo(f"Warning: the key travels to {url} unencrypted.", err=True)
            self._api = Api(url, token, self._say_wait)
        return self._api

    @property
    def server(self) -> str:
        """The server's address: as given, or that of the remote `managed`, or this machine's.

        Raises:
            click.UsageError: It is none, or one of the checkout's that is not to have a key.
        """
        if self.url is not None:
            return server_url(self.url)
        remote = checkout.managed(self._candidates())
        if self.token:
            self._say_default(remote)
            return DEFAULT_URL
        if remote is None:
            return DEFAULT_URL
        if remote.server.startswith("http:") and not is_loopback(remote.server):
            raise click.UsageError(
                f"The remote {remote.name} of this checkout leads to {remote.server}, where a key "
                f"would travel unencrypted. If that is meant: set FORGE_URL={remote.server}"
            )
        return remote.server

    def site_of_checkout(self) -> str | None:
        """The site that this checkout is pushed to, on the server that is used."""
        self._site = checkout.site_on(self.server, self._candidates())
        return None if self._site is None else self._site.site

    def _candidates(self) -> list[checkout.Remote]:
        if self._remotes is None:
            self._remotes = checkout.remotes()
        return self._remotes

    def _git_key(self, server: str) -> str | None:
        remote = self._site or checkout.site_on(server, self._candidates())
        return checkout.git_key(server, None if remote is None else remote.site)

    def _say_what_is_used(self) -> None:
        """Nobody is to wonder where a command went. Programs read nothing but refusals there."""
        is_asked = self.url is None and not self.token
        remote = self._site or (checkout.managed(self._candidates()) if is_asked else None)
        if remote is None or self.as_json:
            return
        what = f"site {remote.site} on {remote.server}" if self._site else remote.server
        words = f"mf: {what}, by the remote {remote.name} of this checkout"
        click.echo(printable(words), err=True)

    def _say_wait(self, wait_s: float) -> None:
        if not self.as_json:
            click.echo(f"mf: the server asks to wait for {wait_s:.0f} s", err=True)

    def _say_default(self, remote: checkout.Remote | None) -> None:
        if self._has_said_default or self.as_json or remote is None or remote.server == DEFAULT_URL:
            return
        self._has_said_default = True
        words = (
            f"mf: FORGE_TOKEN goes to {DEFAULT_URL}, not where the remote {remote.name} of this "
            f"checkout leads. For that, set FORGE_URL={remote.server}"
        )
        click.echo(printable(words), err=True)

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
        if self.as_json:
            click.echo(json.dumps(fields_of(error)), err=True)
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
