"""Settings: the example is the documentation is the defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gitd.config import SECTIONS, Config, load, machine_environ
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
        ("[server]\nlisten = 8080", "server.listen: Expected `str`"),
        ("[server]\nlisten = 'nowhere'", "server.listen: 'nowhere' is no address"),
        ("[builders]\nslots = 'two'", "builders.slots: Expected `int`"),
        ("[builders]\nslots = 0", "builders.slots: at least 1"),
        ("[builders]\negress_allow = ['https://x.example']", "builders.egress_allow: 'https://x"),
        ("[builders]\negress_idle_s = 0", "builders.egress_idle_s: more than 0"),
        ("[builders]\negress_connections_max = 401", "builders.egress_connections_max: 1 to 400"),
        ("[sites]\npublic_scheme = 'gopher'", "none of http, https"),
        ("[server]\ntrusted_proxies = ['x']", "server.trusted_proxies"),
        ("not toml", "is not TOML"),
    ],
)
def test_wrong_settings_are_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "gitd.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
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
