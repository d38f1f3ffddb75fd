"""Control: the parts of `gitd serve`, built in order and passed on to each other."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import structlog
from aiohttp import web

from gitd import build_limits
from gitd.addresses import TrustedProxies
from gitd.api.app import ApiDeps, build_api
from gitd.api.domains import DnsHelp
from gitd.api.webhook_bodies import render
from gitd.auth import Authenticator, may_fetch
from gitd.beside import note, note_keys
from gitd.checking import copies_of
from gitd.children import Children, ChildSpec
from gitd.config import (
    BuildersConfig,
    Config,
    is_loopback,
    machine_environ,
    parse_address,
)
from gitd.git.limits import GitLimits
from gitd.git.service import GitService
from gitd.layout import DataFolder
from gitd.listening import may_guard
from gitd.log import Handler, logged
from gitd.metrics.environments import EnvironmentsPart
from gitd.metrics.exporter import Exporter
from gitd.metrics.queue import QueuePart
from gitd.metrics.server import GitPart, RateLimitsPart, ServerPart, WebhooksPart
from gitd.metrics.store import StorePart
from gitd.metrics.work import WorkMetrics
from gitd.rate_limits import limits_of
from gitd.server_health import ServerHealth
from gitd.site_git import SiteAccess, SiteReceiver
from gitd.stores import retention_of, room_of, scrub_limits_of
from gitd.systemd import is_given_sockets
from gitd.uids import Uids
from hooks.background import Background
from hooks.builds.caches.build_cache import BuildCaches
from hooks.builds.control.leases import BuildLimits
from hooks.builds.control.packing import Packer
from hooks.builds.control.runner import BuildRunner
from hooks.builds.egress import allowlist
from hooks.builds.egress.registries import EgressRules
from hooks.builds.sources.sources import Sources
from hooks.builds.sources.submodules import Submodules
from hooks.builds.wire import Egress
from hooks.configs import Configs, has_sealed
from hooks.default_branch import Heads
from hooks.deploys.control.issuing import ReleaseIssuer
from hooks.deploys.control.program_logs import ProgramLogs
from hooks.deploys.control.rolling import RollLimits
from hooks.deploys.control.runner import RollRunner
from hooks.domains import Domains
from hooks.follow import Addresses, PushNarrator
from hooks.housekeeping import Housekeeping, HousekeepingLimits
from hooks.jobs import Jobs
from hooks.log_retention import LogLimits, LogRetention
from hooks.pipeline import Pipeline
from hooks.previews import PreviewKeeper, PreviewLimits
from hooks.push import PushHooks, PushRules
from hooks.scrubbing import Scrubbing
from hooks.sites import Sites
from hooks.variables import Variables
from hooks.webhooks import Messenger
from storage import ids
from storage.artifacts import ArtifactStore
from storage.collect import Collector
from storage.custody import Custody
from storage.digest import Digest
from storage.export import exporting
from storage.git.repository import RepositoryCache
from storage.joblog import JobLogs
from storage.model import Action, ActorRef, Environment
from storage.reader import StoreReader
from storage.records import attestations
from storage.records.db import Records
from storage.records.statements import newest_ids
from storage.repair import Repairer
from storage.repos import Repositories
from storage.scrub import Scrubber
from storage.sealing import Vault
from storage.trust import Keyring

log = structlog.get_logger(__name__)

WHERE = "push to /SITE.git; the API is below /v1, described by /v1/openapi.json\n"


class Control:
    """Everything that `gitd serve` is, built and not yet started."""

    def __init__(self, folder: DataFolder, config: Config, credentials: Path | None) -> None:
        self.folder = folder
        self._background = Background()
        self.config = config
        self.uids = Uids.choose(config)
        self.rate_limits = limits_of(config.rate_limits)
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
        generation = self.custody.generation(self.store.layout.trust)
        keyring = self.custody.open(self.store.layout.trust)
        self._note_keys(keyring, is_new=0 < generation < keyring.version)
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
            push_policy=config.builders.when_pushed_again,
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
                sandbox=build_limits.of_builds(config.builders),
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
            names=config.platform_names,
            url_of=self.url_of,
            relieve=room.relieve_if_full,
            scrubbing=self.scrubbing,
        )
        self.program_logs = ProgramLogs()
        self.builds.watch_plain(self.rolls.foretell)
        kept = config.retention
        self.log_retention = LogRetention(
            self.jobs,
            LogLimits(
                kept.log_age_s_max,
                kept.log_count_max,
                kept.log_bytes_max,
                audit_age_s_max=kept.audit_age_s_max,
            ),
        )
        previews = PreviewLimits(config.previews.idle_s_max, config.previews.count_max)
        self.previews = PreviewKeeper(self.jobs, self.repositories, previews)
        self.sites = Sites(self.jobs, self.repositories, previews, config.platform_names)
        self.pipeline = Pipeline(self.jobs, self.repositories)
        self.heads = Heads(self.records, self.repositories)
        self.push_hooks = PushHooks(
            self.jobs,
            self.repositories,
            PushRules(config.builders.when_pushed_again, previews),
        )
        self.messenger = Messenger(
            self.jobs, vault, render, may_be_private=may_lead_to_private_addresses(config)
        )
        self.domains = Domains(self.jobs, config.platform_names)
        self.addresses = Addresses(
            of_environment=self.url_of,
            server=self.server_url,
            of_domain=config.sites.url_at,
            platform=config.platform_names,
        )
        self.narrator = PushNarrator(self.jobs, self.addresses, self.rolls.running)
        self.authenticator = Authenticator(self.records)
        self.proxies = TrustedProxies(config.server.trusted_proxies)
        self.metrics = Exporter()
        work = WorkMetrics(self.metrics.registry, self.records)
        self.jobs.watch(work.note_job)
        self.rolls.watch_rolled(work.note_steps)
        self.metrics.add_parts(
            server=ServerPart(self.records, folder),
            queue=QueuePart(
                self.records, self.builds.leases, self.builds.dispatcher, slots=len(self.uids.slots)
            ),
            environments=EnvironmentsPart(self.records, self.rolls),
            store=StorePart(
                self.records, self.store.layout, room, self.housekeeping, scrubber.progress
            ),
            webhooks=WebhooksPart(self.records, self.messenger),
            rate_limits=RateLimitsPart(self.rate_limits),
        )

    @property
    def server_url(self) -> str:
        return self.config.server.url

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
        self._background.spawn(self._tidy())
        await self.push_hooks.recover()
        await self.heads.recover()
        self.builds.recover(slots_are_gone=slots_are_gone)
        self.rolls.recover()
        self.domains.recover()
        self.sites.recover()

    async def _tidy(self) -> None:
        """Remove what crashes left of repositories. Nobody waits for it: it may take a while."""
        left = await asyncio.to_thread(self.repositories.remove_left_behind)
        if left:
            log.warning("folders_not_removed", count=len(left), first=str(left[0]))

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
            specs.append(ChildSpec(builder_child(name), tuple(arguments), survives=False))
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
        if may_guard() and not is_given_sockets():
            arguments += ["--guards", self.config.server.listen]
        specs.append(ChildSpec("host", tuple(arguments), survives=True))
        return Children(specs, run_folder=self.folder.run)

    def _note_keys(self, keyring: Keyring, *, is_new: bool) -> None:
        """Let the records go by the trust that there is. `is_new`: this start made it, since the
        service manager handed another key over.
        """

        def write(db: sqlite3.Connection) -> None:
            # What a command beside could not finish: a crash between trust and records.
            attestations.revoke(db, keyring.revoked)
            if not note_keys(db, keyring) and is_new:
                note(db, Action.SIGNING_KEY_ROTATED, self.custody.signing_key().key_id)

        self.records.write(write)

    def web_app(self) -> web.Application:
        """Git and the API, on one port."""
        app = web.Application()
        store = StoreReader(self.folder.store, root_key_ids=self.root_key_ids)
        kept = self.config.builders
        api = build_api(
            ApiDeps(
                records=self.records,
                jobs=self.jobs,
                sites=self.sites,
                pipeline=self.pipeline,
                domains=self.domains,
                dns=DnsHelp(self.config.platform_names, self.config.sites.public_addresses),
                authenticator=self.authenticator,
                variables=self.variables,
                messenger=self.messenger,
                addresses=self.addresses,
                manifest_bytes=lambda digest: store.manifest(Digest.parse(digest)).data,
                envelope_bytes=store.envelope,
                open_export=lambda digest, provenance, releases: exporting(
                    self.store, store, digest, provenance=provenance, releases=releases
                ),
                proxies=self.proxies,
                running=self.rolls.running,
                program_logs=self.program_logs,
                rate_limits=self.rate_limits,
                has_build_cache=bool(kept.cache_bytes_max and kept.cache_site_bytes_max),
                metrics=self.metrics,
                metrics_networks=self.config.metrics.networks,
            )
        )
        git = self.git_service()
        self.metrics.add_parts(git=GitPart(git.tally))
        noted = self.metrics.requests
        api.mount(app)
        health = ServerHealth(self.housekeeping.lack, lambda: self.rolls.has_host)
        app.router.add_get("/", logged(_front_page, noted.of("/")))
        app.router.add_get("/healthz", health.show)
        app.router.add_route("*", "/{path:.+}", logged(_in_words(git.handler), noted.of_git()))

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
                rate_limits=self.rate_limits,
            ),
            SiteReceiver(self.records, self.push_hooks, self.narrator),
            GitLimits(**asdict(self.config.git)),
            repositories=self.repository_cache,
            pack_folder=self.folder.run,
            environ=machine_environ(),
        )

    def close(self) -> None:
        self.records.close()


def may_lead_to_private_addresses(config: Config) -> bool:
    """Whether webhooks may: by the setting, or while only this machine reaches the server."""
    chosen = config.webhooks.private_addresses
    if chosen != "auto":
        return chosen == "allow"
    host, _ = parse_address(config.server.listen, "server.listen")
    is_fronted = bool(config.server.public_url or config.server.trusted_proxies)
    return is_loopback(host) and not is_fronted and not is_given_sockets()


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


def builder_child(slot: str) -> str:
    return f"builder-{slot}"


def _in_words(handler: Handler) -> Handler:
    """Say where things are, to whoever asks for what nobody has: `//v1/sites`, for instance."""

    async def answer(request: web.Request) -> web.StreamResponse:
        answered = await handler(request)
        if (
            isinstance(answered, web.Response)
            and answered.status == web.HTTPNotFound.status_code
            and not answered.body
        ):
            answered.text = f"There is nothing at {request.path[:200]}: {WHERE}"
        return answered

    return answer


async def _front_page(_: web.Request) -> web.Response:
    return web.Response(text=f"gitd: {WHERE}")
