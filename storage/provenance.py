"""Provenance: the signed statement of what a build made, from which commit, and how to run it.

An in-toto statement, version 1, with the SLSA provenance predicate, version 1. Its subject is the
manifest by both digests. What the site host runs comes from here and from nowhere else.

`buildType` tells the two versions apart. Version 1, which is read for ever, says neither the tree
and the environment nor the settings, programs and caches that the output depends on.

Source: in-toto/attestation "spec/v1/statement.md"; slsa.dev "provenance/v1".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from storage.envelope import decode_json, encode_json
from storage.errors import SignatureInvalidError
from storage.manifest import Manifest, TreeName
from storage.statement import (
    STATEMENT_TYPE,
    expect,
    optional_text,
    read_subject,
    subject_of,
    text,
)

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:gitd:build:v2"
BUILD_TYPE_1 = "urn:gitd:build:v1"
# A commit's files as they are; and what a build command in a sandbox made of them. Unequal
# trust needs unequal names. Source: SLSA provenance v1, "builder.id".
SOURCE_BUILDER = "urn:gitd:builder:source:v1"
SANDBOX_BUILDER = "urn:gitd:builder:sandbox:v1"
BUILDERS = (SOURCE_BUILDER, SANDBOX_BUILDER)
PROFILES = ("static", "node", "python", "php", "procfile")
TOOLCHAIN = "toolchain"
CACHE_INPUTS = "cache-inputs"
SUBMODULE = "submodule"
_SOURCE_PREFIX = "git+"
_OBJECT_ID = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_EXTERNAL = {
    BUILD_TYPE_1: ["profile", "ref", "run", "source"],
    BUILD_TYPE: ["environment", "profile", "ref", "run", "settings", "source"],
}


@dataclass(frozen=True, slots=True)
class RunCommands:
    """How a release runs; a static site has none of these."""

    web: str | None = None
    release: str | None = None
    health: str | None = None


@dataclass(frozen=True, slots=True)
class Submodule:
    """A commit of another site, in the tree at `path`."""

    path: str
    site: str
    commit: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a verified statement says.

    Attributes:
        site: Name of the site that the build was for.
        ref: Full name of the ref that was built, or None when a bare commit was.
        commit: Its object id in hexadecimal.
        profile: One of `PROFILES`: how it was built. Without `run.web`, files are served.
        started_at: RFC 3339, UTC; so is `finished_at`.
        tree: Object id of the commit's tree. None in version 1, as the fields that follow.
        environment: Slug of the environment that the build was for; builds are told it.
        settings: What the build was told, by name: its command, its output folder, ...
        toolchain: The programs that it found, each with its version.
        cache_inputs: What it took from caches, each with its digest.
        submodules: The commits of other sites in the tree, by their paths in what was built.
        gitd_version: The version of this program.
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
    tree: str | None = None
    environment: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    toolchain: Mapping[str, str] = field(default_factory=dict)
    cache_inputs: Mapping[str, str] = field(default_factory=dict)
    gitd_version: str | None = None
    submodules: tuple[Submodule, ...] = ()


def build_provenance(provenance: Provenance, manifest: Manifest) -> bytes:
    """Write the statement that `provenance` holds for `manifest`; `seal` signs it."""
    return encode_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [subject_of(provenance.site, manifest.digest, manifest.sha256)],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "buildDefinition": _definition(provenance),
                "runDetails": {
                    "builder": {
                        "id": provenance.builder,
                        "version": {"gitd": provenance.gitd_version},
                    },
                    "metadata": {
                        "invocationId": provenance.build_id,
                        "startedOn": provenance.started_at,
                        "finishedOn": provenance.finished_at,
                    },
                },
            },
        }
    )


def facts_digest(facts: Mapping[str, str]) -> str:
    """Return the SHA-256, in hexadecimal, of facts as JSON with sorted keys and no spaces."""
    return hashlib.sha256(encode_json(facts)).hexdigest()


def _definition(provenance: Provenance) -> dict[str, object]:
    run = provenance.run
    source = f"{_SOURCE_PREFIX}{provenance.site}"
    commit = {
        "uri": f"{source}@{provenance.ref}" if provenance.ref else source,
        "digest": {"gitCommit": provenance.commit, "gitTree": provenance.tree},
    }
    facts = {TOOLCHAIN: provenance.toolchain, CACHE_INPUTS: provenance.cache_inputs}
    return {
        "buildType": BUILD_TYPE,
        "externalParameters": {
            "source": source,
            "ref": provenance.ref,
            "environment": provenance.environment,
            "profile": provenance.profile,
            "run": {"web": run.web, "release": run.release, "health": run.health},
            "settings": dict(provenance.settings),
        },
        "resolvedDependencies": [
            commit,
            *map(_described, provenance.submodules),
            *(
                {"name": name, "digest": {"sha256": facts_digest(of)}, "annotations": dict(of)}
                for name, of in facts.items()
                if of
            ),
        ],
    }


def _described(submodule: Submodule) -> dict[str, object]:
    return {
        "name": SUBMODULE,
        "uri": f"{_SOURCE_PREFIX}{submodule.site}",
        "digest": {"gitCommit": submodule.commit},
        "annotations": {"path": submodule.path},
    }


def parse_provenance(body: bytes, manifest: TreeName) -> Provenance:
    """Read a statement whose signature was checked; it must be about `manifest`.

    `body` are exactly the bytes that were signed. An external parameter that is not known is
    refused: it could mean that the build ran otherwise than we think.

    Raises:
        SignatureInvalidError: It is no such statement, or is about something else.
    """
    statement = decode_json(body)
    try:
        return _read(statement, manifest)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SignatureInvalidError(f"the statement lacks what it needs: {error}") from error


def _read(statement: dict[str, object], manifest: TreeName) -> Provenance:
    site = read_subject(statement, manifest.digest, manifest.sha256)
    expect(statement["predicateType"], PREDICATE_TYPE)
    predicate = cast("dict[str, Any]", statement["predicate"])
    definition = predicate["buildDefinition"]
    build_type = definition["buildType"]
    external = definition["externalParameters"]
    expect(sorted(external), _EXTERNAL[build_type])
    expect(sorted(external["run"]), ["health", "release", "web"])
    expect(external["source"], _SOURCE_PREFIX + site)
    commit, *facts = definition["resolvedDependencies"]
    details = predicate["runDetails"]
    metadata = details["metadata"]
    provenance = Provenance(
        site=site,
        ref=optional_text(external["ref"]),
        commit=_object_id(commit["digest"]["gitCommit"]),
        profile=text(external["profile"]),
        run=RunCommands(**{key: optional_text(said) for key, said in external["run"].items()}),
        build_id=text(metadata["invocationId"]),
        builder=text(details["builder"]["id"]),
        started_at=text(metadata["startedOn"]),
        finished_at=text(metadata["finishedOn"]),
    )
    if provenance.profile not in PROFILES:
        raise ValueError("the profile is not one")
    if build_type == BUILD_TYPE_1:
        return provenance
    return replace(
        provenance,
        tree=_object_id(commit["digest"]["gitTree"]),
        environment=optional_text(external["environment"]),
        settings=_texts(external["settings"]),
        toolchain=_facts(facts, TOOLCHAIN),
        cache_inputs=_facts(facts, CACHE_INPUTS),
        submodules=tuple(_submodule(item) for item in facts if item["name"] == SUBMODULE),
        gitd_version=text(details["builder"]["version"]["gitd"]),
    )


def _submodule(dependency: dict[str, Any]) -> Submodule:
    return Submodule(
        text(dependency["annotations"]["path"]),
        text(dependency["uri"]).removeprefix(_SOURCE_PREFIX),
        _object_id(dependency["digest"]["gitCommit"]),
    )


def _facts(dependencies: list[dict[str, Any]], name: str) -> dict[str, str]:
    found = [item for item in dependencies if item["name"] == name]
    if not found:
        return {}
    (item,) = found
    facts = _texts(item["annotations"])
    expect(item["digest"], {"sha256": facts_digest(facts)})
    return facts


def _texts(value: dict[str, object]) -> dict[str, str]:
    return {text(name): text(said) for name, said in value.items()}


def _object_id(value: object) -> str:
    name = text(value)
    if not _OBJECT_ID.fullmatch(name):
        raise ValueError(f"{name:.100} is no object id")
    return name
