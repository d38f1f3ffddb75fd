from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from hooks.deploys.host.state import (
    KEEP_COUNT,
    EnvironmentFolder,
    EnvironmentState,
    HostFolder,
    ServedState,
    release_folders,
    remove_folders,
)
from hooks.deploys.wire import ArtifactPin
from storage.digest import Digest
from storage.errors import StorageIoError
from tests.crashing import HOWS, Child, needs_strace, share, some


def pin(number: int) -> ArtifactPin:
    return ArtifactPin(f"art_{number}", str(Digest.of(b"%d" % number)), "00" * 32)


def served(number: int) -> ServedState:
    return ServedState(f"dep_{number}", pin(number), f"{number:06d}-abcdef00", 1_700_000_000)


@pytest.fixture
def state():
    return EnvironmentState("env_1", "acme-store", "production", "production", ("a.localhost",))


@pytest.fixture
def folder(tmp_path):
    made = HostFolder(tmp_path).environment("env_1")
    made.prepare(EnvironmentState("env_1", "", "", "", ()))
    return made


def test_state_is_read_as_it_was_written(folder, state):
    written = state.serving(served(1))
    folder.write(written)
    assert folder.read() == written
    assert (folder.path / "current").readlink().as_posix() == "releases/000001-abcdef00"


def _pipe(folder, _):
    os.mkfifo(folder.path / "state.json")


def _endless(folder, _):
    (folder.path / "state.json").symlink_to("/dev/zero")


def _long(folder, state):
    data = msgspec.json.encode(state.serving(served(1)))
    (folder.path / "state.json").write_bytes(data.ljust(2 << 20))


def _led_out(folder, state):
    folder.write(state.serving(msgspec.structs.replace(served(1), folder="../../env_2/releases")))


def _no_digest(folder, state):
    folder.write(
        state.serving(msgspec.structs.replace(served(1), artifact=ArtifactPin("", "", "")))
    )


def _elsewhere(folder, state):
    folder.write(state.serving(served(1)))
    folder.releases.rmdir()
    folder.releases.symlink_to("/usr")


@pytest.mark.parametrize(
    "spoil", [_pipe, _endless, _long, _led_out, _no_digest, _elsewhere], ids=lambda it: it.__name__
)
def test_control_reads_of_a_host_what_is_plain_and_nothing_else(folder, state, tmp_path, spoil):
    """It may be root, and who broke out of a site may be the host."""
    other = HostFolder(tmp_path).environment("env_2")
    other.prepare(msgspec.structs.replace(state, env_id="env_2"))
    other.write(msgspec.structs.replace(state, env_id="env_2").serving(served(2)))
    spoil(folder, state)
    (found,) = release_folders(tmp_path)
    assert (found.env_id, found.path) == ("env_2", other.releases / "000002-abcdef00")


def test_current_follows_what_is_served(folder, state):
    folder.write(state.serving(served(1)))
    folder.write(state.serving(served(2)))
    assert (folder.path / "current").readlink().name == "000002-abcdef00"
    folder.write(state)
    assert not (folder.path / "current").is_symlink()


def test_trouble_with_current_is_no_trouble_of_the_state(folder, state):
    (folder.path / "current").mkdir()
    (folder.path / "current" / "somebody's").touch()
    written = state.serving(served(1))
    folder.write(written)
    assert folder.read() == written


def test_a_state_that_was_not_written_for_sure_is_the_former_again(folder, state, monkeypatch):
    before, after = state.serving(served(1)), state.serving(served(2))
    folder.write(before)
    flush, refused = os.fsync, []

    def fsync(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode) and not refused:
            refused.append(folder.read())
            raise OSError(errno.EIO, "the disk says no")
        flush(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageIoError):
        folder.replace(before, after)
    assert refused == [after]  # it was there already
    assert folder.read() == before
    assert (folder.path / "current").readlink().name == before.served.folder


def test_the_folders_used_last_are_kept(state):
    for number in range(1, 8):
        state = state.serving(served(number))
    state = state.serving(served(4))
    kept = [kept.folder[:6] for kept in state.kept]
    assert kept == ["000003", "000005", "000006", "000007", "000004"]
    assert len(kept) == KEEP_COUNT
    assert state.folder_of(Digest.parse(pin(5).digest)) == "000005-abcdef00"
    assert state.folder_of(Digest.parse(pin(2).digest)) is None


def test_folders_that_are_neither_kept_nor_served_are_pruned(folder, state):
    for name in ("000001-abcdef00", "000002-abcdef00", ".000003-abcdef00.partial-11"):
        (folder.releases / name).mkdir()
    state = state.serving(served(2)).without_folder("000002-abcdef00")
    remove_folders(folder.put_aside(state))
    assert [path.name for path in folder.releases.iterdir()] == ["000002-abcdef00"]


NO_TEXT = msgspec.json.encode(EnvironmentState("env_1", "acme", "s", "p", ("a.localhost",)))
NO_TEXT = NO_TEXT.replace(b"acme", b"acm\xff")


@pytest.mark.parametrize("text", [b"", b"{", b'{"env_id": "env_1"}', b"\0" * 300, NO_TEXT])
def test_a_state_that_cannot_be_read_is_no_state(folder, text):
    (folder.path / "state.json").write_bytes(text)
    assert folder.read() is None


def test_a_state_in_the_wrong_folder_is_no_state(folder, state):
    other = msgspec.structs.replace(state, env_id="env_2")
    (folder.path / "state.json").write_bytes(msgspec.json.encode(other))
    assert folder.read() is None


def test_what_is_no_folder_is_removed_and_where_a_link_leads_stays(tmp_path):
    host = HostFolder(tmp_path / "host")
    kept = tmp_path / "elsewhere"
    kept.mkdir()
    (kept / "state.json").touch()
    environments = tmp_path / "host" / "environments"
    (environments / "file").touch()
    (environments / "link").symlink_to(kept)
    (environments / "dangling").symlink_to("nowhere")
    with capture_logs() as logs:
        for name in ("file", "link", "dangling", "none"):
            host.stranger(name).remove()
    assert (list(environments.iterdir()), logs) == ([], [])
    assert (kept / "state.json").exists()


def test_a_state_that_cannot_be_removed_is_told(folder):
    (folder.path / "state.json").mkdir()
    with capture_logs() as logs:
        folder.remove()
    assert [log["event"] for log in logs] == ["environment_not_removed"]
    assert folder.data.is_dir()


def test_a_claim_that_cannot_be_noted_hides_no_other(tmp_path):
    host = HostFolder(tmp_path)
    for env_id in ("env_1", "env_2", "env_3"):
        host.environment(env_id).path.mkdir()
    (host.environment("env_1").path / "unclaimed").mkdir()
    noted = host.environment("env_2").path / "unclaimed"
    noted.write_bytes(b"1")
    with capture_logs() as logs:
        assert host.unclaimed({"env_1", "env_2", "env_9"}) == ["env_3"]
    assert [log["env_id"] for log in logs] == ["env_1"]
    assert not noted.exists()


@pytest.mark.parametrize("env_id", ["", ".", "..", "../x", "a/b", "a" * 65, "env\n"])
def test_an_id_is_never_a_path(tmp_path, env_id):
    with pytest.raises(ValueError, match="not the id"):
        HostFolder(tmp_path).environment(env_id)


def test_known_environments_are_those_with_a_state(tmp_path, state):
    host = HostFolder(tmp_path)
    for env_id in ("env_2", "env_1"):
        made = host.environment(env_id)
        made.prepare(state)
        made.write(msgspec.structs.replace(state, env_id=env_id))
    host.environment("env_3").prepare(state)
    assert [state.env_id for _, state in host.known()] == ["env_1", "env_2"]
    EnvironmentFolder(tmp_path / "environments" / "env_2").remove()
    assert [state.env_id for _, state in host.known()] == ["env_1"]


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.soak)])
def test_current_leads_to_a_whole_release_at_every_moment(folder, state, count):
    names = [served(number).folder for number in (1, 2)]
    for name in names:
        (folder.releases / name).mkdir()
        for number in range(20):
            (folder.releases / name / f"{number}.html").write_text(name)
    folder.write(state.serving(served(1)))
    is_over = threading.Event()
    seen = []

    def read():
        while not is_over.is_set():
            root = (folder.path / "current").resolve(strict=True)
            texts = {path.read_text() for path in root.iterdir()}
            seen.append((root.name, len(list(root.iterdir())), texts))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(count):
        folder.write(state.serving(served(1 + number % 2)))
    while not seen and reader.is_alive():  # it may have had no turn yet
        folder.write(state.serving(served(1)))
    is_over.set()
    reader.join()
    assert seen
    assert all((count, texts) == (20, {name}) for name, count, texts in seen)


def test_proof_of_a_folder_goes_with_it(folder, state):
    for number in (1, 2):
        (folder.releases / served(number).folder).mkdir()
        folder.write_proof(served(number).folder, b"proof")
    assert folder.put_aside(state.serving(served(2))) != []
    names = sorted(path.name for path in folder.releases.iterdir() if path.name[0] != ".")
    assert names == ["000002-abcdef00", "000002-abcdef00.proof"]


SWITCH_CHILD = Path(__file__).with_name("switch_child.py")


class Switch:
    """An environment that serves its first release, which a child switches to its second."""

    def __init__(self, root, state):
        self._first, self._now, self._trace = root / "first", root / "now", root / "trace"
        folder = HostFolder(self._first).environment("env_1")
        folder.prepare(state)
        names = [served(number).folder for number in (1, 2)]
        for name in names:
            (folder.releases / name).mkdir()
            (folder.releases / name / "index.html").write_text(name)
        folder.write(state.serving(served(2)).serving(served(1), 1))
        self.names = names

    def begin(self):
        shutil.rmtree(self._now, ignore_errors=True)
        shutil.copytree(self._first, self._now, symlinks=True)
        path = self._now / "environments" / "env_1"
        return EnvironmentFolder(path), Child(SWITCH_CHILD, (str(path), self.names[1]))

    def points(self):
        return self.begin()[1].points(self._trace)

    def crash(self, where, how):
        folder, child = self.begin()
        reached = child.fail(self._trace, where, how)
        expect_whole(folder, self.names)
        return reached


def expect_whole(folder, names):
    """In the very moment, to whoever reads `current`; then at the next start of the host. Return
    the folder that is served.
    """
    root = (folder.path / "current").resolve(strict=True)
    assert (root / "index.html").read_text() in names
    state = folder.read()
    folder.prepare(state)
    folder.write(state)
    assert state.release_sequence == (2 if state.served.folder == names[1] else 1)
    assert (folder.path / "current" / "index.html").read_text() == state.served.folder
    assert {kept.folder for kept in state.kept} == set(names)
    left = {path.name for path in folder.path.iterdir()}
    assert left == {"state.json", "releases", "current", "data", "logs"}
    return state.served.folder


@needs_strace
@pytest.mark.parametrize("how", HOWS)
def test_switch_is_made_or_not_at_some_system_calls(tmp_path, state, how):
    switch = Switch(tmp_path, state)
    every = switch.points()
    renames = [where for where in every if where[0] == "rename"]
    assert len(renames) == 2
    assert sum(switch.crash(where, how) for where in [*renames, *some(every, 1)])


@needs_strace
@pytest.mark.soak
@pytest.mark.parametrize("how", HOWS)
def test_switch_is_made_or_not_at_every_system_call(tmp_path, state, how):
    switch = Switch(tmp_path, state)
    every = share(switch.points())
    reached = sum(switch.crash(where, how) for where in every)
    print(f"{how}: {reached} of {len(every)} points reached")
    assert reached > len(every) // 2
