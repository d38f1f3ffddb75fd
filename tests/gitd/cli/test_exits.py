"""The exit codes 0 to 4, and the words that go with them."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import time

import pytest

PLACE = ("--site", "acme-store", "--env", "production")
BUILDS = "/v1/sites/acme-store/environments/production/builds"


def test_refusal_says_code_message_what_to_do_and_request_id(mf, peer) -> None:
    said = peer.refusal(403, "scope.insufficient", "This key lacks deployments:write.")
    peer.on("POST", BUILDS, said)
    ran = mf("build", *PLACE)
    assert (ran.code, ran.out) == (3, "")
    assert "scope.insufficient: This key lacks deployments:write." in ran.err
    assert "Use a key that has this scope" in ran.err
    assert "Request id: req_01J9" in ran.err
    assert len(peer.seen) == 1


@pytest.mark.parametrize(
    ("said", "advised"),
    [
        ("This API key lacks the scope credentials:write.", "--scope credentials:write"),
        ("No.", "--scope SCOPE"),
    ],
)
def test_missing_scope_is_named_in_the_command_that_makes_a_key(mf, peer, said, advised) -> None:
    peer.on("POST", BUILDS, peer.refusal(403, "scope.insufficient", said))
    err = mf("build", *PLACE).err
    assert f"gitd key create --label NAME {advised} --data DIR` makes one" in err
    assert "--preset" not in err, "it is asked for nothing else"


def test_refusal_names_the_field(mf, peer) -> None:
    peer.on("POST", BUILDS, peer.refusal(400, "request.invalid", "It is no ref.", param="ref"))
    assert "request.invalid (ref): It is no ref." in mf("build", *PLACE).err


def test_unknown_code_points_at_the_servers_own_page(mf, peer) -> None:
    said = peer.refusal(409, "moon.full", "Not now.", doc_url="http://x/errors/moon.full")
    peer.on("POST", BUILDS, said)
    assert "See http://x/errors/moon.full" in mf("build", *PLACE).err


def test_refusal_with_json_leaves_the_output_empty(mf, peer) -> None:
    peer.on("GET", "/v1/jobs/job_1", peer.refusal(404, "job.not_found", "There is no such job."))
    ran = mf("jobs", "show", "job_1", "--json")
    assert (ran.code, ran.out) == (3, "")
    said = json.loads(ran.err)
    assert said["error"]["code"] == "job.not_found"
    assert said["request_id"].startswith("req_")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("jobs", "show", "--json"), "Missing argument 'JOB"),
        (("jobs", "show", "job_1", "--jsn", "--json"), "--jsn"),
        (("sites", "--limit", "x", "--json"), "'x' is not a valid integer"),
        (("moon", "--json"), "No such command 'moon'."),
        (("variables", "set", "A=1", "b", "--json", *PLACE), "b is no NAME=VALUE"),
        (("audit", "verify", "/nowhere", "--json"), "No such file or directory"),
    ],
)
def test_wrong_usage_with_json_is_json_too(mf, peer, arguments, said) -> None:
    ran = mf(*arguments)
    assert (ran.code, ran.out) == (2, "")
    error = json.loads(ran.err)["error"]
    assert (error["type"], error["code"]) == ("client", "client.usage")
    assert said in error["message"]
    assert peer.seen == []


def test_words_behind_the_options_ask_for_no_json(mf) -> None:
    ran = mf("jobs", "show", "job_1", "--jsn", "--", "--json")
    assert ran.code == 2
    assert ran.err.startswith("Usage: ")


def test_wrong_key_says_where_keys_come_from(mf, peer) -> None:
    peer.on("GET", "/v1/sites", peer.refusal(401, "authentication.invalid_key", "No."))
    ran = mf("sites")
    assert ran.code == 3
    assert "FORGE_TOKEN" in ran.err


def test_no_server_is_code_4(mf_at) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        mf = mf_at(f"http://127.0.0.1:{unused.getsockname()[1]}")
        ran = mf("sites")
        assert (ran.code, ran.out) == (4, "")
        assert "cannot be reached" in ran.err
        assert "FORGE_URL" in ran.err
        ran = mf("sites", "--json")
        assert json.loads(ran.err)["error"]["code"] == "client.unreachable"


def test_unknown_host_is_code_4(mf_at) -> None:
    assert mf_at("http://no-such-host.invalid")("sites").code == 4


def test_broken_connections_are_tried_a_few_times(mf, peer) -> None:
    peer.on("GET", "/v1/sites", peer.broken(), peer.broken(), peer.many([]))
    assert mf("sites", "--json").json == []
    peer.on("GET", "/v1/sites", peer.broken())
    assert mf("sites").code == 4
    assert len(peer.seen) == 3 + 4


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, "<html>hello</html>", "text/html"),
        (200, "{}", "application/json"),
        (200, "[]", "application/json"),
        (200, "null", "application/json"),
        (200, '{"data": 3}', "application/json"),
        (200, '{"data": [3]}', "application/json"),
        (200, '{"data"', "application/json"),
        (200, "[" * 100_000, "application/json"),
        (404, "<html>nginx</html>", "text/html"),
        (500, "oops", "text/plain"),
        (500, '{"error": "oops"}', "application/json"),
    ],
)
def test_what_is_not_this_api_is_code_4(mf, peer, status, body, kind) -> None:
    peer.on("GET", "/v1/sites", peer.raw(body, status=status, headers={"Content-Type": kind}))
    ran = mf("sites")
    assert (ran.code, ran.out) == (4, "")
    assert ran.err.startswith("mf: ")


def test_server_in_trouble_that_says_so_is_a_refusal(mf, peer) -> None:
    peer.on("GET", "/v1/sites", peer.refusal(500, "api.internal", "The server failed."))
    assert mf("sites").code == 3


def test_proxy_before_a_restarting_server_is_waited_for(mf, peer) -> None:
    peer.on("GET", "/v1/sites", peer.raw("502", status=502), peer.many([]))
    assert mf("sites").code == 0
    peer.on("GET", "/v1/sites", peer.raw("502", status=502))
    assert mf("sites").code == 4


def test_rate_limit_is_waited_for_when_it_is_short(mf, peer) -> None:
    limited = peer.raw("{}", status=429, headers={"Retry-After": "1"})
    peer.on("GET", "/v1/sites", limited, peer.many([]))
    began = time.monotonic()
    assert mf("sites").code == 0
    assert time.monotonic() - began >= 1


def test_rate_limit_that_is_long_is_told(mf, peer) -> None:
    async def limited(request):
        answer = await peer.refusal(429, "rate_limit.exceeded", "Too many.")(request)
        answer.headers["Retry-After"] = "3600"
        return answer

    peer.on("GET", "/v1/sites", limited)
    ran = mf("sites")
    assert ran.code == 3
    assert "rate_limit.exceeded" in ran.err


def test_key_is_not_sent_where_a_redirect_points(mf, peer, new_peer) -> None:
    other = new_peer()
    other.start()
    peer.on("GET", "/v1/sites", peer.raw("", status=307, headers={"Location": other.url}))
    ran = mf("sites")
    assert ran.code == 4
    assert other.url in ran.err
    assert other.seen == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("sites", "no-such-command"),
        ("sites", "--no-such-option"),
        ("build", "--env", "production"),
        ("build", "--site", "acme-store"),
        ("promote", *PLACE),
        ("deploy", *PLACE),
        ("routes", "set", "--site", "acme-store"),
        ("builds", "--site", "..", "--env", "production"),
        ("jobs", "show", ""),
    ],
)
def test_wrong_usage_is_code_2_and_asks_nothing_of_the_server(mf, peer, arguments) -> None:
    ran = mf(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert peer.seen == []


@pytest.mark.parametrize("token", [None, "", "  ", "with space", "größe", "two\nlines"])
def test_missing_or_odd_key_is_wrong_usage_and_never_shown(mf, peer, token) -> None:
    ran = mf("sites", FORGE_TOKEN=token)
    assert ran.code == 2
    assert "FORGE_TOKEN" in ran.err
    assert not (token or "").strip() or token not in ran.err
    assert peer.seen == []


def test_key_with_the_end_of_its_line_is_taken(mf, peer, token) -> None:
    peer.on("GET", "/v1/sites", peer.many([]))
    assert mf("sites", FORGE_TOKEN=f"{token}\n").code == 0


@pytest.mark.parametrize("url", ["nonsense", "http://user:hidden@127.0.0.1"])
def test_odd_address_is_wrong_usage(mf, url) -> None:
    ran = mf("sites", FORGE_URL=url)
    assert ran.code == 2
    assert "hidden" not in ran.err


def test_help_is_there_without_a_server_or_key_and_at_once(mf) -> None:
    took_s = []
    for _ in range(3):
        began = processor_s()
        ran = mf("--help", FORGE_URL=None, FORGE_TOKEN=None)
        took_s.append(processor_s() - began)
        assert ran.code == 0
    assert "rollback" in ran.out
    assert min(took_s) < 0.5


def processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_of_a_group_is_its_own_and_not_its_lists(mf) -> None:
    assert "cancel" in mf("jobs", "--help").out
    assert "cancel" in mf("jobs", "-h").out
    assert "--all" in mf("jobs", "list", "--help").out


def test_message_cannot_command_the_terminal(mf, peer) -> None:
    peer.on("GET", "/v1/sites", peer.refusal(409, "x.y", "\x1b]0;title\x07\x1b[2Jhello"))
    assert "x.y: hello\n" in mf("sites").err


def test_reader_that_leaves_early_is_no_crash(mf, peer) -> None:
    items = [{"id": f"job_{number}", "note": "x" * 1000} for number in range(500)]
    peer.on("GET", "/v1/jobs", peer.many(items))
    process = mf.begin("jobs", "--all", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) != 0
    assert "Traceback" not in err


def test_locale_without_unicode_is_no_crash(mf, peer) -> None:
    peer.on("GET", "/v1/sites", peer.many([{"name": "größe", "id": "site_1"}]))
    for locale in ("C", "POSIX"):
        ran = mf("sites", LC_ALL=locale, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
        assert (ran.code, ran.err) == (0, "")
        assert "site_1" in ran.out


def test_imports_nothing_else_of_ours(mf) -> None:
    import sys

    code = (
        "import sys, gitd.cli.main, gitd.cli.waiting, httpx, rich.progress\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('hooks', 'storage')\n"
        "       or m.startswith('gitd.') and not m.startswith('gitd.cli')\n"
        "       and m not in ('gitd.command_groups', 'gitd.durations', 'gitd.families',\n"
        "                     'gitd.terminal')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_proxy_is_not_asked_for_a_server_on_this_machine(mf, peer) -> None:
    peer.on("GET", "/v1/sites", peer.many([]))
    assert mf("sites", HTTP_PROXY="http://127.0.0.1:1", NO_PROXY=None).code == 0


def test_version_option_is_as_usual(mf) -> None:
    assert mf("--version").out.startswith("mf ")


@pytest.mark.parametrize(("asked_s", "is_said"), [("2", True), ("1", False)])
def test_wait_that_the_server_asks_for_is_said_where_it_is_long(mf, peer, asked_s, is_said) -> None:
    limited = peer.raw("{}", status=429, headers={"Retry-After": asked_s})
    peer.on("GET", "/v1/sites", limited, peer.many([]))
    ran = mf("sites")
    assert ran.code == 0
    assert ("mf: the server asks to wait for 2 s" in ran.err) is is_said
    peer.on("GET", "/v1/sites", limited, peer.many([]))
    assert mf("sites", "--json").err == ""


def test_server_without_tls_is_told_by_its_right_address(mf_at, peer) -> None:
    ran = mf_at(peer.url.replace("http:", "https:"))("sites")
    assert ran.code == 4
    assert f"It speaks no TLS there: is it {peer.url}?" in ran.err
