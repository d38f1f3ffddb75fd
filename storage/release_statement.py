"""Release statements: the signed word of control that an artifact may run on an environment now.

Provenance says who built what; it holds for ever, also of an artifact that was replaced for good
reason. A release statement holds for one environment and one place in its history: its sequence
only grows, and an environment goes by none that is not above what it went by before.

Source: in-toto/attestation "spec/v1/statement.md"; the predicate is our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from storage.digest import Digest
from storage.envelope import decode_json, encode_json
from storage.errors import DigestInvalidError, ReleaseInvalidError, SignatureInvalidError
from storage.statement import STATEMENT_TYPE, expect, read_subject, subject_of, text

RELEASE_TYPE = "urn:gitd:release:v1"
SEQUENCE_MAX = (1 << 53) - 1  # what every reader of JSON can hold
_PREDICATE = [
    "deployment",
    "environment",
    "expiresAt",
    "issuedAt",
    "previous",
    "provenance",
    "rollback",
    "sequence",
]
_CONFIG = "config"  # only in statements of releases that have one


@dataclass(frozen=True, slots=True)
class ConfigPin:
    """The very config that a release's programs are given: a version of its environment's.

    `digest` is keyed with a salt that only goes with the values: it tells nothing of them.
    """

    version: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class ReleaseStatement:
    """What a verified statement says.

    Attributes:
        site: Name of the site.
        env_id: Id of the environment; `environment` is its slug, for people.
        sequence: Its place in the environment's history: 1 or more, growing, with gaps.
        deployment_id: The deployment that asked for it.
        provenance_sha256: The provenance to go by: the SHA-256 of its envelope, in hexadecimal.
        previous: Digest of what was current when it was signed, if anything was.
        rollback: It brings back what ran before.
        issued_at: RFC 3339, UTC; nothing is decided by it.
        expires_at: It holds until then; None is for ever.
        config: What its programs are given of variables and secrets; None is nothing.
    """

    site: str
    env_id: str
    environment: str
    sequence: int
    deployment_id: str
    provenance_sha256: str
    previous: Digest | None
    rollback: bool
    issued_at: str
    expires_at: str | None = None
    config: ConfigPin | None = None

    def is_over(self, now_ms: int) -> bool:
        """Say whether its time is over."""
        return self.expires_at is not None and _milliseconds(self.expires_at) <= now_ms


def build_release(statement: ReleaseStatement, *, digest: Digest, manifest_sha256: str) -> bytes:
    """Write the statement about the tree with these digests; `seal` signs it.

    Raises:
        ReleaseInvalidError: Nobody would take it: it has a sequence that none can have.
    """
    if not 1 <= statement.sequence <= SEQUENCE_MAX:
        raise ReleaseInvalidError(f"no release statement has the sequence {statement.sequence}")
    previous, config = statement.previous, statement.config
    return encode_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [subject_of(statement.site, digest, manifest_sha256)],
            "predicateType": RELEASE_TYPE,
            "predicate": {
                "environment": {"id": statement.env_id, "name": statement.environment},
                "sequence": statement.sequence,
                "deployment": statement.deployment_id,
                "provenance": {"sha256": statement.provenance_sha256},
                "previous": None if previous is None else {"blake3": previous.hex()},
                "rollback": statement.rollback,
                "issuedAt": statement.issued_at,
                "expiresAt": statement.expires_at,
                **({} if config is None else {_CONFIG: _config_fields(config)}),
            },
        }
    )


def parse_release(body: bytes, *, digest: Digest, manifest_sha256: str) -> ReleaseStatement:
    """Read a statement whose signature was checked; it must be about the tree with these digests.

    Raises:
        ReleaseInvalidError: It is no such statement, says what is not known, or is about something
            else.
    """
    try:
        return _read(decode_json(body), digest, manifest_sha256)
    except (SignatureInvalidError, DigestInvalidError) as error:
        raise ReleaseInvalidError(f"the release statement does not hold: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ReleaseInvalidError(f"the release statement does not hold: {error}") from error


def _read(statement: dict[str, object], digest: Digest, manifest_sha256: str) -> ReleaseStatement:
    site = read_subject(statement, digest, manifest_sha256)
    expect(statement["predicateType"], RELEASE_TYPE)
    predicate = cast("dict[str, Any]", statement["predicate"])
    config = _read_config(predicate.pop(_CONFIG)) if _CONFIG in predicate else None
    expect(sorted(predicate), _PREDICATE)
    expect(sorted(predicate["environment"]), ["id", "name"])
    expect(sorted(predicate["provenance"]), ["sha256"])
    sequence, rollback = predicate["sequence"], predicate["rollback"]
    if type(sequence) is not int or not 1 <= sequence <= SEQUENCE_MAX:
        raise ValueError("the sequence is no number that it can be")
    if not isinstance(rollback, bool):
        raise TypeError("a flag is no flag")
    previous, expires_at = predicate["previous"], predicate["expiresAt"]
    if expires_at is not None:
        _milliseconds(text(expires_at))
    return ReleaseStatement(
        site=site,
        env_id=text(predicate["environment"]["id"]),
        environment=text(predicate["environment"]["name"]),
        sequence=sequence,
        deployment_id=text(predicate["deployment"]),
        provenance_sha256=text(predicate["provenance"]["sha256"]),
        previous=None if previous is None else _read_digest(previous),
        rollback=rollback,
        issued_at=text(predicate["issuedAt"]),
        expires_at=expires_at,
        config=config,
    )


def _config_fields(config: ConfigPin) -> dict[str, object]:
    return {"version": config.version, "digest": {"blake3": config.digest.hex()}}


def _read_config(found: dict[str, Any]) -> ConfigPin:
    expect(sorted(found), ["digest", "version"])
    version = found["version"]
    if type(version) is not int or not 1 <= version <= SEQUENCE_MAX:
        raise ValueError("the config's version is no number that it can be")
    return ConfigPin(version, _read_digest(found["digest"]))


def _read_digest(found: dict[str, Any]) -> Digest:
    expect(sorted(found), ["blake3"])
    return Digest.parse(f"blake3:{text(found['blake3'])}")


def _milliseconds(time: str) -> int:
    at = datetime.fromisoformat(time)
    if at.tzinfo is None:
        raise ValueError(f"{time:.40} has no time zone")
    return int(at.timestamp() * 1000)
