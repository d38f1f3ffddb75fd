"""Custom domains from the push to the visitor: curl as the browser, real fronts before the host."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.scenarios.conftest import fetch, wait_until
from tests.scenarios.test_behind_nginx import NGINX, documented_lines

CADDY = shutil.which("caddy")
PAGE = Path(__file__).parents[2] / "docs" / "service.md"
SHOP = "shop.example"
PRODUCTION = ("--env", "production")


def curl(*arguments: str) -> tuple[int, str]:
    """The status and the body that curl gets; status 0 where there is no answer."""
    done = subprocess.run(
        ["curl", "-sS", "-m", "20", "-w", "\n%{http_code}", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status or 0), body


def visit(server, host: str) -> tuple[int, str]:
    return curl("-H", f"Host: {host}", f"http://127.0.0.1:{server.sites_port}/")


def domains_of(site: str, *arguments: str) -> tuple[str, ...]:
    return ("domains", *arguments, "--site", site, *PRODUCTION)


def test_name_of_ones_own_leads_to_what_is_pushed_until_it_is_removed(server) -> None:
    work = server.work()
    work.commit({"index.html": "one"})
    work.push()
    added = server.mf(*domains_of("acme-store", "add", "Shop.EXAMPLE."))
    url = f"http://{SHOP}:{server.sites_port}"
    assert added.stdout == f"{SHOP} leads to production of acme-store: {url}\n"
    for host in (SHOP, "SHOP.Example", f"{SHOP}.", f"{SHOP}:{server.sites_port}", f"{SHOP}.:80"):
        wait_until(lambda host=host: visit(server, host) == (200, "one"), f"{host} is served")
    assert visit(server, f"www.{SHOP}")[0] == 404
    work.commit({"index.html": "two"})
    said = work.push()
    platform = f"http://acme-store.localhost:{server.sites_port}"
    assert re.search(rf"production is live after .*: {platform}", said)
    assert f"and by its domain: {url}" in said
    assert visit(server, SHOP) == (200, "two")
    assert SHOP in server.mf("env", "--site", "acme-store").stdout

    server.mf("env", "suspend", "production", "--site", "acme-store")
    wait_until(lambda: visit(server, SHOP)[0] == 503, "the name is suspended too")
    server.mf("env", "resume", "production", "--site", "acme-store")
    wait_until(lambda: visit(server, SHOP) == (200, "two"), "it is served again")

    removed = server.mf(*domains_of("acme-store", "remove", "SHOP.example"), "--yes")
    assert removed.stdout.startswith(f"{SHOP} leads to production no more")
    wait_until(lambda: visit(server, SHOP)[0] == 404, "the name leads nowhere")
    assert server.serves("two")


def test_name_is_one_sites_alone_and_leads_where_it_moved_through_kills_and_restarts(
    server,
) -> None:
    server.new_site("rival")
    for site in ("acme-store", "rival"):
        work = server.work(site, folder=site)
        work.commit({"index.html": site})
        work.push()
    server.mf(*domains_of("acme-store", "add", SHOP))
    wait_until(lambda: visit(server, SHOP) == (200, "acme-store"), "the name leads to its site")
    for spelling in (SHOP, "SHOP.example.", "\uff33hop\u3002example"):
        refused = server.mf(*domains_of("rival", "add", spelling), check=False)
        assert refused.returncode == 3
        assert "domain.taken" in refused.stderr
        assert "acme" not in refused.stderr
    for own in ("acme-store.localhost", "x.localhost", "localhost.", "127.0.0.1", "*.example"):
        assert server.mf(*domains_of("rival", "add", own), check=False).returncode == 3, own
    assert server.mf(*domains_of("rival", "remove", SHOP), "--yes", check=False).returncode == 3
    assert visit(server, SHOP) == (200, "acme-store")

    server.kill()  # control alone: the host serves on, and tells fronts which names it has
    assert visit(server, SHOP) == (200, "acme-store")
    asked = f"/served?domain={SHOP}"
    assert fetch(server.sites_port, asked).status == 200
    assert fetch(server.sites_port, "/served?domain=www.example").status == 404
    server.start()
    assert visit(server, SHOP) == (200, "acme-store")

    server.mf(*domains_of("acme-store", "remove", SHOP), "-y")
    wait_until(lambda: fetch(server.sites_port, asked).status == 404, "the name is free")
    server.mf(*domains_of("rival", "add", SHOP))
    wait_until(lambda: visit(server, SHOP) == (200, "rival"), "it leads to its new site")
    server.stop()
    server.start()
    wait_until(lambda: visit(server, SHOP)[0] == 200, "the name is served after a restart")
    assert visit(server, SHOP) == (200, "rival")

    server.mf("sites", "delete", "rival", "-y")
    wait_until(lambda: visit(server, SHOP)[0] == 404, "a site's names go with it")
    server.mf(*domains_of("acme-store", "add", SHOP))
    wait_until(lambda: visit(server, SHOP) == (200, "acme-store"), "and are free")


@pytest.mark.own_server
def test_restored_copy_has_the_names_but_for_those_that_are_its_own(server, other) -> None:
    work = server.work()
    work.commit({"index.html": "kept"})
    work.push()
    for name in (SHOP, "www.copy.example"):
        server.mf(*domains_of("acme-store", "add", name))
    backups = str(server.root / "backups")
    server.gitd("backup", backups, "--with-keys")
    other.gitd("restore", backups)
    other.token = server.token
    other.config = '[sites]\ndomain = "copy.example"\n'
    other.start()
    wait_until(lambda: visit(other, SHOP) == (200, "kept"), "the copy serves the name")
    assert visit(other, "acme-store.copy.example") == (200, "kept")
    assert visit(other, "www.copy.example")[0] == 404
    listed = json.loads(other.mf(*domains_of("acme-store"), "--json").stdout)
    assert {each["hostname"]: each["status"] for each in listed} == {
        SHOP: "active",
        "www.copy.example": "reserved",
    }
    assert '"www.copy.example"' in other.log()
    assert "domain_reserved" in other.log()
    assert visit(server, "www.copy.example") == (200, "kept")


# -- fronts, as docs/service.md sets them up ------------------------------------------------------


@contextmanager
def running(*command: str | Path, environ: dict[str, str] | None = None) -> Iterator[None]:
    process = subprocess.Popen(command, env={**os.environ, **(environ or {})})
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def by_tls(port: int, host: str) -> tuple[int, str]:
    at = f"{host}:{port}"
    return curl("-k", "--resolve", f"{at}:127.0.0.1", f"https://{at}/")


@pytest.fixture
def shop(server) -> None:
    work = server.work()
    work.commit({"index.html": "the shop"})
    work.push()


@pytest.mark.skipif(CADDY is None, reason="needs caddy")
def test_caddy_gets_certificates_for_names_that_are_served_and_for_no_others(
    server, shop, tmp_path: Path
) -> None:
    (text,) = re.findall(r"```\n(\{\n    on_demand_tls .*?)```", PAGE.read_text(), re.DOTALL)
    port = free_port()
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}")
    text = text.replace("127.0.0.1:8081", f"127.0.0.1:{server.sites_port}")
    ours = f"local_certs\nskip_install_trust\nadmin off\nhttp_port {free_port()}\n"
    ours += f"https_port {port}\nstorage file_system {tmp_path}/caddy\n"
    (tmp_path / "Caddyfile").write_text(text.replace("{\n", "{\n" + ours, 1))
    command = (CADDY, "run", "--config", tmp_path / "Caddyfile", "--adapter", "caddyfile")
    with running(*command, environ={"HOME": str(tmp_path)}):
        platform = "acme-store.localhost"
        wait_until(lambda: by_tls(port, platform) == (200, "the shop"), "caddy answers")
        assert by_tls(port, SHOP)[0] == 0, "there is no certificate for it"
        server.mf(*domains_of("acme-store", "add", SHOP))
        wait_until(lambda: by_tls(port, SHOP) == (200, "the shop"), "it has its certificate")
        assert by_tls(port, f"www.{SHOP}")[0] == 0
        assert (
            b"gitd"
            in subprocess.run(
                [
                    *("curl", "-skS", "--resolve", f"forge.example.com:{port}:127.0.0.1"),
                    f"https://forge.example.com:{port}/",
                ],
                capture_output=True,
                check=True,
            ).stdout
        )


@pytest.mark.skipif(NGINX is None, reason="needs nginx")
def test_nginx_passes_a_custom_name_on(server, shop, tmp_path: Path) -> None:
    (block,) = re.findall(
        r"```\n(server \{\n[^`]*?server_name www\.example\.org;.*?)```", PAGE.read_text(), re.DOTALL
    )
    port, name = free_port(), "www.example.org"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", tmp_path / "privkey.pem", "-out", tmp_path / "fullchain.pem"),
        ],
        check=True,
        capture_output=True,
    )
    block = block.replace("/etc/letsencrypt/live/www.example.org", str(tmp_path))
    block = block.replace("listen 443", f"listen 127.0.0.1:{port}")
    block = block.replace("127.0.0.1:8081", f"127.0.0.1:{server.sites_port}")
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{documented_lines()}\n{block}}}\n"
    )
    with running(NGINX, "-c", tmp_path / "nginx.conf", "-e", "stderr"):
        wait_until(lambda: by_tls(port, name)[0] == 404, "nginx answers: there is no site yet")
        server.mf(*domains_of("acme-store", "add", name))
        wait_until(lambda: by_tls(port, name) == (200, "the shop"), "the name is served")
