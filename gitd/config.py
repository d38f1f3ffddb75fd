"""Settings: defaults, then a TOML file, then `GITD_*` of the process's environment.

A key stands in a section: `[server] listen` is `GITD_SERVER_LISTEN` there. A key that is not
known is an error that names the nearest one that is. A size is a number of bytes, or text with a
unit ("4GiB"). This module and the mains alone read the process's environment.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from gitd.config_bounds import fault_of
from gitd.errors import ConfigError
from gitd.sizes import is_size, parse_size
from gitd.validation_messages import place_and_fault
from hooks.builds.egress import allowlist
from hooks.hostnames import HostnameError, PlatformNames, normal
from storage.model import PushPolicy

ENVIRON_PREFIX = "GITD_"
# What the service manager tells this process alone. Source: systemd.exec(5), sd_notify(3).
_SERVICE_MANAGERS = frozenset(
    [
        *("CREDENTIALS_DIRECTORY", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET"),
        *("WATCHDOG_PID", "WATCHDOG_USEC"),
    ]
)
_LABEL = "[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where git and the API answer."""

    listen: str = "127.0.0.1:8080"
    public_url: str = ""
    trusted_proxies: tuple[str, ...] = ()
    connections_max: int = 4096
    keepalive_s: float = 120.0
    drain_s: float = 10.0

    @property
    def url(self) -> str:
        """Where people reach this server, without a slash at its end."""
        return self.public_url.rstrip("/") or f"http://{self.listen}"


@dataclass(frozen=True, slots=True)
class SitesConfig:
    """Where environments answer."""

    listen: str = "127.0.0.1:8081"
    domain: str = "localhost"
    public_scheme: Literal["http", "https"] = "http"
    public_port: int = 0
    public_addresses: tuple[str, ...] = ()

    def url_of(self, hostname: str) -> str:
        """The URL of the environment with that name below the domain."""
        return self.url_at(f"{hostname}.{self.domain}")

    def url_at(self, name: str) -> str:
        """The URL of the environment with that whole name."""
        port = self.public_port or parse_address(self.listen, "sites.listen")[1]
        is_usual = port == {"http": 80, "https": 443}[self.public_scheme]
        suffix = "" if is_usual else f":{port}"
        return f"{self.public_scheme}://{name}{suffix}"


@dataclass(frozen=True, slots=True)
class PreviewsConfig:
    """How long previews stay, and how many."""

    idle_s_max: int = 30 * 24 * 3600
    count_max: int = 100


@dataclass(frozen=True, slots=True)
class BuildersConfig:
    """The builder slots and what one build may use."""

    slots: int = 2
    users: tuple[str, ...] = ()
    first_uid: int = 60610
    timeout_s: int = 900
    lease_s: float = 4.0
    output_bytes_max: int = 2 * 1024**3
    when_pushed_again: PushPolicy = PushPolicy.OVERRIDE
    memory_bytes_max: int = 0
    process_count_max: int = 512
    cpu_s_max: int = 1800
    tmp_bytes_max: int = 256 * 1024**2
    disk_bytes_max: int = 4 * 1024**3
    disk_free_bytes_min: int = 512 * 1024**2
    file_bytes_max: int = 1024**3
    log_chars_max: int = 4 * 1024**2
    cpu_weight: int = 10
    processors_free_min: int = 1
    write_bytes_per_s_max: int = 32 * 1024**2
    write_burst_bytes_max: int = 1024**3
    cache_bytes_max: int = 10 * 1024**3
    cache_site_bytes_max: int = 2 * 1024**3
    egress_allow: tuple[str, ...] = ()
    egress_replace: bool = False
    egress_up_bytes_max: int = 64 * 1024**2
    egress_down_bytes_max: int = 4 * 1024**3
    egress_connections_max: int = 128
    egress_idle_s: float = 120.0


@dataclass(frozen=True, slots=True)
class HostConfig:
    """The site host, what one web process may use, and how long a roll may take."""

    user: str = ""
    uid: int = 60600
    roll_timeout_s: float = 900.0
    missing_timeout_s: float = 30.0
    memory_bytes_max: int = 1024**3
    process_count_max: int = 512


@dataclass(frozen=True, slots=True)
class GitConfig:
    """Bounds of the git endpoint: those of `gitd.git.GitLimits` that operators may set."""

    idle_s: float = 120.0
    hook_s: float = 600.0
    pack_bytes_max: int = 4 * 1024**3
    objects_max: int = 5_000_000
    object_bytes_max: int = 2 * 1024**3
    refs_max: int = 200_000
    commands_max: int = 100_000
    push_options_max: int = 64
    push_options_bytes_max: int = 64 * 1024
    request_bytes_max: int = 32 * 1024**2
    wants_max: int = 200_000
    haves_max: int = 400_000
    kept_packs_bytes_max: int = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """The store's room, and how often what is in it is read again."""

    free_bytes_min: int = 256 * 1024**2
    free_inodes_min: int = 4096
    reserve_bytes: int = 64 * 1024**2
    size_bytes_max: int = 0
    site_bytes_max: int = 0
    collect_every_s: float = 3600.0
    collect_below_bytes: int = 1024**3
    scrub_every_s: int = 30 * 24 * 3600
    scrub_bytes_per_s: int = 8 * 1024**2
    quarantine_s: int = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class RateLimitsConfig:
    """How many requests an API key may make in a minute, and at once."""

    enabled: bool = False
    read_per_minute: int = 1000
    read_burst: int = 1000
    write_per_minute: int = 100
    write_burst: int = 100
    job_per_minute: int = 5
    job_burst: int = 5


@dataclass(frozen=True, slots=True)
class WebhooksConfig:
    """Where webhooks may lead."""

    private_addresses: Literal["auto", "allow", "refuse"] = "auto"


@dataclass(frozen=True, slots=True)
class RetentionConfig:
    """What is kept in the store, and of the logs of builds and rolls."""

    releases: int = 10
    branch_artifacts: int = 3
    recent_s: int = 7 * 24 * 3600
    grace_s: int = 24 * 3600
    log_age_s_max: int = 90 * 24 * 3600
    log_count_max: int = 10_000
    log_bytes_max: int = 1024**3
    audit_age_s_max: int = 365 * 24 * 3600


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """From where `/metrics` is read without a key."""

    networks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LogConfig:
    """The server's own log, on its standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of one server."""

    server: ServerConfig = field(default_factory=ServerConfig)
    sites: SitesConfig = field(default_factory=SitesConfig)
    previews: PreviewsConfig = field(default_factory=PreviewsConfig)
    builders: BuildersConfig = field(default_factory=BuildersConfig)
    host: HostConfig = field(default_factory=HostConfig)
    git: GitConfig = field(default_factory=GitConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    rate_limits: RateLimitsConfig = field(default_factory=RateLimitsConfig)
    webhooks: WebhooksConfig = field(default_factory=WebhooksConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def platform_names(self) -> PlatformNames:
        """The names of the server's own, which no site may have as a custom domain."""
        try:
            server = urlsplit(self.server.url).hostname or ""
        except ValueError:  # it is no URL after all
            server = ""
        try:
            return PlatformNames(self.sites.domain, normal(server))
        except HostnameError:  # an address, or a name of one label
            is_name = re.fullmatch(_LABEL, server) is not None
            return PlatformNames(self.sites.domain, server if is_name else "")


SECTIONS: dict[str, type[Any]] = {f.name: f.default_factory for f in fields(Config)}  # type: ignore[misc]


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read the settings.

    Raises:
        ConfigError: The file cannot be read, a key is unknown, or a value is not of its kind.
    """
    values: dict[str, dict[str, object]] = {name: {} for name in SECTIONS}
    if path is not None:
        _merge(values, _read(path), str(path))
    _merge_environ(values, environ)
    _read_sizes(values)
    try:
        config = msgspec.convert(values, Config, strict=False)
    except msgspec.ValidationError as error:
        where, fault = place_and_fault(error, Config)
        raise ConfigError(f"{where}: {fault}") from error
    _check(config)
    return config


def machine_environ() -> dict[str, str]:
    """What the machine's own programs find in their environment: nothing of ours.

    So for package clients and for the hooks of repositories.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((ENVIRON_PREFIX, "FORGE_")) and name not in _SERVICE_MANAGERS
    }


def replace_addresses(config: Config, *, listen: str | None, sites: str | None) -> Config:
    """The settings with the addresses that the command line gives, where it gives them."""
    server = replace(config.server, listen=listen) if listen else config.server
    site_host = replace(config.sites, listen=sites) if sites else config.sites
    changed = replace(config, server=server, sites=site_host)
    _check(changed)
    return changed


def credentials_folder(environ: Mapping[str, str]) -> Path | None:
    """Where the service manager put this process's credentials, if it did.

    Source: systemd.exec(5), "CREDENTIALS".
    """
    text = environ.get("CREDENTIALS_DIRECTORY")
    return Path(text) if text else None


def parse_address(text: str, what: str) -> tuple[str, int]:
    """Split `HOST:PORT`; an IPv6 host stands in brackets.

    Raises:
        ConfigError: It is none.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{what}: {text!r} is no address such as 127.0.0.1:8080")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _merge(values: dict[str, dict[str, object]], given: dict[str, Any], source: str) -> None:
    for section, keys in given.items():
        if section not in SECTIONS:
            raise ConfigError(f"{source}: unknown section [{section}]{_nearest(section, SECTIONS)}")
        if not isinstance(keys, dict):
            raise ConfigError(f"{source}: {section} is a section: write [{section}]")
        for key, value in keys.items():
            if key not in _keys(section):
                known = [f"{section}.{name}" for name in _keys(section)]
                raise ConfigError(
                    f"{source}: unknown key {section}.{key}{_nearest(f'{section}.{key}', known)}"
                )
            values[section][key] = value


def _merge_environ(values: dict[str, dict[str, object]], environ: Mapping[str, str]) -> None:
    known = {
        f"{ENVIRON_PREFIX}{section}_{key}".upper(): (section, key)
        for section in SECTIONS
        for key in _keys(section)
    }
    for name, value in environ.items():
        if not name.startswith(ENVIRON_PREFIX):
            continue
        if name not in known:
            raise ConfigError(f"environment: unknown setting {name}{_nearest(name, known)}")
        section, key = known[name]
        is_list = isinstance(getattr(SECTIONS[section](), key), tuple)
        values[section][key] = (
            [item.strip() for item in value.split(",") if item.strip()] if is_list else value
        )


def _read_sizes(values: dict[str, dict[str, object]]) -> None:
    for section, given in values.items():
        for key, value in given.items():
            if is_size(key) and isinstance(value, str):
                try:
                    given[key] = parse_size(value)
                except ValueError as error:
                    raise ConfigError(f"{section}.{key}: {error}") from error


def _check(config: Config) -> None:
    for name, address in (
        ("server.listen", config.server.listen),
        ("sites.listen", config.sites.listen),
    ):
        if parse_address(address, name)[1] == 0:
            raise ConfigError(f"{name}: {address!r} has no port from 1 to 65535")
    _check_networks("server.trusted_proxies", config.server.trusted_proxies)
    _check_networks("metrics.networks", config.metrics.networks)
    for address in config.sites.public_addresses:
        try:
            ipaddress.ip_address(address)
        except ValueError as error:
            raise ConfigError(f"sites.public_addresses: {error}") from error
    if not re.match(r"https?://.|$", config.server.public_url):
        raise ConfigError(
            f"server.public_url: {config.server.public_url!r} is no URL such as https://example.com"
        )
    if not _DOMAIN.fullmatch(config.sites.domain):
        raise ConfigError(f"sites.domain: {config.sites.domain!r} is no domain such as example.com")
    _check_egress(config.builders)
    for section in SECTIONS:
        for key in _keys(section):
            value = getattr(getattr(config, section), key)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if is_number and (fault := fault_of(f"{section}.{key}", value)):
                raise ConfigError(fault)
    _check_uids(config)


def _check_networks(name: str, networks: tuple[str, ...]) -> None:
    for text in networks:
        try:
            ipaddress.ip_network(text)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error


def _check_egress(builders: BuildersConfig) -> None:
    for text in builders.egress_allow:
        try:
            allowlist.parse(text)
        except ValueError as error:
            raise ConfigError(f"builders.egress_allow: {error}") from error


def _check_uids(config: Config) -> None:
    """Slots and host must not be each other: each is kept from what the others have."""
    first, count = config.builders.first_uid, config.builders.slots
    if first <= config.host.uid < first + count:
        raise ConfigError(
            f"host.uid: {config.host.uid} is a builder slot's: they have {first} to "
            f"{first + count - 1} (builders.first_uid, builders.slots)"
        )


def _keys(section: str) -> list[str]:
    return [item.name for item in fields(SECTIONS[section])]


def _nearest(name: str, known: Mapping[str, object] | list[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
