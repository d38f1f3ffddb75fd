"""What the settings switch on in the whole, and what monitors hear of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal

from tests.scenarios.conftest import wait_until

CAPABILITIES = "/sites/acme-store/capabilities"
BUILDS = "/sites/acme-store/environments/production/builds"
LIMITED = """
[rate_limits]
enabled = true
job_per_minute = 1
job_burst = 1
[builders]
cache_bytes_max = 0
"""


PUSHES_LIMITED = """
[rate_limits]
enabled = true
write_per_minute = 1
write_burst = 2
"""


def test_build_beyond_the_rate_that_is_set_is_refused(stopped) -> None:
    stopped.config = LIMITED
    stopped.start()
    stopped.new_site()
    work = stopped.work()
    work.commit({"index.html": "<p>one</p>"})
    work.push()  # which counts as a request that changes something
    assert stopped.api("POST", BUILDS, {}).status == 202
    refused = stopped.api("POST", BUILDS, {})
    assert (refused.status, refused.json["error"]["code"]) == (429, "rate_limit.exceeded")
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    features = stopped.api("GET", CAPABILITIES).json["data"]["features"]
    assert (features["rate_limits"], features["build_cache"]) == (True, False)


def test_push_beyond_the_rate_that_is_set_is_refused_in_words(stopped) -> None:
    stopped.config = PUSHES_LIMITED
    stopped.start()
    stopped.new_site()  # the first of two
    work = stopped.work()
    work.commit({"index.html": "<p>one</p>"})
    work.git("push", "--dry-run", "managed", "main")  # which takes no token
    work.push()
    nothing_new = work.git("push", "managed", "main", check=False)
    assert "too many requests (write)" in nothing_new.stderr, "its beginning tells nothing of that"
    work.commit({"index.html": "<p>two</p>"})
    refused = work.git("push", "managed", "main", check=False)
    assert refused.returncode != 0
    assert "remote: This API key has made too many requests (write): try again in" in refused.stderr
    assert "error: 429" in refused.stderr
    assert work.git("ls-remote", "managed").returncode == 0
    assert stopped.serves("one")
    assert len([job for job in stopped.jobs() if job["type"] == "build.run"]) == 1


def test_site_that_would_have_the_servers_own_name_is_refused_and_one_there_is_told_of(
    stopped,
) -> None:
    stopped.start()
    stopped.new_site("git")
    stopped.stop()
    stopped.config = (
        '[server]\npublic_url = "https://GIT.example.com"\n[sites]\ndomain = "example.com"\n'
    )
    stopped.start()
    (warned,) = [json.loads(line) for line in stopped.log().splitlines() if "site_reserved" in line]
    assert (warned["level"], warned["site"]) == ("warning", "git")
    assert stopped.api("DELETE", "/sites/git").status == 200
    refused = stopped.api("POST", "/sites", {"name": "git"})
    assert (refused.status, refused.json["error"]["code"]) == (409, "site.name_taken")
    assert "git.example.com, which is this server's own name" in refused.json["error"]["message"]
    by_hand = stopped.run("gitd", "site", "create", "git", "--data", str(stopped.data), check=False)
    assert by_hand.returncode != 0
    assert "git.example.com" in by_hand.stderr
    assert stopped.api("POST", "/sites", {"name": "forge"}).status == 201


def test_without_settings_builds_have_a_cache_and_requests_no_limit(server) -> None:
    features = server.api("GET", CAPABILITIES).json["data"]["features"]
    assert (features["rate_limits"], features["build_cache"]) == (False, True)


def test_monitors_hear_that_the_site_host_is_away_and_that_it_is_back(shared) -> None:
    def is_away() -> bool:
        for host in shared.children("host"):  # each that is started meanwhile, too
            with contextlib.suppress(ProcessLookupError):
                os.kill(host, signal.SIGKILL)
        answer = shared.fetch("/healthz")
        if answer.status == 200:
            return False
        assert answer.status == 503
        assert answer.json == {"status": "unavailable", "reasons": ["host_away"]}
        return True

    wait_until(is_away, "the site host is away")
    wait_until(lambda: shared.fetch("/healthz").status == 200, "it is back")
    assert shared.fetch("/healthz").json == {"status": "ok"}
