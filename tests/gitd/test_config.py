"""Settings: the example is the documentation is the defaults."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from gitd.config import SECTIONS, Config, SitesConfig, load, machine_environ
from gitd.config_bounds import BOUNDS
from gitd.control import may_lead_to_private_addresses
from gitd.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "docs" / "gitd.example.toml"


def test_example_holds_every_key_with_its_default() -> None:
    assert load(EXAMPLE, {}) == Config()
    text = EXAMPLE.read_text()
    for section, kind in SECTIONS.items():
        body = text.partition(f"\n[{section}]\n")[2].partition("\n[")[0]
        keys = set(re.findall(r"^(\w+) = ", body, re.MULTILINE))
        assert keys == set(kind.__dataclass_fields__), section


def test_every_key_of_the_example_has_a_comment() -> None:
    lines = EXAMPLE.read_text().splitlines()
    after_comment = False
    for line in lines:
        if re.match(r"\w+ = ", line):
            assert after_comment, f"no comment above: {line}"
        after_comment = line.startswith("#") or (after_comment and bool(re.match(r"\w+ = ", line)))


def test_environment_overrides_the_file(tmp_path: Path) -> None:
    path = tmp_path / "gitd.toml"
    path.write_text('[server]\nlisten = "127.0.0.1:1"\n[builders]\nslots = 3\n')
    config = load(
        path,
        {"GITD_SERVER_LISTEN": "127.0.0.1:2", "GITD_SERVER_TRUSTED_PROXIES": "10.0.0.0/8, ::1/128"},
    )
    assert config.server.listen == "127.0.0.1:2"
    assert config.server.trusted_proxies == ("10.0.0.0/8", "::1/128")
    assert config.builders.slots == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[server]\nlisen = 'x'", "server.lisen; did you mean server.listen?"),
        ("[servr]\nlisten = 'x'", r"\[servr\]; did you mean server?"),
        ("server = 1", "server is a section"),
        ("[server]\nlisten = 8080", "server.listen: must be text"),
        ("[server]\nlisten = 'nowhere'", "server.listen: 'nowhere' is no address"),
        ("[builders]\nslots = 'two'", "builders.slots: must be a whole number"),
        ("[builders]\nslots = 0", "builders.slots: 0 is not from 1 to 64"),
        ("[builders]\negress_allow = ['https://x.example']", "builders.egress_allow: 'https://x"),
        ("[builders]\negress_idle_s = 0", "builders.egress_idle_s: 0.0 is not from 0.1 to"),
        (
            "[builders]\negress_connections_max = 401",
            "builders.egress_connections_max: 401 is not from 1 to 400",
        ),
        (
            "[sites]\npublic_scheme = 'gopher'",
            "public_scheme: 'gopher' is none of http, https",
        ),
        ("[log]\nlevel = 'loud'", "log.level: 'loud' is none of .*debug"),
        ("[log]\nformat = 1", "log.format: must be text"),
        (
            "[builders]\nwhen_pushed_again = 'never'",
            "builders.when_pushed_again: 'never' is none of override, wait, all",
        ),
        ("[sites]\nlisten = '127.0.0.1:0'", "sites.listen: '127.0.0.1:0' has no port"),
        ("[sites]\ndomain = 'Example.com '", "sites.domain: 'Example.com ' is no domain"),
        ("[sites]\npublic_addresses = ['example.com']", "sites.public_addresses: 'example.com'"),
        ("[server]\npublic_url = 'git.example.com'", "public_url: 'git.example.com' is no URL"),
        ("[host]\nuid = 0", "host.uid: 0 is not from 1 to 4294967294"),
        ("[host]\nuid = 60611", "host.uid: 60611 is a builder slot's: they have 60610 to 60611"),
        ("[builders]\nslots = 100000", "builders.slots: 100000 is not from 1 to 64"),
        (
            "[builders]\nmemory_bytes_max = 1",
            "memory_bytes_max: 1 is not from 16777216 to .*, nor 0",
        ),
        ("[builders]\ntimeout_s = 0", "builders.timeout_s: 0 is not from 1 to 604800"),
        ("[builders]\nlease_s = nan", "builders.lease_s: nan is not from 0.5 to 3600"),
        ("[git]\npack_bytes_max = -1", "git.pack_bytes_max: -1 is not from 1 to"),
        ("[host]\nroll_timeout_s = inf", "host.roll_timeout_s: inf is not from 1 to 86400"),
        ("[server]\ntrusted_proxies = ['x']", "server.trusted_proxies"),
        ("not toml", "is not TOML"),
    ],
)
def test_wrong_settings_are_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "gitd.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
        load(path, {})


def test_every_number_has_bounds_and_its_default_is_within() -> None:
    numbers = {
        f"{section}.{item.name}"
        for section, kind in SECTIONS.items()
        for item in fields(kind)
        if item.type in ("int", "float")
    }
    assert set(BOUNDS) == numbers
    assert all(least < most for least, most in BOUNDS.values())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("512k", 512 << 10),
        ("512 KiB", 512 << 10),
        ("1.5MiB", 3 << 19),
        ("2g", 2 << 30),
        ("4GB", 4 << 30),
        ("1TiB", 1 << 40),
        ("70000 B", 70_000),
    ],
)
def test_sizes_may_have_units(tmp_path: Path, text: str, size: int) -> None:
    path = tmp_path / "gitd.toml"
    path.write_text(f"[git]\npack_bytes_max = '{text}'\n[store]\nreserve_bytes = {size}\n")
    config = load(path, {"GITD_STORE_FREE_BYTES_MIN": text})
    assert config.git.pack_bytes_max == size
    assert config.store.reserve_bytes == size
    assert config.store.free_bytes_min == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1k", "1e3", "1.5", "4 apples", "1kk", "0x10", "\uff11k"]
)
def test_what_is_no_size_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gitd.toml"
    path.write_text(f"[git]\npack_bytes_max = '{text}'\n")
    with pytest.raises(ConfigError, match=r"git\.pack_bytes_max: '.*' is no "):
        load(path, {})


def test_unknown_setting_of_the_environment_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean GITD_SERVER_LISTEN"):
        load(None, {"GITD_SERVER_LISTN": "127.0.0.1:1"})


def test_package_clients_of_the_machine_get_no_setting_and_no_credential_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GITD_SERVER_LISTEN", "127.0.0.1:1")
    monkeypatch.setenv("FORGE_TOKEN", "mfk_live_x")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    environ = machine_environ()
    assert environ["PIP_INDEX_URL"] == "https://mirror.example/simple"
    assert not [name for name in environ if name.startswith(("GITD_", "FORGE_"))]


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        (SitesConfig(), "http://shop.localhost:8081"),
        (SitesConfig(listen="0.0.0.0:80", domain="example.com"), "http://shop.example.com"),
        (
            SitesConfig(domain="example.com", public_scheme="https", public_port=443),
            "https://shop.example.com",
        ),
        (
            SitesConfig(domain="example.com", public_scheme="https", public_port=8443),
            "https://shop.example.com:8443",
        ),
    ],
)
def test_url_of_a_site_has_its_port_where_that_is_needed(settings: SitesConfig, url: str) -> None:
    assert settings.url_of("shop") == url


@pytest.mark.parametrize(
    ("settings", "own", "free"),
    [
        ({}, ["x.localhost"], ["localhost.example.com", "www.example.com"]),
        (
            {
                "GITD_SERVER_PUBLIC_URL": "https://Forge.Example.com:8443/",
                "GITD_SITES_DOMAIN": "sites.example.com",
            },
            ["forge.example.com", "x.forge.example.com", "sites.example.com"],
            ["example.com", "www.example.com"],
        ),
        ({"GITD_SERVER_PUBLIC_URL": "http://bücher.example"}, ["xn--bcher-kva.example"], []),
        ({"GITD_SERVER_PUBLIC_URL": "http://forge:8080"}, ["x.forge"], ["forge.example.com"]),
        ({"GITD_SERVER_PUBLIC_URL": "http://[::1"}, ["x.localhost"], ["www.example.com"]),
        ({"GITD_SERVER_LISTEN": "192.0.2.1:80"}, ["x.localhost"], ["www.example.com"]),
    ],
)
def test_names_of_the_server_itself_follow_from_its_settings(settings, own, free) -> None:
    names = load(None, settings).platform_names
    assert [name for name in own if not names.include(name)] == []
    assert [name for name in free if names.include(name)] == []


@pytest.mark.parametrize(
    ("settings", "may"),
    [
        ({}, True),
        ({"GITD_SERVER_LISTEN": "0.0.0.0:8080"}, False),
        ({"GITD_SERVER_PUBLIC_URL": "https://forge.example.com"}, False),
        ({"GITD_WEBHOOKS_PRIVATE_ADDRESSES": "refuse"}, False),
        (
            {
                "GITD_WEBHOOKS_PRIVATE_ADDRESSES": "allow",
                "GITD_SERVER_PUBLIC_URL": "https://forge.example.com",
            },
            True,
        ),
    ],
)
def test_webhooks_lead_to_this_machine_only_where_nobody_else_makes_them(
    settings: dict[str, str], *, may: bool
) -> None:
    assert may_lead_to_private_addresses(load(None, settings)) is may
