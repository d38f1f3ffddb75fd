"""Provenance: what a statement says, in this version and in those before."""

from __future__ import annotations

import json

import pytest

from hooks.builds.profiles.toolchain import toolchain_digest
from storage.digest import Digest
from storage.envelope import encode_json
from storage.errors import SignatureInvalidError
from storage.manifest import HEADER, Manifest
from storage.provenance import (
    SANDBOX_BUILDER,
    Provenance,
    RunCommands,
    build_provenance,
    facts_digest,
    parse_provenance,
)

MANIFEST = Manifest.parse(HEADER + b"a\tf\t1\t%s\n" % Digest.of(b"x").hex().encode())
SAID = Provenance(
    site="acme-store",
    ref="refs/heads/main",
    commit="7fd1a60b01f91b314f59955a4e4d4e80d8edf11d",
    profile="procfile",
    run=RunCommands(web="./serve", release=None, health="/up"),
    build_id="build_1",
    builder=SANDBOX_BUILDER,
    started_at="2026-01-01T00:00:00.000Z",
    finished_at="2026-01-01T00:00:05.000Z",
    tree="4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    environment="production",
    settings={"command": "npm ci && npm run build", "output": "."},
    toolchain={"node": "20.20.2", "os": "debian 12"},
    cache_inputs={"npm": "blake3:00"},
    gitd_version="0.1.0",
)
# As gitd 0.1 wrote it.
VERSION_1 = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [
        {
            "name": "acme-store",
            "digest": {"blake3": MANIFEST.digest.hex(), "sha256": MANIFEST.sha256},
        }
    ],
    "predicateType": "https://slsa.dev/provenance/v1",
    "predicate": {
        "buildDefinition": {
            "buildType": "urn:gitd:build:v1",
            "externalParameters": {
                "source": "git+acme-store",
                "ref": "refs/heads/main",
                "profile": "procfile",
                "run": {"web": "./serve", "release": None, "health": "/up"},
            },
            "internalParameters": {},
            "resolvedDependencies": [
                {
                    "uri": "git+acme-store@refs/heads/main",
                    "digest": {"gitCommit": "7fd1a60b01f91b314f59955a4e4d4e80d8edf11d"},
                }
            ],
        },
        "runDetails": {
            "builder": {"id": "urn:gitd:builder:sandbox:v1"},
            "metadata": {
                "invocationId": "build_1",
                "startedOn": "2026-01-01T00:00:00.000Z",
                "finishedOn": "2026-01-01T00:00:05.000Z",
            },
        },
    },
}


def test_statement_says_what_was_put_into_it() -> None:
    assert parse_provenance(build_provenance(SAID, MANIFEST), MANIFEST) == SAID


def test_facts_that_are_not_there_are_not_mentioned() -> None:
    body = build_provenance(Provenance(**{**_fields(SAID), "cache_inputs": {}}), MANIFEST)
    assert b"cache-inputs" not in body
    assert parse_provenance(body, MANIFEST).cache_inputs == {}


def test_statement_of_the_first_version_is_read_for_ever() -> None:
    said = parse_provenance(encode_json(VERSION_1), MANIFEST)
    assert said.commit == SAID.commit
    assert said.run == SAID.run
    assert (said.tree, said.environment, said.toolchain) == (None, None, {})


def test_first_version_may_say_nothing_of_the_second() -> None:
    statement = json.loads(json.dumps(VERSION_1))
    statement["predicate"]["buildDefinition"]["externalParameters"]["settings"] = {}
    with pytest.raises(SignatureInvalidError):
        parse_provenance(encode_json(statement), MANIFEST)


def test_dependency_that_is_not_known_changes_nothing() -> None:
    statement = json.loads(build_provenance(SAID, MANIFEST))
    more = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    more.append({"name": "lockfile", "digest": {"sha256": "00"}})
    assert parse_provenance(encode_json(statement), MANIFEST) == SAID


def test_toolchain_has_the_digest_that_control_knows_it_by() -> None:
    assert facts_digest(SAID.toolchain) == toolchain_digest(SAID.toolchain)


def _fields(said: Provenance) -> dict[str, object]:
    return {name: getattr(said, name) for name in Provenance.__slots__}
