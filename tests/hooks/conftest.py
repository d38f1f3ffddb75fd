"""A pipeline over real records, real repositories and a real store, without processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from gitd.api_keys import mint
from hooks.builds.caches.build_cache import BuildCaches
from hooks.builds.control.leases import BuildLimits
from hooks.builds.control.packing import Packer
from hooks.builds.control.runner import BuildRunner
from hooks.builds.sources.sources import Sources
from hooks.builds.sources.submodules import Submodules
from hooks.configs import Configs
from hooks.default_branch import Heads
from hooks.deploys.control.issuing import ReleaseIssuer
from hooks.deploys.control.rolling import RollLimits
from hooks.deploys.control.runner import RollRunner
from hooks.deploys.wire import Changed, Desired, Snapshot
from hooks.hostnames import PlatformNames
from hooks.housekeeping import Housekeeping, HousekeepingLimits
from hooks.jobs import Jobs
from hooks.pipeline import Pipeline
from hooks.push import PushHooks
from hooks.scrubbing import Scrubbing
from hooks.sites import Sites
from hooks.variables import Variables
from storage.artifacts import ArtifactStore
from storage.collect import Collector
from storage.custody import Custody
from storage.joblog import JobLogs
from storage.model import ActorRef, Environment, Site
from storage.records import api_keys, environments
from storage.records.db import Records
from storage.repair import Repairer
from storage.repos import Repositories
from storage.retention import Retention
from storage.scrub import Scrubber, ScrubLimits
from storage.sealing import Vault
from tests.committing import write_commit
from tests.new_records import open_records

ACTOR = ActorRef("api_key", "key_00000000000000000000000001", "tests")
PUSHER = ActorRef("api_key", "key_1", "tests")  # whose key is there, and bound to nothing


@dataclass
class World:
    """Control's parts over one folder. `reopen` gives what a restart would build."""

    root: Path
    records: Records
    jobs: Jobs
    repositories: Repositories
    store: ArtifactStore
    custody: Custody
    sites: Sites
    pipeline: Pipeline
    heads: Heads
    push_hooks: PushHooks
    builds: BuildRunner
    rolls: RollRunner
    variables: Variables
    housekeeping: Housekeeping
    readable: set[str]
    """The sites that whoever starts a build may fetch from."""

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        site_bytes_max: int = 0,
        packs_plain: bool = False,
        output_bytes_max: int = 2 << 30,
        scrubs: bool = False,
    ) -> World:
        """`packs_plain`: as the server does; without it each build is for a slot. `scrubs`: as the
        server does, what cannot be rolled for damage is looked at.
        """
        records = open_records(root / "gitd.db")
        if api_keys.get(records.reader(), PUSHER.id) is None:
            _, key = mint(PUSHER.label, ("deployments:write",))
            records.write(lambda db: api_keys.add(db, replace(key, id=PUSHER.id)))
        jobs = Jobs(records, JobLogs(root / "joblogs"))
        repositories = Repositories(root / "repos")
        (root / "repos").mkdir(exist_ok=True)
        store = ArtifactStore.open(root / "store", records, group=None)
        (root / "keys").mkdir(exist_ok=True)
        custody = Custody(root / "keys")
        custody.open(store.layout.trust)
        variables = Variables(jobs, Vault.open(root / "keys", may_create=True))
        configs = Configs(variables)
        (root / "tmp").mkdir(exist_ok=True)
        limits = BuildLimits(lease_s=0.8, output_bytes_max=output_bytes_max)
        readable: set[str] = set()
        submodules = Submodules(
            records,
            repositories,
            lambda _, site_id: site_id in readable,
            server_url="https://forge.example",
        )
        sources = Sources(repositories, submodules, jobs, timeout_s=limits.timeout_s)
        packer = Packer(
            jobs,
            sources,
            store,
            custody.seal,
            scratch=root / "tmp",
            size_bytes_max=limits.output_bytes_max,
            site_bytes_max=site_bytes_max,
            variables=variables,
        )
        housekeeping = Housekeeping(
            Collector(store, records, Retention()),
            store.room,
            records,
            limits=HousekeepingLimits(collect_below_bytes=0, site_bytes_max=site_bytes_max),
        )
        builds = BuildRunner(
            jobs,
            sources,
            packer,
            limits=limits,
            housekeeping=housekeeping,
            variables=variables,
            caches=BuildCaches(jobs, store, size_bytes_max=1 << 20),
            packs_plain=packs_plain,
        )
        scrub_limits = ScrubLimits(1, 1 << 30)
        repairer = Repairer(store, records)
        scrubber = Scrubber(repairer, records, [], store.layout.trust, limits=scrub_limits)
        rolls = RollRunner(
            jobs,
            ReleaseIssuer(jobs, custody, store.layout, configs),
            configs,
            limits=RollLimits(roll_timeout_s=5, host_timeout_s=2),
            names=PlatformNames(),
            scrubbing=Scrubbing(scrubber, records) if scrubs else None,
        )
        return cls(
            root,
            records,
            jobs,
            repositories,
            store,
            custody,
            Sites(jobs, repositories),
            Pipeline(jobs, repositories),
            Heads(records, repositories),
            PushHooks(jobs, repositories),
            builds,
            rolls,
            variables,
            housekeeping,
            readable,
        )

    def reopen(self) -> World:
        """What a kill and a restart give: nothing is told to the old parts."""
        self.records.close()
        return World.open(self.root)

    async def site(self, name: str = "acme-store") -> Site:
        return (await self.sites.create(name)).value

    def environment(self, site: Site, slug: str = "production") -> Environment:
        found = environments.find(self.records.reader(), site.id, slug)
        assert found is not None, slug
        return found

    async def told(self, env_id: str, deployment_id: str | None = None) -> Desired:
        """What a host that connects now is told of an environment; of this deployment, if given."""
        async with contextlib.aclosing(self.rolls.desired()) as messages, asyncio.timeout(20):
            async for message in messages:
                told = message.environments if isinstance(message, Snapshot) else ()
                for desired in (message.environment,) if isinstance(message, Changed) else told:
                    if desired.env_id == env_id and deployment_id in (None, desired.deployment_id):
                        return desired
        raise AssertionError(f"{env_id} was not told")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    opened = World.open(tmp_path)
    yield opened
    opened.records.close()


@pytest.fixture
def commit() -> Callable[..., str]:
    """Write a commit straight into a site's repository with the real git; returns its id.

    Equal files make an equal commit, at whatever second each is made.
    """
    return partial(write_commit, at="1700000000 +0000")
