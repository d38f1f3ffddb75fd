"""The `gitd` command: the server, its helpers, and the commands beside it.

Commands import what they need when they run: the small ones start fast, and the helper processes
load no more than they use.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gitd import starting  # before the rest: it makes loading that cheap
from gitd.backups import backup, restore
from gitd.beside import (
    become_owner,
    beside,
    data_option,
    folder_of,
    json_option,
    open_records,
    print_json,
)
from gitd.check_command import check
from gitd.command_groups import Group
from gitd.errors import GitdError
from gitd.key_command import key
from gitd.signing_keys import signing_key

if TYPE_CHECKING:
    from gitd.config import Config


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gitd")
def cli() -> None:
    """A git-push receiving server: push, build, sign, roll, promote, roll back."""


@cli.command()
@data_option
@click.option("--listen", metavar="HOST:PORT", help="Where git and the API answer.")
@click.option("--sites", metavar="HOST:PORT", help="Where environments answer.")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="A TOML file.")
@click.option("--children/--no-children", default=True, help="Start builders and site host too.")
def serve(
    data: Path, listen: str | None, sites: str | None, config: Path | None, *, children: bool
) -> None:
    """Run the server. Makes the data folder at its first start."""
    starting.load_aiohttp()
    from gitd import app, log
    from gitd.config import credentials_folder
    from gitd.open_folders import require_outside

    require_outside(data, "the data folder")
    if config is not None:
        require_outside(config, "the settings")
    credentials = credentials_folder(os.environ)
    if credentials is not None:
        require_outside(credentials, "the credentials' folder")
    settings = _settings(data, config, listen=listen, sites=sites)
    as_json = {"auto": None, "json": True, "console": False}[settings.log.format]
    log.configure(level=settings.log.level, as_json=as_json)
    asyncio.run(
        app.serve(
            folder_of(data),
            settings,
            with_children=children,
            credentials=credentials,
        )
    )


@cli.command()
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), required=True)
@click.option("--scratch", type=click.Path(path_type=Path), required=True)
@click.option("--slot", default="slot-0", show_default=True)
@click.option("--uid", type=click.IntRange(1), help="Become this user, when started as root.")
@click.option("--gid", type=click.IntRange(1))
@click.option("--die-with-parent", is_flag=True, help="End with the process that started this.")
@click.option("--cpu-weight", type=click.IntRange(1, 10_000), help="Of builds, against 100.")
def builder(
    socket_path: Path,
    scratch: Path,
    slot: str,
    uid: int | None,
    gid: int | None,
    *,
    die_with_parent: bool,
    cpu_weight: int | None,
) -> None:
    """Run one builder slot: lease builds from control and run them in a sandbox."""
    starting.load_aiohttp()
    from gitd import log
    from gitd.open_folders import require_outside
    from gitd.systemd import notify, watchdog_every_s
    from hooks.builds.slot.builder import BuilderConfig, main

    require_outside(scratch, "the scratch folder")
    log.configure()
    every_s = watchdog_every_s()
    watchdog = (every_s, lambda: notify("WATCHDOG=1")) if every_s is not None else None
    main(
        BuilderConfig(
            socket_path,
            scratch,
            slot,
            uid=uid,
            gid=gid,
            die_with_parent=die_with_parent,
            cpu_weight=cpu_weight,
            watchdog=watchdog,
            ready=lambda: notify("READY=1"),
        )
    )


@cli.command()
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), required=True)
@click.option("--dir", "directory", type=click.Path(path_type=Path), required=True)
@click.option("--store", type=click.Path(path_type=Path, readable=False), required=True)
@click.option("--listen", metavar="HOST:PORT", help="Instead of the file's.")
@click.option("--listen-fd", type=int, help="A listening socket that this process inherited.")
@click.option("--guards", metavar="HOST:PORT", help="Keep sites from control's address.")
@click.option("--root-key", multiple=True, help="Trust begins with this key id alone.")
@click.option(
    "--trusted-proxy",
    multiple=True,
    help="A network that may set X-Forwarded-*, instead of the file's.",
)
@click.option("--uid", type=click.IntRange(1), help="Become this user, when started as root.")
@click.option("--gid", type=click.IntRange(1))
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="A TOML file.")
@click.option("--memory-bytes-max", type=click.IntRange(1), help="Instead of the file's.")
@click.option("--process-count-max", type=click.IntRange(1), help="Instead of the file's.")
def host(  # noqa: PLR0913 - one parameter per option
    *,
    socket_path: Path,
    directory: Path,
    store: Path,
    listen: str | None,
    listen_fd: int | None,
    guards: str | None,
    root_key: tuple[str, ...],
    trusted_proxy: tuple[str, ...],
    uid: int | None,
    gid: int | None,
    config: Path | None,
    memory_bytes_max: int | None,
    process_count_max: int | None,
) -> None:
    """Run the site host: verify releases, serve them, and keep them as control desires."""
    starting.load_aiohttp()
    from gitd import log
    from gitd.config import credentials_folder, load, parse_address
    from gitd.open_folders import require_outside
    from gitd.systemd import inherited_sockets, notify
    from hooks.deploys.host.host import HostConfig, main
    from hooks.deploys.processes.web_process import WEB_LIMITS

    log.configure()
    require_outside(directory, "the site host's folder")
    settings = load(config, _environ())
    inherited = inherited_sockets().get("sites")
    main(
        HostConfig(
            socket_path,
            directory,
            store,
            listen=parse_address(listen or settings.sites.listen, "--listen"),
            listen_fd=inherited.detach() if inherited is not None else listen_fd,
            guards=parse_address(guards, "--guards") if guards is not None else None,
            uid=uid,
            gid=gid,
            trusted_proxies=trusted_proxy or settings.server.trusted_proxies,
            root_key_ids=frozenset(root_key) or None,
            credentials=credentials_folder(os.environ),
            web_limits=replace(
                WEB_LIMITS,
                memory_bytes=memory_bytes_max or settings.host.memory_bytes_max,
                process_count=process_count_max or settings.host.process_count_max,
            ),
            ready=lambda: notify("READY=1"),
        )
    )


@cli.command()
@data_option
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="A TOML file.")
@json_option
def egress(data: Path, config: Path | None, *, as_json: bool) -> None:
    """Show which hosts builds may reach, and who says so."""
    import msgspec

    from gitd import log
    from gitd.config import machine_environ
    from gitd.control import egress_rules

    log.configure(level="warning")
    settings = _settings(data, config, listen=None, sites=None)
    folder = folder_of(data)
    folder.require_server()
    become_owner(folder)
    home = pwd.getpwuid(os.geteuid()).pw_dir
    found = egress_rules(settings.builders, {**machine_environ(), "HOME": home}).read()
    if as_json:
        print_json(msgspec.structs.asdict(found))
        return
    sources: dict[str, list[str]] = {}
    for entry in found.allow:
        host = f"[{entry.host}]" if ":" in entry.host else entry.host
        sources.setdefault(f"{host}:{entry.port}", []).append(entry.source)
    for target, names in sources.items():
        click.echo(f"{target}  ({', '.join(names)})")
    if not found.allow:
        click.echo("Builds have no network.")
    click.echo(f"certificates: {found.ca_bundle or 'none found'}")
    for name in found.home_files:
        click.echo(f"settings for builds: ~/{name}")


# -- beside a running server ----------------------------------------------------------------------


@cli.group(cls=Group)
def site() -> None:
    """Sites, without the API."""


@site.command("create")
@click.argument("name")
@data_option
@click.option(
    "--default-branch",
    metavar="BRANCH",
    help="The branch that goes live. Without it `main`, or `master` where that is pushed first.",
)
@json_option
def site_create(name: str, data: Path, default_branch: str | None, *, as_json: bool) -> None:
    """Make a site: a repository to push to, its production and its staging."""
    from gitd.config import Config
    from gitd.stores import noted_settings
    from hooks.jobs import Jobs
    from hooks.sites import Sites
    from storage.joblog import JobLogs
    from storage.repos import Repositories

    folder = beside(data)
    settings = noted_settings(folder) or Config()
    with open_records(folder) as records:
        jobs = Jobs(records, JobLogs(folder.joblogs))
        repositories = Repositories(folder.repositories)
        sites = Sites(jobs, repositories, platform=settings.platform_names)
        made = asyncio.run(sites.create(name, default_branch)).value
    if as_json:
        print_json({"id": made.id, "name": made.name, "default_branch": made.default_branch})
    else:
        click.echo(f"{made.name} is there ({made.id}). Push to it:")
        click.echo(f"  git remote add managed {settings.server.url}/{made.name}.git")
        click.echo(f"  git push managed {made.default_branch}")


@site.command("list")
@data_option
@json_option
def site_list(data: Path, *, as_json: bool) -> None:
    """Show the sites, by name."""
    from storage.records import sites

    with open_records(beside(data)) as records:
        found = sorted(sites.every(records.reader()), key=lambda each: each.name)
    if as_json:
        print_json(
            [{"id": s.id, "name": s.name, "default_branch": s.default_branch} for s in found]
        )
        return
    for each in found:
        click.echo(f"{each.name}  {each.id}  {each.default_branch}")


@cli.command()
@data_option
@click.option("--dry-run", is_flag=True, help="Only say what would go, and why.")
@click.option("--force", is_flag=True, help="Go on where so much would go that it looks wrong.")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A TOML file; without it, the settings that the server runs with.",
)
@json_option
def gc(data: Path, config: Path | None, *, dry_run: bool, force: bool, as_json: bool) -> None:
    """Take from the store what nothing keeps any more."""
    from gitd.collecting import collect, in_words
    from gitd.stores import noted_settings

    folder = beside(data)
    settings = noted_settings(folder) if config is None else None
    settings = settings or _settings(data, config, listen=None, sites=None)
    report = collect(folder, settings, is_dry_run=dry_run, is_forced=force)
    if as_json:
        print_json(report)
    else:
        for line in in_words(report):
            click.echo(line)


cli.add_command(key)
cli.add_command(check)
cli.add_command(signing_key)
cli.add_command(backup)
cli.add_command(restore)


# -- shared pieces --------------------------------------------------------------------------------


def _settings(data: Path, path: Path | None, *, listen: str | None, sites: str | None) -> Config:
    from gitd.config import load, replace_addresses

    folder_of(data).require_access()
    default = data / "gitd.toml"
    chosen = path or (default if default.exists() else None)
    return replace_addresses(load(chosen, _environ()), listen=listen, sites=sites)


def _environ() -> dict[str, str]:
    """What may hold settings."""
    return {name: value for name, value in os.environ.items() if name != "GITD_DATA"}


def main() -> None:
    """Run the command; what is refused on purpose is one line on standard error and exit 1."""
    from hooks.errors import PipelineError
    from storage.errors import StorageError

    try:
        cli(prog_name="gitd")
    except (GitdError, PipelineError, StorageError) as error:
        click.echo(f"gitd: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
