"""What people are told who do what anybody does wrong once, and what to do then."""

from __future__ import annotations

import json

PAGE = "<!doctype html><p>{}</p>"


def test_who_comes_second_of_two_pushes_at_once_is_told_to_pull(server) -> None:
    ours = server.work()
    ours.commit({"index.html": PAGE.format("one")})
    ours.push()
    theirs = server.work(folder="theirs")
    theirs.git("pull", "--quiet", "managed", "main")
    theirs.commit({"index.html": PAGE.format("theirs")})
    ours.commit({"index.html": PAGE.format("ours")})
    hook = ours.path / ".git" / "hooks" / "pre-push"  # runs between the list of refs and the push
    hook.write_text(f"#!/bin/sh\nunset GIT_DIR\ngit -C {theirs.path} push -q managed main\n")
    hook.chmod(0o755)
    said = ours.push(check=False)
    assert "remote: Somebody else pushed there meanwhile: git pull, and push again" in said
    hook.unlink()
    ours.git("pull", "--quiet", "--rebase", "-X", "theirs", "managed", "main")
    assert "production is live" in ours.push()


def test_path_that_nobody_has_says_where_things_are(server) -> None:
    for path in ("//v1/sites", "/api/v1/sites", "/acme-store"):
        answer = server.fetch(path)
        assert answer.status == 404
        said = f"There is nothing at {path}: push to /SITE.git; the API is below /v1, described by"
        assert answer.body.decode().startswith(said)
    work = server.work()
    work.commit({"index.html": PAGE.format("one")})
    refused = work.git("push", f"{server.url}/", "main", check=False).stderr
    assert "remote: There is nothing at /info/refs: push to /SITE.git" in refused


def test_secret_of_before_a_roll_is_warned_of_by_each_push(server) -> None:
    made = server.gitd("key", "create", "--label", "ci", "--preset", "deploy-bot", "--json")
    key, token = json.loads(made), server.token
    rolling = server.gitd("key", "create", "--label", "r", "--scope", "*", "--scope", "keys:write")
    server.token = rolling.split()[0]
    rolled = server.api("POST", f"/api-keys/{key['id']}/roll", {"grace_s": 3600})
    assert rolled.status in (200, 201), rolled.body
    work = server.work()
    work.commit({"index.html": PAGE.format("one")})
    server.token = key["secret"]
    assert "remote: this key was rolled, and its old secret ends at" in work.push()
    server.token = rolled.json["data"]["secret"]
    work.commit({"index.html": PAGE.format("two")})
    assert "this key" not in work.push()
    server.token = token
