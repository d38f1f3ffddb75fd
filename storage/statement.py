"""Statements: what provenance and releases have in common, and how strictly they are read.

Source: in-toto/attestation "spec/v1/statement.md".
"""

from __future__ import annotations

from typing import Any, cast

from storage.digest import Digest

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


def subject_of(site: str, digest: Digest, manifest_sha256: str) -> dict[str, object]:
    """The subject of a statement about a tree: by both digests of its manifest."""
    return {"name": site, "digest": {"blake3": digest.hex(), "sha256": manifest_sha256}}


def read_subject(statement: dict[str, object], digest: Digest, manifest_sha256: str) -> str:
    """Return the site of a statement about the tree with these digests.

    All digests must agree, not any one of them: "any" would be as strong as the weaker.

    Raises:
        KeyError, TypeError, ValueError: It is not about that, or about more.
    """
    expect(statement["_type"], STATEMENT_TYPE)
    (subject,) = cast("list[dict[str, Any]]", statement["subject"])
    site = text(subject["name"])
    if subject != subject_of(site, digest, manifest_sha256):
        raise ValueError(f"it is about something else than {digest}")
    return site


def expect(found: object, wanted: object) -> None:
    """Raises ValueError when it is anything else."""
    if found != wanted:
        raise ValueError(f"{str(found)[:200]} instead of {wanted}")


def text(value: object) -> str:
    """Raises TypeError when it is none."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.100} is no text")
    return value


def optional_text(value: object) -> str | None:
    return None if value is None else text(value)
