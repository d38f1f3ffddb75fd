"""What this machine's package clients say of registries, and what of it builds get to know."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import sys
import time
import tomllib
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest

from hooks.builds.egress import file_hosts
from hooks.builds.egress.addresses import look_up
from hooks.builds.egress.allowlist import Allowlist
from hooks.builds.egress.file_hosts import FileHosts, SilentRegistryError
from hooks.builds.egress.package_clients import (
    Client,
    ClientError,
    Registry,
    ask_corepack,
    ask_yarn,
    parse_composer,
    parse_npm,
    parse_pip,
    without_secrets,
)
from hooks.builds.egress.registries import EgressRules, _allowed, ca_bundle, read
from hooks.builds.egress.registry_ways import Ways
from hooks.builds.wire import AllowedHost, Egress

BUILT_IN = "https://index.example/simple files.example"
SECRET = "s3cret"


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://index.example/simple", "https://index.example/simple"),
        (f"https://user:{SECRET}@index.example:8443/simple/", "https://index.example:8443/simple/"),
        (f"https://{SECRET}@index.example/", "https://index.example/"),
        (f"http://index.example/x?token={SECRET}#{SECRET}", "http://index.example/x"),
        ("https://[fd00::1]:8443/x", "https://[fd00::1]:8443/x"),
        ("HTTPS://Index.Example/X", "https://index.example/X"),
        ("file:///opt/index", None),
        ("/opt/index", None),
        ("https:///x", None),
        ("https://index.example:x/", None),
        ("git+ssh://git@host.example/x", None),
    ],
)
def test_url_is_kept_without_its_secrets(url, clean):
    assert without_secrets(url) == clean


# -- pip and uv -----------------------------------------------------------------------------------


def test_pip_without_settings_has_its_built_in_index_and_nothing_for_the_home():
    client = parse_pip(f"{BUILT_IN}\nglobal.timeout='60'\n")
    built_in = Registry(
        "https://index.example/simple", is_built_in=True, file_hosts=("files.example",)
    )
    assert client == Client("pip", (built_in,))


def test_pip_that_is_set_to_a_mirror_has_that_one_alone():
    client = parse_pip(
        f"{BUILT_IN}\n:env:.cert='/etc/ca.pem'\n"
        f"global.index-url='https://u:{SECRET}@mirror.example/simple'\n"
        "global.trusted-host='mirror.example'\n"
        f"install.extra-index-url='file:///opt/x\\nhttp://u:{SECRET}@more.example:8080/simple'\n"
    )
    assert [each.shown_url for each in client.registries] == [
        "https://mirror.example/simple",
        "http://more.example:8080/simple",
    ]
    assert not any(each.is_built_in for each in client.registries)
    assert client.ca_bundle == "/etc/ca.pem"
    assert client.home_files == {
        ".config/pip/pip.conf": "[global]\nindex-url = https://mirror.example/simple\n"
        "extra-index-url =\n    http://more.example:8080/simple\n"
        "trusted-host =\n    mirror.example\n"
    }
    assert SECRET not in repr(client)


def test_setting_of_the_environment_beats_those_of_files():
    client = parse_pip(
        f"{BUILT_IN}\n:env:.index-url='https://env.example/'\n"
        "global.index-url='https://global.example/'\ninstall.index-url='https://install.example/'"
    )
    assert [each.url for each in client.registries] == ["https://env.example/"]


def test_built_in_index_named_by_hand_is_the_built_in_one():
    client = parse_pip(f"{BUILT_IN}\nglobal.index-url='https://index.example/simple/'")
    assert client.registries[0].is_built_in
    assert client.home_files == {}


def test_pip_that_uses_no_index_has_none():
    assert parse_pip(f"{BUILT_IN}\nglobal.no-index='true'\n").registries == ()


@pytest.mark.parametrize("url", ["/opt/index", "file:///opt/index", "", "https://index.example:x/"])
def test_pip_whose_index_builds_cannot_reach_has_none_and_tells_them_of_none(url):
    client = parse_pip(f"{BUILT_IN}\nglobal.index-url='{url}'\n")
    assert (client.registries, client.home_files) == ((), {})


@pytest.mark.parametrize(
    "told",
    ["", "\n", "no-url files.example", "https://index.example", f"{BUILT_IN}\nglobal.x=riddle"],
)
def test_pip_that_does_not_say_its_built_in_index_is_an_error(told):
    with pytest.raises(ClientError):
        parse_pip(told)


# -- npm and composer -----------------------------------------------------------------------------

NPM_DEFAULTS = """; "default" config from default values

cafile = null
package-lock = true
"""


def test_npm_without_settings_has_its_built_in_registry():
    told = f'{NPM_DEFAULTS}registry = "https://npm.example/"\n; "user" config from /root/.npmrc\n'
    built_in = Registry("https://npm.example/", is_built_in=True)
    assert parse_npm(told) == Client(
        "npm",
        (built_in,),
        # its relatives, which have others built in, use the same
        home_files={".yarnrc.yml": 'npmRegistryServer: "https://npm.example/"\n'},
        environ={"COREPACK_NPM_REGISTRY": "https://npm.example"},
    )


def test_npm_with_settings_has_what_is_set_and_the_registries_of_scopes():
    told = (
        f'{NPM_DEFAULTS}; registry = "https://npm.example/" ; overridden by user\n'
        '; "user" config from /root/.npmrc\n'
        f'@acme:registry = "https://u:{SECRET}@acme.example/npm/"\n'
        "//acme.example/npm/:_authToken = (protected)\n"
        '; registry = "https://other.example/" ; overridden by project\n'
        '; "project" config from /.npmrc\n'
        'registry = "https://mirror.example:8443/"\n'
        '; "env" config from environment\ncafile = "/etc/ca.pem"\n'
    )
    client = parse_npm(told)
    assert {each.shown_url for each in client.registries} == {
        "https://acme.example/npm/",
        "https://mirror.example:8443/",
    }
    assert client.ca_bundle == "/etc/ca.pem"
    assert client.home_files == {
        ".npmrc": "@acme:registry=https://acme.example/npm/\n"
        "registry=https://mirror.example:8443/\n",
        ".yarnrc.yml": 'npmRegistryServer: "https://mirror.example:8443/"\n',
    }
    assert client.environ == {"COREPACK_NPM_REGISTRY": "https://mirror.example:8443"}
    assert client.is_mirrored


def test_npm_9_ends_the_lines_of_what_counts_with_a_space():
    told = (
        '; "default" config from default values\n\ncafile = null \n'
        '; registry = "https://npm.example/" ; overridden by user\n'
        '; "user" config from /root/.npmrc\n\nregistry = "https://mirror.example/" \n'
        'cafile = "/etc/ca.pem" \n'
    )
    client = parse_npm(told)
    assert [each.shown_url for each in client.registries] == ["https://mirror.example/"]
    assert client.ca_bundle == "/etc/ca.pem"
    plain = parse_npm(
        '; "default" config from default values\nregistry = "https://npm.example/" \n'
    )
    assert plain.registries == (Registry("https://npm.example/", is_built_in=True),)


def test_scope_beside_the_built_in_registry_keeps_both():
    told = (
        f'{NPM_DEFAULTS}registry = "https://npm.example/"\n; "user" config from /root/.npmrc\n'
        '@acme:registry = "https://acme.example/"\n'
    )
    client = parse_npm(told)
    assert [each.is_built_in for each in client.registries] == [False, True]
    assert client.home_files[".npmrc"] == "@acme:registry=https://acme.example/\n"
    assert not client.is_mirrored


def test_npm_that_says_no_built_in_registry_is_an_error():
    with pytest.raises(ClientError):
        parse_npm('; "user" config\nregistry = "https://npm.example/"\n')


def test_composer_has_its_repositories_and_says_which_are_set():
    built_in = {"central": {"type": "composer", "url": "https://repo.example"}}
    assert parse_composer(json.dumps(built_in), json.dumps(built_in)) == Client(
        "composer", (Registry("https://repo.example", is_built_in=True),)
    )
    mirror = {
        "type": "composer",
        "url": f"https://u:{SECRET}@mirror.example/php",
        "options": {"http": {"header": [f"API-TOKEN: {SECRET}"]}},
    }
    chosen = {"own": mirror, "vcs": {"type": "path", "url": "/opt/x"}}
    client = parse_composer(f"Warning: x\n{json.dumps(chosen)}", json.dumps(built_in))
    assert [each.shown_url for each in client.registries] == ["https://mirror.example/php"]
    assert json.loads(client.home_files[".composer/config.json"]) == {
        "repositories": {
            "own": {"type": "composer", "url": "https://mirror.example/php"},
            "central": False,
        }
    }


def test_mirrors_on_plain_http_are_told_to_be_meant():
    npm = parse_npm(
        f'{NPM_DEFAULTS}; registry = "https://npm.example/" ; overridden by env\n'
        '; "env" config from environment\nregistry = "http://mirror.example:8080/npm/"\n'
    )
    assert npm.home_files[".yarnrc.yml"] == (
        'npmRegistryServer: "http://mirror.example:8080/npm/"\n'
        'unsafeHttpWhitelist: ["mirror.example"]\n'
    )
    composer = parse_composer(json.dumps({"own": {"url": "http://mirror.example"}}), "{}")
    settings = json.loads(composer.home_files[".composer/config.json"])
    assert settings["config"] == {"secure-http": False}


@pytest.mark.parametrize("told", ["", "no json", "{", "[]"])
def test_composer_that_says_no_repositories_is_an_error(told):
    with pytest.raises(ClientError):
        parse_composer(told, "{}")


# -- asked together -------------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path):
    """Put a program among the machine's clients; gives the folder that they are in."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def install(name, script):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    install.path = str(folder)
    return install


def allowed(found):
    return {(each.host, each.port, each.source, each.reach) for each in found.allow}


def test_clients_are_asked_with_the_machines_environment_and_each_for_its_own(client, tmp_path):
    client("npm", """echo '; "default" config'; echo "registry = \\"$NPM_BUILT_IN\\"" """)
    client("yarn", '[ "$1" = --version ] && echo 1.22 || echo "https://yarn.example"')
    client("composer", 'echo "{}"')
    environ = {
        "NPM_BUILT_IN": "https://npm.example/",
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": f"https://u:{SECRET}@127.0.0.1:9/simple",
        "HOME": str(tmp_path),
    }
    found = read(environ, path=client.path)
    assert allowed(found) == {
        ("127.0.0.1", 9, "pip", "loopback"),
        ("127.0.0.1", 9, "uv", "loopback"),
        ("npm.example", 443, "npm", "private"),
        ("yarn.example", 443, "yarn", "private"),
    }
    assert tomllib.loads(found.home_files[".config/uv/uv.toml"]) == {
        "index": [{"url": "https://127.0.0.1:9/simple", "default": True}]
    }
    assert SECRET not in str(found)


def test_machine_whose_npm_has_a_mirror_lets_its_relatives_use_no_other(client, tmp_path):
    client(
        "npm",
        """echo '; "default" config'; echo '; registry = "https://npm.example/"'
        echo '; "user" config'; echo 'registry = "https://mirror.example/"'""",
    )
    client("yarn", '[ "$1" = --version ] && echo 4.1 || echo "https://yarn.example"')
    environ = {"HOME": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null"}
    found = read(environ, path=client.path)
    assert [each.host for each in found.allow if each.source != "pip"] == ["mirror.example"]
    assert found.environ == {"COREPACK_NPM_REGISTRY": "https://mirror.example"}
    assert ".yarnrc.yml" in found.home_files


def test_uv_has_indexes_of_its_own_settings(client, tmp_path):
    config = tmp_path / ".config" / "uv" / "uv.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        f'[[index]]\nname = "own"\nurl = "http://u:{SECRET}@127.0.0.1:9/own"\n'
        '[[index]]\nurl = "http://127.0.0.1:9/main"\ndefault = true\n'
    )
    environ = {"HOME": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null"}
    found = read(environ, path=client.path)
    assert ("127.0.0.1", 9, "uv", "loopback") in allowed(found)
    assert tomllib.loads(found.home_files[".config/uv/uv.toml"]) == {
        "index": [
            {"url": "http://127.0.0.1:9/own"},
            {"url": "http://127.0.0.1:9/main", "default": True},
        ]
    }
    environ["UV_DEFAULT_INDEX"] = "http://127.0.0.1:9/env"
    environ["UV_INDEX"] = "named=http://127.0.0.1:9/a http://127.0.0.1:9/b?x=y"
    found = read(environ, path=client.path)
    indexes = tomllib.loads(found.home_files[".config/uv/uv.toml"])["index"]
    assert indexes[:2] == [{"url": "http://127.0.0.1:9/a"}, {"url": "http://127.0.0.1:9/b"}]
    assert indexes[-1] == {"url": "http://127.0.0.1:9/env", "default": True}


def test_clients_that_fail_or_speak_in_riddles_are_left_out_without_their_words(
    client, tmp_path, capsys
):
    client("npm", f"echo {SECRET}; echo {SECRET} >&2; exit 3")
    client("yarn", f"echo {SECRET}")
    client("composer", f"echo {SECRET}")
    found = read({"HOME": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null"}, path=client.path)
    assert {each.source for each in found.allow} == {"pip"}
    said = capsys.readouterr()
    assert "CalledProcessError 3" in said.out
    assert SECRET not in said.out + said.err


def test_settings_without_a_usable_index_cost_only_the_client_that_has_them(
    client, tmp_path, capsys
):
    client("npm", """echo '; "default" config'; echo 'registry = "https://npm.example/"'""")
    settings = tmp_path / "uv.toml"
    settings.write_text("index = 3\nextra-index-url = 4\n")
    environ = {
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": "file:///opt/index",
        "UV_CONFIG_FILE": str(settings),
    }
    assert allowed(read(environ, path=client.path)) == {("npm.example", 443, "npm", "private")}
    said = " ".join(capsys.readouterr().out.split())
    assert "package_client_without_registry client=pip" in said
    assert "package_client_unread" not in said
    settings.write_text(f"{SECRET} = {'[' * 100_000}")  # more than its reader bears
    assert allowed(read(environ, path=client.path)) == {("npm.example", 443, "npm", "private")}
    said = capsys.readouterr().out
    assert "RecursionError" in said
    assert SECRET not in said


def test_new_yarn_is_asked_by_its_other_name_of_the_setting(client):
    client("yarn", 'case "$1$3" in --version) echo 4.1.0;; *npmReg*) echo https://y.example;; esac')
    (found,) = ask_yarn({}, client.path)
    assert [each.url for each in found.registries] == ["https://y.example"]
    assert ask_yarn({}, "/nonexistent") == []


def test_corepack_is_looked_up_for_what_it_downloads(client, tmp_path):
    table = tmp_path / "bin" / "lib" / "corepack.cjs"
    table.parent.mkdir()
    table.write_text(
        'x = {url: "https://npm.example/pnpm/-/pnpm-{}.tgz"},\n{url: "https://yarn.example/{}/y.js"}'
        '{url: "https://npm.example/yarn/-/yarn-{}.tgz"}, {url: "https://docs.example/"}'
    )
    client("corepack", "exit 1")
    (found,) = ask_corepack({}, client.path)
    assert [each.url for each in found.registries] == [
        "https://npm.example/",
        "https://yarn.example/",
    ]
    (found,) = ask_corepack({"COREPACK_NPM_REGISTRY": "https://m.example"}, client.path)
    assert found.registries == (Registry("https://m.example"),)
    table.write_text("nothing")
    with pytest.raises(ClientError):
        ask_corepack({}, client.path)


def test_certificates_are_those_that_the_machine_is_set_to(tmp_path):
    one, two = tmp_path / "one.pem", tmp_path / "two.pem"
    for path in (one, two):
        path.touch()
    clients = [Client("pip", ca_bundle=str(tmp_path / "gone")), Client("npm", ca_bundle=str(two))]
    assert ca_bundle({"SSL_CERT_FILE": str(one)}, clients) == str(one)
    assert ca_bundle({"SSL_CERT_FILE": "/nonexistent"}, clients) == str(two)
    found = ca_bundle({}, [])
    assert found is None or Path(found).is_file()


async def test_rules_are_the_settings_alone_when_they_replace_the_machines(tmp_path):
    own = AllowedHost("own.example", 443, "builders.egress_allow")
    rules = EgressRules(Egress(allow=(own,), idle_s=7), with_registries=False, environ={})
    found = await rules.current()
    assert (found.allow, found.idle_s, found.home_files) == ((own,), 7, {})


async def test_rules_add_the_machines_registries_and_ask_for_them_once(client, tmp_path):
    client(
        "npm",
        f"""echo x >> {tmp_path}/asked
        echo '; "default" config'; echo 'registry = "https://npm.example/"'""",
    )
    own = AllowedHost("own.example", 443, "builders.egress_allow")
    environ = {"HOME": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null"}
    rules = EgressRules(
        Egress(allow=(own,)), with_registries=True, environ=environ, path=client.path
    )
    found = await rules.current()
    assert found.allow[0] == own
    assert "npm.example" in {each.host for each in found.allow}
    assert await rules.current() is found
    assert (tmp_path / "asked").read_text() == "x\n"


async def test_old_answer_holds_while_the_clients_are_asked_again(client, tmp_path):
    client("npm", """echo '; "default" config'; echo "registry = \\"$(cat $HOME/url)\\"" """)
    environ = {"HOME": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null"}
    rules = EgressRules(
        Egress(), with_registries=True, environ=environ, path=client.path, refresh_s=0
    )

    async def npm_hosts():
        found = await rules.current()
        return [each.host for each in found.allow if each.source == "npm"]

    (tmp_path / "url").write_text("https://one.example/")
    assert await npm_hosts() == ["one.example"]
    (tmp_path / "url").write_text("https://two.example/")
    assert await npm_hosts() == ["one.example"]
    while await npm_hosts() != ["two.example"]:
        await asyncio.sleep(0.01)


# -- where files lie ------------------------------------------------------------------------------


def look_up_4(host, port):
    """The servers of these tests listen on IPv4 alone."""
    return [info for info in look_up(host, port) if info[0] == socket.AF_INET]


@pytest.fixture
def web():
    """A web server of these answers: (status, headers, text) by path. It notes who asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append((self.path, self.headers.get("Authorization")))
            status, headers, text = server.answers.get(self.path, (404, {}, ""))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text.encode())

        do_HEAD = do_GET  # noqa: N815 - as the base class calls it

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.asked = {}, []
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_file_hosts_of_an_index_are_those_of_its_page(web):
    base = f"127.0.0.1:{web.server_port}"
    page = (
        '<a href="https://files.example/a.whl#sha256=0">a</a> <a data-x="" HREF=\'../../b.whl\'>'
        '<a href="https://files.example:8443/c"> <a href="ftp://no.example/d">'
    )
    web.answers["/simple/pip/"] = (200, {}, page)
    found = file_hosts.of_index(f"http://user:pa%20ss@{base}/simple/", None, "loopback")
    assert found == FileHosts((("files.example", 443), ("files.example", 8443)), "private")
    assert web.asked == [("/simple/pip/", "Basic dXNlcjpwYSBzcw==")]


def test_file_hosts_of_an_index_that_answers_in_json_or_elsewhere(web):
    web.answers["/pip/"] = (302, {"Location": f"http://localhost:{web.server_port}/2/"}, "")
    web.answers["/2/"] = (200, {}, '{"files": [{"url": "https://files.example/a"}]}')
    url = f"http://u:{SECRET}@127.0.0.1:{web.server_port}"
    found = file_hosts.of_index(url, None, "loopback", look_up=look_up_4)
    assert found.found == (("localhost", web.server_port), ("files.example", 443))
    assert web.asked[1] == ("/2/", None), "the password goes to no other host"


def test_file_hosts_of_a_composer_repository_follow_its_archives(web):
    base = f"http://127.0.0.1:{web.server_port}"
    web.answers |= {
        "/packages.json": (
            200,
            {},
            '{"packages": [], "metadata-url": "/p2/%package%.json", "available-packages": ["a/b"]}',
        ),
        "/p2/a/b.json": (
            200,
            {},
            f'{{"packages": {{"a/b": [{{"dist": {{"url": "{base}/zip"}}}}, {{"dist": null}}]}}}}',
        ),
        "/zip": (302, {"Location": f"http://localhost:{web.server_port}/real"}, ""),
        "/real": (200, {}, ""),
    }
    found = file_hosts.of_composer(base, None, "loopback", look_up=look_up_4)
    assert found == FileHosts((("localhost", web.server_port),), "private")
    assert [path for path, _ in web.asked] == ["/packages.json", "/p2/a/b.json", "/zip", "/real"]


def test_composer_repository_of_one_file_names_archives_that_need_not_answer(web):
    web.answers["/packages.json"] = (
        200,
        {},
        '{"packages": {"a/b": {"1.0": {"dist": {"url": "http://none.invalid:1/x.zip"}}}}}',
    )
    found = file_hosts.of_composer(f"http://127.0.0.1:{web.server_port}", None, "loopback")
    assert found.found == (("none.invalid", 1),)


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/a.whl",
        "http://127.0.0.1:6379/a.whl",
        "https://10.1.2.3:8443/a.whl",
        "https://[fd00::1]/a.whl",
        "https://1.2.3.4/a.whl",
        "https://*.example/a.whl",
        "https://a.example,b.example/a.whl",
    ],
)
def test_what_a_page_names_by_an_address_or_for_many_is_not_allowed(web, url):
    web.answers["/pip/"] = (200, {}, f'<a href="{url}"> <a href="https://files.example/b">')
    registry = Registry(f"http://127.0.0.1:{web.server_port}")
    found = Allowlist(_allowed(Client("pip", (registry,)), None))
    parts = urlsplit(url)
    for host in (parts.hostname, parts.hostname.replace("*", "evil")):
        assert found.reach_of(host, parts.port or 443) is None
        assert found.reach_of(host, 80) is None
    assert found.reach_of("files.example", 443) == "private"
    assert found.reach_of("127.0.0.1", web.server_port) == "loopback"


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_control_asks_nobody_on_this_machine_whom_a_registry_names(web, name):
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0)
        place = f"http://{name}:{other.getsockname()[1]}"
        listed = {"packages": {"a/b": {"1.0": {"dist": {"url": f"{place}/admin?x=1"}}}}}
        web.answers["/packages.json"] = (200, {}, json.dumps(listed))
        web.answers["/pip/"] = (302, {"Location": f"{place}/admin"}, "")
        base = f"http://127.0.0.1:{web.server_port}"
        assert file_hosts.of_composer(base, None, "loopback", look_up=look_up_4).reach == "private"
        with pytest.raises(SilentRegistryError):
            file_hosts.of_index(base, None, "loopback", look_up=look_up_4)
        with pytest.raises(BlockingIOError):
            other.accept()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_control_is_led_on_by_http_alone(web, name):
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0)
        place = f"ftp://{name}:{other.getsockname()[1]}/a"
        base = f"http://127.0.0.1:{web.server_port}"
        listed = {"packages": {"a/b": {"1.0": {"dist": {"url": f"{base}/zip"}}}}}
        web.answers["/packages.json"] = (200, {}, json.dumps(listed))
        web.answers["/zip"] = web.answers["/pip/"] = (302, {"Location": place}, "")
        assert file_hosts.of_composer(base, None, "loopback", look_up=look_up_4).found == ()
        with pytest.raises(SilentRegistryError):
            file_hosts.of_index(base, None, "loopback", look_up=look_up_4)
        with pytest.raises(BlockingIOError):
            other.accept()


# What it leaves in the background ends with it, however it ends.
APART = """
set -e
ip link set lo up; ip link add near type veth peer name far
unshare --net setpriv --pdeathsig KILL sleep 60 & there=$!
until [ "$(readlink /proc/$there/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
ip link set far netns $there
ip address add 198.51.100.1/24 dev near; ip link set near up; ip route add default dev near
nsenter --target $there --net sh -c '
  for each in 1.2.3.4 10.1.2.3 10.9.9.9; do ip address add $each/32 dev far; done
  ip link set far up; ip route add default dev far'
nsenter --target $there --net setpriv --pdeathsig KILL "$0" "$1" far > "$2" &
until grep -q there "$2"; do sleep 0.01; done
"$0" "$1" near public.example private.example
"""


def test_what_a_registry_names_lies_no_nearer_than_the_registry_does(tmp_path):
    script, asked = Path(__file__).parent / "registry_child.py", tmp_path / "asked"
    command = ["unshare", "--map-root-user", "--net", "sh", "-c", APART, sys.executable]
    done = subprocess.run(
        [*command, script, asked], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == [
        "near public.example page files.example public",
        "near public.example leads URLError",
        "near public.example metadata URLError",
        "near public.example composer inner.example public",
        "near private.example page files.example private",
        "near private.example leads inner.example files.example private",
        "near private.example metadata URLError",
        "near private.example composer inner.example private",
    ], done.stderr
    inner = [line for line in asked.read_text().splitlines() if "10.9.9.9" in line]
    assert inner == ["far GET 10.9.9.9 /page/pip/", "far HEAD 10.9.9.9 /a.zip"]


@pytest.mark.parametrize(
    "answer",
    [
        (500, {}, ""),
        (200, {}, "{"),
        (200, {}, '{"files": 3}'),
        (200, {}, '{"x":' + "[" * 100_000),
        (302, {"Location": "file:///etc/passwd"}, ""),
        (302, {"Location": "data:text/html,<a href='https://files.example/a'>"}, ""),
        (302, {"Location": "http://localhost:99999/"}, ""),
        (302, {"Location": "http://[bad/"}, ""),
        (302, {"Location": f"/{'x' * 10_000}"}, ""),
        (302, {"Location": "/pip/"}, ""),
    ],
)
def test_registry_that_answers_otherwise_is_silent(web, answer):
    web.answers["/pip/"] = answer
    with pytest.raises(SilentRegistryError):
        file_hosts.of_index(f"http://127.0.0.1:{web.server_port}/", None, "loopback")


@pytest.mark.parametrize("versions", [3, None, "words", [3], {"1.0": 3}])
def test_composer_repository_whose_versions_are_none_has_no_file_hosts(web, versions):
    web.answers["/packages.json"] = (200, {}, json.dumps({"packages": {"a/b": versions}}))
    found = file_hosts.of_composer(f"http://127.0.0.1:{web.server_port}", None, "loopback")
    assert found.found == ()


def test_registry_that_is_not_there_is_silent():
    with pytest.raises(SilentRegistryError):
        file_hosts.of_index("http://127.0.0.1:1/simple", None, "loopback")


BAD_URL = "http://[bad/x"


def test_link_that_is_none_costs_no_other_one(web):
    links = f'<a href="{BAD_URL}"> <a href="http://{"x" * 10_000}/"> <a href="https://a.example/b">'
    web.answers["/pip/"] = (200, {}, links)
    base = f"http://127.0.0.1:{web.server_port}"
    assert file_hosts.of_index(base, None, "loopback").found == (("a.example", 443),)
    files = [{"url": BAD_URL}, {"url": "https://b.example/b"}]
    web.answers["/pip/"] = (200, {}, json.dumps({"files": files}))
    assert file_hosts.of_index(base, None, "loopback").found == (("b.example", 443),)


def test_archive_of_a_bad_url_costs_no_other_one(web):
    base = f"http://127.0.0.1:{web.server_port}"
    dists = [{"dist": {"url": url}} for url in (BAD_URL, f"{base}/zip", "https://a.example/x")]
    web.answers["/packages.json"] = (200, {}, json.dumps({"packages": {"a/b": dists}}))
    assert file_hosts.of_composer(base, None, "loopback").found == (("a.example", 443),)
    assert [path for path, _ in web.asked] == ["/packages.json", "/zip"]


def test_page_of_many_links_is_read_in_bounded_time(web):
    web.answers["/pip/"] = (200, {}, "<a href=x>" * 400_000)
    started_at = time.process_time()
    file_hosts.of_index(f"http://127.0.0.1:{web.server_port}", None, "loopback")
    assert time.process_time() - started_at < 3


@contextmanager
def speaking(speak):
    """A server of whatever `speak` sends to each connection. Gives its port."""

    def serve():
        while True:
            connection, _ = server.accept()
            if is_over:
                connection.close()
                return
            with connection, suppress(OSError):
                speak(connection)

    is_over = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        is_over.append(True)
        socket.create_connection(server.getsockname()).close()
        thread.join()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("begun", "piece"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (OK + b"X: ", b"x"),
        (OK + b"\r\n", b"x"),
        (OK + b"Content-Length: 9999\r\n\r\n", b"x"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"x"),
    ],
)
def test_registry_that_speaks_slowly_is_not_waited_for_without_end(begun, piece):
    def drip(connection):
        connection.recv(10_000)
        connection.sendall(begun)
        for _ in range(200):
            connection.sendall(piece)
            time.sleep(0.05)

    with speaking(drip) as port:
        started_at = time.monotonic()
        with pytest.raises(SilentRegistryError):
            file_hosts.of_index(f"http://127.0.0.1:{port}", None, "loopback", asked_s=0.5)
        assert time.monotonic() - started_at < 5  # it goes on for ten


def test_all_that_a_registry_is_asked_has_one_end():
    def send_on(connection):
        path = connection.recv(10_000).split()[1].decode()
        time.sleep(0.4)
        connection.sendall(f"HTTP/1.1 302 On\r\nLocation: {path}x/\r\n\r\n".encode())

    with speaking(send_on) as port:
        started_at = time.monotonic()
        with pytest.raises(SilentRegistryError) as caught:
            file_hosts.of_index(f"http://127.0.0.1:{port}", None, "loopback", asked_s=0.6)
        assert time.monotonic() - started_at < 3  # ten redirects take four
        assert str(caught.value) in ("TimeoutError", "URLError")


def test_what_comes_with_a_redirect_is_not_read():
    def answer(connection):
        if b"GET /pip/" in connection.recv(10_000):
            connection.sendall(b"HTTP/1.1 302 On\r\nLocation: /2/\r\n\r\n")
            for _ in range(1000):
                connection.sendall(b"x" * 100_000)
                time.sleep(0.01)
        else:
            connection.sendall(OK + b"\r\n<a href='https://a.example/b'>")

    with speaking(answer) as port:
        base = f"http://127.0.0.1:{port}"
        found = file_hosts.of_index(base, None, "loopback", asked_s=5)
        assert found.found == (("a.example", 443),)


def test_addresses_that_do_not_answer_are_tried_within_one_time():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        place = deaf.getsockname()
        filling = [socket.socket() for _ in range(4)]
        for each in filling:
            each.setblocking(False)
            each.connect_ex(place)
        info = (socket.AF_INET, socket.SOCK_STREAM, 0, "", place)
        ways = Ways(place, "loopback", lambda *_: [info] * 8, 1.0)
        started_at = time.monotonic()
        with pytest.raises(TimeoutError):
            ways.connect(*place)
        assert time.monotonic() - started_at < 4
        for each in filling:
            each.close()


@pytest.fixture
def certified(tmp_path):
    """A certificate of localhost's own with its key, in one file."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "2"),
            *("-subj", "/CN=acme", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    certificate.write_bytes(key.read_bytes() + certificate.read_bytes())
    return str(certificate)


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not here")
def test_password_of_a_registry_goes_to_its_very_scheme_host_and_port(certified):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certified)
    asked, follow = [], []

    def answer(connection):
        is_tls = connection.recv(1, socket.MSG_PEEK) == b"\x16"
        with context.wrap_socket(connection, server_side=True) if is_tls else connection as side:
            request = side.recv(10_000)
            asked.append((is_tls, request.split()[1].decode(), b"Authorization: " in request))
            text = json.dumps({"metadata-url": follow[-1], "packages": {}}).encode()
            side.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(text) + text)

    with speaking(answer) as port:
        url = f"https://u:{SECRET}@LOCALHOST:{port}"
        for each in ("/2", f"HTTPS://localhost:{port}/3", f"http://localhost:{port}/4"):
            follow.append(each)
            file_hosts.of_composer(url, certified, "loopback", look_up=look_up_4)
    root = (True, "/packages.json", True)
    assert asked == [root, (True, "/2", True), root, (True, "/3", True), root, (False, "/4", False)]
