"""The package clients of this machine, asked for their registries: pip, uv, npm, yarn, composer.

Nothing is known of registries here. A client is asked what it is set to and what it has built in;
one that is not installed has neither. Answers may hold passwords: they are taken apart here, and of
a URL only scheme, host, port and path go on.

Source: pip's "Configuration"; uv's "Configuration files" and "Package indexes"; npm-config(1);
composer's "config" command.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

CLIENT_TIMEOUT_S = 30.0
CLIENT_PATH = "/usr/local/bin:/usr/bin:/bin"  # the programs that builds find
PORTS = {"https": 443, "http": 80}
_ASK_PIP = """
from pip._internal.models.index import PyPI
print(PyPI.simple_url, PyPI.file_storage_domain)
from pip._internal.cli.main import main
main(["config", "list"])
"""
_QUIET = {
    "COMPOSER_ALLOW_SUPERUSER": "1",
    "COMPOSER_NO_INTERACTION": "1",
    "COREPACK_ENABLE_NETWORK": "0",  # a yarn that is only a promise of one is none
    "NO_COLOR": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "npm_config_logs_max": "0",
    "npm_config_update_notifier": "false",
}
_PIP_SCOPES = ("global", "install", ":env:")  # later ones win
_PIP_TRUE = ("1", "true", "t", "yes", "y", "on")
_UV_NAME = re.compile(r"[A-Za-z0-9._-]+=")  # of an index, before its URL
_COREPACK_URL = re.compile(r'url: "https://([a-z0-9.-]+)/[^"]*\{\}[^"]*"')  # {}: a version
_NPM_LINE = re.compile(  # npm 9 ends each line with a space
    r"(; )?((?:@[^:\s]+:)?registry|cafile) = (\".*\") ?(; overridden by \w+)?"
)


class ClientError(Exception):
    """A client did not answer, or not as it should. The message holds nothing that it said."""


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry that a client uses. `url` may hold a password: it is never shown.

    `file_hosts`: where else its files lie, if the client knows.
    """

    url: str = field(repr=False)
    is_built_in: bool = False
    file_hosts: tuple[str, ...] = ()

    @property
    def shown_url(self) -> str:
        clean = without_secrets(self.url)
        assert clean is not None
        return clean


@dataclass(frozen=True, slots=True)
class Client:
    """What one client said. `home_files` and `environ` tell the same to its like in a build.

    `is_mirrored`: what it has built in is not to be used.
    """

    name: str
    registries: tuple[Registry, ...] = ()
    ca_bundle: str | None = None
    home_files: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    is_mirrored: bool = False


def without_secrets(url: str) -> str | None:
    """Return an http(s) URL without user, password, query and fragment; None for any other."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in PORTS or not parts.hostname:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"


# -- Python ---------------------------------------------------------------------------------------


def ask_python(environ: Mapping[str, str], path: str = CLIENT_PATH) -> list[Client]:
    """Ask pip, and read uv's settings: uv has the same index built in.

    Raises:
        ClientError: No pip can be asked.
    """
    problem = ClientError("there is none")
    # The python that builds find may lack pip where it is packaged apart; this one's will do.
    for python in (shutil.which("python3", path=path), sys.executable):
        if python is not None:
            try:
                pip = parse_pip(_ask([python, "-I", "-c", _ASK_PIP], environ))
            except ClientError as error:
                problem = error
            else:
                return [pip, _uv(environ, pip)]
    raise problem


def parse_pip(told: str) -> Client:
    """Read what `_ASK_PIP` prints: the built-in index and file host, then `scope.name='value'`."""
    first, *lines = told.splitlines() or [""]
    built_in_url, _, file_host = first.partition(" ")
    if without_secrets(built_in_url) is None or not file_host:
        raise ClientError("its built-in index is not understood")
    settings: dict[str, str] = {}
    for scope in _PIP_SCOPES:
        for line in lines:
            key, _, value = line.partition("=")
            if key.startswith(f"{scope}."):
                settings[key.removeprefix(f"{scope}.")] = _python_text(value)
    if settings.get("no-index", "").lower() in _PIP_TRUE:
        return Client("pip", ca_bundle=settings.get("cert"))
    built_in = Registry(built_in_url, is_built_in=True, file_hosts=(file_host,))
    index = _registry(settings.get("index-url", built_in_url), built_in)
    extra = [_registry(url, built_in) for url in settings.get("extra-index-url", "").split()]
    registries = [each for each in (index, *extra) if each is not None]
    files = {}
    if registries and registries != [built_in]:
        files[".config/pip/pip.conf"] = _pip_conf(registries, settings.get("trusted-host", ""))
    return Client("pip", tuple(registries), settings.get("cert"), files)


def _python_text(quoted: str) -> str:
    try:
        return str(ast.literal_eval(quoted))
    except (ValueError, SyntaxError):
        raise ClientError("its settings are not understood") from None


def _registry(url: str, built_in: Registry) -> Registry | None:
    clean = without_secrets(url)
    if clean is None:  # such as a folder
        return None
    return built_in if clean.rstrip("/") == built_in.shown_url.rstrip("/") else Registry(url)


def _pip_conf(registries: Sequence[Registry], trusted: str) -> str:
    lines = ["[global]", f"index-url = {registries[0].shown_url}"]
    for name, values in (
        ("extra-index-url", [each.shown_url for each in registries[1:]]),
        ("trusted-host", trusted.split()),
    ):
        if values:
            lines += [f"{name} =", *(f"    {value}" for value in values)]
    return "\n".join([*lines, ""])


def _uv(environ: Mapping[str, str], pip: Client) -> Client:
    """Give uv its own indexes; pip's where it has none, so that one mirror is enough."""
    indexes, default = _uv_indexes(environ)
    registries = [Registry(url) for url in indexes if without_secrets(url)]
    registries += [Registry(default)] if default and without_secrets(default) else []
    if not registries:
        registries = [*pip.registries[1:], *pip.registries[:1]]
    if all(each.is_built_in for each in registries):
        return Client("uv")
    has_default = bool(default) or not indexes
    tables = [f"[[index]]\nurl = {json.dumps(each.shown_url)}\n" for each in registries]
    if has_default:
        tables[-1] += "default = true\n"
    return Client("uv", tuple(registries), home_files={".config/uv/uv.toml": "\n".join(tables)})


def _uv_indexes(environ: Mapping[str, str]) -> tuple[list[str], str | None]:
    """The URLs of uv's indexes besides the default one, and that one's, as they are set."""
    indexes: list[str] = []
    default = environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL")
    for name in ("UV_INDEX", "UV_EXTRA_INDEX_URL"):
        indexes += [_UV_NAME.sub("", word, count=1) for word in environ.get(name, "").split()]
    for path in _uv_files(environ):
        try:
            settings = tomllib.loads(path.read_text())
        except (OSError, ValueError):
            continue
        tables = [each for each in _listed(settings, "index") if isinstance(each, dict)]
        indexes += [str(each.get("url")) for each in tables if not each.get("default")]
        indexes += map(str, _listed(settings, "extra-index-url"))
        for table in tables:
            if table.get("default"):
                default = default or str(table.get("url"))
        if "index-url" in settings:
            default = default or str(settings["index-url"])
    return indexes, default


def _listed(settings: Mapping[str, Any], name: str) -> list[Any]:
    value = settings.get(name)
    return value if isinstance(value, list) else []


def _uv_files(environ: Mapping[str, str]) -> Iterator[Path]:
    if "UV_CONFIG_FILE" in environ:
        yield Path(environ["UV_CONFIG_FILE"])
        return
    home = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME', '/nonexistent')}/.config"
    for folder in (home, "/etc/xdg", "/etc"):
        yield Path(folder, "uv", "uv.toml")


# -- Node and PHP ---------------------------------------------------------------------------------


def ask_npm(environ: Mapping[str, str], path: str = CLIENT_PATH) -> list[Client]:
    """Ask npm, whose settings pnpm reads too.

    Raises:
        ClientError: It does not answer.
    """
    program = shutil.which("npm", path=path)
    if program is None:
        return []
    return [parse_npm(_ask([program, "config", "list", "--long"], environ))]


def parse_npm(told: str) -> Client:
    """Read what `npm config list --long` prints: sections, with what is overridden as comments."""
    section = ""
    built_in: Registry | None = None
    ca_bundle = None
    chosen: dict[str, str] = {}
    for line in told.splitlines():
        if line.startswith('; "'):
            section = line.split('"')[1]
        match = _NPM_LINE.fullmatch(line)
        if match is None:
            continue
        is_comment, name, quoted, _ = match.groups()
        value = _json(quoted, str)
        if section == "default" and name == "registry":
            built_in = Registry(value, is_built_in=True)
        if is_comment:
            continue
        if name == "cafile":
            ca_bundle = value
        else:
            chosen[name] = value
    if built_in is None or without_secrets(built_in.url) is None:
        raise ClientError("its built-in registry is not understood")
    set_here = {
        name: found
        for name, url in chosen.items()
        if (found := _registry(url, built_in)) is not None
        and (found is not built_in or "@" in name)
    }
    registries = list(set_here.values())
    if "registry" not in set_here:
        registries.append(built_in)
    lines = [f"{name}={each.shown_url}\n" for name, each in set_here.items()]
    files = {".npmrc": "".join(lines)} if lines else {}
    # Its relatives do not read .npmrc, and have other names of the same registry built in.
    url = set_here.get("registry", built_in).shown_url
    files[".yarnrc.yml"] = _yarnrc(url)
    tools = {"COREPACK_NPM_REGISTRY": url.rstrip("/")}  # a path is put behind it, with a slash
    is_mirrored = "registry" in set_here
    return Client("npm", tuple(registries), ca_bundle, files, tools, is_mirrored=is_mirrored)


def _yarnrc(url: str) -> str:
    text = f"npmRegistryServer: {json.dumps(url)}\n"
    if url.startswith("http:"):
        text += f"unsafeHttpWhitelist: [{json.dumps(urlsplit(url).hostname)}]\n"
    return text


def ask_yarn(environ: Mapping[str, str], path: str = CLIENT_PATH) -> list[Client]:
    """Ask yarn, the old one or the new one, which have a registry of their own built in.

    Raises:
        ClientError: It does not answer.
    """
    program = shutil.which("yarn", path=path) or shutil.which("yarnpkg", path=path)
    if program is None:
        return []
    is_old = _ask([program, "--version"], environ).startswith("1.")
    name = "registry" if is_old else "npmRegistryServer"
    url = _ask([program, "config", "get", name], environ).strip()
    if without_secrets(url) is None:
        raise ClientError("its registry is not understood")
    return [Client("yarn", (Registry(url, is_built_in=True),))]


def ask_corepack(environ: Mapping[str, str], path: str = CLIENT_PATH) -> list[Client]:
    """Look up where corepack has pnpm and yarn from: it has no command that says so.

    Raises:
        ClientError: Its table of addresses is not found.
    """
    program = shutil.which("corepack", path=path)
    if program is None:
        return []
    registry = Registry(environ.get("COREPACK_NPM_REGISTRY", ""))
    if without_secrets(registry.url) is not None:
        variables = {"COREPACK_NPM_REGISTRY": registry.shown_url}
        return [Client("corepack", (registry,), environ=variables)]
    try:
        table = (Path(program).resolve().parent / "lib" / "corepack.cjs").read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ClientError(type(error).__name__) from None
    hosts = {f"https://{host}/": None for host in _COREPACK_URL.findall(table)}
    if not hosts:
        raise ClientError("its table of addresses is not understood")
    return [Client("corepack", tuple(Registry(url, is_built_in=True) for url in hosts))]


def ask_composer(environ: Mapping[str, str], path: str = CLIENT_PATH) -> list[Client]:
    """Ask composer.

    Raises:
        ClientError: It does not answer.
    """
    program = shutil.which("composer", path=path)
    if program is None:
        return []
    argv = [program, "config", "--global", "repositories"]
    built_in = _ask(argv, {**environ, "COMPOSER_HOME": "/nonexistent"})
    return [parse_composer(_ask(argv, environ), built_in)]


def parse_composer(told: str, told_without_settings: str) -> Client:
    """Read what `composer config repositories` prints, with and without the machine's settings."""
    chosen, built_in = _repositories(told), _repositories(told_without_settings)
    registries = []
    set_here: dict[str, Any] = {}
    for name, repository in chosen.items():
        url = repository.get("url") if isinstance(repository, dict) else None
        if repository is False:
            set_here[name] = False  # the built-in one is not to be used
        if not isinstance(url, str) or without_secrets(url) is None:
            continue
        is_built_in = built_in.get(name) == repository
        registries.append(Registry(url, is_built_in=is_built_in))
        if not is_built_in:
            set_here[name] = {**repository, "url": registries[-1].shown_url}
            set_here[name].pop("options", None)  # headers: passwords
    for name in built_in:
        if name not in chosen:
            set_here[name] = False
    settings: dict[str, Any] = {"repositories": set_here}
    if any(not each.is_built_in and each.url.startswith("http:") for each in registries):
        settings["config"] = {"secure-http": False}
    files = {".composer/config.json": json.dumps(settings)} if set_here else {}
    return Client("composer", tuple(registries), home_files=files)


def _repositories(told: str) -> dict[str, Any]:
    start = told.find("{")
    if start < 0:
        raise ClientError("its repositories are not understood")
    found: dict[str, Any] = _json(told[start:], dict[str, Any])
    return found


# -- asking ---------------------------------------------------------------------------------------


def _ask(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """Run a client in a folder without a project, and return what it prints.

    Raises:
        ClientError: It fails, or takes too long.
    """
    try:
        done = subprocess.run(
            argv,
            env={**environ, **_QUIET},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=CLIENT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        status = f" {error.returncode}" if isinstance(error, subprocess.CalledProcessError) else ""
        raise ClientError(f"{type(error).__name__}{status}") from None
    return done.stdout


def _json(text: str, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except ValueError:
        raise ClientError("it does not answer in JSON") from None
