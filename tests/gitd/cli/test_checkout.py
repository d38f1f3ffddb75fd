"""What `mf` takes from the checkout that it is run in, by the real git."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gitd.cli.checkout import Remote, _remote, site_on

RELEASES = "/v1/sites/acme-store/environments/production/releases"
ASKED = ("releases", "--env", "production")
GITS = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
Git = Callable[..., None]


@pytest.fixture
def git(mf, peer, tmp_path: Path) -> Git:
    """git in a checkout, in which `mf` is run too, with no setting of anybody's."""
    mf.cwd = tmp_path / "work"
    mf.cwd.mkdir()
    mf.environ |= GITS
    mf.environ["HOME"] = str(tmp_path)
    peer.on("GET", RELEASES, peer.many([{"id": "rel_1"}]))

    def run(*arguments: str) -> None:
        environ = {**GITS, "PATH": mf.environ["PATH"], "HOME": str(tmp_path)}
        subprocess.run(["git", *arguments], cwd=mf.cwd, env=environ, check=True)

    run("init", "-q")
    return run


def helper(git: Git, tmp_path: Path, key: str) -> Path:
    """A credential helper that has a key, and notes what it is asked."""
    note = tmp_path / "asked"
    script = tmp_path / "helper"
    script.write_text(f"#!/bin/sh\ncat >> {note}\n[ $1 = get ] && echo password={key}\n:\n")
    script.chmod(0o755)
    git("config", "credential.helper", str(script))
    git("config", "credential.useHttpPath", "true")
    git("config", "credential.username", "x")
    return note


def test_managed_remote_names_server_and_site_and_that_is_said(mf, peer, git, token) -> None:
    git("remote", "add", "managed", f"http://x:y@127.0.0.1:{peer.port}/acme-store.git")
    ran = mf(*ASKED, FORGE_URL=None)
    assert ran.code == 0, ran.err
    assert "rel_1" in ran.out
    said = f"mf: site acme-store on {peer.url}, by the remote managed of this checkout\n"
    assert ran.err == said
    assert peer.seen[-1].headers["Authorization"] == f"Bearer {token}"
    assert mf(*ASKED, "--json", FORGE_URL=None).err == "", "programs read refusals there"


def test_key_of_gits_credential_helper_is_used_where_no_other_is_given(
    mf, peer, git, tmp_path: Path
) -> None:
    git("remote", "add", "managed", f"{peer.url}/acme-store.git")
    note = helper(git, tmp_path, "mfk_live_of_git")
    assert mf(*ASKED, FORGE_URL=None, FORGE_TOKEN=None).code == 0
    assert peer.seen[-1].headers["Authorization"] == "Bearer mfk_live_of_git"
    asked = note.read_text().splitlines()
    assert f"host=127.0.0.1:{peer.port}" in asked
    assert "path=acme-store.git" in asked
    note.unlink()
    assert mf(*ASKED, FORGE_URL=None).code == 0
    assert not note.exists(), "a key that is given is the one"


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


def test_address_as_git_rewrites_it_is_the_one_that_is_pushed_to(mf, peer, git) -> None:
    git("config", f"url.{peer.url}/.insteadOf", "forge:")
    git("remote", "add", "managed", "forge:acme-store.git")
    assert mf(*ASKED, FORGE_URL=None).code == 0


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
