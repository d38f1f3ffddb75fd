"""The OpenAPI 3.1 document, made from the table that serves.

Source: OpenAPI Specification 3.1.0; contract §2 "OpenAPI 3.1".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import msgspec

from gitd.api.endpoint import Endpoint, Form
from gitd.api.envelope import JSON, VERSION, VERSION_HEADER, ErrorAnswer, Pagination
from gitd.api.errors import CODES
from gitd.api.idempotency import HEADER, KEY_CHARS_MAX
from gitd.api.reading import NoBody
from gitd.scopes import SCOPES

Json = dict[str, Any]
COMMON_ERRORS = (
    *("authentication.required", "authentication.invalid_key"),
    *("rate_limit.exceeded", "api.internal"),
)
MALFORMED = ("request.invalid", "request.version_invalid")
REF = "#/components/schemas/{name}"


def document(endpoints: Sequence[Endpoint], *, server_url: str, version: str) -> Json:
    """Return the document for `endpoints` as JSON values; `version` is the program's."""
    types: list[Any] = [ErrorAnswer, Pagination]
    types += [e.answer for e in endpoints if e.answer]
    types += [e.body for e in endpoints if e.body is not NoBody]
    _, components = msgspec.json.schema_components(types, ref_template=REF)
    paths: dict[str, Json] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    scopes = "\n".join(f"- `{scope}`: {what}" for scope, what in SCOPES.items())
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gitd deployments API",
            "version": version,
            "summary": "Sites, environments, builds, artifacts, deployments and their jobs.",
            "description": f"API version {VERSION}. Scopes of API keys:\n\n{scopes}",
        },
        "servers": [{"url": server_url}],
        "security": [{"api_key": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "api_key": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "mfk_live_...",
                    "description": "An API key, made by `gitd key create`.",
                }
            },
        },
    }


def _operation(endpoint: Endpoint) -> Json:
    operation: Json = {
        "operationId": _operation_id(endpoint),
        "summary": endpoint.summary,
        "parameters": [*_path_parameters(endpoint), *_query_parameters(endpoint.query)],
        "responses": {str(endpoint.status): _success(endpoint), **_refusals(endpoint)},
    }
    operation["parameters"].append(_header(VERSION_HEADER, f"A date, such as {VERSION}."))
    if endpoint.is_creating:
        what = f"1 to {KEY_CHARS_MAX} characters; kept for 24 hours."
        operation["parameters"].append(_header(HEADER, what))
    if endpoint.body is not NoBody:
        is_needed = any(field.required for field in msgspec.structs.fields(endpoint.body))
        schema = {"$ref": REF.format(name=endpoint.body.__name__)}
        operation["requestBody"] = {"required": is_needed, "content": {JSON: {"schema": schema}}}
    scope = endpoint.scope or endpoint.scope_note
    if endpoint.is_public:
        operation["security"] = []
    else:
        operation["description"] = f"Scope: {scope}."
        operation["x-scope"] = scope
    return operation


def _operation_id(endpoint: Endpoint) -> str:
    words = re.findall(r"[a-z_]+", endpoint.path.replace("-", "_").removeprefix("/v1"))
    return "_".join([endpoint.method.lower(), *words])


def _path_parameters(endpoint: Endpoint) -> list[Json]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", endpoint.path)
    ]


@cache  # most endpoints have none
def _query_parameters(query: type[msgspec.Struct]) -> list[Json]:
    (schema,), components = msgspec.json.schema_components([query], ref_template=REF)
    properties = components[schema["$ref"].rpartition("/")[2]].get("properties", {})
    return [
        {"name": name, "in": "query", "required": False, "schema": _inlined(of, components)}
        for name, of in properties.items()
    ]


def _inlined(schema: Any, components: Json) -> Any:
    """A query's schema without references: its enumerations stand where they are used."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inlined(components[schema["$ref"].rpartition("/")[2]], components)
        return {name: _inlined(value, components) for name, value in schema.items()}
    if isinstance(schema, list):
        return [_inlined(value, components) for value in schema]
    return schema


def _header(name: str, what: str) -> Json:
    schema = {"type": "string"}
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": what}


def _success(endpoint: Endpoint) -> Json:
    if endpoint.form is Form.RAW:
        schema: Json = {"type": "string"}
        return {"description": endpoint.summary, "content": {endpoint.media_type: {"schema": {}}}}
    data: Json = {"type": "object"}
    if endpoint.answer is not None:
        data = {"$ref": REF.format(name=endpoint.answer.__name__)}
    properties: Json = {"data": data, "request_id": {"type": "string"}}
    if endpoint.form is Form.LIST:
        properties["data"] = {"type": "array", "items": data}
        properties["pagination"] = {"$ref": REF.format(name=Pagination.__name__)}
    schema = {"type": "object", "required": sorted(properties), "properties": properties}
    return {"description": endpoint.summary, "content": {JSON: {"schema": schema}}}


def _refusals(endpoint: Endpoint) -> Json:
    by_status: dict[int, list[str]] = {}
    for code in _codes_of(endpoint):
        by_status.setdefault(CODES[code].status, []).append(code)
    schema = {"$ref": REF.format(name=ErrorAnswer.__name__)}
    return {
        str(status): {"description": ", ".join(codes), "content": {JSON: {"schema": schema}}}
        for status, codes in sorted(by_status.items())
    }


def _codes_of(endpoint: Endpoint) -> Iterable[str]:
    """Every code that the endpoint can answer with: what follows from its row, and its own."""
    if endpoint.is_public:
        return ("api.internal", *MALFORMED, *endpoint.errors)
    codes = [*COMMON_ERRORS, "permission.address_refused", "scope.insufficient"]
    codes += MALFORMED
    names = {"site": "site", "env": "environment", "job": "job", "build": "build"}
    names |= {"artifact": "artifact", "deployment": "deployment", "domain": "domain"}
    names |= {"variable": "variable", "secret": "secret", "key": "api_key"}
    names |= {"webhook": "webhook", "delivery": "delivery"}
    codes += [f"{names[name]}.not_found" for name in re.findall(r"\{(\w+)\}", endpoint.path)]
    if endpoint.reach.value > 1:
        codes.append("permission.key_bound")
    if endpoint.method in ("POST", "PUT", "PATCH"):
        codes += ["request.json_invalid", "request.media_type_unsupported", "request.too_large"]
        codes.append("request.timed_out")
    if endpoint.method != "GET":
        codes.append("request.conflict")
    if endpoint.is_creating:
        codes += ["idempotency.key_invalid", "idempotency.key_reused"]
    if endpoint.form is Form.LIST:
        codes.append("pagination.cursor_invalid")
    return dict.fromkeys([*codes, *endpoint.errors])
