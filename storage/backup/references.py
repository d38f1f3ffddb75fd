"""References: whether a backup has every blob that the manifests in it name.

What is backed up goes by the records. Where they lost a reference, they would not count on its blob
either: only the manifest knows that an artifact needs it.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from storage.digest import Digest
from storage.files import read_bounded
from storage.manifest import MANIFEST_BYTES_MAX, blob_keys


def reference_fault(digest: Digest, content: str, there: AbstractSet[bytes]) -> str | None:
    """Say what is wrong with the references of a manifest, as a sentence without a subject.

    `content`: the file that has it. `there`: the keys of all blobs that are in the backup, or that
    the records say are damaged.
    """
    try:
        data = read_bounded(content, size_bytes_max=MANIFEST_BYTES_MAX)
    except OSError as error:
        return f"cannot be read: {content}: {error.strerror}"
    if Digest.of(data) != digest:
        return f"{content} has other bytes than its name says"
    lost = blob_keys(data) - there
    if lost:
        return f"names {len(lost)} blobs that the records do not count on for it"
    return None
