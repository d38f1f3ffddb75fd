"""Each command: the request that it makes, and what it prints of the answer."""

from __future__ import annotations

import json
import uuid

import pytest

SITE = {
    "id": "site_01",
    "name": "acme-store",
    "default_branch": "trunk",
    "created_at": "2026-06-23T11:00:00.000Z",
    "git_url": "http://git.example/acme-store.git",
    "a_field_of_tomorrow": {"x": [1]},
}
PRODUCTION = {
    "id": "env_01",
    "site_id": "site_01",
    "slug": "production",
    "kind": "production",
    "branch": "trunk",
    "status": "active",
    "preview_url": "http://acme-store.localhost:8081",
}
JOB = {
    "id": "job_01",
    "type": "build.run",
    "status": "queued",
    "progress": 0,
    "resource": {"type": "build", "id": "build_01", "site_id": "site_01", "env_id": "env_01"},
    "result": None,
    "error": None,
}
HERE = "/v1/sites/acme-store/environments/production"
PLACE = ("--site", "acme-store", "--env", "production")

LISTS = [
    (("sites",), "/v1/sites", {}),
    (("sites", "list"), "/v1/sites", {}),
    (("env", "--site", "acme-store"), "/v1/sites/acme-store/environments", {}),
    (
        ("env", "list", "--site", "acme-store", "--branch", "feature/x"),
        "/v1/sites/acme-store/environments",
        {"branch": "feature/x"},
    ),
    (("domains", *PLACE), f"{HERE}/domains", {}),
    (("domains", "list", *PLACE), f"{HERE}/domains", {}),
    (("builds", *PLACE), f"{HERE}/builds", {}),
    (("builds", "list", *PLACE), f"{HERE}/builds", {}),
    (("artifacts", *PLACE), f"{HERE}/artifacts", {}),
    (("deployments", *PLACE), f"{HERE}/deployments", {}),
    (("releases", *PLACE), f"{HERE}/releases", {}),
    (("jobs",), "/v1/jobs", {}),
    (("keys",), "/v1/api-keys", {}),
    (("audit",), "/v1/audit-log", {}),
    (("webhooks",), "/v1/webhooks", {}),
    (("webhooks", "deliveries", "whe_01"), "/v1/webhooks/whe_01/deliveries", {}),
    (
        ("jobs", "list", "--status", "failed", "--resource-type", "build"),
        "/v1/jobs",
        {"status": "failed", "resource_type": "build"},
    ),
    (
        ("jobs", "--site", "acme-store", "--env", "production"),
        "/v1/jobs",
        {"site": "acme-store", "env": "production"},
    ),
]


@pytest.mark.parametrize(("arguments", "path", "query"), LISTS)
def test_list_prints_a_table_or_the_items(mf, peer, token, arguments, path, query) -> None:
    items = [{"id": f"x_{number}", "created_at": "now"} for number in range(3)]
    peer.on("GET", path, peer.many(items))
    ran = mf(*arguments)
    assert (ran.code, ran.err) == (0, "")
    assert len(ran.out.splitlines()) == 4
    assert mf(*arguments, "--json").json == items
    for seen in peer.seen:
        assert seen.query == {"limit": "20", **query}
        assert seen.headers["Authorization"] == f"Bearer {token}"
        assert seen.headers["Forge-Version"] == "2026-06-23"


def test_limit_and_all_follow_the_cursors(mf, peer) -> None:
    items = [{"id": f"job_{number}"} for number in range(250)]
    peer.on("GET", "/v1/jobs", peer.many(items))
    assert mf("jobs", "--limit", "7", "--json").json == items[:7]
    assert mf("jobs", "--limit", "130", "--json").json == items[:130]
    assert mf("jobs", "--all", "--json").json == items
    assert mf("jobs", "--json", "--all", "--limit", "3").json == items
    assert mf("jobs", "--limit", "250").err == ""
    cut = mf("jobs")
    assert len(cut.out.splitlines()) == 21
    assert "There are more jobs" in cut.err
    assert {int(seen.query["limit"]) for seen in peer.seen} <= {7, 20, 100}


def test_limit_of_nothing_is_wrong_usage(mf) -> None:
    assert mf("jobs", "--limit", "0").code == 2


SHOWS = [
    (("sites", "show", "acme-store"), "/v1/sites/acme-store"),
    (("sites", "capabilities", "acme-store"), "/v1/sites/acme-store/capabilities"),
    (("env", "show", "production", "--site", "acme-store"), HERE),
    (("domains", "show", "www.example.com", *PLACE), f"{HERE}/domains/www.example.com"),
    (("builds", "show", "build_01", *PLACE), f"{HERE}/builds/build_01"),
    (("artifacts", "show", "art_01", *PLACE), f"{HERE}/artifacts/art_01"),
    (("deployments", "show", "dep_01", *PLACE), f"{HERE}/deployments/dep_01"),
    (("jobs", "show", "job_01"), "/v1/jobs/job_01"),
    (("keys", "show", "key_01"), "/v1/api-keys/key_01"),
    (("webhooks", "show", "whe_01"), "/v1/webhooks/whe_01"),
]


@pytest.mark.parametrize(("arguments", "path"), SHOWS)
def test_show_prints_the_object(mf, peer, arguments, path) -> None:
    thing = {"id": "x_1", "status": "running", "links": {"log": "/v1/log"}, "new": 1}
    peer.on("GET", path, peer.one(thing))
    assert mf(*arguments, "--json").json == thing
    ran = mf(*arguments)
    assert ran.code == 0
    assert "links.log  /v1/log" in ran.out


def test_artifact_is_pinned_and_unpinned(mf, peer) -> None:
    artifact = {"id": "art_01", "pinned": True}
    peer.on("PUT", f"{HERE}/artifacts/art_01/pin", peer.one(artifact))
    peer.on("DELETE", f"{HERE}/artifacts/art_01/pin", peer.one(artifact))
    assert mf("artifacts", "pin", "art_01", *PLACE).out == (
        "art_01 is kept until it is unpinned.\n"
    )
    assert mf("artifacts", "unpin", "art_01", *PLACE).out == "art_01 is not pinned.\n"
    assert mf("artifacts", "pin", "art_01", *PLACE, "--json").json == artifact
    assert mf("artifacts", "unpin", "art_01", *PLACE, "--json").json == artifact


def test_site_is_made_and_told_how_to_push_to(mf, peer) -> None:
    peer.on("POST", "/v1/sites", peer.one(SITE, 201))
    ran = mf("sites", "create", "acme-store", "--default-branch", "trunk")
    assert ran.code == 0
    assert ran.out == "acme-store is made: site_01\n"
    assert "git remote add managed http://git.example/acme-store.git" in ran.err
    assert "git push managed trunk" in ran.err
    [seen] = peer.seen
    assert seen.body == {"name": "acme-store", "default_branch": "trunk"}
    assert uuid.UUID(seen.headers["Idempotency-Key"])


def test_git_address_is_derived_when_the_server_does_not_say_it(mf, peer) -> None:
    peer.on("POST", "/v1/sites", peer.one({"id": "site_01", "name": "acme-store"}, 201))
    ran = mf("sites", "create", "acme-store")
    assert f"git remote add managed {peer.url}/acme-store.git" in ran.err
    assert peer.seen[0].body == {"name": "acme-store"}


def test_preview_is_made_for_a_branch(mf, peer) -> None:
    path = "/v1/sites/acme-store/environments"
    made = {"id": "env_02", "slug": "feature-x", "preview_url": "http://x.localhost:8081"}
    peer.on("POST", path, peer.one(made, 201))
    ran = mf("env", "create", "--site", "acme-store", "--branch", "feature/x", "--ephemeral")
    assert ran.out == "feature-x is made: http://x.localhost:8081\n"
    assert peer.seen[0].body == {"kind": "preview", "branch": "feature/x", "ephemeral": True}
    assert mf("env", "create", "--site", "acme-store", "--branch", "b", "--json").json == made
    assert peer.seen[1].body == {"kind": "preview", "branch": "b"}
    mf("env", "create", "--site", "acme-store", "--branch", "b", "--no-ephemeral")
    assert peer.seen[2].body == {"kind": "preview", "branch": "b", "ephemeral": False}


@pytest.mark.parametrize(
    ("verb", "says"),
    [
        ("renew", "feature-x stays until 2026-07-23T11:00:00.000Z at least"),
        ("suspend", "feature-x is suspended"),
        ("resume", "feature-x is active"),
    ],
)
def test_environment_is_renewed_suspended_and_resumed(mf, peer, verb, says) -> None:
    path = "/v1/sites/acme-store/environments/feature-x"
    environment = {"slug": "feature-x", "expires_at": "2026-07-23T11:00:00.000Z"}
    peer.on("POST", f"{path}/{verb}", peer.one(environment))
    assert mf("env", verb, "feature-x", "--site", "acme-store").out == f"{says}\n"
    assert mf("env", verb, "feature-x", "--site", "acme-store", "--json").json == environment


DELETES = [
    (("sites", "delete", "acme-store"), "/v1/sites/acme-store", SITE, "/v1/sites/site_01"),
    (
        ("env", "delete", "production", "--site", "acme-store"),
        HERE,
        PRODUCTION,
        "/v1/sites/acme-store/environments/env_01",
    ),
    (
        ("keys", "revoke", "key_01"),
        "/v1/api-keys/key_01",
        {"id": "key_01", "label": "ci"},
        "/v1/api-keys/key_01",
    ),
    (
        ("domains", "remove", "www.example.com", *PLACE),
        f"{HERE}/domains/www.example.com",
        {"id": "dom_01", "hostname": "www.example.com"},
        f"{HERE}/domains/dom_01",
    ),
    (
        ("webhooks", "delete", "whe_01"),
        "/v1/webhooks/whe_01",
        {"id": "whe_01", "url": "https://example.com"},
        "/v1/webhooks/whe_01",
    ),
]


@pytest.mark.parametrize(("arguments", "path", "thing", "id_path"), DELETES)
@pytest.mark.parametrize("is_empty", [True, False])
def test_delete_by_id_after_a_yes(mf, peer, arguments, path, thing, id_path, is_empty) -> None:
    peer.on("GET", path, peer.one(thing))
    deleted = {"id": thing["id"], "deleted": True}
    peer.on("DELETE", id_path, peer.raw("", status=204) if is_empty else peer.one(deleted))
    assert mf(*arguments, "--yes").code == 0
    assert mf(*arguments, "-y", "--json").json == (thing if is_empty else deleted)


@pytest.mark.parametrize(("arguments", "path", "thing", "id_path"), DELETES)
def test_delete_without_a_terminal_never_asks(mf, peer, arguments, path, thing, id_path) -> None:
    peer.on("GET", path, peer.one(thing))
    ran = mf(*arguments)
    assert ran.code == 2
    assert "--yes" in ran.err
    assert [seen.method for seen in peer.seen] == ["GET"]


def test_delete_whose_answer_was_lost_is_a_success(mf, peer) -> None:
    peer.on("GET", "/v1/sites/acme-store", peer.one(SITE))
    gone = peer.refusal(404, "site.not_found", "gone")
    peer.on("DELETE", "/v1/sites/site_01", peer.broken(), gone)
    assert mf("sites", "delete", "acme-store", "-y").code == 0


STARTS = [
    (("build", *PLACE), f"{HERE}/builds", {}),
    (("build", *PLACE, "--ref", "feature/x"), f"{HERE}/builds", {"ref": "feature/x"}),
    (
        ("build", *PLACE, "--ref", "v1", "--clean", "--deploy"),
        f"{HERE}/builds",
        {"ref": "v1", "clean": True, "deploy": True},
    ),
    (("deploy", "art_01", *PLACE), f"{HERE}/deployments", {"artifact_id": "art_01"}),
    (("promote", *PLACE, "--to", "staging"), f"{HERE}/promote", {"to_env": "staging"}),
    (("rollback", "dep_01", *PLACE), f"{HERE}/deployments/dep_01/rollback", None),
    (("rollback", "rel_01", *PLACE), f"{HERE}/deployments/rel_01/rollback", None),
]


@pytest.mark.parametrize(("arguments", "path", "body"), STARTS)
def test_start_says_which_job_and_how_to_follow_it(mf, peer, arguments, path, body) -> None:
    peer.on("POST", path, peer.one(JOB, 202))
    ran = mf(*arguments)
    assert (ran.code, ran.out) == (0, "build_01 queued as job_01\n")
    assert "mf jobs wait job_01" in ran.err
    assert mf(*arguments, "--json").json == JOB
    posts = [seen for seen in peer.seen if seen.method == "POST"]
    assert [seen.body for seen in posts] == [body, body]
    keys = {seen.headers["Idempotency-Key"] for seen in posts}
    assert len(keys) == 2


@pytest.mark.parametrize(("arguments", "path", "body"), STARTS)
def test_lost_answer_is_asked_for_again_with_the_same_key(mf, peer, arguments, path, body) -> None:
    peer.on("POST", path, peer.broken(), peer.broken(), peer.one(JOB, 202))
    assert mf(*arguments, "--json").json == JOB
    assert len(peer.seen) == 3
    assert len({seen.headers["Idempotency-Key"] for seen in peer.seen}) == 1


def test_idempotency_key_can_be_chosen(mf, peer) -> None:
    peer.on("POST", f"{HERE}/builds", peer.one(JOB, 202))
    assert mf("build", *PLACE, "--idempotency-key", "run 17").code == 0
    assert peer.seen[0].headers["Idempotency-Key"] == "run 17"


@pytest.mark.parametrize("key", ["", "x" * 256, "größe", "a\nb", " a"])
def test_odd_idempotency_key_is_wrong_usage(mf, peer, key) -> None:
    assert mf("build", *PLACE, "--idempotency-key", key).code == 2
    assert peer.seen == []


def test_restart_is_one_request(mf, peer) -> None:
    """What runs, and whether something newer is on its way, is the server's to see."""
    peer.on("POST", f"{HERE}/restart", peer.one(JOB, 202))
    ran = mf("restart", *PLACE, "--idempotency-key", "run 17")
    assert (ran.code, ran.out) == (0, "build_01 queued as job_01\n")
    (seen,) = peer.seen
    assert (seen.body, seen.headers["Idempotency-Key"]) == (None, "run 17")


def test_restart_behind_something_newer_is_refused_with_how_it_is_followed(mf, peer) -> None:
    said = "dep_01 is on its way to production: its program begins anew by that. Its job is job_01."
    peer.on("POST", f"{HERE}/restart", peer.refusal(409, "deployment.under_way", said))
    ran = mf("restart", *PLACE)
    assert ran.code == 3
    assert "dep_01 is on its way" in ran.err
    assert "mf jobs wait" in ran.err


def test_rollback_without_an_id_takes_back_what_runs_now(mf, peer) -> None:
    releases = [
        {"id": "rel_03", "current": True, "artifact_id": "art_03"},
        {"id": "rel_02", "current": False},
    ]
    deployments = [{"id": f"dep_{n:02}", "release_id": None} for n in range(150)]
    deployments[120] = {"id": "dep_of_rel_03", "release_id": "rel_03"}
    peer.on("GET", f"{HERE}/releases", peer.many(releases))
    peer.on("GET", f"{HERE}/deployments", peer.many(deployments))
    peer.on("POST", f"{HERE}/deployments/dep_of_rel_03/rollback", peer.one(JOB, 202))
    assert mf("rollback", *PLACE, "--json").json == JOB


def test_rollback_uses_the_deployment_that_a_release_names(mf, peer) -> None:
    releases = [{"id": "rel_03", "current": True, "deployment_id": "dep_03"}]
    peer.on("GET", f"{HERE}/releases", peer.many(releases))
    peer.on("POST", f"{HERE}/deployments/dep_03/rollback", peer.one(JOB, 202))
    assert mf("rollback", *PLACE).code == 0


@pytest.mark.parametrize("named", [(), ("rel_02",)])
@pytest.mark.parametrize("artifact", ["art_01", "art_03"])
def test_rollback_names_what_comes_back_and_warns_of_the_same(mf, peer, named, artifact) -> None:
    running = {"id": "rel_03", "current": True, "deployment_id": "dep_03", "artifact_id": "art_03"}
    peer.on("GET", f"{HERE}/releases", peer.many([running]))
    job = {**JOB, "type": "deployment.roll", "resource": {**JOB["resource"], "id": "dep_04"}}
    peer.on("POST", f"{HERE}/deployments/{(*named, 'dep_03')[0]}/rollback", peer.one(job, 202))
    made = {"id": "dep_04", "artifact_id": artifact, "commit": "a1b2c3d4e5f6a7b8"}
    peer.on("GET", f"{HERE}/deployments/dep_04", peer.one(made))
    ran = mf("rollback", *named, *PLACE)
    assert ran.code == 0
    assert f"Back to commit a1b2c3d4e5f6, {artifact}\n" in ran.err
    is_same = artifact == "art_03"
    assert ("Warning: rel_03 ran that very artifact" in ran.err) is is_same
    assert ("mf rollback RELEASE --site acme-store --env production" in ran.err) is is_same
    ran = mf("rollback", *named, *PLACE, "--json")
    assert (ran.json, ran.err) == (job, "")


def test_rollback_of_nothing_is_refused(mf, peer) -> None:
    peer.on("GET", f"{HERE}/releases", peer.many([]))
    ran = mf("rollback", *PLACE)
    assert ran.code == 3
    assert "environment.nothing_running" in ran.err
    ran = mf("rollback", *PLACE, "--json")
    assert ran.out == ""
    assert json.loads(ran.err) == {
        "error": {
            "type": "conflict",
            "code": "environment.nothing_running",
            "message": "Nothing runs on production yet.",
            "doc_url": f"{peer.url}/errors/environment.nothing_running",
        },
        "request_id": "req_01J9ZZZZZZZZZZZZZZZZZZZZZZ",
    }


@pytest.mark.parametrize("name", ["manifest", "provenance"])
def test_signed_bytes_are_printed_as_they_are(mf, peer, name) -> None:
    said = '{ "b":1,\n"a" :  2}'
    peer.on("GET", f"{HERE}/artifacts/art_01/{name}", peer.raw(said))
    assert mf("artifacts", name, "art_01", *PLACE).out == said
    assert mf("artifacts", name, "art_01", *PLACE, "--json").out == said
    assert mf("artifacts", name, "art_02", *PLACE).code == 3


def test_jobs_are_listed_with_the_names_of_where_they_are(mf, peer) -> None:
    gone = {**JOB, "id": "job_02", "resource": {**JOB["resource"], "site_id": "site_02"}}
    peer.on("GET", "/v1/jobs", peer.many([JOB, gone]))
    peer.on("GET", "/v1/sites/site_01", peer.one({"id": "site_01", "name": "acme-store"}))
    slug = {"id": "env_01", "slug": "feature-x"}
    peer.on("GET", "/v1/sites/site_01/environments", peer.many([slug]))
    head, *rows = [line.split() for line in mf("jobs").out.splitlines()]
    assert head[:3] == ["JOB", "SITE", "ENV"]
    assert [row[:3] for row in rows] == [
        ["job_01", "acme-store", "feature-x"],
        ["job_02", "site_02", "feature-x"],
    ]
    seen = len(peer.seen)
    assert mf("jobs", "--json").json == [JOB, gone]
    assert len(peer.seen) == seen + 1, "a program gets what the API says, and nothing is asked for"


def test_environment_of_no_site_is_wrong_usage(mf) -> None:
    ran = mf("jobs", "--env", "production")
    assert (ran.code, "--site" in ran.err) == (2, True)


def test_job_is_canceled(mf, peer) -> None:
    canceled = {**JOB, "status": "canceled"}
    peer.on("POST", "/v1/jobs/job_01/cancel", peer.one(canceled))
    assert mf("jobs", "cancel", "job_01").out == "job_01 is canceled\n"
    assert mf("jobs", "cancel", "job_01", "--json").json == canceled


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (("sites", "set", "acme-store"), "/v1/sites/acme-store"),
        (
            ("env", "set", "staging", "--site", "acme-store"),
            "/v1/sites/acme-store/environments/staging",
        ),
    ],
)
@pytest.mark.parametrize(("choice", "sent"), [("wait", "wait"), ("default", None)])
def test_push_policy_is_set(mf, peer, arguments, path, choice, sent) -> None:
    peer.on("PATCH", path, peer.one({"when_pushed_again": sent}))
    ran = mf(*arguments, "--when-pushed-again", choice)
    assert (ran.code, ran.out) == (0, f"when_pushed_again  {sent or '-'}\n")
    assert peer.seen[-1].body == {"when_pushed_again": sent}
    assert mf(*arguments, "--when-pushed-again", "never").code == 2
    assert mf(*arguments).code == 2


def test_routes_are_shown_and_replaced_in_order(mf, peer) -> None:
    path = "/v1/sites/acme-store/branch-routes"
    wanted = [
        {"pattern": "main", "target": "live"},
        {"pattern": "a=b/*", "target": "ignore"},
        {"pattern": "*", "target": "preview"},
    ]
    peer.on("GET", path, peer.one(wanted))
    peer.on("PUT", path, peer.one({"routes": wanted}))
    shown = mf("routes", "show", "--site", "acme-store")
    rows = [tuple(line.split()) for line in shown.out.splitlines()[1:]]
    assert rows == [("main", "live"), ("a=b/*", "ignore"), ("*", "preview")]
    arguments = ("routes", "set", "--site", "acme-store", "main=live", "a=b/*=ignore", "*=preview")
    assert mf(*arguments).out == shown.out
    assert peer.seen[-1].body == {"routes": wanted}


@pytest.mark.parametrize("route", ["main", "=live", "main=", "="])
def test_route_without_pattern_or_target_is_wrong_usage(mf, peer, route) -> None:
    assert mf("routes", "set", "--site", "acme-store", route).code == 2
    assert peer.seen == []


def test_address_of_an_environment_is_printed(mf, peer) -> None:
    peer.on("GET", HERE, peer.one(PRODUCTION), peer.one(PRODUCTION), peer.one({"id": "env_01"}))
    assert mf("url", *PLACE).out == "http://acme-store.localhost:8081\n"
    assert mf("url", *PLACE, "--json").json == PRODUCTION
    assert mf("url", *PLACE).code == 4


def test_version_needs_no_server(mf) -> None:
    ran = mf("version", FORGE_URL="nonsense", FORGE_TOKEN=None)
    assert ran.out.startswith("mf ")
    assert "2026-06-23" in ran.out
    assert set(mf("version", "--json").json) == {"mf", "api"}


def test_site_may_come_from_the_environment(mf, peer) -> None:
    peer.on("GET", f"{HERE}/builds", peer.many([]))
    assert mf("builds", "--env", "production", FORGE_SITE="acme-store").code == 0


def test_url_option_wins_over_the_environment(mf, peer) -> None:
    peer.on("GET", "/v1/sites", peer.many([]))
    assert mf("--url", f"{peer.url}/", "sites", FORGE_URL="http://127.0.0.1:1").code == 0


def test_branch_with_a_slash_as_environment_stays_one_name(mf, peer) -> None:
    mf("builds", "--site", "acme-store", "--env", "feature/x")
    assert peer.seen[0].path == "/v1/sites/acme-store/environments/feature%2Fx/builds"
