"""mf: the command line of the deployments API, over HTTP.

Start-up time counts for a command in a script's loop: what takes long to import (httpx, rich) is
imported where it is needed.
"""

from __future__ import annotations

import itertools
import os
import sys

import click

from gitd.cli.artifacts import artifacts
from gitd.cli.audit import audit
from gitd.cli.builds import build, builds
from gitd.cli.deployments import deploy, deployments, promote, restart, rollback
from gitd.cli.domains import domains
from gitd.cli.elsewhere import MfGroup
from gitd.cli.environments import env, url
from gitd.cli.exits import ExitCode
from gitd.cli.jobs import jobs
from gitd.cli.keys import keys
from gitd.cli.logs import logs
from gitd.cli.releases import releases
from gitd.cli.routes import routes
from gitd.cli.session import DEFAULT_URL, Session
from gitd.cli.sites import sites
from gitd.cli.status import status
from gitd.cli.variables import secrets, variables
from gitd.cli.version import version
from gitd.cli.webhooks import webhooks


@click.group(
    cls=MfGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--url",
    "server",
    metavar="URL",
    envvar="FORGE_URL",
    show_envvar=True,
    help="The server. Without it and without FORGE_TOKEN, that of the remote `managed` of the "
    f"checkout that this is run in; or else {DEFAULT_URL}.",
)
@click.version_option(package_name="gitd", message="%(prog)s %(version)s")
@click.pass_obj
def mf(session: Session, server: str | None) -> None:
    """Build, deploy, promote and roll back on a gitd server.

    The key comes from the environment variable FORGE_TOKEN, or from git's credential helper.

    Exit codes: 0 done, 1 the job failed, 2 wrong usage, 3 the server refused, 4 the server cannot
    be reached.
    """
    session.url = server


for command in (
    sites,
    env,
    url,
    domains,
    routes,
    variables,
    secrets,
    build,
    builds,
    artifacts,
    deploy,
    promote,
    rollback,
    restart,
    deployments,
    releases,
    status,
    jobs,
    logs,
    keys,
    audit,
    webhooks,
    version,
):
    mf.add_command(command)


def main() -> None:
    """Run `mf` with this process's arguments and environment."""
    for stream in (sys.stdout, sys.stderr):
        # Names in scripts the locale cannot show must not end a command half way.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    session = Session(None, os.environ.get("FORGE_TOKEN"))
    sys.exit(run(session))


def run(session: Session) -> int:
    arguments = sys.argv[1:]
    try:
        ended = mf.main(arguments, prog_name="mf", obj=session, standalone_mode=False)
        return int(ended or ExitCode.OK)
    except click.ClickException as error:
        # What cannot be parsed ends the command before it knows its own options.
        options = itertools.takewhile(lambda each: each != "--", arguments)
        session.as_json = session.as_json or "--json" in options
        session.report(error)
        return error.exit_code
    except click.Abort:
        click.echo("Interrupted.", err=True)
        return ExitCode.INTERRUPTED
    finally:
        session.close()


if __name__ == "__main__":
    main()
