"""The first push to a site, of whatever the developer calls the default branch."""

from __future__ import annotations

import json
import subprocess

import pytest

PAGE = "<!doctype html><p>{}</p>"


def clone(server, work, folder: str) -> subprocess.CompletedProcess[str]:
    url, target = f"{server.url}/acme-store.git", str(server.root / folder)
    helper = work.git("config", "credential.helper").stdout.strip()
    return work.git("-c", f"credential.helper={helper}", "clone", url, target)


def test_master_that_is_pushed_first_goes_live_and_is_what_a_clone_checks_out(server) -> None:
    work = server.work()
    work.git("checkout", "--quiet", "-b", "master")
    work.commit({"index.html": PAGE.format("one")})
    said = work.push("master")
    assert "remote: master: the default branch from now on, as it was pushed first" in said
    assert "remote: master -> production: build_" in said
    assert server.serves("one")
    cloned = clone(server, work, "clone")
    assert "warning" not in cloned.stderr
    assert (server.root / "clone" / "index.html").exists()
    assert server.api("GET", "/sites/acme-store").json["data"]["default_branch"] == "master"
    refused = work.push(":master", check=False)
    assert "deletion of the current branch prohibited" in refused
    advised = "mf sites set acme-store --default-branch "
    assert f"remote: Another default branch first: {advised}BRANCH" in refused
    work.push("master:main")
    server.run(*advised.split(), "main")
    assert "master: deleted" in work.push(":master")


def test_default_branch_of_a_site_is_changed_and_goes_live(server) -> None:
    work = server.work()
    work.commit({"index.html": PAGE.format("one")})
    work.push("main")
    work.git("checkout", "--quiet", "-b", "trunk")
    work.commit({"index.html": PAGE.format("two")})
    changed = server.mf("sites", "set", "acme-store", "--default-branch", "trunk")
    assert "trunk" in changed.stdout
    assert "trunk -> production" in work.push("trunk")
    assert server.serves("two")
    clone(server, work, "clone")
    assert "two" in (server.root / "clone" / "index.html").read_text()
    assert server.mf("sites", "set", "acme-store", check=False).returncode == 2
    bad = server.api("PATCH", "/sites/acme-store", {"default_branch": "a..b"})
    assert (bad.status, bad.json["error"]["param"]) == (400, "default_branch")


def test_push_says_how_a_branch_of_another_name_goes_live(
    server,
) -> None:
    work = server.work()
    work.git("checkout", "--quiet", "-b", "trunk")
    work.commit({"index.html": PAGE.format("one")})
    said = work.push("trunk")
    assert "production waits for main: git push managed trunk:main" in said
    first = "mf sites set acme-store --default-branch trunk"
    then = "mf build --site acme-store --env production --ref trunk --deploy --wait"
    assert f"or, with sites:write, let trunk go live itself: {first} " in said
    assert f"and then, as it is pushed already: {then} " in said
    for command in (first, then):
        server.run(*command.split())
    assert server.serves("one")
    work.commit({"index.html": PAGE.format("two")})
    assert "trunk -> production" in work.push("trunk")
    assert server.serves("two")


def test_key_of_one_preview_pushes_nothing_live(server) -> None:
    """Not by the first push of `master` either, which would go live by any other key."""
    body = {"kind": "preview", "branch": "master"}
    assert server.api("POST", "/sites/acme-store/environments", body).status == 201
    good = server.token
    bound = ("--site", "acme-store", "--env", "master", "--scope", "deployments:write")
    made = server.gitd("key", "create", "--label", "ci", *bound, "--json")
    server.token = json.loads(made)["secret"]
    work = server.work()
    work.git("checkout", "--quiet", "-b", "master")
    work.commit({"index.html": PAGE.format("one")})
    said = work.push("master")
    assert "remote: master -> master" in said
    assert "default branch" not in said
    server.token = good
    assert server.api("GET", "/sites/acme-store").json["data"]["default_branch"] == "main"
    releases = server.api("GET", "/sites/acme-store/environments/production/releases").json
    assert releases["data"] == []


def test_default_branch_that_would_not_go_live_is_refused_with_what_to_do(server) -> None:
    refused = server.mf("sites", "set", "acme-store", "--default-branch", "staging", check=False)
    assert refused.returncode == 3
    assert "site.branch_routed_elsewhere: By the branch routes, the target of" in refused.stderr
    assert "mf routes set" in refused.stderr
    assert server.api("GET", "/sites/acme-store").json["data"]["default_branch"] == "main"
    server.mf("routes", "set", "--site", "acme-store", "staging=live", "*=preview")
    server.mf("sites", "set", "acme-store", "--default-branch", "staging")
    work = server.work()
    work.git("checkout", "--quiet", "-b", "staging")
    work.commit({"index.html": PAGE.format("two")})
    assert "staging -> production" in work.push("staging")
    assert server.serves("two")


@pytest.mark.own_server
def test_head_follows_after_a_kill_in_between(server) -> None:
    """What the records say is the default branch, HEAD names after a start."""
    work = server.work()
    work.git("checkout", "--quiet", "-b", "master")
    work.commit({"index.html": PAGE.format("one")})
    work.push("master")
    (repository,) = (server.data / "repos").glob("site_*.git")
    server.kill()
    (repository / "HEAD").write_text("ref: refs/heads/main\n")  # as before it was pointed
    server.start()
    assert (repository / "HEAD").read_text() == "ref: refs/heads/master\n"
