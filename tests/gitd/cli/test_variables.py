"""mf variables, mf secrets: the requests that they make, and what they refuse to make."""

from __future__ import annotations

import subprocess

import click
import pytest

from gitd.cli.value_files import read_values

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


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("A=1\nB=two words\n", {"A": "1", "B": "two words"}),
        ("\ufeff# of the shop\r\n\r\n  export A=1\r\nB=2", {"A": "1", "B": "2"}),
        ("A=\nB=''\nC=\"\"", {"A": "", "B": "", "C": ""}),
        ('A=p$w=={"x": 1}', {"A": 'p$w=={"x": 1}'}),
        ("A=' $x # \\n\n' # a comment\nB=1", {"A": " $x # \\n\n", "B": "1"}),
        (
            'A="-----BEGIN\\nMII\nMII\\\\ \\"\\$\\t"  \nB=1',
            {"A": '-----BEGIN\nMII\nMII\\ "$\t', "B": "1"},
        ),
        ("A=O'Neill", {"A": "O'Neill"}),
    ],
)
def test_file_of_values_is_read(tmp_path, text, values) -> None:
    (tmp_path / ".env").write_bytes(text.encode())
    assert read_values(tmp_path / ".env") == values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"A=1\nhunter2", "line 2: this is no NAME=value"),
        (b"A = hunter2", "line 1: this"),
        (b"A= hunter2", "line 1: this"),
        (b"A=hunter2 ", "line 1: this"),
        (b"A=hunter2 # the first", "line 1: this"),
        (b"A=hunter2#3", "line 1: this"),
        (b"A=`hunter2`", "line 1: this"),
        (b"\n\nA='hunter2\nB=1", "line 3: this"),
        (b"A='hunter2' hunter2", "line 1: this"),
        (b'A="C:\\hunter2"', "line 1: this"),
        (b"hunter-2=1", "line 1: this"),
        (b"A='hunter2\n'\nA=hunter2", "line 3: A is there twice"),
        (b"# hunter2\n\n", "has no values"),
        (b"A=hunter2\xff", "no text in UTF-8"),
        (b"A=hunter2" * 8192, "more than 64 KiB"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_what_tools_would_read_differently_is_refused_without_its_words(
    tmp_path, text, said
) -> None:
    if text is not None:
        (tmp_path / ".env").write_bytes(text)
    with pytest.raises(click.UsageError, match=said) as raised:
        read_values(tmp_path / ".env")
    assert "hunter" not in str(raised.value)


@pytest.mark.parametrize("kind", ["variables", "secrets"])
@pytest.mark.parametrize("is_piped", [True, False])
def test_values_of_a_file_are_one_change(mf, peer, tmp_path, kind, is_piped) -> None:
    made = [{"name": name, "used_in": "run", "jobs": ["job_1"]} for name in ("A", "B")]
    peer.on("PATCH", f"{HERE}/{kind}", peer.one({kind: made, "jobs": ["job_1"]}))
    (tmp_path / ".env").write_text("A=hunter2\nB='hunter 3'\n")
    file = "-" if is_piped else str(tmp_path / ".env")
    with (tmp_path / ".env").open() as given:
        ran = subprocess.run(
            [mf.program, kind, "set", "--from-file", file, "--site", "acme-store", "--for", "run"],
            env=mf.environ,
            stdin=given,
            capture_output=True,
            text=True,
        )
    assert ran.returncode == 0, ran.stderr
    (seen,) = peer.seen
    assert seen.body == {"values": {"A": "hunter2", "B": "hunter 3"}, "used_in": "run"}
    assert [line.partition(" ")[0] for line in ran.stdout.splitlines()] == ["A", "B", "rolling"]
    assert ran.stdout.count("mf jobs wait job_1") == 1
    assert "hunter" not in ran.stdout + ran.stderr


def test_file_with_an_empty_secret_asks_whether_that_is_meant(mf, peer, tmp_path) -> None:
    peer.on("PATCH", f"{HERE}/secrets", peer.one({"secrets": [], "jobs": []}))
    (tmp_path / ".env").write_text("A=hunter2\nB=\n")
    arguments = ("secrets", "set", "--from-file", str(tmp_path / ".env"), "--site", "acme-store")
    ran = mf(*arguments)
    assert ran.code == 2
    assert "B: there is no value" in ran.err
    assert peer.seen == []
    assert mf(*arguments, "--allow-empty").code == 0
    assert peer.seen[0].body == {"values": {"A": "hunter2", "B": ""}}


@pytest.mark.parametrize("kind", ["variables", "secrets"])
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("TOKEN", "--from-file", ".env"), "no NAME"),
        (("--exact", "--from-file", ".env"), "no --exact"),
        ((), "--from-file"),
    ],
)
def test_name_or_file_is_given_and_not_both(mf, kind, more, said) -> None:
    ran = mf(kind, "set", "--site", "acme-store", *more)
    assert ran.code == 2
    assert said in " ".join(ran.err.split())
