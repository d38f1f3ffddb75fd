"""Commands beside a server: their answers in JSON, whose folder they work in, as whom."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from gitd.__main__ import cli
from gitd.auth import Authenticator
from gitd.config import Config, ServerConfig
from gitd.control import Control
from gitd.errors import GitdError, StartError
from gitd.layout import DataFolder
from gitd.stores import note_settings
from storage.errors import StorageIoError
from storage.records.db import Records

OWNER = 60690
ROOT = Path(__file__).parents[2]
KEY = {
    *("id", "label", "hint", "family", "scopes", "site_id", "env_id", "cidrs", "created_by"),
    *("created_at", "expires_at", "revoked_at", "last_used_at", "is_active"),
}
# Each local command, in an order in which they work, with the keys of its answer.
COMMANDS: dict[str, tuple[Sequence[str], set[str]]] = {
    "site create": (["acme-store"], {"id", "name", "default_branch"}),
    "site list": ([], {"id", "name", "default_branch"}),
    "key create": (
        ["--label", "me", "--preset", "deploy-bot", "--site", "acme-store"],
        KEY | {"secret"},
    ),
    "key list": ([], KEY),
    "key revoke": (["{key_id}"], {"id", "revoked"}),
    "check": ([], {"ok", "counts", "faults"}),
    "gc": (["--dry-run"], set()),
    "backup": (["{backups}", "--keep", "3"], {"name", "digest", "new_bytes", "notes"}),
    "egress": ([], set()),
    "signing-key list": ([], {"generation", "root_keys", "keys"}),
    "signing-key rotate": ([], {"key_id", "generation"}),
    "signing-key resign": (["{old_key}", "--before", "1"], {"signed_again", "failures"}),
    "signing-key revoke": (["{old_key}", "--reason", "lost"], set()),
}


def gitd(data: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, [*words, "--data", str(data)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder of a server that was started once."""
    folder = DataFolder(tmp_path / "data")
    folder.prepare()
    Control(folder, Config(), None).close()
    return folder.root


def json_commands(group: click.Group, prefix: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from json_commands(command, f"{prefix}{name} ")
        elif any(parameter.name == "as_json" for parameter in command.params):
            yield prefix + name


def test_every_local_command_answers_in_json(data: Path) -> None:
    # A restore wants an empty folder: see test_backups.py.
    assert set(json_commands(cli)) == {*COMMANDS, "restore"}
    known = {"backups": str(data.parent / "backups")}
    for name, (arguments, keys) in COMMANDS.items():
        words = [argument.format(**known) for argument in arguments]
        done = gitd(data, *name.split(), *words, "--json")
        assert done.exit_code == 0, (name, done.output, done.exception)
        answer: Any = json.loads(done.stdout)
        rows = answer if isinstance(answer, list) else [answer]
        assert all(keys <= set(row) for row in rows), (name, answer)
        if name == "key create":
            known["key_id"] = answer["id"]
        if name == "signing-key list":
            known["old_key"] = answer["keys"][0]["key_id"]


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="mounts")
def test_folder_on_a_disk_that_is_read_only_is_said_in_one_line(data: Path) -> None:
    # As the system makes a disk that failed.
    if subprocess.run(["mount", "--bind", data, data], capture_output=True).returncode != 0:
        pytest.skip("cannot mount here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", data], check=True)
        for words in (("check",), ("gc",), ("key", "list"), ("site", "create", "acme-store")):
            done = gitd(data, *words)
            assert isinstance(done.exception, StorageIoError), (words, done.output)
            assert "Read-only file system" in str(done.exception)
        serve = [sys.executable, "-m", "gitd", "serve", "--data", data, "--no-children"]
        said = subprocess.run(serve, capture_output=True, text=True)
        assert (said.returncode, said.stdout) == (1, "")
        assert said.stderr == (
            f"gitd: {data}/run/control.lock: Read-only file system. A server writes into its data"
            " folder: see its disk and owner.\n"
        )
    finally:
        subprocess.run(["umount", data], check=True)


@pytest.mark.parametrize(
    "words",
    [
        ("check",),
        ("site", "create", "acme-store"),
        ("key", "create", "--label", "me", "--scope", "*"),
        ("key", "list"),
        ("key", "revoke", "key_1"),
        ("egress",),
    ],
)
@pytest.mark.parametrize("is_there", [False, True])
def test_folder_without_a_server_is_refused_and_left_alone(
    tmp_path: Path, words: tuple[str, ...], *, is_there: bool
) -> None:
    mistyped = tmp_path / "dtaa"
    if is_there:
        mistyped.mkdir()
    done = gitd(mistyped, *words)
    assert isinstance(done.exception, StartError)
    assert f"{mistyped} is no data folder of gitd" in str(done.exception)
    assert list(tmp_path.rglob("*")) == ([mistyped] if is_there else [])


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    """Be another user, where that can be; whoever is none already has no more rights than that."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(OWNER)
    yield
    os.seteuid(was)


@pytest.mark.parametrize("words", [("key", "list"), ("serve",), ("egress",)])
def test_folder_of_another_user_is_refused_with_who_may(data: Path, words: tuple[str, ...]) -> None:
    data.chmod(0)
    with somebody_else():
        done = gitd(data, *words)
    data.chmod(0o711)
    assert isinstance(done.exception, StartError), done.output
    assert f"{data} is closed to this user" in str(done.exception)
    assert "as root" in str(done.exception)


KEY_OF = ("key", "create", "--label", "me")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (KEY_OF, "A key needs a scope or a preset, such as deploy-bot"),
        ((*KEY_OF, "--preset", "deploybot"), "did you mean deploy-bot"),
        ((*KEY_OF, "--scope", "jobs:raed"), "did you mean jobs:read"),
        ((*KEY_OF, "--scope", "*", "--expires-in", "90"), "is no duration such as"),
        ((*KEY_OF, "--scope", "*", "--expires-in", "0m"), "lives at least a moment"),
        ((*KEY_OF, "--scope", "*", "--env", "production"), "give --site too"),
        (("signing-key", "resign", "ed25519:00"), "--before SEQUENCE or --artifact ID"),
    ],
)
def test_wrong_usage_is_exit_2(data: Path, words: tuple[str, ...], said: str) -> None:
    done = gitd(data, *words)
    assert done.exit_code == 2
    assert said in done.stderr


def test_key_may_live_for_minutes(data: Path) -> None:
    words = (*KEY_OF, "--scope", "jobs:read", "--expires-in", "30m", "--json")
    made: Any = json.loads(gitd(data, *words).stdout)
    begins, ends = (datetime.fromisoformat(made[name]) for name in ("created_at", "expires_at"))
    assert ends - begins == timedelta(minutes=30)


def test_hints_can_be_typed_as_they_are(data: Path) -> None:
    done = gitd(data, *KEY_OF, "--scope", "*", "--site", "acme-store")
    assert isinstance(done.exception, GitdError)
    _, _, hint = str(done.exception).partition("make it with: ")
    made = CliRunner().invoke(cli, shlex.split(hint)[1:])
    assert made.exit_code == 0, made.output
    assert "git remote add managed http://127.0.0.1:8080/acme-store.git" in made.stdout
    note_settings(DataFolder(data), Config(ServerConfig(public_url="https://forge.example/")))
    assert "managed https://forge.example/two.git" in gitd(data, "site", "create", "two").stdout


@pytest.mark.parametrize(
    ("family", "prefix", "actor_type"),
    [
        ("personal", "mfk_live_", "api_key"),
        ("personal-test", "mfk_test_", "api_key"),
        ("service", "mfs_live_", "service_key"),
    ],
)
def test_key_is_of_its_family_and_the_list_shows_what_it_may_and_when_it_was_used(
    data: Path, family: str, prefix: str, actor_type: str
) -> None:
    gitd(data, "site", "create", "acme-store")
    limits = ("--site", "acme-store", "--env", "staging", "--cidr", "10.0.0.0/8")
    words = ("--label", "ci", "--scope", "jobs:read", "--family", family, *limits)
    made: Any = json.loads(gitd(data, "key", "create", *words, "--json").stdout)
    assert made["secret"].startswith(prefix)
    assert (made["family"], made["last_used_at"]) == (family, None)
    assert "never used" in gitd(data, "key", "list").stdout
    with Records.open(data / "gitd.db") as records:
        authenticator = Authenticator(records)
        actor = authenticator.confirm(authenticator.grant(made["secret"]), "10.1.2.3")
    assert actor.ref.type == actor_type
    (row,) = json.loads(gitd(data, "key", "list", "--json").stdout)
    assert row == {**{n: made[n] for n in KEY}, "last_used_at": row["last_used_at"]}
    assert row["cidrs"] == ["10.0.0.0/8"]
    assert row["env_id"].startswith("env_")
    first, second = gitd(data, "key", "list").stdout.splitlines()
    assert f"last used {row['last_used_at']}" in first
    assert second.split("; ") == [
        "    scopes jobs:read",
        "only site acme-store, environment staging",
        "only from 10.0.0.0/8",
    ]


def test_check_names_the_site_the_repository_and_the_object(data: Path) -> None:
    made: Any = json.loads(gitd(data, "site", "create", "acme-store", "--json").stdout)
    bare = data / "repos" / f"{made['id']}.git"

    def git(*arguments: str, text: str = "") -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=bare, input=text, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    blob = git("hash-object", "-w", "--stdin", text="content")
    tree = git("mktree", text=f"100644 blob {blob}\tindex.html\n")
    commit = f"tree {tree}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nx\n"
    tip = git("hash-object", "-w", "-t", "commit", "--stdin", text=commit)
    git("update-ref", "refs/heads/main", tip)
    assert "3 git objects" in gitd(data, "check").stdout
    assert gitd(data, "check", "--deep").exit_code == 0
    (bare / "objects" / blob[:2] / blob[2:]).unlink()
    assert gitd(data, "check").exit_code == 0
    done = gitd(data, "check", "--deep", "--json")
    assert done.exit_code == 1
    (fault,) = json.loads(done.stdout)["faults"]
    assert fault == f"site acme-store, {bare}: ref refs/heads/main: missing object {blob}"
    shutil.rmtree(bare)
    done = gitd(data, "check")
    assert done.exit_code == 1
    assert f"WRONG: site acme-store, {bare}: it is no repository" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="gives rights up, which only root has")
def test_root_works_as_the_folders_owner_who_cannot_read_the_program(
    data: Path, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    for package in ("gitd", "hooks", "storage"):
        without = shutil.ignore_patterns("*.pyc.*")  # what other processes compile just now
        shutil.copytree(ROOT / package, closed / package, ignore=without)
    closed.chmod(0o700)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    for path in (data, *data.rglob("*")):
        os.chown(path, OWNER, OWNER, follow_symlinks=False)
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(closed)}
    for words in (("site", "create", "acme-store"), ("check", "--json")):
        done = subprocess.run(
            [sys.executable, "-m", "gitd", *words, "--data", str(data)],
            env=environ,
            cwd="/",
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (words, done.stderr)
    owners = {path.lstat().st_uid for path in (data, *data.rglob("*"))}
    assert owners == {OWNER}
