"""Dependency caches: what a build leaves, and what the next one finds of it."""

from __future__ import annotations

import io
import itertools
import os
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from hooks.builds.caches import dependencies
from hooks.builds.caches.build_cache import BuildCaches, changes
from hooks.builds.profiles.managed_toml import Profile
from hooks.builds.profiles.plan import Plan, Step, StepName
from hooks.builds.sandbox.disk_allowance import DiskAllowance
from hooks.builds.sandbox.limits import Limits
from hooks.builds.sources.tree import StoppedError
from hooks.builds.wire import CacheRequest, RunCommands
from storage.digest import Digest
from storage.errors import ArtifactCorruptError, ArtifactMissingError, TreeTooLargeError
from storage.model import ActorRef
from storage.records import build_caches, builds

ACTOR = ActorRef("api_key", "key_1", "tests")
PLAN = Plan(Profile.NODE, RunCommands(), cache=("node_modules", "web/.next/cache"))
LOCKED = {"package-lock.json": "sha256:1", "node": "20.1.0"}


def build_of(command, **lines):
    text = "\n".join(["[build]", f"command = '{command}'", 'output = "out"', *lines.values()])
    return {"managed.toml": text.encode(), "package-lock.json": b"{}"}


async def test_build_finds_what_an_earlier_one_left_and_leaves_its_own(
    control, slot, packed, unpacked
):
    control.cache = packed({"home/.cache/pip/old": b"of before", "home/.bashrc": b"evil"})
    command = "mkdir -p out && cat ~/.cache/pip/old > out/found && ls -A ~ > out/home && "
    command += "echo new > ~/.cache/pip/new"
    job = await control.build(build_of(command))
    assert job.outcome["status"] == "succeeded", job.text
    output = unpacked(job.output)
    assert output["found"] == b"of before"
    assert b".bashrc" not in output["home"]
    kept = {name for name, content in unpacked(job.cache_kept).items() if content is not None}
    assert kept == {"home/.cache/pip/old", "home/.cache/pip/new"}
    assert job.outcome["cache_inputs"] == {"dependencies": "blake3:" + "0" * 64}
    assert job.cache_asked["profile"] == "static"
    assert job.cache_asked["key"]["package-lock.json"].startswith("sha256:")
    assert job.stage("cache") == ["hit", "kept"]


async def test_build_that_found_its_very_cache_leaves_no_other(control, slot, packed):
    control.cache, control.is_cache_hit = packed({"home/.cache/pip/old": b"of before"}), True
    command = "mkdir out && echo > out/x && echo > ~/.cache/new"
    job = await control.build(build_of(command))
    assert job.outcome["status"] == "succeeded", job.text
    assert job.cache_kept is None
    control.is_cache_borrowed = True  # that stays the others', whatever the site's folders hold
    job = await control.build(build_of(command, cache='cache = ["out"]'))
    assert job.outcome["status"] == "succeeded", job.text
    assert job.cache_kept is None


async def test_clean_build_leaves_nothing(control, slot):
    command = "mkdir -p out ~/.cache && echo > out/x && echo > ~/.cache/new"
    job = await control.build(build_of(command), clean=True)
    assert job.outcome["status"] == "succeeded", job.text
    assert job.cache_kept is None
    assert job.outcome["cache_inputs"] == {}


async def test_folders_of_the_site_come_back_unless_the_commit_has_them(
    control, slot, packed, unpacked
):
    control.cache = packed({"app/kept/a": b"before", "app/mine/a": b"before"})
    files = build_of("mkdir out && cat kept/a mine/a > out/found", cache='cache = ["kept", "mine"]')
    job = await control.build({**files, "mine/a": b" and mine"})
    assert job.outcome["status"] == "succeeded", job.text
    assert unpacked(job.output)["found"] == b"before and mine"


async def test_cache_that_is_no_archive_stops_no_build(control, slot):
    control.cache = b"nonsense" * 1000
    job = await control.build(build_of("mkdir out && echo > out/x"))
    assert job.outcome["status"] == "succeeded", job.text
    assert "it is not used" in job.stage("cache")[0]


TOOLS = {"python3": "3.11.2", "go": "1.22"}


def key(tree, install="pip install -r requirements/production.txt", *, tools=TOOLS, cache=("a",)):
    plan = replace(PLAN, steps=(Step(StepName.INSTALL, install),), cache=cache)
    return dependencies.key_of(tree, plan, tools)


@pytest.mark.parametrize(
    "name",
    [
        *("package-lock.json", "npm-shrinkwrap.json", "pnpm-lock.yaml", "yarn.lock", "uv.lock"),
        *("poetry.lock", "Pipfile.lock", "composer.lock"),
        *("requirements.txt", "requirements-dev.txt", "constraints.txt"),
        *("requirements/production.txt", "requirements/more/base.in"),
    ],
)
def test_other_requirements_are_another_key(tmp_path, name) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("django==4\n")
    before = key(tmp_path)
    assert key(tmp_path) == before
    path.write_text("django==5\n")
    assert changes(before, key(tmp_path)) == f"{name} changed"


def test_many_requirements_and_those_of_long_names_count_in_a_key_that_control_takes(
    tmp_path,
) -> None:
    """Control ended a build of such a site as it ends one that it does not understand."""
    names = [f"requirements/{number:03}.txt" for number in range(50)]
    names += [f"requirements-{'0' * 80}.txt", *(f"requirements-{n:03}.txt" for n in range(40))]
    (tmp_path / "requirements").mkdir()
    for name in (*names, "uv.lock"):
        (tmp_path / name).write_text("django==4\n")
    tools = dict.fromkeys(("node", "npm", "pnpm", "yarn", "uv", "php", "composer"), "1")
    keys = [key(tmp_path, tools=tools)]
    for name in names:
        (tmp_path / name).write_text("django==5\n")
        keys.append(key(tmp_path, tools=tools))
        sent = CacheRequest("python", keys[-1])
        assert msgspec.json.decode(msgspec.json.encode(sent), type=CacheRequest) == sent
    assert all(one != other for one, other in itertools.pairwise(keys))
    assert changes(keys[0], keys[1]) == "other requirements changed"
    assert changes(keys[-2], keys[-1]) == "other requirements changed"


def test_other_command_to_install_is_another_key_and_other_sources_are_none(tmp_path) -> None:
    (tmp_path / "package.json").write_text("{}")
    before = key(tmp_path)
    assert changes(before, key(tmp_path, "pip install flask")) == "install command changed"
    (tmp_path / "app.py").write_text("import flask")
    (tmp_path / "requirements").symlink_to("/etc")
    assert key(tmp_path) == before
    (tmp_path / "requirements.txt").write_text("flask")  # which is read instead
    assert changes(before, key(tmp_path)) == "requirements.txt is new"


def test_other_version_of_a_client_is_another_key_and_of_another_program_is_none(tmp_path) -> None:
    before = key(tmp_path)
    newer = key(tmp_path, tools={**TOOLS, "python3": "3.12.1"})
    assert changes(before, newer) == "python3 3.11.2 -> 3.12.1"
    for client in ("node", "npm", "pnpm", "yarn", "uv", "php", "composer"):
        assert changes(before, key(tmp_path, tools={**TOOLS, client: "1.0"})) == f"{client} is new"
    assert key(tmp_path, tools={**TOOLS, "go": "1.23"}) == before


def test_lock_file_that_is_a_link_counts_as_none(tmp_path) -> None:
    """It would have the slot read what lies elsewhere on its machine."""
    (tmp_path / "package.json").write_text("{}")
    before = key(tmp_path)
    (tmp_path / "elsewhere").write_text("{}")
    (tmp_path / "package-lock.json").symlink_to(tmp_path / "elsewhere")
    assert key(tmp_path) == before


@pytest.mark.parametrize("name", ["package.json", "pyproject.toml", "composer.json"])
def test_what_a_lock_file_would_stand_for_counts_without_one_and_not_beside_it(
    tmp_path, name
) -> None:
    keys = []
    for has_lock in (False, True):
        if has_lock:
            (tmp_path / "uv.lock").write_text("")
        for text in ("1", "2"):
            (tmp_path / name).write_text(text)
            keys.append(key(tmp_path))
    assert changes(keys[0], keys[1]) == f"{name} changed"
    assert keys[2] == keys[3]


def test_other_folders_to_keep_are_another_key(tmp_path) -> None:
    before = key(tmp_path)
    assert changes(before, key(tmp_path, cache=("a", "b"))) == "cache folders changed"


@pytest.mark.parametrize("link", ["web", "web/.next", "web/.next/cache"])
def test_cache_comes_back_into_no_folder_that_is_a_link_of_the_commit(
    tmp_path, packed, link
) -> None:
    """The slot itself puts it back: a link leads it to wherever the slot may write."""
    outside, home, tree = (tmp_path / name for name in ("outside", "home", "tree"))
    for folder in (outside, home, tree, (tree / link).parent):
        folder.mkdir(parents=True, exist_ok=True)
    (tree / link).symlink_to(outside)
    tar = packed({"app/web/.next/cache/a": b"kept"})
    _put_back(tar, tmp_path / "scratch", home, tree)
    assert list(outside.iterdir()) == []
    assert (tree / link).is_symlink()


def test_what_is_no_folder_in_a_cache_does_not_come_back(tmp_path, packed) -> None:
    home, tree = tmp_path / "home", tmp_path / "tree"
    home.mkdir()
    tree.mkdir()
    for number, link in enumerate(("../../outside", "real")):
        kept = {"app/real/a": b"1", "app/node_modules": link, "app/web/.next/cache": b"a file"}
        _put_back(packed(kept), tmp_path / f"scratch-{number}", home, tree)
        assert not os.path.lexists(tree / "node_modules")
        assert not os.path.lexists(tree / "web/.next/cache")


def test_pointer_of_lfs_in_a_cache_is_a_file_as_any(tmp_path, packed) -> None:
    """A package may have one among its own files: a cache with it was of no use any more."""
    home, tree = tmp_path / "home", tmp_path / "tree"
    home.mkdir()
    tree.mkdir()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 9\n" % (b"0" * 64)
    _put_back(packed({"app/node_modules/a": pointer}), tmp_path / "scratch", home, tree)
    assert (tree / "node_modules/a").read_bytes() == pointer


def test_folders_of_all_clients_and_of_the_site_are_kept_each_once(tmp_path) -> None:
    home, tree = tmp_path / "home", tmp_path / "tree"
    of_clients = (
        *(".cache", ".npm/_cacache", ".local/share/pnpm/store", ".yarn/berry/cache"),
        ".composer/cache",
    )
    for folder in of_clients:
        (home / folder).mkdir(parents=True)
        (home / folder / "x").write_bytes(b"1")
    for folder in ("a", "a/b", "ab"):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "x").write_bytes(b"1")
    plan = replace(PLAN, cache=("a/b", "a", "ab"))
    gathered = dependencies.gather(
        home, tree, plan, size_bytes_max=1 << 20, is_stopped=lambda: False
    )
    paths = [os.fsdecode(entry.path) for entry in gathered.entries]
    files = {f"home/{folder}/x" for folder in of_clients} | {"app/a/x", "app/a/b/x", "app/ab/x"}
    assert {path for path in paths if path.endswith("/x")} == files
    assert len(paths) == len(set(paths))
    assert (gathered.files, gathered.size_bytes) == (8, 8)


def _put_back(tar, scratch, home, tree):
    dependencies.put_back(
        io.BytesIO(tar),
        scratch,
        home,
        tree,
        PLAN,
        allowance=DiskAllowance(tree, Limits()),
        is_stopped=lambda: False,
    )


def test_odd_things_are_left_out_and_told(tmp_path) -> None:
    home, tree = tmp_path / "home", tmp_path / "tree"
    cache = home / ".cache"
    cache.mkdir(parents=True)
    (tree / "web/.next").mkdir(parents=True)
    (cache / "good").write_bytes(b"1")
    (cache / "inside").symlink_to("good")
    (cache / "outside").symlink_to("/etc/passwd")
    (cache / "up").symlink_to("../../../x")
    os.mkfifo(cache / "pipe")
    (cache / "setuid").write_bytes(b"1")
    (cache / "setuid").chmod(0o4755)
    (tree / "node_modules").symlink_to("/etc")
    gathered = _gather(home, tree)
    assert [entry.path for entry in gathered.entries] == [
        b"home/.cache/good",
        b"home/.cache/inside",
    ]
    said = "\n".join(gathered.left_out)
    for name in ("outside", "up", "pipe", "setuid", "node_modules"):
        assert name in said
    assert "and 2 more" in gathered.said


def _gather(home, tree, size_bytes_max=1 << 20):
    return dependencies.gather(
        home, tree, PLAN, size_bytes_max=size_bytes_max, is_stopped=lambda: False
    )


def test_many_links_that_lead_elsewhere_take_all_links_with_them(tmp_path) -> None:
    cache = tmp_path / "home/.cache"
    cache.mkdir(parents=True)
    (cache / "good").write_bytes(b"1")
    (cache / "inside").symlink_to("good")
    for number in range(110):
        (cache / f"up{number:03}").symlink_to("../../../x")
    gathered = _gather(tmp_path / "home", tmp_path)
    assert [entry.path for entry in gathered.entries] == [b"home/.cache/good"]
    assert gathered.left_out[-1] == "all links: too many of them lead elsewhere"


def test_links_to_programs_of_the_machine_are_kept(tmp_path) -> None:
    """As those of virtual environments are: they lead to the same program in each sandbox."""
    cache = tmp_path / "home/.cache"
    cache.mkdir(parents=True)
    (cache / "python3").symlink_to("/usr/bin/python3")
    assert [entry.path for entry in _gather(tmp_path / "home", tmp_path).entries] == [
        b"home/.cache/python3"
    ]


def test_gathering_stops_when_it_is_told_to(tmp_path) -> None:
    (tmp_path / "home/.cache").mkdir(parents=True)
    (tmp_path / "home/.cache/a").write_bytes(b"1")
    with pytest.raises(StoppedError):
        dependencies.gather(
            tmp_path / "home", tmp_path, PLAN, size_bytes_max=1 << 20, is_stopped=lambda: True
        )


def test_more_than_may_be_kept_is_refused(tmp_path) -> None:
    (tmp_path / "home/.cache").mkdir(parents=True)
    (tmp_path / "home/.cache/large").write_bytes(bytes(1000))
    with pytest.raises(TreeTooLargeError):
        _gather(tmp_path / "home", tmp_path, size_bytes_max=999)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({**LOCKED, "package-lock.json": "sha256:2"}, "package-lock.json changed"),
        ({**LOCKED, "node": "20.2.0"}, "node 20.1.0 -> 20.2.0"),
        ({"node": "20.1.0"}, "package-lock.json is gone"),
        ({**LOCKED, "npm": "10.0.0"}, "npm is new"),
        ({"package.json": "sha256:3", "node": "20.1.0"}, "package-lock.json is gone"),
        (
            {**LOCKED, **{f"requirements/{letter}.txt": "sha256:1" for letter in "abcdefg"}},
            ", ".join(f"requirements/{letter}.txt is new" for letter in "abcde") + " and 2 more",
        ),
    ],
)
def test_miss_says_what_changed(now, said) -> None:
    assert changes(LOCKED, now) == said


def test_what_counts_without_a_lock_file_is_not_said_to_come_or_go_with_it() -> None:
    assert changes({"package.json": "sha256:3"}, {"package-lock.json": "sha256:1"}) == (
        "package-lock.json is new"
    )
    assert changes({}, {"package.json": "sha256:3"}) == "package.json is new"


class Caches:
    """The caches of one server, as its builds meet them."""

    def __init__(self, world, site, tmp_path) -> None:
        self.world = world
        self.site = site
        self.caches = BuildCaches(world.jobs, world.store, size_bytes_max=1 << 20)
        self.tar = tmp_path / "cache.tar"

    async def build(self, slug="production", *, site=None, **options):
        environment = self.world.environment(site or self.site, slug)
        made = await self.world.pipeline.start_build(environment, ACTOR, ref="main", **options)
        return builds.get(self.world.records.reader(), made.value.resource_id)

    def keep(self, build, content, packed, key=LOCKED):
        self.tar.write_bytes(packed({"home/.cache/a": content}))
        return self.caches.keep(build, CacheRequest("node", key), self.tar)

    def find(self, build, key=LOCKED):
        return self.caches.find(build, CacheRequest("node", key))


@pytest.fixture
async def kept(world, commit, tmp_path):
    site = await world.site()
    commit(world.repositories.path(site.id), {"index.html": b"one"})
    return Caches(world, site, tmp_path)


async def test_cache_is_found_by_its_key_or_as_the_newest(kept, packed, unpacked, tmp_path) -> None:
    build = await kept.build()
    assert kept.find(build).said == "miss: first build"
    assert kept.keep(build, b"one", packed).said == "kept: 1 file, 3 bytes"
    found = kept.find(build)
    assert found.is_hit
    with (tmp_path / "out").open("wb") as out:
        kept.caches.write_tar(build, found.digest, out)
    assert unpacked((tmp_path / "out").read_bytes())["home/.cache/a"] == b"one"
    assert kept.find(build, dict(reversed(LOCKED.items()))).is_hit
    missed = kept.find(build, {**LOCKED, "node": "20.2.0"})
    assert missed.said.startswith("miss: node 20.1.0 -> 20.2.0; begins with 1 file, ")
    assert (missed.digest, missed.is_hit) == (found.digest, False)


async def test_cache_that_a_build_began_with_is_the_one_that_was_used_last(kept, packed) -> None:
    """By a hit or as the newest: what nobody uses any more is collected first."""
    build = await kept.build()
    times = iter(range(1_000, 2_000))
    kept.world.jobs.clock = lambda: next(times)
    keys = [{**LOCKED, "node": f"20.{number}.0"} for number in range(3)]
    made = [kept.keep(build, b"%d" % number, packed, keys[number]) for number in range(3)]
    assert kept.find(build, keys[0]).is_hit
    assert kept.find(build, {"node": "22"}).digest == made[0].digest
    used = {
        cache.tree_digest: cache.used_at
        for cache in build_caches.of_site(kept.world.records.reader(), kept.site.id)
    }
    assert used == {made[0].digest: 1_004, made[1].digest: 1_001, made[2].digest: 1_002}


async def test_cache_that_is_not_what_it_was_is_not_sent_whole(kept, packed, tmp_path) -> None:
    build = await kept.build()
    kept.keep(build, b"as it was", packed)
    path = Path(kept.world.store.layout.blob(Digest.of(b"as it was"), executable=False))
    path.chmod(0o600)
    path.write_bytes(b"as it is!")
    with (tmp_path / "out").open("wb") as out, pytest.raises(ArtifactCorruptError):
        kept.caches.write_tar(build, kept.find(build).digest, out)


async def test_clean_build_finds_and_keeps_nothing(kept, packed) -> None:
    kept.keep(await kept.build(), b"one", packed)
    clean = await kept.build(clean=True)
    assert kept.find(clean).digest is None
    assert kept.keep(clean, b"two", packed).digest is None
    assert len(build_caches.of_site(kept.world.records.reader(), kept.site.id)) == 1


async def test_cache_of_a_site_reaches_no_other(kept, commit, packed, tmp_path) -> None:
    mine = kept.keep(await kept.build(), b"one", packed)
    other = await kept.world.site("other")
    commit(kept.world.repositories.path(other.id), {"index.html": b"one"})
    build = await kept.build(site=other)
    assert kept.find(build).digest is None
    with (tmp_path / "out").open("wb") as out, pytest.raises(ArtifactMissingError):
        kept.caches.write_tar(build, mine.digest, out)


async def test_preview_reads_the_sites_cache_and_production_none_of_a_preview(
    kept, packed, tmp_path
) -> None:
    production = await kept.build()
    gone = replace(production, env_id="env_of_a_preview_that_went")  # counts as one
    theirs = kept.keep(gone, b"evil", packed)
    assert kept.find(production).digest is None
    with (tmp_path / "out").open("wb") as out, pytest.raises(ArtifactMissingError):
        kept.caches.write_tar(production, theirs.digest, out)
    ours = kept.keep(production, b"good", packed, {**LOCKED, "node": "20.2.0"})
    assert kept.find(gone).digest == theirs.digest
    found = kept.find(gone, {**LOCKED, "node": "20.2.0"})
    assert (found.digest, found.is_hit, found.is_borrowed) == (ours.digest, True, True)
    assert kept.find(gone, {**LOCKED, "node": "20.3.0"}).digest == ours.digest  # it goes first
    assert not kept.find(gone).is_borrowed
    assert kept.caches.is_of_previews(gone, theirs.digest)
    kept.keep(production, b"evil", packed, {"node": "the same content"})
    assert not kept.caches.is_of_previews(gone, theirs.digest)


async def test_cache_that_cannot_be_kept_is_told_and_no_error(kept, packed) -> None:
    build = await kept.build()
    assert "not kept" in kept.keep(build, bytes((1 << 20) + 1), packed).said
    kept.tar.write_bytes(b"nonsense" * 1000)
    said = kept.caches.keep(build, CacheRequest("node", LOCKED), kept.tar).said
    assert said.startswith("not kept: ")
