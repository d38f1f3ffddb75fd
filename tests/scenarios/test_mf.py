"""mf against the installed daemon: contract §7."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time

import blake3

PLACE = ("--site", "acme-store", "--env", "production")
PAGE = "<!doctype html><title>t</title><p>{}</p>"
SLOW = """
[build]
command = "echo started; sleep 4; mkdir out; echo slow > out/index.html"
output = "out"
"""


def data(server, *arguments: str):
    return json.loads(server.mf(*arguments, "--json").stdout)


def push(server, files, folder="work"):
    """Push and do not wait: what follows is mf's to do."""
    work = server.work(folder=folder)
    work.commit(files)
    work.push("-o", "nowait", "main")
    return work


def begin(server, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["mf", *arguments],
        env=server.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stderr is not None
    seen = ""
    while text not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    return seen


def test_push_is_followed_rolled_back_promoted_and_deployed_again(server) -> None:
    work = push(server, {"index.html": PAGE.format("one")})
    [first] = server.mine(data(server, "jobs", "--resource-type", "build"))
    done = server.mf("jobs", "wait", first["id"])
    assert f"is live on production: http://acme-store.localhost:{server.sites_port}" in done.stdout
    assert server.serves("one")
    work.commit({"index.html": PAGE.format("two")})
    work.push("-o", "nowait", "main")
    second = data(server, "jobs", "--resource-type", "build")[0]
    server.mf("jobs", "wait", second["id"], "--quiet")
    assert server.serves("two")

    server.mf("rollback", *PLACE, "--wait")
    assert server.serves("one")
    releases = data(server, "releases", *PLACE)
    assert [release["current"] for release in releases] == [True, False, False]
    server.mf("rollback", releases[1]["id"], *PLACE, "--wait", "--quiet")
    assert server.serves("two")

    server.mf("promote", *PLACE, "--to", "staging", "--wait")
    assert server.serves("two", "acme-store--staging")
    artifact = releases[0]["artifact_id"]
    server.mf("deploy", artifact, "--site", "acme-store", "--env", "staging", "--wait")
    assert server.serves("one", "acme-store--staging")
    assert len(data(server, "builds", *PLACE)) == 2


def test_json_is_what_the_api_says(server) -> None:
    push(server, {"index.html": PAGE.format("one")})
    build = data(server, "builds", *PLACE)[0]
    server.mf("jobs", "wait", build["job_id"])
    build = data(server, "builds", *PLACE)[0]
    artifact, deployment = build["artifact_id"], build["deployment_id"]
    here = "/sites/acme-store/environments/production"
    for arguments, path in (
        (("sites",), "/sites"),
        (("sites", "show", "acme-store"), "/sites/acme-store"),
        (("env", "--site", "acme-store"), "/sites/acme-store/environments"),
        (("env", "show", "production", "--site", "acme-store"), here),
        (("url", *PLACE), here),
        (("routes", "show", "--site", "acme-store"), "/sites/acme-store/branch-routes"),
        (("builds", *PLACE), f"{here}/builds"),
        (("builds", "show", build["id"], *PLACE), f"{here}/builds/{build['id']}"),
        (("artifacts", *PLACE), f"{here}/artifacts"),
        (("artifacts", "show", artifact, *PLACE), f"{here}/artifacts/{artifact}"),
        (("deployments", *PLACE), f"{here}/deployments"),
        (("deployments", "show", deployment, *PLACE), f"{here}/deployments/{deployment}"),
        (("releases", *PLACE), f"{here}/releases"),
        (("jobs",), "/jobs"),
        (("jobs", "show", build["job_id"]), f"/jobs/{build['job_id']}"),
    ):
        assert data(server, *arguments) == server.api("GET", path).json["data"], arguments
        assert server.mf(*arguments).stdout, arguments


def test_manifest_and_provenance_can_be_checked_offline(server) -> None:
    push(server, {"index.html": PAGE.format("one")})
    [build] = server.mine(data(server, "jobs", "--resource-type", "build"))
    job = data(server, "jobs", "wait", build["id"], "--quiet")
    assert job["type"] == "deployment.roll"
    [artifact] = data(server, "artifacts", *PLACE)
    manifest = server.mf("artifacts", "manifest", artifact["id"], *PLACE).stdout
    assert artifact["digest"] == f"blake3:{blake3.blake3(manifest.encode()).hexdigest()}"
    envelope = json.loads(server.mf("artifacts", "provenance", artifact["id"], *PLACE).stdout)
    assert envelope["signatures"][0]["sig"] == artifact["signature"]


def test_failed_build_is_code_1_with_its_reason_and_its_log(server) -> None:
    broken = '[build]\ncommand = "echo the reason; exit 3"\noutput = "out"\n'
    push(server, {"managed.toml": broken})
    [job] = server.mine(data(server, "jobs"))
    done = server.mf("jobs", "wait", job["id"], check=False)
    assert done.returncode == 1
    assert "build.command_failed" in done.stdout
    assert "exit status 3" in done.stdout
    assert "the reason" in done.stderr
    build_id = job["resource"]["id"]
    for arguments in ((build_id,), (job["id"],), (build_id, *PLACE)):
        assert "the reason\n" in server.mf("logs", *arguments).stdout


def test_program_that_crashes_at_its_start_fails_whoever_follows_the_push(server) -> None:
    work = server.work()
    work.commit({"Procfile": "web: echo the reason; exit 127"})
    said = work.push("-o", "nowait", "main")
    (job_id,) = re.findall(r"watch it with: mf jobs wait (job_\w+)", said)
    for arguments in (
        ("jobs", "wait", job_id),
        ("jobs", "wait", *PLACE),
        ("logs", "--follow", job_id),
        ("logs", "--follow", job_id, "--json"),
    ):
        done = server.mf(*arguments, check=False)
        assert done.returncode == 1, arguments
        assert "deployment.start_failed" in done.stdout + done.stderr
        assert "the reason" in done.stdout + done.stderr


def test_wait_outlives_a_kill_of_the_server(server) -> None:
    push(server, {"managed.toml": SLOW})
    [job] = server.mine(data(server, "jobs"))
    waits = begin(server, "jobs", "wait", job["id"])
    seen = read_until(waits, "[build] started")
    server.kill()
    time.sleep(1)
    server.start()
    out, err = waits.communicate(timeout=60)
    assert waits.returncode == 0, err
    assert "is live on production" in out
    assert server.serves("slow")
    lines = [line for line in (seen + err).splitlines() if line.startswith("[collect] 1 file")]
    assert len(lines) == 1


def test_cancel_ends_a_build_and_who_waits_for_it(server) -> None:
    push(server, {"managed.toml": SLOW})
    [job] = server.mine(data(server, "jobs"))
    waits = begin(server, "jobs", "wait", job["id"])
    read_until(waits, "[build] started")
    assert data(server, "jobs", "cancel", job["id"])["status"] == "canceled"
    out, _ = waits.communicate(timeout=30)
    assert waits.returncode == 1
    assert "canceled" in out
    assert "is canceled" in server.mf("jobs", "cancel", job["id"]).stdout


def test_running_log_is_read_so_far_and_followed(server) -> None:
    push(server, {"managed.toml": SLOW})
    [job] = server.mine(data(server, "jobs"))
    waits = begin(server, "jobs", "wait", job["id"])
    read_until(waits, "[build] started")
    so_far = server.mf("logs", job["resource"]["id"]).stdout
    assert so_far.splitlines()[-1] == "started"
    followed = server.mf("logs", job["resource"]["id"], "--follow", "--stages").stdout
    assert "[collect]" in followed
    waits.communicate(timeout=30)


def test_same_idempotency_key_from_many_at_once_makes_one_build(server) -> None:
    push(server, {"index.html": PAGE.format("one")})
    start = ("build", *PLACE, "--ref", "main", "--idempotency-key", "run-17")
    found: list[str] = []

    def build() -> None:
        found.append(data(server, *start)["id"])

    threads = [threading.Thread(target=build) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1
    other = server.mf("build", *PLACE, "--clean", "--idempotency-key", "run-17", check=False)
    assert other.returncode == 3
    assert "idempotency.key_reused" in other.stderr


def test_build_alone_deploys_nothing_and_with_deploy_it_does(server) -> None:
    push(server, {"index.html": PAGE.format("one")})
    start = ("build", "--site", "acme-store", "--env", "staging", "--ref", "main", "--wait")
    assert "made art_" in server.mf(*start).stdout
    assert not server.serves("one", "acme-store--staging")
    job = data(server, *start, "--deploy")
    assert job["type"] == "deployment.roll"
    assert job["status"] == "succeeded"
    assert server.serves("one", "acme-store--staging")


REFUSALS = [
    (("build", *PLACE, "--ref", "nowhere"), "ref.not_found"),
    (("build", "--site", "other", "--env", "production"), "site.not_found"),
    (("build", "--site", "acme-store", "--env", "other"), "environment.not_found"),
    (("deploy", "art_00000000000000000000000000", *PLACE), "artifact.not_found"),
    (("promote", *PLACE, "--to", "staging"), "environment.nothing_running"),
    (("rollback", *PLACE), "environment.nothing_running"),
    (("rollback", "rel_00000000000000000000000000", *PLACE), "release.not_found"),
    (("jobs", "show", "job_00000000000000000000000000"), "job.not_found"),
    (("sites", "create", "acme-store"), "site.name_taken"),
    (("sites", "create", "Not A Name"), "request.invalid"),
    (("env", "delete", "production", "--site", "acme-store", "-y"), "environment.permanent"),
    (("routes", "set", "--site", "acme-store", "main=lve"), "request.invalid"),
    (("jobs", "--status", "lost"), "request.invalid"),
]


def test_refusals_are_code_3_with_the_servers_words(server) -> None:
    for arguments, code in REFUSALS:
        done = server.mf(*arguments, check=False)
        assert (done.returncode, done.stdout) == (3, ""), arguments
        assert code in done.stderr, arguments
        said = json.loads(server.mf(*arguments, "--json", check=False).stderr)
        assert said["error"]["code"] == code


def test_keys_may_do_what_their_scopes_say(server) -> None:
    made = server.gitd("key", "create", "--label", "reader", "--preset", "read-only", "--json")
    server.token = json.loads(made)["secret"]
    assert data(server, "sites")[0]["name"] == "acme-store"
    refused = server.mf("build", *PLACE, check=False)
    assert refused.returncode == 3
    assert "deployments:write" in refused.stderr
    server.token = server.token[:-1] + ("0" if server.token[-1] != "0" else "1")
    refused = server.mf("sites", check=False)
    assert refused.returncode == 3
    assert "gitd key create" in refused.stderr


def test_sites_environments_and_routes_come_and_go(server) -> None:
    assert (
        "git push managed trunk"
        in server.mf("sites", "create", "second", "--default-branch", "trunk").stderr
    )
    made = data(server, "env", "create", "--site", "second", "--branch", "feature/x")
    [found] = data(server, "env", "--site", "second", "--branch", "feature/x")
    assert found["id"] == made["id"]
    deleted = data(server, "env", "delete", made["slug"], "--site", "second", "--yes")
    assert deleted["id"] == made["id"]
    server.mf("routes", "set", "--site", "second", "trunk=live", "*=ignore")
    routes = data(server, "routes", "show", "--site", "second")["routes"]
    assert [route["target"] for route in routes] == ["live", "ignore"]
    server.mf("sites", "delete", "second", "--yes")
    assert [site["name"] for site in data(server, "sites")] == ["acme-store"]


def test_in_a_checkout_that_is_pushed_mf_needs_neither_address_nor_site_nor_key(server) -> None:
    """git's credential helper has the key, for the one as for the other."""
    work = server.work()
    store = server.root / "credentials"
    store.write_text(f"http://x:{server.token}@127.0.0.1:{server.port}\n")
    settings = server.root / "gitconfig"  # the user's: of a checkout's own helpers `mf` asks none
    settings.write_text(f"[credential]\n\thelper = store --file={store}\n")
    commit = work.commit({"index.html": PAGE.format("one")})
    environ = {k: v for k, v in server.environ.items() if not k.startswith("FORGE_")}
    environ["GIT_CONFIG_GLOBAL"] = str(settings)
    pushed = subprocess.run(
        ["git", "push", "managed", "main"], cwd=work.path, env=environ, capture_output=True
    )
    assert pushed.returncode == 0, pushed.stderr
    command = ["mf", "status"]
    done = subprocess.run(command, cwd=work.path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = f"mf: site acme-store on {server.url}, by the remote managed of this checkout\n"
    assert done.stderr == said
    production = next(line for line in done.stdout.splitlines() if line.startswith("production"))
    assert commit in production
    assert f"http://acme-store.localhost:{server.sites_port}" in production
    elsewhere = subprocess.run(
        command, cwd=server.root, env=environ, capture_output=True, text=True
    )
    assert elsewhere.returncode == 2
    assert "Missing option '--site'" in elsewhere.stderr
