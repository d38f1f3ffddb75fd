"""Packs of clones: made once for all who ask at once, kept within bounds."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from gitd.git.kept_packs import KeptPacks, ReadyPack
from gitd.git.pack_sum import PackSum
from gitd.git.work_folder import WorkFolder
from storage.git.pack_builder import BuiltPack

BYTES_MAX = 1000


@pytest.fixture
async def packs(tmp_path: Path) -> AsyncIterator[KeptPacks]:
    packs = KeptPacks(tmp_path, BYTES_MAX, free_bytes_min=0)
    yield packs
    await packs.close()
    assert packs.used_bytes == 0
    assert list(tmp_path.glob("gitd-packs-*")) == []


Make = Callable[[], Coroutine[Any, Any, ReadyPack]]


def maker(packs: KeptPacks, size: int, made: list[int], go: asyncio.Event | None = None) -> Make:
    """What makes a pack of some zeros, once it may, and notes that it does."""

    async def make() -> ReadyPack:
        made.append(size)
        if go is not None:
            await go.wait()
        path = packs.new_path()
        Path(path).write_bytes(bytes(size))
        return packs.opened(BuiltPack(path=path, size_bytes=size, is_temporary=True))

    return make


def read(ready: ReadyPack) -> bytes:
    assert ready.descriptor is not None
    return os.pread(ready.descriptor, 10_000, 0)


async def test_equal_clones_at_once_get_one_pack(packs: KeptPacks) -> None:
    made: list[int] = []
    go = asyncio.Event()
    asking = [
        asyncio.create_task(packs.shared(b"key", maker(packs, 10, made, go))) for _ in range(5)
    ]
    await asyncio.sleep(0)
    go.set()
    found = await asyncio.gather(*asking)
    assert made == [10]
    assert {id(ready) for ready in found} == {id(found[0])}
    for ready in found[:4]:
        ready.close()
    assert read(found[4]) == bytes(10)
    found[4].close()
    assert packs.used_bytes == 10  # it is kept
    later = await packs.shared(b"key", maker(packs, 10, made))
    assert made == [10]
    later.close()


async def test_a_pack_is_made_to_its_end_when_all_who_asked_have_left(packs: KeptPacks) -> None:
    made: list[int] = []
    go = asyncio.Event()
    asking = asyncio.create_task(packs.shared(b"key", maker(packs, 10, made, go)))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    go.set()
    (await packs.shared(b"key", maker(packs, 10, made))).close()
    assert made == [10]


async def test_a_pack_whose_last_asker_leaves_just_as_it_is_made_is_kept_whole(
    packs: KeptPacks, tmp_path: Path
) -> None:
    made: list[int] = []
    go = asyncio.Event()
    asking = asyncio.create_task(packs.shared(b"key", maker(packs, 10, made, go)))
    await asyncio.sleep(0.01)
    go.set()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    (tmp_path / "other").write_bytes(b"somebody else's")
    with (tmp_path / "other").open("rb"):  # it would have the number of a file that was closed
        ready = await packs.shared(b"key", maker(packs, 10, made))
        assert read(ready) == bytes(10)
    ready.close()
    assert (made, packs.used_bytes) == ([10], 10)


async def test_a_pack_that_fails_fails_for_all_and_is_tried_again(packs: KeptPacks) -> None:
    async def fail() -> ReadyPack:
        await asyncio.sleep(0)
        raise OSError("no room")

    found = await asyncio.gather(
        packs.shared(b"key", fail), packs.shared(b"key", fail), return_exceptions=True
    )
    assert [type(error) for error in found] == [OSError, OSError]
    made: list[int] = []
    (await packs.shared(b"key", maker(packs, 10, made))).close()
    assert made == [10]


async def test_what_was_used_longest_ago_makes_room(packs: KeptPacks) -> None:
    made: list[int] = []
    for key, size in ((b"a", 400), (b"b", 401), (b"a", 400), (b"c", 402)):
        (await packs.shared(key, maker(packs, size, made))).close()
    assert made == [400, 401, 402]
    assert packs.used_bytes == 802
    (await packs.shared(b"a", maker(packs, 400, made))).close()
    assert made == [400, 401, 402]
    (await packs.shared(b"b", maker(packs, 401, made))).close()
    assert made == [400, 401, 402, 401]


async def test_a_pack_larger_than_all_room_is_sent_and_not_kept(packs: KeptPacks) -> None:
    made: list[int] = []
    ready = await packs.shared(b"key", maker(packs, BYTES_MAX + 1, made))
    assert len(read(ready)) == BYTES_MAX + 1
    ready.close()
    assert packs.used_bytes == 0


async def test_what_slow_readers_hold_counts(packs: KeptPacks) -> None:
    made: list[int] = []
    slow = await packs.shared(b"a", maker(packs, 600, made))
    (await packs.shared(b"b", maker(packs, 600, made))).close()
    assert packs.used_bytes == 600  # the slow one's, which is kept no longer, and neither is b's
    slow.close()
    assert packs.used_bytes == 0


async def test_nothing_is_kept_on_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    packs = KeptPacks(tmp_path, BYTES_MAX, free_bytes_min=1 << 62)
    made: list[int] = []
    for _ in range(2):
        (await packs.shared(b"key", maker(packs, 10, made))).close()
    assert made == [10, 10]
    assert packs.used_bytes == 0
    await packs.close()


async def test_no_file_of_a_finished_pack_has_a_name(packs: KeptPacks, tmp_path: Path) -> None:
    ready = await packs.shared(b"key", maker(packs, 10, []))
    (folder,) = tmp_path.glob("gitd-packs-*")
    assert list(folder.iterdir()) == []
    ready.close()


async def test_a_stored_pack_is_looked_for_again(packs: KeptPacks, tmp_path: Path) -> None:
    stored = tmp_path / "stored.pack"
    stored.write_bytes(b"12345")
    made: list[int] = []

    async def make() -> ReadyPack:
        made.append(1)
        return packs.opened(BuiltPack(path=str(stored), size_bytes=stored.stat().st_size))

    for content, count in ((b"12345", 1), (b"123", 2), (b"123", 2)):
        stored.write_bytes(content)
        ready = await packs.shared(b"key", make)
        assert (read(ready), len(made)) == (content, count)
        ready.close()
    stored.unlink()
    with pytest.raises(FileNotFoundError):
        await packs.shared(b"key", make)


async def test_a_stored_pack_is_summed_up_until_it_was_found_sound(
    packs: KeptPacks, tmp_path: Path
) -> None:
    stored = tmp_path / "stored.pack"
    stored.write_bytes(b"12345")
    built = BuiltPack(path=str(stored), size_bytes=5)
    first, beside = packs.opened(built), packs.opened(built)
    assert not first.is_sound
    first.note_sound()
    assert beside.is_sound
    stored.write_bytes(b"54321")
    os.utime(stored, ns=(1, 1))
    later = packs.opened(built)
    assert not later.is_sound
    for ready in (first, beside, later):
        ready.close()
    made = await packs.shared(b"key", maker(packs, 10, []))
    assert made.is_sound, "it was written just now"
    made.close()


@pytest.mark.parametrize("piece_bytes", [1, 19, 20, 21, 30, 49, 50, 51, 1000])
def test_the_last_piece_tells_whether_a_pack_is_sound(piece_bytes: int) -> None:
    body = bytes(range(50))
    pack = body + hashlib.sha1(body).digest()
    pieces = [pack[at : at + piece_bytes] for at in range(0, len(pack), piece_bytes)]
    for place in (None, 0, 49, 50, 69):
        found = [bytearray(piece) for piece in pieces]
        if place is not None:
            found[place // piece_bytes][place % piece_bytes] ^= 1
        total = PackSum(len(pack))
        said = [total.take(bytes(piece)) for piece in found]
        assert said == [True] * (len(pieces) - 1) + [place is None]


def test_a_process_removes_what_a_dead_one_left_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from gitd.git.work_folder import WorkFolder\n"
        "folder = WorkFolder(Path(sys.argv[1])).path(); (folder / '1.pack').write_bytes(b'x')\n"
        "print(folder, flush=True); os.kill(os.getpid(), 9) if sys.argv[2] == 'dies' else input()"
    )
    start = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(
        [*start, "lives"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as living:
        assert living.stdout is not None
        alive = Path(living.stdout.readline().strip())
        dead = subprocess.run([*start, "dies"], stdout=subprocess.PIPE, text=True).stdout.strip()
        assert Path(dead).exists()
        folder = WorkFolder(tmp_path)
        assert not Path(dead).exists()
        assert (alive / "1.pack").exists()
        own = folder.path()
        assert own.parent == tmp_path
        folder.close()
        assert not own.exists()
        living.communicate("\n")
