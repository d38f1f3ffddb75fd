"""mf variables, mf secrets: the requests that they make, and what they refuse to make."""

from __future__ import annotations

import subprocess

import pytest

HERE = "/v1/sites/acme-store"
VALUE = {"name": "TOKEN", "used_in": "run", "jobs": []}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("variables", "set", "TOKEN", "x", "y"), "NAME=VALUE NAME=VALUE"),
        (("variables", "set", "TOKEN=x", "y"), "y is no NAME=VALUE"),
        (("variables", "set", "TOKEN=x", "TOKEN=y"), "TOKEN is given twice"),
        (("secrets", "set", "TOKEN", "hunter2"), "give it on standard input"),
        (("secrets", "set", "TOKEN=hunter2"), "give it on standard input"),
    ],
)
def test_value_in_the_wrong_place_is_told_where_it_belongs(mf, peer, arguments, said) -> None:
    ran = mf(*arguments, "--site", "acme-store")
    assert ran.code == 2
    assert said in " ".join(ran.err.split())
    assert "hunter2" not in ran.err
    assert peer.seen == []


@pytest.mark.parametrize("kind", ["variables", "secrets"])
@pytest.mark.parametrize(("options", "query"), [((), {}), (("--no-roll",), {"roll": "false"})])
def test_no_roll_reaches_the_server(mf, peer, kind, options, query) -> None:
    peer.on("PUT", f"{HERE}/{kind}/TOKEN", peer.one(VALUE))
    peer.on("DELETE", f"{HERE}/{kind}/TOKEN", peer.one(VALUE))
    value = ("x",) if kind == "variables" else ("--allow-empty",)
    for arguments in (("set", "TOKEN", *value), ("unset", "TOKEN")):
        ran = mf(kind, *arguments, "--site", "acme-store", *options)
        assert ran.code == 0, ran.err
    assert [(seen.method, seen.query) for seen in peer.seen] == [("PUT", query), ("DELETE", query)]


@pytest.mark.parametrize("given", [("A=1",), ("A=1", "B=x=y z", "C=")])
def test_pairs_are_one_change(mf, peer, given) -> None:
    values = dict(each.split("=", 1) for each in given)
    made = [{"name": name, "used_in": "build", "jobs": ["job_1"]} for name in values]
    peer.on("PATCH", f"{HERE}/variables", peer.one({"variables": made, "jobs": ["job_1"]}))
    ran = mf("variables", "set", *given, "--site", "acme-store", "--no-roll")
    assert ran.code == 0, ran.err
    (seen,) = peer.seen
    assert (seen.body, seen.query) == ({"values": values}, {"roll": "false"})
    assert [line.partition(" ")[0] for line in ran.out.splitlines()] == [*values, "what", "rolling"]
    assert ran.out.count("mf jobs wait job_1") == 1
    assert (
        mf("variables", "set", *given, "--site", "acme-store", "--for", "run", "--json").code == 0
    )
    assert peer.seen[-1].body == {"values": values, "used_in": "run"}


@pytest.mark.parametrize("given", ["", "\n"])
@pytest.mark.parametrize(
    ("arguments", "advice"),
    [(("secrets", "set", "TOKEN"), "--allow-empty"), (("variables", "set", "TOKEN"), "''")],
)
def test_nothing_on_standard_input_is_no_value(mf, peer, given, arguments, advice) -> None:
    peer.on("PUT", f"{HERE}/secrets/TOKEN", peer.one(VALUE))
    ran = subprocess.run(
        [mf.program, *arguments, "--site", "acme-store"],
        env=mf.environ,
        input=given,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert "no value on standard input" in ran.stderr
    assert advice in ran.stderr
    assert not peer.seen


def test_empty_value_is_set_where_it_is_asked_for(mf, peer) -> None:
    peer.on("PUT", f"{HERE}/secrets/TOKEN", peer.one(VALUE))
    peer.on("PUT", f"{HERE}/variables/TOKEN", peer.one(VALUE))
    assert mf("secrets", "set", "TOKEN", "--site", "acme-store", "--allow-empty").code == 0
    assert mf("variables", "set", "TOKEN", "", "--site", "acme-store").code == 0
    assert [seen.body for seen in peer.seen] == [{"value": ""}, {"value": ""}]


@pytest.mark.parametrize(
    ("used_in", "options", "is_said"),
    [("build", (), True), ("build", ("--for", "build"), False), ("run", (), False)],
)
def test_who_sets_a_value_for_builds_alone_hears_how_programs_get_it(
    mf, peer, used_in, options, is_said
) -> None:
    peer.on("PUT", f"{HERE}/variables/TOKEN", peer.one({**VALUE, "used_in": used_in}))
    ran = mf("variables", "set", "TOKEN", "x", "--site", "acme-store", *options)
    assert ran.code == 0
    assert ("--for run" in ran.out) is is_said
