"""Submodules: whose commits lie in a build's tree, and who may have them there."""

from __future__ import annotations

import hashlib
import io
import os

import pytest

from hooks.builds.errors import BuildFailedError
from hooks.builds.sources.submodules import site_of, without_password
from hooks.builds.wire import Finish, Unchanged
from storage.digest import Digest
from storage.manifest import FileEntry
from storage.model import ActorRef, JobStatus
from storage.provenance import Submodule
from storage.reader import StoreReader
from storage.records import artifacts, builds, environments, sites

ACTOR = ActorRef("api_key", "key_1", "ci")
PAGE = {"index.html": b"<p>"}


def gitmodules(**urls):
    """A .gitmodules; `a__b` stands for the path `a/b`."""
    return "".join(
        f'[submodule "{name}"]\n\tpath = {name.replace("__", "/")}\n\turl = {url}\n'
        for name, url in urls.items()
    ).encode()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("../theme.git", "theme"),
        ("../theme", "theme"),
        ("./../theme.git/", "theme"),
        ("../../acme/theme.git", None),
        ("../../theme.git", None),
        ("./theme.git", None),
        ("../", None),
        ("../theme.git/more", None),
        ("https://forge.example/theme.git", "theme"),
        ("https://FORGE.example:443/theme", "theme"),
        ("https://x:secret@forge.example/theme.git", "theme"),
        ("http://forge.example/theme.git", None),
        ("https://forge.example:8443/theme.git", None),
        ("https://forge.example.evil/theme.git", None),
        ("https://elsewhere.example/theme.git", None),
        ("git@forge.example:theme.git", None),
        ("ssh://forge.example/theme.git", None),
        ("file:///srv/theme.git", None),
        ("/srv/theme.git", None),
        ("https://[::1/theme.git", None),
        ("https://forge.example:x/theme.git", None),
        ("", None),
    ],
)
def test_address_means_a_site_of_this_server_or_none(url, name):
    assert site_of(url, "acme", "https://forge.example") == name


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("../theme.git", "theme"),
        ("http://10.0.0.1:8080/git/theme.git", "theme"),
        ("http://10.0.0.1:8080/theme.git", None),
        ("../../theme.git", None),
    ],
)
def test_address_of_a_server_below_a_path(url, name):
    assert site_of(url, "acme", "http://10.0.0.1:8080/git") == name


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:secret@host/x.git", "https://host/x.git"),
        ("https://me@mail.example:secret@host/x.git", "https://host/x.git"),
        ("https://host/a@b", "https://host/a@b"),
        ("../x.git", "../x.git"),
    ],
)
def test_passwords_in_addresses_are_not_shown(url, shown):
    assert without_password(url) == shown


@pytest.fixture
async def theme(world, commit):
    """A site, and the commit of it that others have as a submodule."""
    site = await world.site("theme")
    pinned = commit(world.repositories.path(site.id), {"css/a.css": b"body{}"})
    world.readable.add(site.id)
    return pinned


@pytest.fixture
async def started(world, commit):
    """Begin a build of files with submodules; its records, as a slot leased it."""
    site = await world.site("acme")

    async def start(files, submodules):
        commit(world.repositories.path(site.id), files, submodules=submodules)
        await world.pipeline.start_build(world.environment(site), ACTOR, ref="main")
        lease = await world.builds.lease("slot-0", 5)
        return builds.get(world.records.reader(), lease.build_id)

    return start


async def source_of(world, build, folder=".", *, ignores_submodules=False):
    """What a slot gets to build: the tar."""
    source = await world.builds.supplies.source(
        build.job_id, folder, ignores_submodules=ignores_submodules
    )
    out = io.BytesIO()
    source.write(out)
    return out.getvalue()


async def finished(world, build, **outcome):
    """End a build that had nothing to run; its job."""
    done = Finish("slot-0", "succeeded", profile="static", output="source", **outcome)
    await world.builds.finish(build.job_id, done)
    return world.jobs.get(build.job_id)


@pytest.mark.parametrize("slash", [b"", b"/"])
async def test_submodule_is_in_the_source_of_a_build(world, theme, started, unpacked, slash):
    modules = gitmodules(vendor__theme="../theme.git").replace(b"/theme\n", b"/theme%b\n" % slash)
    build = await started({**PAGE, ".gitmodules": modules}, {"vendor/theme": theme})
    files = unpacked(await source_of(world, build))
    assert files["vendor/theme/css/a.css"] == b"body{}"


async def test_source_with_submodules_in_it_comes_whole_and_is_not_kept(world, theme, started):
    modules = {".gitmodules": gitmodules(theme="../theme.git")}
    build = await started({**PAGE, **modules}, {"theme": theme})
    supplies = world.builds.supplies
    for ignores, is_kept in ((False, False), (True, True)):
        whole = await supplies.source(build.job_id, ".", ignores_submodules=ignores)
        assert (whole.head.tree is not None) == is_kept
        tree = world.repositories.tree_of(build.site_id, build.commit)
        again = await supplies.source(build.job_id, ".", ignores_submodules=ignores, bases=[tree])
        assert (again.head.removed_bytes is not None) == is_kept


async def test_submodule_is_in_the_artifact_of_a_site_without_steps(world, theme, started):
    build = await started(
        {**PAGE, ".gitmodules": gitmodules(theme="../theme.git")}, {"theme": theme}
    )
    job = await finished(world, build)
    assert job.status is JobStatus.SUCCEEDED, job.error
    manifest, said = kept(world, build)
    assert list(manifest) == ["index.html", "theme/css/a.css"]
    assert said.submodules == (Submodule("theme", "theme", theme),)


async def test_submodules_inside_submodules_are_found_by_their_own_addresses(
    world, theme, started, commit, unpacked
):
    outer = await world.site("outer")
    world.readable.add(outer.id)
    pinned = commit(
        world.repositories.path(outer.id),
        {"o": b"o", ".gitmodules": gitmodules(deep="../theme.git")},
        submodules={"deep": theme},
    )
    build = await started({**PAGE, ".gitmodules": gitmodules(x="../outer.git")}, {"x": pinned})
    files = unpacked(await source_of(world, build))
    assert {"x/o", "x/deep/css/a.css", "index.html"} <= set(files)


async def test_sub_folder_has_the_submodules_below_it_alone(world, theme, started, unpacked):
    build = await started(
        {
            "web/index.html": b"<p>",
            ".gitmodules": gitmodules(
                web__theme="../theme.git", other="https://elsewhere.example/x"
            ),
        },
        {"web/theme": theme, "other": "ab" * 20},
    )
    assert set(unpacked(await source_of(world, build, "web"))) == {
        "index.html",
        "theme",
        "theme/css",
        "theme/css/a.css",
    }
    job = await finished(world, build, folder="web")
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert list(kept(world, build)[0]) == ["index.html", "theme/css/a.css"]


async def test_branch_of_the_same_site_needs_no_other_permission(world, started, commit, unpacked):
    site = await world.site("self-made")
    path = world.repositories.path(site.id)
    docs = commit(path, {"d": b"d"}, branch="docs")
    commit(path, {**PAGE, ".gitmodules": gitmodules(d="../self-made.git")}, submodules={"d": docs})
    await world.pipeline.start_build(world.environment(site), ACTOR, ref="main")
    lease = await world.builds.lease("slot-0", 5)
    build = builds.get(world.records.reader(), lease.build_id)
    assert "d/d" in unpacked(await source_of(world, build))


ABSENT = "ab" * 20


@pytest.mark.parametrize(
    ("files", "pinned", "words"),
    [
        ({}, None, ("theme: .gitmodules says no address", "git rm --cached")),
        (
            {".gitmodules": gitmodules(theme="https://elsewhere.example/theme.git")},
            None,
            ("theme: https://elsewhere.example/theme.git is not on this server", "../SITE.git"),
        ),
        (
            {".gitmodules": gitmodules(theme="https://me:canary-5d@elsewhere.example/theme.git")},
            None,
            ("theme: https://elsewhere.example/theme.git is not on this server",),
        ),
        (
            {".gitmodules": gitmodules(theme="https://canary-5d@forge.example/hidden.git")},
            None,
            ("no site 'hidden' for https://forge.example/hidden.git, or 'ci', who started",),
        ),
        (
            {".gitmodules": gitmodules(theme="../hidden.git")},
            None,
            ("no site 'hidden' for ../hidden.git, or 'ci', who started this build, may not",),
        ),
        (
            {".gitmodules": gitmodules(theme="../absent.git")},
            None,
            ("no site 'absent' for ../absent.git, or 'ci', who started this build, may not",),
        ),
        (
            {".gitmodules": gitmodules(theme="../theme.git")},
            ABSENT,
            ("no branch or tag of 'theme' has the commit abababababab: push it there first",),
        ),
        ({".gitmodules": b"[nonsense"}, None, ("theme: .gitmodules says no address",)),
    ],
)
async def test_submodule_that_cannot_be_had_fails_the_build_by_its_path_and_address(
    world, theme, started, commit, files, pinned, words
):
    hidden = await world.site("hidden")
    commit(world.repositories.path(hidden.id), {"secret": b"s"})
    build = await started({**PAGE, **files}, {"theme": pinned or theme})
    with pytest.raises(BuildFailedError) as caught:
        await source_of(world, build)
    assert caught.value.code == "build.submodule_unavailable"
    for word in (*words, 'submodules = "ignore"'):
        assert word in str(caught.value)
    assert "canary" not in str(caught.value)
    job = await finished(world, build)
    assert (job.status, job.error.code) == (JobStatus.FAILED, "build.submodule_unavailable")
    assert str(caught.value) == job.error.message


@pytest.mark.parametrize(
    ("files", "path", "shown"),
    [
        ({}, b"th\xe8me", "th\\xe8me: .gitmodules says no address"),
        (
            {".gitmodules": gitmodules(theme="https://a.example/X").replace(b"X", b"th\xe8me")},
            b"theme",
            "theme: https://a.example/th\\xe8me is not on this server",
        ),
        (
            {".gitmodules": gitmodules(theme="../X.git").replace(b"X", b"th\xe8me")},
            b"theme",
            "theme: ../th\\xe8me.git is not on this server",
        ),
    ],
)
async def test_submodule_whose_path_or_address_is_no_text_fails_the_build_all_the_same(
    world, started, files, path, shown
):
    """Its job went on for ever: what was said of it could not be written down."""
    build = await started({**PAGE, **files}, {os.fsdecode(path): ABSENT})
    job = await finished(world, build)
    assert (job.status, job.error.code) == (JobStatus.FAILED, "build.submodule_unavailable")
    assert shown in job.error.message


async def test_commit_that_no_branch_leads_to_any_more_stays_unread(world, theme, started, commit):
    site = await world.site("rewritten")
    path = world.repositories.path(site.id)
    world.readable.add(site.id)
    gone = commit(path, {"secret": b"s"})
    commit(path, {"clean": b"c"})
    build = await started({**PAGE, ".gitmodules": gitmodules(x="../rewritten.git")}, {"x": gone})
    with pytest.raises(BuildFailedError, match="no branch or tag of 'rewritten' has the commit"):
        await source_of(world, build)


async def test_several_that_cannot_be_had_are_named_at_once(world, started):
    build = await started(
        {**PAGE, ".gitmodules": gitmodules(a="../a.git")}, dict.fromkeys("ab", ABSENT)
    )
    with pytest.raises(BuildFailedError, match=r"^2 submodules cannot be had\. a: .*; b: "):
        await source_of(world, build)


async def test_only_the_first_that_cannot_be_had_are_named(world, started):
    build = await started(PAGE, {f"m{n:02}": ABSENT for n in range(50)})
    with pytest.raises(BuildFailedError, match=r"^10 submodules, or more, cannot be had") as caught:
        await source_of(world, build)
    assert "m09: " in str(caught.value)
    assert "m10: " not in str(caught.value)


async def test_too_many_submodules_are_not_looked_for(world, theme, started):
    many = {f"m{n}": theme for n in range(101)}
    files = {**PAGE, ".gitmodules": gitmodules(**dict.fromkeys(many, "../theme.git"))}
    build = await started(files, many)
    with pytest.raises(BuildFailedError, match="more than 100 submodules"):
        await source_of(world, build)


async def test_submodules_inside_submodules_are_counted_together(world, theme, started, commit):
    outer = await world.site("outer")
    world.readable.add(outer.id)
    many = {f"m{n}": theme for n in range(60)}
    files = {".gitmodules": gitmodules(**dict.fromkeys(many, "../theme.git"))}
    pinned = commit(world.repositories.path(outer.id), files, submodules=many)
    files = {**PAGE, ".gitmodules": gitmodules(a="../outer.git", b="../outer.git")}
    build = await started(files, {"a": pinned, "b": pinned})
    with pytest.raises(BuildFailedError, match="more than 100 submodules"):
        await source_of(world, build)


async def test_submodules_lie_no_deeper_in_one_another_than_they_may(world, started, commit):
    nested = await world.site("nested")
    world.readable.add(nested.id)
    path = world.repositories.path(nested.id)
    pinned = commit(path, {"a": b"a"})
    inside = {".gitmodules": gitmodules(x="../nested.git")}
    tips = [
        pinned := commit(path, inside, submodules={"x": pinned}, branch=f"b{n}") for n in range(10)
    ]
    files = {**PAGE, ".gitmodules": gitmodules(x="../nested.git")}
    build = await started(files, {"x": tips[-2]})
    await source_of(world, build)
    await world.builds.finish(build.job_id, Finish("slot-0", "succeeded", output="source"))
    build = await started(files, {"x": tips[-1]})
    with pytest.raises(BuildFailedError, match="more than 10 inside one another"):
        await source_of(world, build)


async def test_submodules_that_are_ignored_are_empty_folders(world, started, unpacked):
    build = await started({**PAGE, ".gitmodules": gitmodules(x="../hidden.git")}, {"x": ABSENT})
    files = unpacked(await source_of(world, build, ignores_submodules=True))
    assert files["x"] is None
    job = await finished(world, build, ignores_submodules=True)
    assert job.status is JobStatus.SUCCEEDED, job.error
    files, said = kept(world, build)
    assert (list(files), said.submodules) == (["index.html"], ())


def kept(world, build):
    """The files in the newest artifact, by their paths, and the statement about it."""
    db = world.records.reader()
    where = environments.get(db, build.env_id)
    (item,) = artifacts.page(db, where, newest=None, last=None, limit_count=1).items
    verified = StoreReader(world.store.layout.root).verify(
        Digest.parse(item.artifact.digest), item.attestation.envelope_sha256
    )
    entries = verified.manifest.entries
    files = {entry.path.decode(): entry for entry in entries if isinstance(entry, FileEntry)}
    return files, verified.provenance


@pytest.fixture
def finished_with(world, packed):
    """End a build that ran steps and sent these files; its job."""

    async def finish(build, files, **outcome):
        world.builds.output_path(build.job_id).write_bytes(packed(files))
        done = Finish("slot-0", "succeeded", profile="static", **outcome)
        await world.builds.finish(build.job_id, done)
        return world.jobs.get(build.job_id)

    return finish


async def test_files_that_a_build_left_as_they_were_are_taken_from_its_commit(
    world, theme, started, finished_with
):
    build = await started(
        {
            "web/out/a": b"a",
            "web/a": b"another",
            ".gitmodules": gitmodules(web__out__theme="../theme.git"),
        },
        {"web/out/theme": theme},
    )
    unchanged = Unchanged("out", ("a", "theme/css/a.css"))
    job = await finished_with(build, {"made": b"made"}, folder="web", unchanged=unchanged)
    assert job.status is JobStatus.SUCCEEDED, job.error
    files = {"a": b"a", "made": b"made", "theme/css/a.css": b"body{}"}
    assert {path: entry.digest for path, entry in kept(world, build)[0].items()} == {
        path: Digest.of(content) for path, content in files.items()
    }


@pytest.mark.parametrize("path", ["out/a", "b", "out", "../a", "a/", "module"])
async def test_file_that_the_commit_does_not_have_is_none_that_was_left(
    world, started, finished_with, path
):
    build = await started({"out/a": b"a"}, {"out/module": ABSENT})
    unchanged = Unchanged("out", ("a", path))
    job = await finished_with(
        build, {"made": b"made"}, unchanged=unchanged, ignores_submodules=True
    )
    assert (job.status, job.error.code) == (JobStatus.FAILED, "build.output_invalid")


async def test_file_that_was_sent_and_left_too_is_refused(started, finished_with):
    build = await started({"a": b"a"}, {})
    job = await finished_with(build, {"a": b"changed"}, unchanged=Unchanged(".", ("a",)))
    assert (job.status, job.error.code) == (JobStatus.FAILED, "build.output_invalid")


async def test_what_steps_changed_is_not_taken_for_the_commits_by_a_later_build(
    world, started, finished_with
):
    files = {"d/a": b"a", "d/b": b"b", "e/c": b"c"}
    build = await started(files, {})
    unchanged = Unchanged(".", ("d/b", "e/c"))
    job = await finished_with(build, {"d/a": b"changed"}, unchanged=unchanged)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert kept(world, build)[0]["d/a"].digest == Digest.of(b"changed")
    again = await started({**files, "new": b"new"}, {})
    assert (await finished(world, again)).status is JobStatus.SUCCEEDED
    digests = {path: entry.digest for path, entry in kept(world, again)[0].items()}
    assert digests == {
        path: Digest.of(content) for path, content in {**files, "new": b"new"}.items()
    }


async def test_files_that_were_left_are_known_to_the_next_build(world, started, finished_with):
    files = {"d/a": b"a", "e/b": b"b"}
    for number in range(2):
        build = await started({**files, "number": str(number).encode()}, {})
        job = await finished_with(build, {"made": b"m"}, unchanged=Unchanged(".", tuple(files)))
        assert job.status is JobStatus.SUCCEEDED, job.error
        digests = {path: entry.digest for path, entry in kept(world, build)[0].items()}
        assert digests == {
            path: Digest.of(content) for path, content in {**files, "made": b"m"}.items()
        }


async def test_files_that_were_left_in_a_folder_of_a_known_commit_have_their_paths_from_there(
    world, started, finished_with
):
    for number, left in enumerate((Unchanged(".", ("out/a", "b")), Unchanged("out", ("a",)))):
        build = await started({"out/a": b"a", "b": b"b", "number": b"%d" % number}, {})
        job = await finished_with(build, {"made": b"made"}, unchanged=left)
        assert job.status is JobStatus.SUCCEEDED, job.error
    assert set(kept(world, build)[0]) == {"a", "made"}


@pytest.mark.parametrize("left", [None, Unchanged(".", ("theme/css/a.css",))])
async def test_what_is_in_a_submodule_is_read_by_each_build(
    world, theme, started, finished_with, left
):
    """It is by ids of another site's repository, which say nothing of this one's."""
    modules = {".gitmodules": gitmodules(theme="../theme.git")}

    async def end(number):
        build = await started({**PAGE, **modules, "n": b"%d" % number}, {"theme": theme})
        if left is None:
            return await finished(world, build)
        return await finished_with(build, {"made": b"made"}, unchanged=left)

    assert (await end(1)).status is JobStatus.SUCCEEDED
    remove_blob(world, sites.find(world.records.reader(), "theme"), b"body{}")
    assert (await end(2)).error.code == "build.source_unreadable"


def remove_blob(world, site, content):
    """Remove git's own object of a file's content."""
    name = hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()
    (world.repositories.path(site.id) / "objects" / name[:2] / name[2:]).unlink()


async def test_files_of_another_site_are_none_of_ones_own_though_their_ids_are_equal(
    world, started, commit
):
    files = {"d/a": b"theirs", "d/b": b"b"}
    assert (await finished(world, await started(files, {}))).status is JobStatus.SUCCEEDED
    other = await world.site("other")
    commit(world.repositories.path(other.id), {**files, "n": b"1"})
    remove_blob(world, other, b"theirs")
    await world.pipeline.start_build(world.environment(other), ACTOR, ref="main")
    lease = await world.builds.lease("slot-0", 5)
    job = await finished(world, builds.get(world.records.reader(), lease.build_id))
    assert (job.status, job.error.code) == (JobStatus.FAILED, "build.source_unreadable")


async def test_what_is_shown_to_nobody_is_there_for_programs_though_its_folder_is_known(
    world, started
):
    for number, is_public in enumerate((True, False, True)):
        build = await started({"d/a": b"a", "d/.b": b"b", "n": b"%d" % number}, {})
        job = await finished(world, build, is_public=is_public)
        assert job.status is JobStatus.SUCCEEDED, job.error
        assert ("d/.b" in kept(world, build)[0]) is not is_public
