"""Trees to measure with: the same bytes on every machine, in sizes as builds have them."""
# Plain strings: there are a hundred thousand files.
# ruff: noqa: PTH103, PTH108, PTH116, PTH123, PTH211

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

_WORDS_BYTES = 1 << 16
_UNIT_BYTES = 512  # contents alternate in such units between words, which pack well, and noise


@dataclass(frozen=True, slots=True)
class Shape:
    """A tree to be made.

    Attributes:
        size_bytes: Of all files together, nearly.
        copies: How many of the files have the contents of another.
    """

    name: str
    files: int
    size_bytes: int
    folders: int
    links: int
    copies: int = 0
    seed: int = 1


SITE = Shape("10,000 files, 193 MB", 10_000, 193_000_000, folders=400, links=100, copies=700)
MANY = Shape("100,000 files, 26 MB", 100_000, 26_000_000, folders=1_000, links=0)


def make(shape: Shape, root: Path) -> None:
    """Write the tree. Sizes are spread as in builds: most small, some a hundred times larger."""
    pick = random.Random(shape.seed)
    words = _words(pick)
    folders = [f"{root}/{_folder(n)}" for n in range(shape.folders)]
    for folder in folders:
        os.makedirs(folder)
    sizes = [pick.lognormvariate(0, 1.6) for _ in range(shape.files)]
    sizes[: shape.copies] = [1.0] * shape.copies
    scale = shape.size_bytes / sum(sizes)
    data = b""
    for number, size in enumerate(sizes):
        if not 0 < number < shape.copies:
            data = _contents(pick, words, int(size * scale))
        path = f"{folders[number % shape.folders]}/f{number:06d}"
        _write(path, data, executable=number % 50 == 0)
    for number in range(shape.links):
        os.symlink(f"f{number:06d}", f"{folders[number % shape.folders]}/link{number:03d}")


def change(shape: Shape, root: Path, *, share: float) -> None:
    """Give other contents of the same length to so many of the files."""
    pick = random.Random(shape.seed + 1)
    words = _words(pick)
    for number in pick.sample(range(shape.copies, shape.files), int(shape.files * share)):
        path = f"{root}/{_folder(number % shape.folders)}/f{number:06d}"
        size = os.stat(path).st_size
        os.unlink(path)
        _write(path, _contents(pick, words, size), executable=number % 50 == 0)


def read(path: Path) -> None:
    """Read a file, or all that is in a folder: it is in memory then."""
    for folder, _, names in os.walk(path):
        for name in names:
            _read_file(f"{folder}/{name}")
    if path.is_file():
        _read_file(os.fspath(path))


def make_large(path: Path, size_bytes: int) -> None:
    """Write one file of that length."""
    pick = random.Random(1)
    with path.open("wb") as file:
        for _ in range(size_bytes >> 20):
            file.write(pick.randbytes(1 << 20))


def _read_file(path: str) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def _folder(number: int) -> str:
    """The name of a folder; each has up to twenty others in it."""
    return f"d{number // 20:03d}/e{number % 20:02d}" if number % 20 else f"d{number // 20:03d}"


def _words(pick: random.Random) -> bytes:
    words = [pick.randbytes(pick.randrange(2, 6)).hex().encode() for _ in range(1000)]
    return b" ".join(pick.choices(words, k=_WORDS_BYTES // 5))[:_WORDS_BYTES]


def _contents(pick: random.Random, words: bytes, size_bytes: int) -> bytes:
    noise = pick.randbytes(size_bytes // 2 + _UNIT_BYTES)
    parts = []
    for at in range(0, size_bytes, 2 * _UNIT_BYTES):
        start = (at * 7) % (_WORDS_BYTES - _UNIT_BYTES)
        parts += [words[start : start + _UNIT_BYTES], noise[at // 2 : at // 2 + _UNIT_BYTES]]
    return b"".join(parts)[:size_bytes]


def _write(path: str, data: bytes, *, executable: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755 if executable else 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
