"""Elsewhere: what commands of other platforms are called here."""

from __future__ import annotations

import click

from gitd.command_groups import Group

_SITES = "Sites are made, listed and deleted by `mf sites`."
_PUSH = "`git push managed main` builds and deploys; `mf build --deploy` does it again."
_KEY = "There is no login: the key comes from FORGE_TOKEN, or from git's credential helper."
_BY_HAND = (
    "Nothing is run by hand beside a site: what is to run before a release gets visitors is the "
    "`release:` line of its Procfile."
)
_PROCESS = (
    "Each environment has one process: `mf status` shows how it stands, `mf logs` what it says."
)
_VALUES = "Values are set by `mf variables set`, secret ones by `mf secrets set`."
_FRONT = (
    "Certificates are the front's, before the server; `mf domains` leads a name to an environment."
)
ELSEWHERE = {
    **dict.fromkeys(
        ("apps", "create", "destroy", "init", "link", "list", "ls", "projects"), _SITES
    ),
    **dict.fromkeys(("push", "redeploy", "ship", "up"), _PUSH),
    **dict.fromkeys(("auth", "login", "logout", "whoami"), _KEY),
    **dict.fromkeys(("bash", "console", "enter", "exec", "run", "shell", "ssh"), _BY_HAND),
    **dict.fromkeys(("dyno", "ps", "scale"), _PROCESS),
    **dict.fromkeys(("config", "secret", "set", "unset", "variable", "vars"), _VALUES),
    **dict.fromkeys(("certs", "ssl", "tls"), _FRONT),
    "alias": "`mf domains` leads names to environments; `mf promote` rolls one onto another.",
    "help": "`mf --help` lists the commands, and each of them has --help.",
    "open": "`mf url --browser` opens an environment's address.",
    "previews": "Each branch that is pushed has a preview: `mf env` lists them.",
    "reload": "`mf restart` rolls what runs once more.",
    "tail": "`mf logs --follow` goes on with what is printed.",
}
"""By a word that people type who come from Heroku, Vercel, Dokku or Kamal: what does that here."""


class MfGroup(Group):
    """The commands of `mf`. One that other platforms have is answered with what does that here."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0].partition(":")[0]
        is_asked = not ctx.resilient_parsing  # and not looked at, for a shell that completes it
        if is_asked and self.get_command(ctx, args[0]) is None and word in ELSEWHERE:
            ctx.fail(f"No such command '{args[0]}'. {ELSEWHERE[word]}")
        return super().resolve_command(ctx, args)
