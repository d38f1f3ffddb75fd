"""Values at rest: sealed, bound to their place, under a key that is this server's alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import KeyFileError, SealBrokenError
from storage.sealing import KEY_BYTES, VARIABLES_KEY, Vault

VAULT = Vault(bytes(range(KEY_BYTES)))


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_value_comes_back_byte_for_byte_and_shows_in_nothing(value: str) -> None:
    sealed = VAULT.seal(value.encode(), place="site_1//NAME")
    assert VAULT.unseal(sealed, place="site_1//NAME") == value.encode()
    assert len(value.encode()) < 4 or value.encode() not in sealed


def test_value_moved_to_another_place_or_changed_does_not_open() -> None:
    sealed = VAULT.seal(b"hunter2", place="site_1//NAME")
    for other, place in (
        (sealed, "site_1/env_1/NAME"),
        (sealed[:-1] + bytes([sealed[-1] ^ 1]), "site_1//NAME"),
        *((sealed[:length], "site_1//NAME") for length in range(len(sealed))),
    ):
        with pytest.raises(SealBrokenError) as raised:
            VAULT.unseal(other, place=place)
        assert "hunter2" not in str(raised.value)
    with pytest.raises(SealBrokenError):
        Vault(bytes(KEY_BYTES)).unseal(sealed, place="site_1//NAME")


def test_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    sealed = Vault.open(tmp_path, may_create=True).seal(b"x", place="p")
    path = tmp_path / VARIABLES_KEY
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert Vault.open(tmp_path, may_create=False).unseal(sealed, place="p") == b"x"
    assert path.read_text().strip() not in repr(Vault.open(tmp_path, may_create=False))


def test_lost_key_is_never_replaced_while_values_need_it(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="is gone, and the database holds values"):
        Vault.open(tmp_path, may_create=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("mode", "data"), [(0o440, "00" * KEY_BYTES), (0o400, "no key")])
def test_key_that_others_may_read_or_that_is_none_is_refused(
    tmp_path: Path, mode: int, data: str
) -> None:
    (tmp_path / VARIABLES_KEY).write_text(data)
    (tmp_path / VARIABLES_KEY).chmod(mode)
    with pytest.raises(KeyFileError):
        Vault.open(tmp_path, may_create=True)


def test_key_of_the_service_manager_takes_the_place_of_the_file(tmp_path: Path) -> None:
    credentials, keys = tmp_path / "credentials", tmp_path / "keys"
    for folder in (credentials, keys):
        folder.mkdir()
    (credentials / VARIABLES_KEY).write_text("07" * KEY_BYTES)
    (credentials / VARIABLES_KEY).chmod(0o440)  # as systemd's access lists show
    for files in ([], [VARIABLES_KEY]):
        vault = Vault.open(keys, credentials=credentials, may_create=True)
        assert vault.digest(b"x") == Vault(b"\x07" * KEY_BYTES).digest(b"x")
        assert [path.name for path in keys.iterdir()] == files
        Vault.open(keys, may_create=True)


def test_key_that_appears_while_one_is_made_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_came_first(count: int) -> bytes:
        monkeypatch.undo()
        others.append(Vault.open(tmp_path, may_create=True).digest(b"x"))
        return bytes(count)

    others: list[str] = []
    monkeypatch.setattr(os, "urandom", another_came_first)
    assert [Vault.open(tmp_path, may_create=True).digest(b"x")] == others


def test_vector_of_the_digest() -> None:
    """It stands in release statements, and is by a key of its own."""
    assert VAULT.digest(b"x") == "11ce3a3c6cf87db511a437e57b99d21d805b09b9cee18d632b296d5b634e8e83"


def test_digest_depends_on_the_key() -> None:
    assert VAULT.digest(b"x") == VAULT.digest(b"x")
    assert VAULT.digest(b"x") not in (VAULT.digest(b"y"), Vault(bytes(KEY_BYTES)).digest(b"x"))
