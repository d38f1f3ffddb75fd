"""`GET /metrics`: who may read it, in which format, and what it says of requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from structlog.testing import capture_logs

from gitd.config import RateLimitsConfig
from gitd.metrics import exporter
from gitd.rate_limits import limits_of
from tests.gitd.api.conftest import FrozenClock, Service
from tests.metrics import Scraped

SCOPE = "observability:read"
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
# As Prometheus 3 asks.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.fixture(autouse=True)
def _nothing_is_kept(monkeypatch) -> None:
    monkeypatch.setattr(exporter, "KEPT_S", 0.0)


async def scraped(service, **more) -> Scraped:
    heard = await service.get("/metrics", **more)
    assert heard.status == 200, heard.raw
    return Scraped(heard.raw.decode())


@contextlib.asynccontextmanager
async def serving(tmp_path, **settings) -> AsyncIterator[Service]:
    service = Service(tmp_path, FrozenClock(), **settings)
    await service.start()
    yield service
    await service.stop()


async def test_metrics_are_for_keys_that_may_see_them(service, acme) -> None:
    heard = await service.get("/metrics", secret="")
    assert (heard.status, heard.code) == (401, "authentication.required")
    heard = await service.get("/metrics", headers={"Authorization": "Bearer x"}, secret="")
    assert (heard.status, heard.code) == (401, "authentication.invalid_key")
    heard = await service.get("/metrics", secret=service.key("jobs:read", "sites:read"))
    assert (heard.status, heard.code) == (403, "scope.insufficient")
    assert SCOPE in heard.body["error"]["message"]
    staging = {"site_id": acme.id, "env_id": await acme.env_id("staging")}
    for bound in ({"site_id": acme.id}, staging):
        heard = await service.get("/metrics", secret=service.key(SCOPE, **bound))
        assert (heard.status, heard.code) == (403, "permission.key_bound")
    elsewhere = service.key(SCOPE, cidrs=("192.0.2.0/24",))
    assert (await service.get("/metrics", secret=elsewhere)).status == 403
    heard = await service.get("/metrics", secret=service.key(SCOPE))
    assert heard.status == 200
    assert heard.headers["Cache-Control"] == "no-store"


async def test_metrics_are_plain_text_and_openmetrics_where_asked(service) -> None:
    for accept, content_type, is_open in (
        ("", PLAIN, False),
        ("*/*", PLAIN, False),
        ("text/plain;version=99", PLAIN, False),
        (PROMETHEUS, "application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        ("application/openmetrics-text;version=nonsense", "application/openmetrics-text", True),
    ):
        heard = await service.get("/metrics", headers={"Accept": accept})
        assert heard.headers["Content-Type"].startswith(content_type), accept
        text = heard.raw.decode()
        assert text.endswith("# EOF\n") is is_open
        found = Scraped(text, is_open=is_open)
        assert found.of("process_open_fds") > 0


async def test_networks_that_are_set_read_metrics_without_a_key_and_with_no_bad_one(
    tmp_path,
) -> None:
    async with serving(tmp_path, metrics_networks=("127.0.0.0/8",)) as service:
        assert (await service.get("/metrics", secret="")).status == 200
        heard = await service.get("/metrics", secret="", headers={"Authorization": "Bearer x"})
        assert heard.status == 401
        assert (await service.get("/v1/sites", secret="")).status == 401


async def test_network_counts_by_the_client_behind_a_trusted_proxy(tmp_path) -> None:
    settings = {"metrics_networks": ("127.0.0.1/32",), "proxies": ("127.0.0.1/32",)}
    async with serving(tmp_path, **settings) as service:
        heard = await service.get(
            "/metrics", secret="", headers={"X-Forwarded-For": "198.51.100.7"}
        )
        assert heard.status == 401


async def test_scrapes_are_not_counted_against_the_keys_rate_limit(tmp_path) -> None:
    limits = limits_of(RateLimitsConfig(enabled=True, read_per_minute=1, read_burst=2))
    async with serving(tmp_path, rate_limits=limits) as service:
        service.secret = service.key("*")
        for _ in range(5):
            assert (await service.get("/metrics")).status == 200
        assert [(await service.get("/v1/sites")).status for _ in range(3)] == [200, 200, 429]


async def test_requests_are_counted_by_route_method_and_class_and_no_name(service, acme) -> None:
    before = await scraped(service)
    for _ in range(3):
        await service.get(acme.path)
    await service.get("/v1/sites/another")
    await service.get("/v1/nonsense")
    await service.call("PROPFIND", acme.path)
    body = {"name": "acme-second"}
    await service.post("/v1/sites", body)
    text = (await service.get("/metrics")).raw.decode()
    found = Scraped(text)

    def more(name: str, **labels: str) -> float:
        return found.total(name, **labels) - before.total(name, **labels)

    site = "/v1/sites/{site}"
    total = "gitd_http_requests_total"
    assert more(total, route=site, method="GET", status="2xx") == 3
    assert more(total, route=site, method="GET", status="4xx") == 1
    assert more(total, route="/v1/{path}", method="GET", status="4xx") == 1
    assert more(total, route="/v1/{path}", method="other", status="4xx") == 1
    assert more(total, route="/v1/sites", method="POST", status="2xx") == 1
    assert more("gitd_http_request_duration_seconds_count", route=site, method="GET") == 4
    assert more("gitd_http_received_bytes_total", route="/v1/sites") == len(json.dumps(body))
    assert more("gitd_http_sent_bytes_total", route=site) > 3 * 50
    for name in ("acme", "another", "nonsense", "PROPFIND", service.secret, "mfk_"):
        assert name not in text, name


async def test_client_that_leaves_a_stream_is_counted_as_gone(service, acme) -> None:
    await service.post(f"{acme.production}/builds")
    (job,) = (await service.get("/v1/jobs")).data
    async with asyncio.timeout(20):
        headers = {"Authorization": f"Bearer {service.secret}"}
        async with service.client.get(f"/v1/jobs/{job['id']}/stream", headers=headers) as answer:
            await answer.content.readany()
        await service.build()  # what is written to nobody tells that nobody is there
        route = "/v1/jobs/{job}/stream"
        while not (await scraped(service)).total("gitd_http_requests_total", route=route):
            await asyncio.sleep(0.05)


async def test_reading_again_within_a_second_costs_nothing(service, monkeypatch) -> None:
    monkeypatch.setattr(exporter, "KEPT_S", 60.0)
    read = []
    service.metrics.add_parts(counted=Counted(read))
    heard = await asyncio.gather(*(service.get("/metrics") for _ in range(20)))
    assert len({each.raw for each in heard}) == 1
    assert len(read) == 1
    await service.get("/metrics", headers={"Accept": PROMETHEUS})
    assert len(read) == 2


async def test_slow_reading_is_shared_by_all_who_ask_and_takes_no_thread_of_others(
    service, monkeypatch
) -> None:
    """However many ask, in whichever format: pushes and requests keep their threads."""
    monkeypatch.setattr(exporter, "PART_S_MAX", 30.0)
    read, may_end = [], threading.Event()
    service.metrics.add_parts(slow=Held(read, may_end))
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max_workers=1))
    accepts = ["text/plain", PROMETHEUS] * 3
    asking = [
        asyncio.ensure_future(service.metrics.read(accept)) for accept in accepts for _ in range(2)
    ]
    try:
        while not read:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            assert await asyncio.to_thread(int, "1") == 1
    finally:
        may_end.set()
        heard = await asyncio.gather(*asking)
    assert len({each.data for each in heard}) == len(read) == 2


async def test_reading_is_good_for_as_long_after_its_end_however_slow_it_was(
    service, monkeypatch
) -> None:
    monkeypatch.setattr(exporter, "KEPT_S", 1.0)
    read, may_end = [], threading.Event()
    service.metrics.add_parts(slow=Held(read, may_end))
    asyncio.get_running_loop().call_later(1.1, may_end.set)
    first = await service.metrics.read("text/plain")
    assert await service.metrics.read("text/plain") is first
    assert len(read) == 1


class Held:
    def __init__(self, read: list[int], may_end: threading.Event) -> None:
        self._read = read
        self._may_end = may_end

    def families(self):
        self._read.append(1)
        self._may_end.wait(30)
        return []


class Counted:
    def __init__(self, read: list[int]) -> None:
        self._read = read

    def families(self):
        self._read.append(1)
        return []


class Broken:
    def families(self):
        raise OSError("no disk")


async def test_part_that_cannot_be_read_takes_no_other_along(service) -> None:
    read: list[int] = []
    service.metrics.add_parts(broken=Broken(), good=Counted(read))
    with capture_logs() as logs:
        await scraped(service)
        found = await scraped(service)
    assert [line["part"] for line in logs if line["event"] == "metrics_not_read"] == ["broken"]
    assert found.of("gitd_metrics_part_read", part="broken") == 0
    assert found.of("gitd_metrics_part_read", part="good") == 1
    assert read == [1, 1]
    assert found.of("process_open_fds") > 0


async def test_part_that_hangs_holds_up_no_scrape_and_is_there_again_once_it_ends(
    service, monkeypatch
) -> None:
    """As where a disk does not answer any more: each scrape would wait for the one before."""
    monkeypatch.setattr(exporter, "PART_S_MAX", 0.5)
    begun, read, may_end = [], [], threading.Event()
    service.metrics.add_parts(hanging=Held(begun, may_end), good=Counted(read))
    try:
        with capture_logs() as logs:
            async with asyncio.timeout(20):
                for accept in ("text/plain", PROMETHEUS, "text/plain"):
                    exposition = await service.metrics.read(accept)
                    found = Scraped(exposition.data.decode(), is_open=accept == PROMETHEUS)
                    assert found.of("gitd_metrics_part_read", part="hanging") == 0
                    assert found.of("gitd_metrics_part_read", part="good") == 1
        assert len(begun) == 1, "it takes one thread, however often it is asked for"
        assert len(read) == 3
        told = [line["part"] for line in logs if line["event"] == "metrics_not_read"]
        assert told.count("hanging") == 1, "other parts may be slow on a machine that is busy"
    finally:
        may_end.set()
    async with asyncio.timeout(20):
        while not (await scraped(service)).of("gitd_metrics_part_read", part="hanging"):
            await asyncio.sleep(0.01)
