"""The tables of errors: complete, and without loose ends. Contract §2 "Errors"."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import gitd.errors
import hooks.errors
from gitd.api.errors import CODES, ROWS, STATUS_OF_TYPE, refusal_of
from gitd.errors import ConfigError, GitdError, LoopFailedError, StartError
from gitd.scopes import SCOPES
from hooks.errors import NotFoundError, PipelineError, RefusedError
from storage.errors import StorageError

ROOT = Path(__file__).parents[3]
INTERNAL = "api.internal"
DOTTED = r"[a-z_]+\.[a-z_]+"


def test_type_fixes_the_status_but_for_the_three_that_http_names() -> None:
    own = {row.code: row.own_status for row in CODES.values() if row.own_status}
    assert own == {
        "request.method_not_allowed": 405,
        "request.timed_out": 408,
        "request.too_large": 413,
        "request.media_type_unsupported": 415,
    }
    assert {row.type for row in CODES.values()} <= {*STATUS_OF_TYPE, "job"}
    assert all(re.fullmatch(DOTTED, code) for code in CODES)


def test_a_code_has_one_row() -> None:
    assert [code for code, count in Counter(row.code for row in ROWS).items() if count > 1] == []


async def test_codes_that_an_endpoint_answers_with_have_a_status(service) -> None:
    codes = {code for endpoint in service.api.endpoints for code in endpoint.errors}
    assert [code for code in sorted(codes) if CODES[code].status < 400] == []


def test_codes_that_the_contract_names_are_there() -> None:
    assert {
        "site.not_found",
        "environment.not_found",
        "artifact.not_found",
        "ref.not_found",
        "scope.insufficient",
        "idempotency.key_reused",
        "release.no_previous",
        "release.already_current",
        "environment.nothing_running",
        "environment.ambiguous",
        "artifact.signature_invalid",
    } <= CODES.keys()


def test_every_code_that_the_sources_write_has_a_row() -> None:
    families = {code.partition(".")[0] for code in CODES}
    unknown = set()
    for package in ("gitd", "hooks"):
        for path in (ROOT / package).rglob("*.py"):
            if path.is_relative_to(ROOT / "gitd" / "cli"):
                continue
            text = path.read_text()
            raised = re.findall(
                rf'(?:code=|Error\(|Failure\(|Refusal\(|Told\()\s*"({DOTTED})"', text
            )
            unknown |= {c for c in raised if c.partition(".")[0] in families} - CODES.keys()
    assert unknown == set()


@pytest.mark.parametrize("module", [gitd.errors, hooks.errors])
def test_every_public_error_of_a_request_is_told_as_more_than_internal(module) -> None:
    # Those of the process's own start never meet a request.
    left_out = {GitdError, PipelineError, ConfigError, StartError, LoopFailedError}
    samples = {
        NotFoundError: NotFoundError("site", "x"),
        RefusedError: RefusedError("site.name_taken", "x"),
    }
    for kind in vars(module).values():
        if not isinstance(kind, type) or not issubclass(kind, (GitdError, PipelineError)):
            continue
        if kind in left_out or kind.__module__ != module.__name__:
            continue
        error = samples.get(kind) or _sample(kind)
        assert refusal_of(error).row.code != INTERNAL, kind


def _sample(kind: type[Exception]) -> Exception:
    arguments = {
        "AuthenticationError": ("no",),
        "AccessDeniedError": ("scope.insufficient", "no"),
        "ScopeInsufficientError": ("sites:read",),
        "AddressRefusedError": ("127.0.0.1",),
        "KeyBoundError": ("site_1",),
        "BeyondKeyError": ("it ends at once itself",),
        "SecretRolledError": (),
        "RateLimitedError": ("read", 1, {}),
        "RequestError": ("request.invalid", "no"),
        "AmbiguousEnvironmentError": ("preview", ["a", "b"]),
        "IdempotencyKeyReusedError": (),
    }
    if kind.__name__ in arguments:
        return kind(*arguments[kind.__name__])
    return kind("no", param="field")


def test_fault_of_ours_says_nothing_of_the_inside() -> None:
    for error in (RuntimeError("/secret/path"), StorageError("/secret/path"), KeyError("x")):
        refusal = refusal_of(error)
        assert (refusal.row.code, refusal.row.status) == (INTERNAL, 500)
        assert "secret" not in refusal.message
    unknown_code = refusal_of(RefusedError("not.in_the_table", "secret"))
    assert unknown_code.row.code == INTERNAL


async def test_bug_in_a_handler_is_a_500_that_is_logged_and_told_nothing_of(service) -> None:
    service.records.write(lambda db: db.execute("ALTER TABLE site RENAME TO gone"))
    heard = await service.get("/v1/sites")
    assert (heard.status, heard.code) == (500, INTERNAL)
    assert b"gone" not in heard.raw
    assert b"no such table" not in heard.raw


async def test_every_code_has_its_page(service) -> None:
    for code in CODES:
        heard = await service.call("GET", f"/errors/{code}", secret="")
        assert heard.status == 200, code
        assert CODES[code].meaning in heard.raw.decode()


def test_every_code_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    assert {code for code in CODES if f"`{code}`" not in text} == set()


def test_every_scope_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    assert {scope for scope in SCOPES if f"`{scope}`" not in text} == set()


def test_documents_name_no_code_and_no_scope_that_is_not() -> None:
    families = "|".join(sorted({code.partition(".")[0] for code in CODES} - {"api", "build"}))
    for name in ("api.md", "contract.md"):
        text = (ROOT / "docs" / name).read_text()
        named = set(re.findall(rf"`((?:{families})\.[a-z]+_[a-z_]+)`", text))
        assert named - CODES.keys() == set(), name
        scopes = set(re.findall(r"`([a-z]+:(?:read|write|admin|raw))`", text))
        assert scopes - SCOPES.keys() == set(), name


async def test_every_endpoint_is_documented(service) -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    documented = set(re.findall(r"`(GET|POST|PUT|PATCH|DELETE) (/v1[^ `?]*)", text))
    served = {(e.method, e.path) for e in service.api.endpoints}
    assert documented == served
