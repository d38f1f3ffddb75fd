from __future__ import annotations

import pytest

from storage.digest import Digest, split
from storage.errors import DigestInvalidError

EMPTY = "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_digest_of_nothing_is_the_published_one() -> None:
    assert str(Digest.of(b"")) == EMPTY


def test_text_form_round_trips() -> None:
    assert Digest.parse(EMPTY) == Digest.of(b"")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "blake3:",
        EMPTY[:-1],
        EMPTY + "0",
        EMPTY + "\n",
        EMPTY.upper(),
        EMPTY.replace("a", "A"),
        EMPTY.replace("blake3", "sha256"),
        EMPTY.removeprefix("blake3:"),
        " " + EMPTY,
        "blake3:" + "é" * 64,
        "blake3:" + "٣" * 64,
    ],
)
def test_anything_but_the_exact_text_form_is_refused(text: str) -> None:
    with pytest.raises(DigestInvalidError):
        Digest.parse(text)


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
def test_bytes_are_cut_into_pieces_of_one_length(count: int) -> None:
    pieces = [b"%033d" % number for number in range(count)]
    assert split(b"".join(pieces), 33) == pieces
    assert split(b"".join([*pieces, b"rest"]), 33) == [*pieces, b"rest"]
