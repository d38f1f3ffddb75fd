"""What `mf` takes from the checkout that it is run in, by the real git."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gitd.cli.checkout import Remote, _remote, site_on

RELEASES = "/v1/sites/acme-store/environments/production/releases"
ASKED = ("releases", "--env", "production")
PAGE = (Path(__file__).parents[3] / "docs" / "mf.md").read_text()
EXAMPLES = re.findall(
    "^mf (.*)$", PAGE.partition("## In a checkout")[2].partition("\n## ")[0], re.MULTILINE
)
BUILD = "build_01J9Z3V7Q8K5N2M4P6R8T0W1X3"
OF_GIT = "mfk_live_of_git"
Git = Callable[..., None]


@pytest.fixture
def git(mf, peer, tmp_path: Path) -> Git:
    """git in a checkout, in which `mf` is run too, with no setting of anybody's."""
    mf.cwd = tmp_path / "work"
    mf.cwd.mkdir()
    gits = {
        "GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "HOME": str(tmp_path),
    }
    mf.environ |= gits
    peer.on("GET", RELEASES, peer.many([{"id": "rel_1"}]))

    def run(*arguments: str) -> None:
        environ = {**gits, "PATH": mf.environ["PATH"]}
        subprocess.run(["git", *arguments], cwd=mf.cwd, env=environ, check=True)

    run("init", "-q")
    return run


@pytest.fixture
def asked(git, tmp_path: Path) -> Path:
    """What the user's own credential helper is asked, which has a key."""
    note = tmp_path / "asked"
    script = tmp_path / "helper"
    script.write_text(f"#!/bin/sh\ncat >> {note}\n[ $1 = get ] && echo password={OF_GIT}\n:\n")
    script.chmod(0o755)
    git("config", "--global", "credential.helper", str(script))
    git("config", "--global", "credential.useHttpPath", "true")
    git("config", "--global", "credential.username", "x")
    return note


@pytest.fixture
def bare_in_clone(mf, peer, git: Git, tmp_path: Path) -> Path:
    """A clone with tracked files that git takes for a repository, and `mf` is run there.

    Returns what is made when its credential helper runs.
    """
    ran = tmp_path / "ran"
    inner = mf.cwd / "vendor" / "lib"
    for name in ("objects/.keep", "refs/heads/.keep"):
        (inner / name).parent.mkdir(parents=True)
        (inner / name).touch()
    (inner / "HEAD").write_text("ref: refs/heads/main\n")
    (inner / "config").write_text(
        "[core]\n\trepositoryFormatVersion = 0\n\tbare = true\n"
        f'[remote "managed"]\n\turl = {peer.url}/acme-store.git\n'
        f'[credential]\n\thelper = "!touch {ran}; echo password=theirs #"\n\tusername = x\n'
    )
    git("add", "--all")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "Vendor a library")
    git("clone", "-q", ".", str(tmp_path / "clone"))
    mf.cwd = tmp_path / "clone" / "vendor" / "lib"
    assert (mf.cwd / "HEAD").exists()
    return ran


def git_of_old(mf, folder: Path) -> None:
    """Let `mf` find a git that does not know `safe.bareRepository`, as those before 2.38."""
    folder.mkdir()
    script = folder / "git"
    script.write_text(
        "#!/bin/bash\nfor word; do shift; case $word in safe.bareRepository=*) word=x.y=z;; esac; "
        f'set -- "$@" "$word"; done\nexec {shutil.which("git")} "$@"\n'
    )
    script.chmod(0o755)
    mf.environ["PATH"] = f"{folder}:{mf.environ['PATH']}"


def test_managed_remote_names_server_and_site_and_that_is_said(mf, peer, git, asked) -> None:
    git("remote", "add", "managed", f"http://x:y@127.0.0.1:{peer.port}/acme-store.git")
    ran = mf(*ASKED, FORGE_URL=None, FORGE_TOKEN=None)
    assert ran.code == 0, ran.err
    assert "rel_1" in ran.out
    said = f"mf: site acme-store on {peer.url}, by the remote managed of this checkout\n"
    assert ran.err == said
    assert peer.seen[-1].headers["Authorization"] == f"Bearer {OF_GIT}"
    silent = mf(*ASKED, "--json", FORGE_URL=None, FORGE_TOKEN=None)
    assert silent.err == "", "programs read refusals there"


def test_key_of_gits_credential_helper_is_used_where_no_other_is_given(
    mf, peer, git, asked: Path, token
) -> None:
    git("remote", "add", "managed", f"{peer.url}/acme-store.git")
    assert mf(*ASKED, FORGE_TOKEN=None).code == 0
    assert peer.seen[-1].headers["Authorization"] == f"Bearer {OF_GIT}"
    lines = asked.read_text().splitlines()
    assert f"host=127.0.0.1:{peer.port}" in lines
    assert "path=acme-store.git" in lines
    asked.unlink()
    assert mf(*ASKED).code == 0
    assert peer.seen[-1].headers["Authorization"] == f"Bearer {token}"
    assert not asked.exists(), "a key that is given is the one"


@pytest.mark.parametrize("is_old", [False, True], ids=["git", "git before 2.38"])
def test_repository_among_a_clones_files_gets_no_key_and_runs_no_command(
    mf, peer, bare_in_clone: Path, tmp_path: Path, *, is_old: bool
) -> None:
    if is_old:
        git_of_old(mf, tmp_path / "bin")
    for environ in (
        {"FORGE_URL": None},
        {"FORGE_URL": None, "FORGE_TOKEN": None},
        {"FORGE_TOKEN": None},
    ):
        ran = mf(*ASKED, **environ)
        assert (ran.code, "--site" in ran.err) == (2, True), ran.err
    ran = mf(*ASKED, "--site", "acme-store", FORGE_TOKEN=None)
    assert (ran.code, "No key" in ran.err) == (2, True), ran.err
    assert peer.seen == []
    assert not bare_in_clone.exists()


def test_credential_helper_that_only_the_checkout_names_is_not_run(
    mf, peer, git, tmp_path: Path
) -> None:
    git("remote", "add", "managed", f"{peer.url}/acme-store.git")
    git("config", "credential.helper", f"!touch {tmp_path}/ran; echo password=theirs #")
    git("config", "credential.username", "x")
    for environ in ({}, {"GIT_DIR": str(mf.cwd / ".git")}):
        ran = mf(*ASKED, FORGE_URL=None, FORGE_TOKEN=None, **environ)
        assert (ran.code, "No key" in ran.err) == (2, True), ran.err
    assert not (tmp_path / "ran").exists()
    assert peer.seen == []


def test_forge_token_goes_to_no_server_that_only_the_checkout_names(mf, peer, git) -> None:
    git("remote", "add", "managed", f"{peer.url}/acme-store.git")
    ran = mf(*ASKED, FORGE_URL=None)
    assert (ran.code, "--site" in ran.err) == (2, True)
    assert ran.err.count(f"set FORGE_URL={peer.url}") == 1, "and what to do is said"
    assert "FORGE_URL" not in mf(*ASKED, "--json", FORGE_URL=None).err
    assert peer.seen == []


def test_key_goes_unencrypted_to_no_server_that_only_the_checkout_names(mf, git, asked) -> None:
    git("remote", "add", "managed", "http://forge.example.com/acme-store.git")
    ran = mf(*ASKED, FORGE_URL=None, FORGE_TOKEN=None)
    assert ran.code == 2
    assert "set FORGE_URL=http://forge.example.com" in ran.err
    assert not asked.exists()


def test_nobody_is_asked_for_a_key(mf, peer, git) -> None:
    git("remote", "add", "managed", f"{peer.url}/acme-store.git")
    ran = mf(*ASKED, FORGE_URL=None, FORGE_TOKEN=None)
    assert (ran.code, "No key: set FORGE_TOKEN" in ran.err) == (2, True)
    assert peer.seen == []


def test_no_key_goes_to_a_server_that_only_another_remote_names(mf, peer, git) -> None:
    """Of a repository that was cloned from anywhere."""
    git("remote", "add", "origin", f"{peer.url}/acme-store.git")
    ran = mf(*ASKED, FORGE_URL=None)
    assert (ran.code, "--site" in ran.err) == (2, True)
    assert peer.seen == []


def test_any_remote_names_the_site_on_the_server_that_is_used_anyway(mf, peer, git) -> None:
    git("remote", "add", "origin", "https://github.com/acme/store.git")
    git("remote", "add", "live", f"{peer.url}/acme-store.git")
    ran = mf(*ASKED)
    assert (ran.code, "by the remote live of this checkout" in ran.err) == (0, True)
    git("remote", "add", "other", f"{peer.url}/other.git")
    ran = mf(*ASKED)
    assert (ran.code, "--site" in ran.err) == (2, True), "which one is not guessed"
    git("remote", "rename", "live", "managed")
    assert mf(*ASKED).code == 0


def test_what_is_given_wins_and_nothing_is_said(mf, peer, git) -> None:
    git("remote", "add", "managed", "http://127.0.0.1:1/other.git")
    for ran in (
        mf("--url", peer.url, *ASKED, "--site", "acme-store", FORGE_URL=None),
        mf(*ASKED, FORGE_SITE="acme-store"),
    ):
        assert (ran.code, ran.err) == (0, "")


def test_address_as_git_rewrites_it_is_the_one_that_is_pushed_to(mf, peer, git, asked) -> None:
    git("config", f"url.{peer.url}/.insteadOf", "forge:")
    git("remote", "add", "managed", "forge:acme-store.git")
    assert mf(*ASKED, FORGE_URL=None, FORGE_TOKEN=None).code == 0


@pytest.mark.parametrize("line", EXAMPLES)
def test_documented_example_works_in_a_checkout(mf, peer, git, asked, line: str) -> None:
    git("remote", "add", "managed", f"{peer.url}/acme-store.git")
    environments = "/v1/sites/acme-store/environments"
    peer.on("GET", environments, peer.many([]))
    peer.on("GET", f"{environments}/production/logs", peer.raw("2026-11-27T10:00:00Z hello\n"))
    ran = mf(*shlex.split(line), FORGE_URL=None, FORGE_TOKEN=None)
    assert ran.code == 0, ran.err
    assert "by the remote managed of this checkout" in ran.err
    assert peer.seen[0].path.startswith(environments)


@pytest.mark.parametrize(
    "command",
    [
        ("logs", BUILD),
        ("jobs", "show", BUILD),
        ("jobs", "cancel", BUILD),
        ("jobs", "wait", BUILD),
        ("jobs", "wait"),
    ],
    ids=" ".join,
)
def test_environment_without_a_site_is_one_of_the_checkouts_site(
    mf, peer, git, command: tuple[str, ...]
) -> None:
    git("remote", "add", "managed", f"{peer.url}/acme-store.git")
    ran = mf(*command, "--env", "production")
    assert (ran.code, "site acme-store on" in ran.err) == (3, True), ran.err
    assert peer.seen[0].path.startswith("/v1/sites/acme-store/environments/production/builds")


def test_job_that_is_named_alone_takes_no_site_from_the_checkout(mf, peer, git) -> None:
    git("remote", "add", "managed", f"{peer.url}/acme-store.git")
    peer.on("GET", "/v1/jobs/job_1", peer.one({"id": "job_1", "status": "succeeded"}))
    ran = mf("jobs", "show", "job_1")
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://forge.example.com/shop.git", ("https://forge.example.com", "shop")),
        (
            "https://me:key@forge.example.com:8443/shop.git/",
            ("https://forge.example.com:8443", "shop"),
        ),
        ("http://[::1]:8080/shop.git", ("http://[::1]:8080", "shop")),
        ("https://github.com/acme/shop.git", None),
        ("https://forge.example.com/shop", None),
        ("https://forge.example.com/shop.git?x=1", None),
        ("git@forge.example.com:shop.git", None),
        ("ssh://forge.example.com/shop.git", None),
        ("file:///srv/shop.git", None),
        ("https://forge.example.com:port/shop.git", None),
        ("https:///shop.git", None),
        ("", None),
    ],
)
def test_remote_leads_to_a_site_or_not(url: str, place: tuple[str, str] | None) -> None:
    assert _remote("r", url) == (None if place is None else Remote("r", *place))


def test_two_remotes_of_one_site_name_it() -> None:
    both = [Remote(name, "http://a", "shop") for name in ("one", "two")]
    assert site_on("http://a", both) == both[0]
    assert site_on("http://b", both) is None
