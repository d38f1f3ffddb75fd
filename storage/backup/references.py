"""References: whether a backup has every blob that the manifests in it name.

What is backed up goes by the records. Where they lost a reference, they would not count on its blob
either: only the manifest knows that an artifact needs it.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from storage.counted import counted
from storage.digest import Digest
from storage.files import read_bounded
from storage.manifest import MANIFEST_BYTES_MAX, blob_keys


def named_blobs(digest: Digest, content: str) -> set[bytes] | None:
    """The keys of the blobs that a manifest names; None when it is not what its digest says.

    `content`: the file that has it.
    """
    try:
        data = read_bounded(content, size_bytes_max=MANIFEST_BYTES_MAX)
    except OSError:
        return None
    return blob_keys(data) if Digest.of(data) == digest else None


def reference_fault(named: AbstractSet[bytes], there: AbstractSet[bytes]) -> str | None:
    """Say what is wrong with the references of a manifest, as a sentence without a subject.

    `named`: the keys that it names. `there`: those of all blobs that are in the backup, or that the
    records say are damaged.
    """
    if lost := named - there:
        return f"names {counted(len(lost), 'blob')} that the records do not count on for it"
    return None
