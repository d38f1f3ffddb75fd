"""The composition root: builds control's parts in order, starts them, and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pwd
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import structlog
from aiohttp import web

from gitd.addresses import TrustedProxies
from gitd.api.app import ApiDeps, build_api
from gitd.auth import Authenticator, may_fetch
from gitd.checking import copies_of
from gitd.children import Children, ChildSpec
from gitd.config import BuildersConfig, Config, is_loopback, machine_environ, parse_address
from gitd.errors import StartError
from gitd.git.limits import GitLimits
from gitd.git.service import GitService
from gitd.layout import DataFolder
from gitd.log import logged
from gitd.site_git import SiteAccess, SiteReceiver
from gitd.stores import note_settings, retention_of, room_of, scrub_limits_of
from gitd.systemd import inherited_sockets, notify
from hooks.builds import allowlist, cgroups
from hooks.builds import service as builder_service
from hooks.builds.build_cache import BuildCaches
from hooks.builds.leases import BuildLimits
from hooks.builds.packing import Packer
from hooks.builds.registries import EgressRules
from hooks.builds.runner import BuildRunner
from hooks.builds.sources import Sources
from hooks.builds.submodules import Submodules
from hooks.builds.wire import Egress, SandboxLimits
from hooks.configs import Configs, has_sealed
from hooks.deploys import service as host_service
from hooks.deploys.issuing import ReleaseIssuer
from hooks.deploys.runner import RollLimits, RollRunner
from hooks.follow import Addresses, PushNarrator
from hooks.housekeeping import Housekeeping, HousekeepingLimits
from hooks.http_server import HttpLimits, Runner
from hooks.jobs import Jobs
from hooks.log_retention import LogLimits, LogRetention
from hooks.pipeline import Pipeline
from hooks.push import PushHooks
from hooks.scrubbing import Scrubbing
from hooks.variables import Variables
from storage import ids
from storage.artifacts import ArtifactStore
from storage.collect import Collector
from storage.custody import Custody
from storage.digest import Digest
from storage.export import exporting
from storage.git.repository import RepositoryCache
from storage.joblog import JobLogs
from storage.model import ActorRef, Environment, PushPolicy
from storage.reader import StoreReader
from storage.records import attestations
from storage.records.db import Records
from storage.records.statements import newest_ids
from storage.repair import Repairer
from storage.repos import Repositories
from storage.scrub import Scrubber
from storage.sealing import Vault

log = structlog.get_logger(__name__)

BACKLOG = 1024
HOST_WAIT_S = 5.0
THREADS = 32


@dataclass(frozen=True, slots=True)
class Uids:
    """Whose processes the slots and the site host are.

    Named users where the settings name them; else numbers of their own when this process is root,
    and its own number when it is not. `group` may read the store; None keeps it to this process.
    """

    host: int
    slots: dict[str, int]
    group: int | None

    @classmethod
    def choose(cls, config: Config) -> Uids:
        own = os.geteuid()
        users = config.builders.users
        names = [f"slot-{number}" for number in range(len(users) or config.builders.slots)]
        first = config.builders.first_uid
        if users:
            slots = {name: _user(user)[0] for name, user in zip(names, users, strict=True)}
        elif own == 0:
            slots = {name: first + number for number, name in enumerate(names)}
        else:
            slots = dict.fromkeys(names, own)
        if config.host.user:
            host, group = _user(config.host.user)
            return cls(host, slots, group)
        return cls(config.host.uid, slots, config.host.uid) if own == 0 else cls(own, slots, None)


def _user(name: str) -> tuple[int, int]:
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise StartError(f"there is no user {name!r} on this machine") from None
    return found.pw_uid, found.pw_gid


class Control:
    """Everything that `gitd serve` is, built and not yet started."""

    def __init__(self, folder: DataFolder, config: Config, credentials: Path | None) -> None:
        self.folder = folder
        self.config = config
        self.uids = Uids.choose(config)
        room = room_of(folder, config)
        room.relieve_if_full()
        self.records = Records.open(folder.database, relieve=room.relieve)
        for newest in newest_ids(self.records.reader()):
            ids.advance_past(newest)
        self.jobs = Jobs(self.records, JobLogs(folder.joblogs, relieve=room.relieve))
        self.repository_cache = RepositoryCache()
        self.repositories = Repositories(folder.repositories, self.repository_cache)
        self.custody = Custody(folder.keys, credentials=credentials)
        self.store = ArtifactStore.open(
            folder.store, self.records, group=self.uids.group, room=room
        )
        keyring = self.custody.open(self.store.layout.trust)
        # What a command beside could not finish: a crash between trust and records.
        self.records.write(lambda db: attestations.revoke(db, keyring.revoked))
        self.root_key_ids = self.custody.root_key_ids()
        vault = Vault.open(
            folder.keys,
            credentials=credentials,
            may_create=not has_sealed(self.records.reader()),
        )
        self.variables = Variables(self.jobs, vault)
        configs = Configs(self.variables)
        submodules = Submodules(
            self.records, self.repositories, self._may_fetch, server_url=self.server_url
        )
        sources = Sources(
            self.repositories, submodules, self.jobs, timeout_s=config.builders.timeout_s
        )
        packer = Packer(
            self.jobs,
            sources,
            self.store,
            self.custody.seal,
            scratch=folder.scratch,
            size_bytes_max=config.builders.output_bytes_max,
            site_bytes_max=config.store.site_bytes_max,
            variables=self.variables,
            push_policy=PushPolicy(config.builders.when_pushed_again),
        )
        self.housekeeping = Housekeeping(
            Collector(self.store, self.records, retention_of(config)),
            room,
            self.records,
            limits=HousekeepingLimits(
                collect_every_s=config.store.collect_every_s,
                collect_below_bytes=config.store.collect_below_bytes,
                size_bytes_max=config.store.size_bytes_max,
                site_bytes_max=config.store.site_bytes_max,
            ),
        )
        self.builds = BuildRunner(
            self.jobs,
            sources,
            packer,
            limits=BuildLimits(
                timeout_s=config.builders.timeout_s,
                lease_s=config.builders.lease_s,
                output_bytes_max=config.builders.output_bytes_max,
                cache_bytes_max=config.builders.cache_site_bytes_max,
                # the settings of the same names
                sandbox=msgspec.convert(config.builders, SandboxLimits, from_attributes=True),
            ),
            housekeeping=self.housekeeping,
            variables=self.variables,
            caches=BuildCaches(
                self.jobs, self.store, size_bytes_max=config.builders.cache_site_bytes_max
            ),
            packs_plain=True,
        )
        self.egress_rules = egress_rules(config.builders, machine_environ())
        scrubber = Scrubber(
            Repairer(self.store, self.records),
            self.records,
            copies_of(folder, self.records),
            self.store.layout.trust,
            limits=scrub_limits_of(config),
        )
        self.scrubbing = Scrubbing(scrubber, self.records)
        self.rolls = RollRunner(
            self.jobs,
            ReleaseIssuer(self.jobs, self.custody, self.store.layout, configs),
            configs,
            limits=RollLimits(config.host.roll_timeout_s, config.host.missing_timeout_s),
            domain=config.sites.domain,
            url_of=self.url_of,
            relieve=room.relieve_if_full,
            scrubbing=self.scrubbing,
        )
        self.builds.watch_plain(self.rolls.foretell)
        kept = config.retention
        self.log_retention = LogRetention(
            self.jobs, LogLimits(kept.log_age_s_max, kept.log_count_max, kept.log_bytes_max)
        )
        self.pipeline = Pipeline(self.jobs, self.repositories)
        self.push_hooks = PushHooks(
            self.jobs, self.repositories, PushPolicy(config.builders.when_pushed_again)
        )
        self.addresses = Addresses(of_environment=self.url_of, server=self.server_url)
        self.narrator = PushNarrator(self.jobs, self.addresses)
        self.authenticator = Authenticator(self.records)
        self.proxies = TrustedProxies(config.server.trusted_proxies)

    @property
    def server_url(self) -> str:
        return self.config.server.public_url.rstrip("/") or f"http://{self.config.server.listen}"

    def _may_fetch(self, actor: ActorRef, site_id: str) -> bool:
        return may_fetch(self.records, actor, site_id, now=self.jobs.clock())

    def url_of(self, environment: Environment) -> str:
        """Where an environment answers."""
        return self.config.sites.url_of(environment.hostname)

    async def recover(self, *, slots_are_gone: bool) -> None:
        """Take up what an earlier run left, however it ended. Its own slots ended with it."""
        self.jobs.recover()
        recovered = await asyncio.to_thread(self.store.recover)
        log.debug("store_recovered", leases=recovered.leases, files=recovered.files)
        if recovered.stuck:  # each collection tries again, and says what to do
            log.warning("files_not_removed", count=len(recovered.stuck), first=recovered.stuck[0])
        await asyncio.to_thread(self.store.room.set_aside)
        await self.push_hooks.recover()
        self.builds.recover(slots_are_gone=slots_are_gone)
        self.rolls.recover()

    def children(self) -> Children:
        """The slots and the site host, as processes of their own."""
        is_root = os.geteuid() == 0
        specs = []
        for name, uid in self.uids.slots.items():
            scratch = self.folder.slot(name)
            self.folder.give(scratch, uid)
            arguments = ["builder", "--socket", str(self.folder.builders_socket)]
            arguments += ["--scratch", str(scratch), "--slot", name, "--die-with-parent"]
            arguments += ["--cpu-weight", str(self.config.builders.cpu_weight)]
            if is_root:
                arguments += ["--uid", str(uid), "--gid", str(uid)]
            specs.append(ChildSpec(_builder_child(name), tuple(arguments), survives=False))
        self.folder.give(self.folder.host, self.uids.host)
        arguments = ["host", "--socket", str(self.folder.hosts_socket)]
        arguments += ["--dir", str(self.folder.host), "--store", str(self.folder.store)]
        arguments += ["--listen", self.config.sites.listen]
        for key_id in sorted(self.root_key_ids):
            arguments += ["--root-key", key_id]
        arguments += ["--memory-bytes-max", str(self.config.host.memory_bytes_max)]
        arguments += ["--process-count-max", str(self.config.host.process_count_max)]
        for proxy in self.config.server.trusted_proxies:
            arguments += ["--trusted-proxy", proxy]
        if is_root:
            arguments += ["--uid", str(self.uids.host), "--gid", str(self.uids.host)]
        specs.append(ChildSpec("host", tuple(arguments), survives=True))
        return Children(specs, run_folder=self.folder.run)

    def web_app(self) -> web.Application:
        """Git and the API, on one port."""
        app = web.Application()
        store = StoreReader(self.folder.store, root_key_ids=self.root_key_ids)
        api = build_api(
            ApiDeps(
                records=self.records,
                jobs=self.jobs,
                pipeline=self.pipeline,
                authenticator=self.authenticator,
                variables=self.variables,
                addresses=self.addresses,
                manifest_bytes=lambda digest: store.manifest(Digest.parse(digest)).data,
                envelope_bytes=store.envelope,
                open_export=lambda digest, provenance, releases: exporting(
                    self.store, store, digest, provenance=provenance, releases=releases
                ),
                proxies=self.proxies,
            )
        )
        git = self.git_service()
        app.add_routes(api.routes)
        app.router.add_get("/", logged(_front_page))
        app.router.add_route("*", "/{path:.+}", logged(git.handler))

        async def end_streams(_: web.Application) -> None:
            git.begin_stop(self.config.server.drain_s)
            self.jobs.close()
            await api.close()

        async def end_git(_: web.Application) -> None:
            await git.close()

        app.on_shutdown.append(end_streams)
        app.on_cleanup.append(end_git)
        return app

    def git_service(self) -> GitService:
        return GitService(
            SiteAccess(
                self.records,
                self.repositories,
                self.authenticator,
                self.proxies,
                housekeeping=self.housekeeping,
            ),
            SiteReceiver(self.records, self.push_hooks, self.narrator),
            GitLimits(**asdict(self.config.git)),
            repositories=self.repository_cache,
            pack_folder=self.folder.run,
            environ=machine_environ(),
        )

    def close(self) -> None:
        self.records.close()


def egress_rules(builders: BuildersConfig, environ: Mapping[str, str]) -> EgressRules:
    """What builds may reach, on this machine and with these settings."""
    limits = Egress(
        allow=tuple(allowlist.parse(text) for text in builders.egress_allow),
        up_bytes_max=builders.egress_up_bytes_max,
        down_bytes_max=builders.egress_down_bytes_max,
        connections_max=builders.egress_connections_max,
        idle_s=builders.egress_idle_s,
    )
    return EgressRules(limits, with_registries=not builders.egress_replace, environ=environ)


async def serve(
    folder: DataFolder, config: Config, *, with_children: bool, credentials: Path | None = None
) -> None:
    """Run control until SIGTERM or SIGINT; then drain and return.

    `credentials`: the folder that the service manager put this process's credentials into.

    Raises:
        StartError: The address is taken, another gitd has the folder, nobody can reach it, or its
            database is lost.
        KeyFileError: A private key cannot be used.
    """
    stopped = _stop_event()
    # The default pool has as many threads as this machine has processors, and a few: slow disks
    # would let pushes wait for each other.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "control"))
    folder.prepare()
    if os.geteuid() == 0 and with_children:
        folder.check_reachable()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_only_one(folder))
        folder.check_whole()
        listener = _listener(config)
        control = Control(folder, config, credentials)
        stack.callback(control.close)
        stack.push_async_callback(control.housekeeping.close)
        stack.push_async_callback(control.scrubbing.close)
        note_settings(folder, config)
        if with_children:  # at once: they take as long to start as all of the rest
            cgroups.vacate()
            stack.callback(cgroups.tidy)
            children = control.children()
            if not children.has_survivor():
                _bound(config.sites.listen, "sites.listen", "--sites").close()
            control.builds.watch_silence(lambda slot: children.kill(_builder_child(slot)))
            await stack.enter_async_context(_kept_running(children.run()))
        await control.recover(slots_are_gone=with_children)
        await stack.enter_async_context(_sockets(control))
        await stack.enter_async_context(_front(control, listener))
        stack.callback(control.rolls.close)
        stack.push_async_callback(control.builds.close, ends_slots=with_children)
        loops = (control.builds.reap(), control.rolls.reap(), control.housekeeping.keep())
        more_loops = (control.log_retention.run(), control.scrubbing.keep())
        await stack.enter_async_context(_kept_running(*loops, *more_loops))
        if with_children:
            await stack.enter_async_context(_kept_running(cgroups.keep_tidy()))
        if with_children:
            await _wait_for_host(control)
        _say_ready(config)
        notify("READY=1")
        await stopped.wait()
        notify("STOPPING=1")
        log.info("stopping")


def _builder_child(slot: str) -> str:
    return f"builder-{slot}"


async def _front_page(_: web.Request) -> web.Response:
    return web.Response(
        text="gitd: push to /SITE.git; the API is below /v1, described by /v1/openapi.json\n"
    )


def _stop_event() -> asyncio.Event:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    return stopped


@contextlib.contextmanager
def _only_one(folder: DataFolder) -> Iterator[None]:
    """Hold the folder: a second gitd on it would write what the first one keeps in memory."""
    fd = os.open(folder.run / "control.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StartError(
            f"Another gitd serves {folder.root}. Stop it first, or choose another --data."
        ) from None
    finally:
        os.close(fd)


def _listener(config: Config) -> socket.socket:
    inherited = inherited_sockets().get("http")
    if inherited is not None:
        return inherited
    host, _ = parse_address(config.server.listen, "server.listen")
    if not is_loopback(host) and not config.server.trusted_proxies:
        log.warning(
            "plain_http_beyond_this_machine",
            listen=config.server.listen,
            advice="put a TLS proxy in front and name it in server.trusted_proxies",
        )
    return _bound(config.server.listen, "server.listen", "--listen")


def _bound(address: str, setting: str, option: str) -> socket.socket:
    host, port = parse_address(address, setting)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise StartError(
            f"cannot listen on {address}: {error.strerror}. "
            f"Stop what has that address, or choose another with {option}."
        ) from error
    return bound


@contextlib.asynccontextmanager
async def _sockets(control: Control) -> AsyncIterator[None]:
    """The builders' and the hosts' sockets: anyone may connect, and the kernel says who it is."""
    slots = control.uids.slots
    builders = builder_service.make_app(control.builds, control.egress_rules, slots=slots)
    hosts = host_service.make_app(control.rolls, uids={control.uids.host})
    async with contextlib.AsyncExitStack() as stack:
        for app, path in (
            (builders, control.folder.builders_socket),
            (hosts, control.folder.hosts_socket),
        ):
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            path.unlink(missing_ok=True)
            await web.UnixSite(runner, str(path)).start()
            path.chmod(0o666)
        yield


@contextlib.asynccontextmanager
async def _front(control: Control, listener: socket.socket) -> AsyncIterator[None]:
    server = control.config.server
    limits = HttpLimits(server.connections_max, server.keepalive_s, server.drain_s)
    runner = Runner(control.web_app(), limits)
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=BACKLOG).start()
        yield
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def _kept_running(*loops: Coroutine[None, None, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(loop) for loop in loops]
    for task in tasks:
        task.add_done_callback(_end_on_failure)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _wait_for_host(control: Control) -> None:
    """Ready means that sites answer. A host that does not come is waited for in vain, not long."""
    try:
        async with asyncio.timeout(HOST_WAIT_S):
            await control.rolls.host_connected.wait()
    except TimeoutError:
        log.warning("host_not_connected", advice="sites do not answer; look for its own errors")


def _end_on_failure(task: asyncio.Task[None]) -> None:
    """A loop that should run for ever has failed: end the process, to be started afresh."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("loop_failed", exc_info=error)
        os.kill(os.getpid(), signal.SIGTERM)


def _say_ready(config: Config) -> None:
    """Say where git, the API and sites answer: as URLs, and where that is else on this machine."""
    sites, url = config.sites, config.sites.url_of("NAME")
    is_direct = sites.public_scheme == "http" and not sites.public_port
    behind = "" if is_direct else f" (from {sites.listen})"
    sys.stdout.write(f"git and API at http://{config.server.listen}\nsites at {url}{behind}\n")
    sys.stdout.flush()
