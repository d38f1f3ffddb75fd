"""Restoring what is not as it should be: other keys, other files, backups that lack something."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.backup.keys import KeyPlan, read_keys
from storage.backup.manifest import BlobEntry, Entry, FileEntry, Manifest, ManifestWriter
from storage.backup.places import is_unfinished
from storage.backup.progress import Progress
from storage.backup.verify import verify
from storage.digest import Digest
from storage.errors import BackupDamagedError, BackupError, StorageFullError
from storage.signing import SigningKey


class BrokenOffError(Exception):
    """Raised where a restore is to break off."""


def break_off(progress: Progress) -> None:
    if progress.what == "records":  # files and keys are in place by then
        raise BrokenOffError


def rewrite(small, keeps: Callable[[Entry], bool], *more: Entry) -> None:
    """Write the manifest of the newest backup anew: whoever can write the folder could."""
    path = small.destination.manifest(small.destination.names()[-1])
    manifest = Manifest.open(path)
    entries = [*filter(keeps, manifest.entries()), *more]
    path.unlink()
    with path.open("wb") as file:
        writer = ManifestWriter(file)
        for entry in entries:
            writer.add(entry)
        writer.finish(manifest.facts)


# -- keys ------------------------------------------------------------------------------------------


def test_key_that_was_retired_before_the_backup_is_refused(small, tmp_path: Path) -> None:
    retired = read_keys(small.places.keys)
    small.custody.rotate(small.store.layout.trust)
    small.back_up()
    with pytest.raises(BackupError, match="retired or revoked at the moment of the backup"):
        small.restore(tmp_path / "data", KeyPlan(retired))
    assert is_unfinished(tmp_path / "data")


def test_root_key_of_another_server_is_refused(small, tmp_path: Path) -> None:
    keys = read_keys(small.places.keys)
    SigningKey.load_or_create(tmp_path / "root.key")
    small.back_up()
    plan = KeyPlan({**keys, "root.key": (tmp_path / "root.key").read_bytes()})
    with pytest.raises(BackupError, match=r"root\.key is not the root key of this server"):
        small.restore(tmp_path / "data", plan)
    assert is_unfinished(tmp_path / "data")


def test_keys_that_a_broken_off_restore_made_are_gone_when_it_goes_on_with_others(
    small, restored_at, tmp_path: Path
) -> None:
    kept = read_keys(small.places.keys)
    small.back_up()

    made = KeyPlan({"root.key": kept["root.key"]}, makes_new=True)
    with pytest.raises(BrokenOffError):
        small.restore(tmp_path / "new/data", made, tell=break_off)
    small.restore(tmp_path / "new/data", KeyPlan(kept))
    again = restored_at(tmp_path / "new")
    keyring = again.custody.open(again.store.layout.trust)
    assert keyring.version == 1
    assert again.custody.signing_key().key_id == small.custody.signing_key().key_id


# -- files -----------------------------------------------------------------------------------------


def test_restore_that_goes_on_reads_what_it_restored_before(
    small, restored_at, tmp_path: Path
) -> None:
    small.back_up(with_keys=True)

    with pytest.raises(BrokenOffError):
        small.restore(tmp_path / "new/data", tell=break_off)
    store = tmp_path / "new/data/store"
    (blob, executable) = (
        next(path for path in (store / "blobs").glob("*/*") if path.name.endswith(".x") is is_x)
        for is_x in (False, True)
    )
    blob.chmod(0o600)
    blob.write_bytes(b"x" * blob.stat().st_size)
    executable.chmod(0o600)
    os.utime(executable, (0, 0))
    small.restore(tmp_path / "new/data")
    restored_at(tmp_path / "new")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", where]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


def test_restore_that_has_no_room_is_refused_before_it_copies_anything(
    small, small_disk: Path
) -> None:
    small.back_up(with_keys=True)
    with pytest.raises(StorageFullError, match=r"are free at .*, and the backup has"):
        small.restore(small_disk)
    assert [path.name for path in small_disk.iterdir()] == ["restoring"]


# -- backups that lack something, or have too much -------------------------------------------------


@pytest.mark.parametrize("path", ["host/state.json", ".ssh/authorized_keys", "../keys"])
def test_file_that_is_none_of_a_data_folders_is_not_restored(
    small, tmp_path: Path, path: str
) -> None:
    small.back_up(with_keys=True)
    digest = Digest.of(b"<h1>one</h1>")
    rewrite(small, lambda entry: True, FileEntry(path, 0o600, 0, 12, digest))
    with pytest.raises(BackupDamagedError, match="leads elsewhere"):
        small.restore(tmp_path / "data")
    assert not (tmp_path / "data" / path).exists()


def test_backup_without_a_blob_that_its_records_count_on_is_not_whole(small) -> None:
    small.back_up()
    lone = Digest.of(b"<h1>one</h1>")
    rewrite(small, lambda entry: not (isinstance(entry, BlobEntry) and entry.digest == lone))
    (found,) = verify(small.destination)
    assert found.faults[0] == "1 blob that the records count on: not in it"
    assert [fault.split(": ")[1] for fault in found.faults[1:]] == [
        "names 1 blob that the records do not count on for it"
    ]


def test_backup_without_a_manifest_that_its_records_count_on_is_not_whole(small) -> None:
    small.back_up()
    trees = "store/trees/"
    rewrite(small, lambda e: not (isinstance(e, FileEntry) and e.path.startswith(trees)))
    (found,) = verify(small.destination)
    assert [fault.split(": ")[1] for fault in found.faults] == ["its manifest is not in it"]


def test_repository_that_lacks_what_its_refs_name_is_not_restored(small, tmp_path: Path) -> None:
    small.back_up(with_keys=True)
    objects = "repos/site_1.git/objects/"
    rewrite(small, lambda e: not (isinstance(e, FileEntry) and e.path.startswith(objects)))
    (found,) = verify(small.destination)
    assert found.faults
    assert all(fault.startswith("repository site_1.git: ") for fault in found.faults)
    with pytest.raises(BackupDamagedError, match=r"the repository site_1\.git: "):
        small.restore(tmp_path / "data")
    assert is_unfinished(tmp_path / "data")
