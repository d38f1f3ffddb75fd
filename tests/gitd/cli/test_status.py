"""mf status: what runs where, and what failed since."""

from __future__ import annotations

ENVIRONMENTS = "/v1/sites/acme-store/environments"
DIED = {"code": "deployment.start_failed", "message": "the web process ended with status 3"}


def place(peer, name: str, *, releases=(), builds=(), deployments=()) -> dict[str, object]:
    env_id = f"env_{name}"
    lists = {"releases": releases, "builds": builds, "deployments": deployments}
    for kind, items in lists.items():
        peer.on("GET", f"{ENVIRONMENTS}/{env_id}/{kind}", peer.many(list(items)))
    url = f"https://{name}.example.com"
    kind = name if name in ("production", "staging") else "preview"
    return {
        "id": env_id,
        "kind": kind,
        "slug": name,
        "status": "active",
        "preview_url": url,
        "running": None,
    }


def release(at: str, commit: str) -> dict[str, object]:
    return {"id": f"rel_{commit}", "current": True, "commit": commit, "deployed_at": at}


def test_status_shows_what_runs_where_and_what_failed_since(mf, peer) -> None:
    old, new = "2026-06-01T00:00:00.000Z", "2026-06-02T00:00:00.000Z"
    failed = {"status": "failed", "error": DIED}
    rows = [
        place(
            peer,
            "production",
            releases=[release(old, "aaaa")],
            builds=[{"id": "build_2", "status": "succeeded", "created_at": new}],
            deployments=[{"id": "dep_2", "created_at": "2026-06-03T00:00:00.000Z", **failed}],
        ),
        place(
            peer,
            "staging",
            releases=[release(new, "bbbb")],
            builds=[{"id": "build_1", "created_at": old, **failed}],
        ),
        place(peer, "topic", builds=[{"id": "build_3", "created_at": old, **failed}]),
        place(peer, "quiet"),
    ]
    peer.on("GET", ENVIRONMENTS, peer.many([*rows[2:], rows[1], rows[0]]))
    ran = mf("status", "--site", "acme-store")
    assert ran.code == 0, ran.err
    head, *lines = [line.split() for line in ran.out.splitlines()]
    assert head[:2] == ["ENV", "STATUS"]
    seen = {line[0]: line for line in lines}
    assert list(seen) == ["production", "staging", "topic", "quiet"]
    assert {"rel_aaaa", "aaaa", old, "dep_2", "https://production.example.com"} <= {
        *seen["production"]
    }
    assert "rel_bbbb" in seen["staging"]
    assert "build_1" not in seen["staging"], "what runs there came after it"
    assert "build_3" in seen["topic"]
    assert seen["quiet"][2:-1] == ["-"] * 7
    assert "production: dep_2 failed: the web process ended with status 3" in ran.err
    said = mf("status", "--site", "acme-store", "--json").json
    assert [each["failed"] and each["failed"]["id"] for each in said] == [
        "dep_2",
        None,
        "build_3",
        None,
    ]
    assert [each["release"] and each["release"]["id"] for each in said][:2] == [
        "rel_aaaa",
        "rel_bbbb",
    ]


def test_reason_of_a_failure_cannot_command_the_terminal(mf, peer) -> None:
    error = {"code": "build.command_failed", "message": "status 1\nIts last lines:\n\x1b[2Jlast"}
    build = {"id": "build_1", "job_id": "job_1", "status": "failed", "error": error}
    row = place(peer, "topic", builds=[{**build, "created_at": "2026-06-01T00:00:00.000Z"}])
    peer.on("GET", ENVIRONMENTS, peer.many([row]))
    said = mf("status", "--site", "acme-store").err.splitlines()
    assert said == [
        "topic: build_1 failed: status 1",
        "Its last lines:",
        "last",
        "Its log: mf logs job_1",
    ]
