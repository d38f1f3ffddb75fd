"""`/metrics` of the installed daemon, as what it counts really happens."""

from __future__ import annotations

import time

import pytest

from tests.metrics import Scraped
from tests.scenarios.conftest import Server, wait_until

SETTINGS = """
[retention]
releases = 2
branch_artifacts = 0
recent_s = 0
grace_s = 0
[store]
collect_every_s = 10
[rate_limits]
enabled = true
read_burst = 100000
job_per_minute = 1
job_burst = 2
"""
PRODUCTION = "/sites/acme-store/environments/production"
ENDED = "gitd_jobs_ended_total"
ROLLS = "gitd_rolls_ended_total"

pytestmark = pytest.mark.own_server


def text_of(server: Server) -> str:
    answer = server.fetch("/metrics", Authorization=f"Bearer {server.token}")
    assert answer.status == 200, answer.body
    return answer.body.decode()


def scraped(server: Server) -> Scraped:
    time.sleep(1.05)  # the one before is kept for a second
    return Scraped(text_of(server))


def finish(server: Server, answer) -> str:
    assert answer.status == 202, answer.body
    job_id = answer.json["data"]["id"]
    while True:
        status = server.api("GET", f"/jobs/{job_id}?wait=10").json["data"]["status"]
        if status not in ("queued", "running"):
            return status


def until(server: Server, name: str, least: float, **labels: str) -> None:
    wait_until(lambda: scraped(server).of(name, **labels) >= least, f"{name} {labels}", 40)


def release(server: Server, work, content: str) -> None:
    work.commit({"index.html": content})
    work.push()
    server.wait_for(content)


@pytest.mark.timeout(300)
def test_each_metric_moves_with_what_it_counts(stopped: Server) -> None:
    server = stopped
    server.config = SETTINGS
    server.start()
    server.new_site()
    assert server.fetch("/metrics").status == 401
    before = scraped(server)
    assert before.of("gitd_site_host_connected") == 1
    assert before.of("gitd_build_slots") == 1
    assert before.total("gitd_metrics_part_read") == len(
        [name for name, _ in before if name == "gitd_metrics_part_read"]
    )
    for family in before.families:  # but the start itself has served and checked what it needs
        if family.name in ("gitd_pushes", "gitd_fetches", "gitd_jobs_ended", "gitd_rolls_ended"):
            assert {sample.value for sample in family.samples} == {0.0}, family.name

    # Webhooks, with nobody at the other end.
    hook = {"url": "http://127.0.0.1:1/", "events": ["build.succeeded"]}
    assert server.api("POST", "/webhooks", hook).status == 201

    # Pushes: plain ones, one with a command, one that fails.
    work = server.work()
    release(server, work, "one")
    release(server, work, "two")
    release(server, work, "three")
    toml = '[build]\ncommand = "mkdir out && cp index.html out"\noutput = "out"\n'
    work.commit({"managed.toml": toml, "index.html": "four"})
    work.push()
    server.wait_for("four")
    work.commit({"managed.toml": '[build]\ncommand = "false"\noutput = "out"\n'})
    work.push(check=False)
    work.git("push", "managed", "main:refs/heads/feature-x7", "-o", "nowait")
    found = scraped(server)
    assert found.of("gitd_pushes_total", outcome="landed") == 6
    assert found.of(ENDED, type="build.run", outcome="succeeded") == 4
    assert found.of(ENDED, type="deployment.roll", outcome="succeeded") == 4
    assert found.of(ROLLS, trigger="push", outcome="succeeded") == 4
    assert found.of("gitd_job_duration_seconds_count", type="deployment.roll") == 4
    steps = "gitd_roll_step_duration_seconds"
    for step in ("verify", "unpack", "switch"):
        assert found.of(f"{steps}_count", step=step) == 4, step
    assert 0 < found.of(f"{steps}_sum", step="switch") < 4
    phases = "gitd_build_phase_duration_seconds_count"
    assert found.of(phases, phase="pack") == 4
    for phase in ("source", "build"):
        assert found.of(phases, phase=phase) >= 2, phase
    assert found.of(phases, phase="collect") == 1
    pushed = {"route": "/{site}.git/git-receive-pack"}
    assert found.of("gitd_http_received_bytes_total", **pushed) > 6 * 100
    assert found.of("gitd_http_sent_bytes_total", **pushed) > 6 * 100
    until(server, ENDED, 2, type="build.run", outcome="failed")  # the preview has the same commit
    until(server, "gitd_webhook_attempts_total", 4, outcome="put_off")
    found = scraped(server)
    assert found.of("gitd_webhook_outbox_deliveries") == 4
    assert found.of("gitd_webhook_outbox_oldest_age_seconds") > 0
    assert found.total("gitd_environments", kind="preview") == 1
    assert found.of("gitd_environments", kind="production", status="active") == 1
    assert found.of("gitd_store_has_room") == 1
    assert found.of("gitd_jobs", type="build.run", status="queued") == 0
    assert found.of("gitd_build_slots_busy") == 0
    assert found.of("gitd_build_slots_idle") == 1

    # A clone, and a rollback, and one more than the limit lets through.
    helper = work.git("config", "credential.helper").stdout.strip()
    clone = ("clone", "--quiet", f"{server.url}/acme-store.git", str(server.root / "clone"))
    work.git("-c", f"credential.helper={helper}", *clone)
    named = server.api("GET", f"{PRODUCTION}/releases").json["data"][1]["id"]
    assert finish(server, server.api("POST", f"{PRODUCTION}/deployments/{named}/rollback")) == (
        "succeeded"
    )
    while server.api("POST", f"{PRODUCTION}/deployments/{named}/rollback").status != 429:
        pass
    assert server.api("POST", f"{PRODUCTION}/suspend").status == 200
    found = scraped(server)
    assert found.of("gitd_fetches_total", outcome="sent") == 1
    assert found.of(ROLLS, trigger="rollback", outcome="succeeded") >= 1
    assert found.of("gitd_rate_limit_refusals_total", kind="job") == 1
    assert found.of("gitd_environments", kind="production", status="suspended") == 1

    # The collector takes what nothing keeps, and a backup is noted.
    until(server, "gitd_collection_removed_total", 1, kind="blob")
    began = time.time()
    server.gitd("backup", str(server.root / "backups"))
    found = scraped(server)
    backed_up_at = found.of("gitd_backup_last_success_timestamp_seconds")
    assert began - 1 < backed_up_at < time.time()
    assert found.of("gitd_collections_total", outcome="done") >= 1
    assert found.of("gitd_collection_freed_bytes_total") > 0
    assert found.of("gitd_collection_duration_seconds_sum") > 0

    # Whose they are is nobody's business.
    text = text_of(server)
    for name in ("acme", "feature-x7", "tests", server.token, "mfk_", "127.0.0.1", "dev@example"):
        assert name not in text, name

    # A restart: counters begin anew, and what is written down is there still.
    server.stop()
    server.start()
    found = scraped(server)
    assert found.of("gitd_pushes_total", outcome="landed") == 0
    assert found.of(ENDED, type="build.run", outcome="succeeded") == 0
    assert found.of("gitd_backup_last_success_timestamp_seconds") == backed_up_at
    assert found.of("gitd_collection_last_start_timestamp_seconds") > began - 600
    assert found.of("gitd_environments", kind="production", status="suspended") == 1
    assert found.of("gitd_webhook_outbox_deliveries") == 4
