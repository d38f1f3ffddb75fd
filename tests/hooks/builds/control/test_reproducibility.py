"""What two builds of the same inputs gave, beside each other."""

from __future__ import annotations

from hooks.builds.control.reproducibility import differences
from storage.digest import Digest
from storage.manifest import FileEntry, Manifest


def tree(files: dict[bytes, bytes]) -> Manifest:
    return Manifest.of(
        FileEntry(path, False, len(data), Digest.of(data)) for path, data in files.items()
    )


def test_trees_differ_by_their_files() -> None:
    old = tree({b"same": b"1", b"went": b"1", b"other": b"1"})
    new = tree({b"same": b"1", b"came": b"1", b"other": b"2"})
    assert differences(old, new) == ["added came", "changed other", "missing went"]
    assert differences(old, old) == []
