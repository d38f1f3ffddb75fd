"""Whose processes slots and site host are, and that each is kept from the others."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import gitd
from gitd.config import Config
from gitd.errors import StartError
from gitd.uids import Uids
from tests.ports import free_port

OTHER = 60693
IMPORTS = str(Path(gitd.__file__).parents[1])
NAMES = [each.pw_name for each in pwd.getpwall() if 0 < each.pw_uid < 1000][:3]
IDS = [pwd.getpwnam(name).pw_uid for name in NAMES]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")


def settings(*users: str, host: str = "", slots: int = 2) -> Config:
    config = Config()
    builders = replace(config.builders, users=users, slots=slots)
    return replace(config, builders=builders, host=replace(config.host, user=host))


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    was = os.geteuid()
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(was)


@needs_root
def test_root_gives_each_a_number_of_its_own() -> None:
    chosen = Uids.choose(settings(slots=3))
    assert chosen.slots == {"slot-0": 60610, "slot-1": 60611, "slot-2": 60612}
    assert (chosen.host, chosen.are_one) == (60600, False)


@needs_root
def test_named_users_are_theirs_whoever_control_is() -> None:
    for uid in (0, OTHER):
        with as_user(uid):
            chosen = Uids.choose(settings(*NAMES[:2], host=NAMES[2]))
        assert [*chosen.slots.values(), chosen.host] == IDS
        assert not chosen.are_one


@needs_root
def test_ordinary_user_has_one_for_all_and_is_told() -> None:
    with as_user(OTHER):
        chosen = Uids.choose(settings())
        assert chosen == Uids(OTHER, {"slot-0": OTHER, "slot-1": OTHER}, None)
        assert chosen.are_one


@needs_root
@pytest.mark.parametrize(
    ("users", "host", "said"),
    [
        ((NAMES[0], NAMES[0]), NAMES[1], f"builders.users: {NAMES[0]} has the user"),
        ((NAMES[0], NAMES[1]), NAMES[1], f"host.user: {NAMES[1]} has the user {IDS[1]} of builder"),
        ((NAMES[0], "root"), NAMES[1], "builders.users: root has the user 0 of root"),
        ((), "root", "host.user: root has the user 0 of root"),
        ((NAMES[0], "nobody-has-this-name"), NAMES[1], "there is no user"),
    ],
)
@pytest.mark.parametrize("own", [0, OTHER])
def test_user_of_two_is_refused(users: tuple[str, ...], host: str, said: str, own: int) -> None:
    with as_user(own), pytest.raises(StartError, match=said):
        Uids.choose(settings(*users, host=host))


@needs_root
def test_user_of_control_is_refused_for_a_slot_and_for_the_host() -> None:
    for users, host in (((NAMES[0], NAMES[1]), NAMES[2]), ((NAMES[1],), NAMES[0])):
        with as_user(IDS[0]), pytest.raises(StartError, match="of this server itself: each needs"):
            Uids.choose(settings(*users, host=host))


@needs_root
def test_number_of_a_slot_is_refused_for_a_host_with_a_name() -> None:
    config = settings(host=NAMES[0])
    config = replace(config, builders=replace(config.builders, first_uid=IDS[0]))
    with pytest.raises(StartError, match=rf"host.user: {NAMES[0]} has the user \d+ of builders"):
        Uids.choose(config)


def what_a_start_says(uid: int) -> str:
    """As this user: in a namespace, since others may be kept from the very interpreter."""
    inside = ["unshare", "--user", f"--map-user={uid}", f"--map-group={uid}"] if uid else []
    folder = Path(tempfile.mkdtemp(prefix="gitd-test-"))
    try:
        folder.chmod(0o755)
        listen = [f"--listen=127.0.0.1:{free_port()}", f"--sites=127.0.0.1:{free_port()}"]
        said = folder / "said"
        with said.open("wb") as log:
            server = subprocess.Popen(
                [
                    *inside,
                    sys.executable,
                    "-m",
                    "gitd",
                    "serve",
                    "--data",
                    folder / "data",
                    *listen,
                ],
                cwd="/",
                env={"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": IMPORTS},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            try:
                assert server.stdout is not None
                assert server.stdout.readline().startswith("git and API at"), said.read_text()
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait(30)
                server.stdout.close()
        return said.read_text()
    finally:
        shutil.rmtree(folder)


@needs_root
@pytest.mark.parametrize(("uid", "is_told"), [(0, False), (OTHER, True)])
def test_server_of_an_ordinary_user_says_that_nothing_is_kept_apart(
    uid: int, *, is_told: bool
) -> None:
    assert ("users_not_apart" in what_a_start_says(uid)) is is_told
