"""Provenance: the signed statement of what a build made, from which commit, and how to run it.

An in-toto statement, version 1, with the SLSA provenance predicate, version 1. Its subject is the
manifest by both digests. What the site host runs comes from here and from nowhere else.

Source: in-toto/attestation "spec/v1/statement.md"; slsa.dev "provenance/v1".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from storage.envelope import decode_json, encode_json
from storage.errors import SignatureInvalidError
from storage.manifest import Manifest

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:gitd:build:v1"
# A commit's files as they are; and what a build command in a sandbox made of them. Unequal
# trust needs unequal names. Source: SLSA provenance v1, "builder.id".
SOURCE_BUILDER = "urn:gitd:builder:source:v1"
SANDBOX_BUILDER = "urn:gitd:builder:sandbox:v1"
BUILDERS = (SOURCE_BUILDER, SANDBOX_BUILDER)
PROFILES = ("static", "procfile")
_SOURCE_PREFIX = "git+"
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


@dataclass(frozen=True, slots=True)
class RunCommands:
    """How a release runs; a static site has none of these."""

    web: str | None = None
    release: str | None = None
    health: str | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a verified statement says.

    Attributes:
        site: Name of the site that the build was for.
        ref: Full name of the ref that was built, or None when a bare commit was.
        commit: Its object id in hexadecimal.
        profile: `static` or `procfile`.
        started_at: RFC 3339, UTC; so is `finished_at`.
    """

    site: str
    ref: str | None
    commit: str
    profile: str
    run: RunCommands
    build_id: str
    builder: str
    started_at: str
    finished_at: str


def build_provenance(
    provenance: Provenance, manifest: Manifest, *, internal: Mapping[str, object] | None = None
) -> bytes:
    """Write the statement that `provenance` holds for `manifest`; `seal` signs it.

    `internal`: parameters that the builder chose, such as the limits of its sandbox.
    """
    source = f"{_SOURCE_PREFIX}{provenance.site}"
    run = provenance.run
    return encode_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [
                {
                    "name": provenance.site,
                    "digest": {"blake3": manifest.digest.hex(), "sha256": manifest.sha256},
                }
            ],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "buildDefinition": {
                    "buildType": BUILD_TYPE,
                    "externalParameters": {
                        "source": source,
                        "ref": provenance.ref,
                        "profile": provenance.profile,
                        "run": {"web": run.web, "release": run.release, "health": run.health},
                    },
                    "internalParameters": dict(internal or {}),
                    "resolvedDependencies": [
                        {
                            "uri": f"{source}@{provenance.ref}" if provenance.ref else source,
                            "digest": {"gitCommit": provenance.commit},
                        }
                    ],
                },
                "runDetails": {
                    "builder": {"id": provenance.builder},
                    "metadata": {
                        "invocationId": provenance.build_id,
                        "startedOn": provenance.started_at,
                        "finishedOn": provenance.finished_at,
                    },
                },
            },
        }
    )


def parse_provenance(body: bytes, manifest: Manifest) -> Provenance:
    """Read a statement whose signature was checked; it must be about `manifest`.

    `body` are exactly the bytes that were signed. An external parameter that is not known is
    refused: it could mean that the build ran otherwise than we think.

    Raises:
        SignatureInvalidError: It is no such statement, or is about something else.
    """
    statement = decode_json(body)
    try:
        return _read(statement, manifest)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SignatureInvalidError(f"the statement lacks what it needs: {error}") from error


def _read(statement: dict[str, object], manifest: Manifest) -> Provenance:
    _expect(statement["_type"], STATEMENT_TYPE)
    _expect(statement["predicateType"], PREDICATE_TYPE)
    (subject,) = cast("list[dict[str, Any]]", statement["subject"])
    # All digests must agree, not any one of them: "any" would be as strong as the weaker.
    _expect(subject["digest"], {"blake3": manifest.digest.hex(), "sha256": manifest.sha256})
    predicate = cast("dict[str, Any]", statement["predicate"])
    definition = predicate["buildDefinition"]
    _expect(definition["buildType"], BUILD_TYPE)
    external = definition["externalParameters"]
    _expect(sorted(external), ["profile", "ref", "run", "source"])
    _expect(sorted(external["run"]), ["health", "release", "web"])
    site = _text(subject["name"])
    _expect(external["source"], _SOURCE_PREFIX + site)
    (dependency,) = definition["resolvedDependencies"]
    details = predicate["runDetails"]
    metadata = details["metadata"]
    provenance = Provenance(
        site=site,
        ref=_optional_text(external["ref"]),
        commit=_text(dependency["digest"]["gitCommit"]),
        profile=_text(external["profile"]),
        run=RunCommands(**{key: _optional_text(text) for key, text in external["run"].items()}),
        build_id=_text(metadata["invocationId"]),
        builder=_text(details["builder"]["id"]),
        started_at=_text(metadata["startedOn"]),
        finished_at=_text(metadata["finishedOn"]),
    )
    if provenance.profile not in PROFILES or not _COMMIT.fullmatch(provenance.commit):
        raise ValueError("the profile or the commit is not one")
    return provenance


def _expect(found: object, wanted: object) -> None:
    if found != wanted:
        raise ValueError(f"{str(found)[:200]} instead of {wanted}")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.100} is no text")
    return value


def _optional_text(value: object) -> str | None:
    return None if value is None else _text(value)
