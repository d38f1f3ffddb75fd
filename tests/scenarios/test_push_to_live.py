"""Push to live with the installed daemon and the real git: contract §4, §6."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.scenarios.conftest import wait_until
from tests.spoiling import flip

PAGE = "<!doctype html><title>t</title><p>{}</p>"


def current(server, env="production", site="acme-store"):
    rows = server.api("GET", f"/sites/{site}/environments/{env}/releases").json["data"]
    return next((row for row in rows if row["current"]), None)


def releases(server, env="production", site="acme-store"):
    return server.api("GET", f"/sites/{site}/environments/{env}/releases").json["data"]


def builds(server, env="production", site="acme-store"):
    return server.api("GET", f"/sites/{site}/environments/{env}/builds").json["data"]


def finish(server, answer):
    """Wait for the job of a 202 and return it."""
    assert answer.status == 202, answer.body
    job_id = answer.json["data"]["id"]
    assert answer.headers["Location"] == f"/v1/jobs/{job_id}"
    while True:
        job = server.api("GET", f"/jobs/{job_id}?wait=10").json["data"]
        if job["status"] not in ("queued", "running"):
            return job


def test_first_start_is_ready_at_once_and_stops_cleanly(stopped) -> None:
    stopped.slots = 2
    took = stopped.start()
    assert stopped.said == [
        f"git and API at http://127.0.0.1:{stopped.port}\n",
        f"sites at http://NAME.localhost:{stopped.sites_port}\n",
    ]
    assert took < 60, "some 0.5 s on a quiet machine"
    assert stopped.process.poll() is None
    children = stopped.children("builder") + stopped.children("host")
    assert len(children) == 3
    assert stopped.stop() == 0
    assert stopped.children("builder") + stopped.children("host") == []


def test_push_goes_live_then_second_push_then_rollback_brings_the_first_back(server) -> None:
    work = server.work()
    work.commit({"index.html": PAGE.format("one")})
    said = work.push()
    assert "remote:" in said
    assert f"http://acme-store.localhost:{server.sites_port}" in said
    assert server.serves("one")
    first = current(server)
    work.commit({"index.html": PAGE.format("two")})
    work.push()
    assert server.serves("two")
    second = current(server)
    deployment = server.api("GET", "/sites/acme-store/environments/production/deployments").json[
        "data"
    ][0]
    assert deployment["release_id"] == second["id"]
    job = finish(
        server,
        server.api(
            "POST",
            f"/sites/acme-store/environments/production/deployments/{deployment['id']}/rollback",
        ),
    )
    assert job["status"] == "succeeded"
    assert server.serves("one")
    assert current(server)["artifact_id"] == first["artifact_id"]
    history = releases(server)
    assert [row["current"] for row in history] == [True, False, False]
    assert len(builds(server)) == 2, "a rollback builds nothing"


def test_promotion_serves_the_same_artifact_with_no_build(server) -> None:
    work = server.work()
    work.commit({"index.html": PAGE.format("staged")})
    work.push("main:staging")
    assert server.serves("staged", "acme-store--staging")
    assert server.visit().status == 404, "nothing runs on production yet"
    job = finish(
        server,
        server.api(
            "POST",
            "/sites/acme-store/environments/staging/promote",
            {"to_env": "production"},
        ),
    )
    assert job["status"] == "succeeded"
    assert job["type"] == "deployment.roll"
    assert server.serves("staged")
    assert current(server)["artifact_id"] == current(server, "staging")["artifact_id"]
    assert builds(server) == []


def test_branch_named_like_anothers_preview_drops_no_push(server) -> None:
    work = server.work()
    work.commit({"index.html": PAGE.format("one")})
    (slug,) = re.findall(r"production -> (\S+) \(new\)", work.push("main:production"))
    work.push(":production")
    assert f"{slug} -> {slug} (new)" in work.push(f"main:{slug}")
    said = work.push("main", "main:production")
    assert "production is live" in said
    (other,) = re.findall(r"production -> (\S+) \(new\)", said)
    assert other.startswith("production-")
    assert other != slug
    assert server.serves("one")


def test_branch_gets_a_preview_that_goes_with_it(server) -> None:
    work = server.work()
    work.commit({"index.html": PAGE.format("topic")})
    said = work.push("main:feature/checkout")
    (url,) = re.findall(r"http://(acme-store-feature-checkout-[0-9a-f]+)\.localhost:\d+", said)
    assert server.serves("topic", url)
    listed = server.api("GET", "/sites/acme-store/environments?branch=feature/checkout").json
    assert [e["slug"] for e in listed["data"]] == ["feature-checkout"]
    work.push("main:feature/checkout", "--force")
    assert "preview feature-checkout" in work.push(":feature/checkout")
    gone = server.api("GET", "/sites/acme-store/environments/feature-checkout")
    assert gone.status == 404
    wait_until(lambda: server.visit(url).status != 200, "it is served no more")
    assert server.visit(url).status == 404


def test_shallow_clone_of_elsewhere_is_refused_with_what_to_do_and_one_of_here_goes_live(
    server,
) -> None:
    """As CI clones: with the last commit alone."""
    elsewhere = server.work(folder="elsewhere")
    elsewhere.commit({"index.html": PAGE.format("zero")})
    elsewhere.commit({"index.html": PAGE.format("one")})
    work = server.work()
    work.git("fetch", "--depth", "1", f"file://{elsewhere.path}", "main")
    work.git("checkout", "-q", "-B", "main", "FETCH_HEAD")
    said = work.push(check=False)
    assert "shallow update not allowed" in said
    assert "then push again: git fetch --unshallow" in said
    assert server.jobs() == []
    work.git("fetch", "--unshallow", f"file://{elsewhere.path}", "main")
    assert "production is live" in work.push()

    helper = work.git("config", "credential.helper").stdout.strip()
    url, here = f"{server.url}/acme-store.git", str(server.root / "here")
    work.git("-c", f"credential.helper={helper}", "clone", "-q", "--depth", "1", url, here)
    (server.root / "here" / "index.html").write_text(PAGE.format("two"))
    work.git("-C", here, "-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qam", "two")
    asked = ["-c", f"credential.helper={helper}", "push", "--progress", "origin", "main"]
    assert "production is live" in work.git("-C", here, *asked).stderr
    assert server.serves("two")


def test_ignored_branch_is_kept_and_says_so(server) -> None:
    routes = {"routes": [{"pattern": "wip/*", "target": "ignore"}]}
    answer = server.api("PUT", "/sites/acme-store/branch-routes", routes)
    assert answer.status == 200, answer.body
    work = server.work()
    work.commit({"index.html": PAGE.format("wip")})
    assert "ignore" in work.push("main:wip/x")
    assert server.jobs() == []


def test_failing_build_leaves_the_prior_release_and_tells_why(server) -> None:
    work = server.work()
    work.commit({"index.html": PAGE.format("good")})
    work.push()
    before = current(server)
    order = r"\033]52;c;cm0gLXJm\007"  # to put something into the clipboard
    toml = f'[build]\ncommand = \'printf "{order}"; echo about to fail; exit 3\'\noutput = "."\n'
    work.commit({"managed.toml": toml, "index.html": PAGE.format("bad")})
    done = work.git("push", "--progress", "managed", "main", check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, "a push never fails because a build fails"
    assert "about to fail" in said
    assert "last lines" not in said, "they were said already"
    assert "\x1b" not in said, "no word of a build is an order to the terminal"
    assert "exited with 3" in said or "status 3" in said
    assert before["id"] in said
    assert "full log: mf logs job_" in said
    assert server.serves("good")
    assert current(server) == before
    (failed, *_) = builds(server)
    assert failed["status"] == "failed"
    log = server.api("GET", f"/sites/acme-store/environments/production/builds/{failed['id']}/log")
    assert b"\x1b]52;c;cm0gLXJm\x07about to fail" in log.body


def test_lines_of_each_environment_of_one_push_are_headed(server) -> None:
    work = server.work()
    good = work.commit({"index.html": PAGE.format("one")})
    work.commit({"managed.toml": '[build]\ncommand = "echo broken; exit 3"\noutput = "o"\n'})
    said = work.push("main:bad", f"{good}:refs/heads/main")
    blocks = re.split(r"remote: (\S+) \(build_\w+\):", said)
    told = dict(zip(blocks[1::2], blocks[2::2], strict=True))
    assert set(told) == {"bad", "production"}
    assert "BUILD FAILED" in told["bad"]
    assert "production is live" in told["production"]
    assert not re.search(r"\(build_\w+\):", work.push("main", "--force")), "one needs no heading"


def test_commit_that_nothing_can_build_says_what_was_looked_for(server) -> None:
    work = server.work()
    work.commit({"README": "nothing here"})
    said = work.push()
    assert "index.html" in said
    assert "Procfile" in said


def test_name_that_is_no_text_is_refused_by_name(server) -> None:
    work = server.work()
    toml = '[build]\ncommand = "mkdir dist && cat caf*.txt > dist/index.html"\noutput = "dist"\n'
    work.commit({"managed.toml": toml, os.fsdecode(b"caf\xe9.txt"): "latin"})
    said = work.push()
    assert r"caf\xe9.txt: the name is not UTF-8" in said
    assert "build.builder_lost" not in said, "it is the commit's fault, and tried once"


def test_build_command_and_output_folder(server) -> None:
    work = server.work()
    work.commit(
        {
            "managed.toml": '[build]\ncommand = "mkdir -p dist && ./make.sh"\noutput = "dist"\n',
            "make.sh": "#!/bin/sh\nid -u > dist/uid.txt\necho built > dist/index.html\n",
        }
    )
    work.git("update-index", "--chmod=+x", "make.sh")
    work.git("commit", "--quiet", "--message", "executable")
    work.push()
    assert server.serves("built")
    assert server.visit(path="/uid.txt").body.strip() != b"0"
    assert server.visit(path="/make.sh").status == 404


NEEDS_NODE = pytest.mark.skipif(not Path("/usr/bin/node").exists(), reason="needs /usr/bin/node")


@pytest.mark.parametrize("example", ["python-web", pytest.param("node-web", marks=NEEDS_NODE)])
def test_web_process_answers_and_is_replaced_without_a_gap(server, example) -> None:
    work = server.work()
    work.use(example)
    said = work.push()
    answer = server.visit()
    assert answer.status == 200, said + server.log()
    failures = []
    done = []

    def visit_all_the_time() -> None:
        while not done:
            try:
                if (status := server.visit().status) != 200:
                    failures.append(status)
            except OSError as error:
                failures.append(error)

    visitor = threading.Thread(target=visit_all_the_time)
    visitor.start()
    work.commit({"NOTE": "second"})
    work.push()
    done.append(True)
    visitor.join()
    assert failures == []
    assert len(releases(server)) == 2


def test_web_release_that_fails_its_check_never_gets_traffic(server) -> None:
    work = server.work()
    work.use("python-web")
    work.push()
    before = current(server)
    work.commit({"Procfile": "web: /usr/bin/python3 -c 'raise SystemExit(4)'\n"})
    said = work.push()
    assert "DEPLOYMENT FAILED" in said
    assert before["id"] in said
    assert server.visit().status == 200
    assert current(server) == before
    assert len(releases(server)) == 1


def test_release_command_runs_once_before_the_switch_and_gates_it(server) -> None:
    work = server.work()
    work.use("python-web")
    procfile = (work.path / "Procfile").read_text()
    web = next(line for line in procfile.splitlines() if line.startswith("web:"))
    work.commit({"Procfile": f"{web}\nrelease: python3 migrate.py && echo migrating now\n"})
    assert work.push().count("migrating now") >= 1
    work.commit({"Procfile": f"{web}\nrelease: echo it breaks; exit 7\n"})
    said = work.push()
    assert "it breaks" in said
    assert "DEPLOYMENT FAILED" in said
    assert len(releases(server)) == 1
    assert server.visit().status == 200


def test_nowait_and_quiet_return_at_once(server) -> None:
    work = server.work()
    toml = '[build]\ncommand = "sleep 5; mkdir o; echo {} > o/index.html"\noutput = "o"\n'
    loud = ("--progress", "-o", "nowait", "-o", "rebuild", "-o", "rebild")
    for arguments, text in ((loud, "slow"), (("--quiet",), "quiet")):
        work.commit({"managed.toml": toml.format(text)})
        done = work.git("push", *arguments, "managed", "main")
        assert ("(clean)" in done.stderr) is (arguments == loud)
        assert ("push option 'rebild': unknown here" in done.stderr) is (arguments == loud)
        assert "mf jobs wait job_" in done.stderr
        assert ("where there is no terminal" in done.stderr) == (arguments == ("--quiet",))
        assert "live after" not in done.stderr
        assert not server.serves(text)
        server.wait_for(text)


def test_interrupted_push_leaves_the_build_running(server) -> None:
    work = server.work()
    toml = '[build]\ncommand = "echo started; sleep 2; mkdir o; echo x > o/index.html"\n'
    work.commit({"managed.toml": toml + 'output = "o"\n'})
    push = subprocess.Popen(
        ["git", "push", "--progress", "managed", "main"],
        cwd=work.path,
        env=server.environ,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert push.stderr
    for line in push.stderr:
        if "started" in line:
            break
    os.killpg(push.pid, signal.SIGINT)
    push.wait(30)
    push.stderr.close()
    server.wait_for("x")


def test_push_is_shown_nothing_more_once_its_key_is_revoked(server) -> None:
    work = server.work()
    ticking = "for i in $(seq 600); do echo tick; sleep 0.1; done"
    work.commit({"managed.toml": f'[build]\ncommand = "{ticking}"\noutput = "."\n'})
    made = server.gitd("key", "create", "--label", "gone", "--preset", "deploy-bot", "--json")
    key = json.loads(made)
    pushing = subprocess.Popen(
        ["git", "push", "--progress", "managed", "main"],
        cwd=work.path,
        env={**server.environ, "FORGE_TOKEN": key["secret"]},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert pushing.stderr
    for line in pushing.stderr:
        if "tick" in line:
            break
    server.gitd("key", "revoke", key["id"])
    rest = pushing.stderr.read()
    pushing.stderr.close()
    assert pushing.wait(30) == 0  # the refs are kept: the push itself did not fail
    assert "this key is not good any more: the work goes on, and is not shown" in rest
    (job,) = [job for job in server.jobs() if job["status"] == "running"]
    server.mf("jobs", "cancel", str(job["id"]))


def test_rest_of_ordinary_git_work(server) -> None:
    work = server.work()
    first = work.commit({"index.html": PAGE.format("one"), "big.bin": os.urandom(3_000_000)})
    work.push()
    work.git("tag", "-a", "v1", "-m", "one")
    work.push("v1")
    second = work.commit({"index.html": PAGE.format("two")})
    work.push("--atomic", "main", "main:other")
    listed = work.git("ls-remote", "managed").stdout
    assert f"{second}\trefs/heads/main" in listed
    assert f"{first}\trefs/tags/v1^{{}}" in listed
    clone = server.root / "clone"
    helper = "credential.helper=!f() { echo username=x; echo password=$FORGE_TOKEN; }; f"
    subprocess.run(
        ["git", "-c", helper, "clone", "--quiet", f"{server.url}/acme-store.git", str(clone)],
        env=server.environ,
        check=True,
    )
    assert (clone / "big.bin").stat().st_size == 3_000_000
    work.git("reset", "--quiet", "--hard", first)
    assert "rejected" in work.push("main", check=False)
    work.push("--force", "main")
    assert server.serves("one")
    subprocess.run(
        ["git", "-c", helper, "fetch", "--quiet", "--prune"],
        cwd=clone,
        env=server.environ,
        check=True,
    )
    subprocess.run(["git", "fsck", "--strict"], cwd=clone, env=server.environ, check=True)


def test_wrong_key_and_missing_scope_are_told_apart(server) -> None:
    work = server.work()
    work.commit({"index.html": "x"})
    good = server.token
    server.token = "mfk_live_" + "0" * 36
    refused = work.git("push", "managed", "main", check=False)
    assert refused.returncode != 0
    assert "Authentication failed" in refused.stderr
    made = server.gitd("key", "create", "--label", "ro", "--preset", "read-only", "--json")
    server.token = json.loads(made)["secret"]
    refused = work.git("push", "managed", "main", check=False)
    assert "deployments:write" in refused.stderr
    server.gitd("key", "revoke", json.loads(made)["id"])
    assert server.api("GET", "/sites").status == 401
    server.token = good
    work.push()


def test_key_of_one_environment_pushes_its_branch_and_knows_of_no_other(server) -> None:
    """Neither by a name nor by a commit; and it takes no branch of another for its own."""
    work = server.work()
    secret = work.commit({"index.html": PAGE.format("of main alone")})
    work.push("main", "HEAD:refs/heads/secret-plan")
    bound = ("--site", "acme-store", "--env", "staging", "--scope", "deployments:write")
    server.token = json.loads(server.gitd("key", "create", "--label", "ci", *bound, "--json"))[
        "secret"
    ]
    work.git("checkout", "-q", "--orphan", "staging")
    work.commit({"index.html": PAGE.format("staged")})
    work.push("staging")
    assert server.serves("staged", "acme-store--staging")
    refused = work.git("push", "managed", "staging:secret-plan", "staging:main", check=False)
    assert refused.stderr.count("(this key is bound to staging)") == 2
    assert "non-fast-forward" not in refused.stderr, "git knows of no such branch there"
    path = "/acme-store.git/info/refs?service=git-receive-pack"
    listed = server.fetch(path, Authorization=f"Bearer {server.token}").body.decode()
    assert "refs/heads/staging" in listed
    assert "secret-plan" not in listed
    assert secret not in listed
    work.commit({"index.html": PAGE.format("staged again")})
    work.push("staging")
    server.wait_for("staged again", "acme-store--staging")


def test_everything_serves_again_after_a_restart(server) -> None:
    work = server.work()
    work.use("python-web")
    work.push()
    work.commit({"Procfile": "", "index.html": PAGE.format("staged")})
    (work.path / "Procfile").unlink()
    work.commit({})
    work.push("main:staging")
    assert server.stop() == 0
    server.start()
    server.wait_for("staged", "acme-store--staging")
    wait_until(lambda: server.visit().status == 200, "the program answers")


@pytest.mark.own_server
def test_check_finds_nothing_wrong_and_then_a_flipped_byte(server) -> None:
    work = server.work()
    work.commit({"index.html": PAGE.format("one")})
    work.push()
    assert "all well" in server.gitd("check")
    blob = next(p for p in (server.data / "store" / "blobs").rglob("*") if p.is_file())
    blob.chmod(0o644)
    blob.write_bytes(b"x" * blob.stat().st_size)
    done = subprocess.run(
        ["gitd", "check", "--json", "--data", str(server.data)],
        env=server.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False


@pytest.mark.parametrize("part", ["blobs", "trees", "attest"])
@pytest.mark.own_server
def test_tampered_store_stops_the_roll_and_the_prior_release_serves_on(server, part) -> None:
    work = server.work()
    work.commit({"index.html": PAGE.format("zero")})
    work.push("main:staging")
    work.commit({"index.html": PAGE.format("one")})
    work.push("main:staging")
    work.commit({"index.html": PAGE.format("two")})
    work.push("main")
    files = [p for p in (server.data / "store" / part).rglob("*") if p.is_file()]
    for path in files:
        flip(path)
    job = finish(
        server,
        server.api(
            "POST", "/sites/acme-store/environments/staging/promote", {"to_env": "production"}
        ),
    )
    assert job["status"] == "failed"
    assert job["error"]["code"] in ("artifact.corrupt", "artifact.signature_invalid")
    assert server.serves("two")
    # Its folder is kept from the first time: that is no way around the store.
    first = releases(server, "staging")[-1]["id"]
    rollback = f"/sites/acme-store/environments/staging/deployments/{first}/rollback"
    job = finish(server, server.api("POST", rollback))
    assert job["status"] == "failed"
    assert job["error"]["code"] in ("artifact.corrupt", "artifact.signature_invalid")
    assert server.serves("one", "acme-store--staging")


def test_branch_whose_name_is_not_utf8_is_refused_and_the_others_go_on(server) -> None:
    work = server.work()
    work.commit({"index.html": PAGE.format("one")})
    name = b"refs/heads/caf\xe9"
    done = subprocess.run(
        ["git", "push", "--progress", "managed", "main", b"main:" + name],
        cwd=work.path,
        env=server.environ,
        capture_output=True,
    )
    assert done.returncode == 1
    assert b"not UTF-8" in done.stderr
    assert server.serves("one")


def test_site_made_beside_the_server_is_known_to_visitors(server) -> None:
    server.gitd("site", "create", "beside")
    unknown = server.visit("nobody").body
    wait_until(lambda: server.visit("beside").body != unknown, "its host name is known")
    assert server.visit("beside").status == 404


def test_no_answer_names_versions_and_what_is_no_http_is_refused_in_a_line(server) -> None:
    work = server.work()
    work.commit({"index.html": PAGE.format("one")})
    work.push()
    answers = [
        server.fetch("/v1/sites"),
        server.fetch("/"),
        server.fetch("/errors/site.not_found"),
        server.fetch("/acme-store.git/info/refs?service=git-receive-pack"),
        server.fetch("/v1/sites", Expect="miracles"),
        server.visit(),
        server.visit("nobody"),
    ]
    assert {answer.headers["Server"] for answer in answers} == {"gitd"}
    for port in (server.port, server.sites_port):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(b"what is this\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
        head, _, body = answer.partition("\r\n\r\n")
        assert re.match(r"HTTP/1.[01] 400 Bad Request\r\n", head)
        assert "\r\nServer: gitd\r\n" in head
        assert "aiohttp" not in answer
        assert body == "This is no request that HTTP/1.1 allows.\n"


def test_taken_address_is_said_at_once(server, tmp_path) -> None:
    for option, port in (("--listen", server.port), ("--sites", server.sites_port)):
        other = {"--listen": free_port(), "--sites": free_port(), option: port}
        words = [w for name, p in other.items() for w in (name, f"127.0.0.1:{p}")]
        done = subprocess.run(
            ["gitd", "serve", "--data", str(server.root / f"other{option}"), *words],
            env=server.environ,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
        assert option in done.stderr
        assert done.stdout == ""
        assert not (server.root / f"other{option}").exists(), "it was refused, and made a folder"
