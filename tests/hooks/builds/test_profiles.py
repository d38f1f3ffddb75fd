"""What a commit is, and how it is built: tables."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooks.builds.errors import BuildFailedError
from hooks.builds.managed_toml import Profile, clean_folder, parse
from hooks.builds.profiles import detect, is_published
from hooks.builds.wire import RootEntry, RunCommands

BUILD = '[build]\ncommand = "make"\n'


def plan(*names, **texts):
    """Detect: `name` is a file, `name/` a folder, `name@` a link, `name!` a submodule."""
    kinds = {"/": "dir", "@": "link", "!": "submodule"}
    entries = [
        RootEntry(name.rstrip("/@!"), kinds.get(name[-1], "file")) for name in (*names, *texts)
    ]
    return detect(entries, texts)


def toml(text, *names, **texts):
    return plan(*names, **{"managed.toml": text, **texts})


@pytest.mark.parametrize(
    ("found", "profile", "folder", "command"),
    [
        (plan("index.html"), "static", ".", None),
        (plan("index.html", "package.json"), "static", ".", None),
        (plan("index.html@"), "static", ".", None),
        (plan(Procfile="web: ./run"), "procfile", ".", None),
        (plan("index.html", Procfile="web: ./run"), "procfile", ".", None),
        (toml('[build]\noutput = "public"', "public/"), "static", "public", None),
        (toml('[build]\noutput = "./a//b/"', "a/"), "static", "a/b", None),
        (toml('[build]\noutput = "."'), "static", ".", None),
        (toml(BUILD + 'output = "dist"'), "static", "dist", "make"),
        (toml(BUILD, "index.html"), "static", ".", "make"),
        (toml(BUILD, Procfile="web: ./run"), "procfile", ".", "make"),
        (toml(BUILD + 'output = "out"', Procfile="web: ./run"), "procfile", "out", "make"),
        (toml('[run]\nweb = "node a.js"'), "procfile", ".", None),
        (toml('[build]\nprofile = "static"', Procfile="web: x"), "static", ".", None),
        (toml('[build]\nprofile = "static"', "a.txt"), "static", ".", None),
        (toml("", "index.html"), "static", ".", None),
    ],
)
def test_commit_is_detected(found, profile, folder, command):
    assert (found.profile, found.folder, found.command) == (profile, folder, command)
    assert found.is_source == (command is None)


@pytest.mark.parametrize(
    ("found", "run"),
    [
        (plan(Procfile="web: ./run --x 'a: b' \n"), RunCommands(web="./run --x 'a: b'")),
        (plan(Procfile="web: a\r\nrelease: b\r\n"), RunCommands(web="a", release="b")),
        (plan(Procfile="\ufeff# hello\n\nweb:a"), RunCommands(web="a")),
        (toml('[run]\nweb = "b"', Procfile="web: a\nrelease: c"), RunCommands("b", "c")),
        (
            toml('[run]\nhealth = "/up"\nrelease = "d"', Procfile="web: a\nrelease: c"),
            RunCommands("a", "d", "/up"),
        ),
        (plan("index.html"), RunCommands()),
    ],
)
def test_run_commands_come_from_the_procfile_and_managed_toml_wins(found, run):
    assert found.run == run


@pytest.mark.parametrize(
    ("found", "note"),
    [
        (plan(Procfile="web: a\nworker: b"), "Procfile: worker is not run, only web and release"),
        (plan("index.html", "theme!"), "theme is a submodule: its files are not fetched"),
        (toml('[run]\nhealth = "/up"', "index.html"), "run.health is ignored"),
    ],
)
def test_what_is_left_out_is_said(found, note):
    assert any(line.startswith(note) for line in found.notes)


@pytest.mark.parametrize(
    ("names", "texts", "code", "words"),
    [
        ((), {}, "build.undetected", ("index.html", "Procfile", "managed.toml")),
        (("package.json",), {}, "build.undetected", ("npm run build", "web: node FILE")),
        (("index.html/",), {}, "build.undetected", ("index.html",)),
        ((), {"Procfile": "release: x"}, "build.undetected", ("The Procfile has no `web:`",)),
        (("index.html",), {"Procfile": "# nothing"}, "build.undetected", ("web:",)),
        ((), {"managed.toml": BUILD}, "build.undetected", ('output = "FOLDER"',)),
        (
            (),
            {"managed.toml": '[build]\nprofile = "static"\ncommand = "x"'},
            "build.undetected",
            ('output = "dist"',),
        ),
        (
            (),
            {"managed.toml": '[build]\nprofile = "procfile"'},
            "build.undetected",
            ("There is no Procfile",),
        ),
        ((), {"managed.toml": "[run]\nhealth='/x'"}, "build.undetected", ("sets neither",)),
        ((), {"Procfile": "web: a\nnonsense"}, "build.config_invalid", ("line 2",)),
        ((), {"Procfile": "web: a\nweb: b"}, "build.config_invalid", ("line 2", "second")),
        ((), {"Procfile": "web:"}, "build.config_invalid", ("line 1",)),
        ((), {"Procfile": "web: a\0b"}, "build.config_invalid", ("line 1",)),
        (("managed.toml",), {}, "build.config_invalid", ("managed.toml", "UTF-8")),
        (("Procfile/",), {}, "build.config_invalid", ("Procfile", "plain file")),
        (
            (),
            {"managed.toml": '[build]\noutput = "dist"'},
            "build.output_missing",
            ("'dist'", "build.command"),
        ),
        (("x",), {"managed.toml": '[build]\noutput = "x/y"'}, "build.output_invalid", ("'x/y'",)),
        (("x@",), {"managed.toml": '[build]\noutput = "x"'}, "build.output_invalid", ("'x'",)),
    ],
)
def test_what_cannot_be_built_says_what_was_looked_for(names, texts, code, words):
    with pytest.raises(BuildFailedError) as caught:
        plan(*names, **texts)
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[build]\ncomand = "x"', ("`build.comand`", "did you mean `build.command`?")),
        ('[biuld]\ncommand = "x"', ("`biuld`", "did you mean `build`?")),
        ('[run]\nzzz = "x"', ("`run.zzz`", "known: web, release, health")),
        ('command = "x"', ("unknown key `command`",)),
        ('build = "x"', ("`build` must be a table",)),
        ("[build]\ncommand = 3", ("`build.command` must be text",)),
        ('[build]\ncommand = ["make"]', ("`build.command` must be text",)),
        ('[build]\ncommand = " "', ("`build.command` is empty",)),
        (f'[build]\ncommand = "{"x" * 9000}"', ("`build.command` is longer",)),
        ('[build]\ncommand = "a\\u0000b"', ("`build.command`",)),
        ('[build]\nprofile = "statik"', ("did you mean `static`?",)),
        ('[build]\nprofile = "docker"', ("known: static, procfile",)),
        ('[build]\noutput = "/etc"', ("`build.output` must be a folder inside", "'/etc'")),
        ('[build]\noutput = "a/../../b"', ("`build.output`",)),
        ('[run]\nhealth = "up"', ("`run.health` must be a path",)),
        ('[run]\nhealth = "/a b"', ("`run.health` must be a path",)),
        ("[build\n", ("is not TOML", "line 1")),
        (f"[build]\ncommand = {'9' * 10_000}", ("is not TOML",)),
        (f"a = {'[' * 5_000}{']' * 5_000}", ("is not TOML",)),
    ],
)
def test_wrong_managed_toml_is_refused_with_the_key_and_the_nearest_known(text, words):
    with pytest.raises(BuildFailedError) as caught:
        parse(text)
    assert caught.value.code == "build.config_invalid"
    for word in ("managed.toml", *words):
        assert word in str(caught.value)


def test_every_key_of_managed_toml_is_read():
    found = parse(
        '\ufeff[build]\ncommand = "make all"\noutput = "dist/"\nprofile = "procfile"\n'
        '[run]\nweb = "./web"\nrelease = "./release"\nhealth = "/up?x=1"\n'
    )
    assert found.command == "make all"
    assert found.output == "dist"
    assert found.profile is Profile.PROCFILE
    assert (found.web, found.release, found.health) == ("./web", "./release", "/up?x=1")


@given(st.text(max_size=200))
def test_any_text_parses_or_is_refused_as_the_commits_fault(text):
    with contextlib.suppress(BuildFailedError):
        parse(text)


@given(st.text(alphabet="ab./ \n", max_size=30))
def test_clean_folder_never_leaves_the_root(path):
    try:
        clean = clean_folder(path)
    except ValueError:
        return
    assert clean == "." or all(part not in ("", ".", "..") for part in clean.split("/"))
    assert clean_folder(clean) == clean


@pytest.mark.parametrize(
    ("path", "published"),
    [
        ("index.html", True),
        ("css/style.css", True),
        ("a.b/c", True),
        ("docs/managed.toml", True),
        ("managed.toml", False),
        ("managed.toml/x", True),
        (".gitignore", False),
        (".github/workflows/ci.yml", False),
        (".env", False),
        ("sub/.env", False),
        ("sub/.git/config", False),
        (".well-known", True),
        (".well-known/security.txt", True),
        (".well-known/.secret", False),
        ("sub/.well-known/x", False),
        (".well-knownish", False),
    ],
)
def test_static_site_publishes_no_hidden_files(path, published):
    assert is_published(path) == published
