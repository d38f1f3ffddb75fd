from __future__ import annotations

import re
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.digest import Digest
from storage.ids import ALPHABET, artifact_id, is_id, new_id


def test_id_has_a_prefix_and_26_characters_of_crockford_base_32() -> None:
    assert re.fullmatch(r"job_[0-7][0-9A-HJKMNP-TV-Z]{25}", new_id("job"))


def test_ids_of_one_process_only_grow() -> None:
    ids = [new_id("job") for _ in range(20_000)]
    assert ids == sorted(set(ids))


def test_ids_of_several_threads_are_distinct() -> None:
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.extend([new_id("x") for _ in range(2000)]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8000


def test_id_begins_with_its_time_in_milliseconds() -> None:
    before = time.time_ns() // 1_000_000
    number = 0
    for char in new_id("job")[4:14]:
        number = number * 32 + ALPHABET.index(char)
    assert before <= number <= time.time_ns() // 1_000_000


def test_artifact_id_is_the_first_130_bits_of_the_digest() -> None:
    assert artifact_id(Digest(bytes(32))) == "art_" + "0" * 26
    assert artifact_id(Digest(b"\xff" * 32)) == "art_" + "Z" * 26
    assert artifact_id(Digest(b"\xff" * 16 + b"\x3f" + bytes(15))) == "art_" + "Z" * 25 + "W"
    digest = "51d45b24c3c7f752017426dca62b3cc54cc1fd7cc6155d5f74f05f365750437f"
    assert artifact_id(Digest.fromhex(digest)) == "art_A7A5P963RZVN40BM4VEACASWRN"


@given(st.binary(min_size=32, max_size=32))
def test_artifact_id_reads_back_as_the_digests_bits(data: bytes) -> None:
    number = 0
    for char in artifact_id(Digest(data))[4:]:
        number = number * 32 + ALPHABET.index(char)
    assert number == int.from_bytes(data, "big") >> 126


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("job_01J9Z3Q4XWKQ5B8P7N6M5K4J3H", True),
        ("job_01j9z3q4xwkq5b8p7n6m5k4j3h", False),
        ("job_81J9Z3Q4XWKQ5B8P7N6M5K4J3H", False),
        ("job_01J9Z3Q4XWKQ5B8P7N6M5K4J3", False),
        ("job_01J9Z3Q4XWKQ5B8P7N6M5K4J3H0", False),
        ("job_O1J9Z3Q4XWKQ5B8P7N6M5K4J3H", False),
        ("job-01J9Z3Q4XWKQ5B8P7N6M5K4J3H", False),
        ("dep_01J9Z3Q4XWKQ5B8P7N6M5K4J3H", False),
        ("01J9Z3Q4XWKQ5B8P7N6M5K4J3H", False),
        ("", False),
    ],
)
def test_form_of_an_id(text: str, *, is_one: bool) -> None:
    assert is_id(text, "job") is is_one


def test_artifact_id_may_begin_with_any_character() -> None:
    assert is_id("art_Z1J9Z3Q4XWKQ5B8P7N6M5K4J3H", "art")


def test_ids_go_on_growing_past_one_of_the_future() -> None:
    """In a process of its own: it changes what every later id of the process is."""
    future = "job_" + "6" + "Z" * 25
    code = (
        "from storage.ids import advance_past, new_id\n"
        f"advance_past({future!r}); advance_past('rel_' + '0' * 26); print(new_id('job'))"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() > future
