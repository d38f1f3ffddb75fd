"""Contract §2: envelopes, errors, headers, bodies, versions."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from storage.ids import is_id


async def test_every_answer_has_the_id_that_its_header_repeats(service, acme) -> None:
    for method, path, body in (
        ("GET", "/v1/sites", None),
        ("GET", acme.production, None),
        ("POST", f"{acme.production}/builds", {}),
        ("GET", "/v1/nowhere", None),
        ("PATCH", "/v1/sites", None),
        ("GET", "/v1/jobs/job_00000000000000000000000000", None),
        ("POST", f"{acme.production}/promote", {"to": "x"}),
    ):
        heard = await service.call(method, path, body)
        assert is_id(heard.body["request_id"], "req"), path
        assert heard.headers["X-Request-Id"] == heard.body["request_id"]
        assert heard.headers["Cache-Control"] == "no-store"
        assert heard.headers["X-Content-Type-Options"] == "nosniff"
        assert "aiohttp" not in heard.headers["Server"]


async def test_one_object_and_a_list_have_their_envelopes(service, acme) -> None:
    one = await service.get(acme.path)
    assert set(one.body) == {"data", "request_id"}
    many = await service.get("/v1/sites")
    assert set(many.body) == {"data", "pagination", "request_id"}
    assert many.body["pagination"] == {"next_cursor": None, "has_more": False}


async def test_error_says_type_code_message_and_where_to_read_more(service) -> None:
    heard = await service.get("/v1/sites/nowhere")
    assert heard.status == 404
    error = heard.body["error"]
    assert error["type"] == "not_found"
    assert error["code"] == "site.not_found"
    assert error["doc_url"] == f"{service.url}/errors/site.not_found"
    assert set(heard.body) == {"error", "request_id"}
    page = await service.call("GET", "/errors/site.not_found", headers={"Accept": "text/html"})
    assert page.status == 200
    assert page.headers["Content-Type"].startswith("text/html")
    assert b"There is no such site" in page.raw
    plain = await service.call("GET", "/errors/site.not_found", secret="")
    assert plain.headers["Content-Type"].startswith("text/plain")
    assert b"There is no such site" in plain.raw


async def test_error_page_shows_nothing_of_what_was_asked_for(service) -> None:
    heard = await service.call(
        "GET", "/errors/%3Cscript%3Ealert(1)", headers={"Accept": "text/html"}
    )
    assert heard.status == 404
    assert b"script" not in heard.raw
    index = await service.call("GET", "/errors", headers={"Accept": "text/html"})
    assert b"release.no_previous" in index.raw


async def test_unknown_path_and_method_are_404_and_405_with_what_is_allowed(service) -> None:
    heard = await service.get("/v1/nowhere/at/all")
    assert (heard.status, heard.code) == (404, "route.not_found")
    for path in ("/v1", "/v1/", "/v1/sites/", "/v1//sites"):
        assert (await service.get(path)).status == 404
    heard = await service.call("PATCH", "/v1/sites")
    assert (heard.status, heard.code) == (405, "request.method_not_allowed")
    assert heard.headers["Allow"] == "GET, HEAD, POST"
    heard = await service.call("OPTIONS", "/v1/jobs/x/cancel")
    assert (heard.status, heard.headers["Allow"]) == (405, "POST")
    for method, path, status in (("GET", "/v1/nowhere", 404), ("PATCH", "/v1/sites", 405)):
        heard = await service.call(method, path, headers={"Forge-Version": "2026-01-01"})
        assert (heard.status, heard.headers["Forge-Version"]) == (status, "2026-01-01")
        heard = await service.call(method, path, headers={"Forge-Version": "yesterday"})
        assert (heard.status, heard.code) == (400, "request.version_invalid")


async def test_head_answers_what_get_would_without_a_body(service, acme) -> None:
    for path in (acme.path, "/v1/sites", f"{acme.production}/builds"):
        heard = await service.call("HEAD", path)
        assert (heard.status, heard.raw) == (200, b"")
        assert int(heard.headers["Content-Length"]) > 10
    heard = await service.post(f"{acme.production}/builds")
    stream = await service.call("HEAD", heard.data["links"]["stream"])
    assert stream.status == 200
    assert stream.headers["Content-Type"] == "text/event-stream"


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("builds", {"reff": "main"}, "reff", "did you mean ref"),
        ("builds", {"ref": 1}, "ref", "ref must be text or null."),
        ("builds", {"ref": ""}, "ref", "ref must have at least 1 character."),
        ("builds", {"clean": "yes"}, "clean", "clean must be true or false."),
        ("builds", {"ref": "x" * 1025}, "ref", "ref must have at most 1024 characters."),
        ("deployments", {}, "artifact_id", "artifact_id is missing."),
        ("deployments", {"artifact_id": None}, "artifact_id", "artifact_id must be text."),
        ("promote", {"to_env": "production", "x": 1}, "x", "There is no field 'x' here."),
        ("deployments/x/rollback", {"config": "x"}, "config", "config: 'x' is none of now, then."),
    ],
)
async def test_wrong_field_of_a_body_is_named(service, acme, path, body, param, words) -> None:
    heard = await service.post(f"{acme.staging}/{path}", body)
    assert (heard.status, heard.code) == (400, "request.invalid")
    error = heard.body["error"]
    assert error.get("param") == param
    assert words in error["message"]


async def test_wrong_field_in_a_list_of_a_body_is_named_with_its_place(service, acme) -> None:
    routes = f"{acme.path}/branch-routes"
    wrong = {"routes": [{"pattern": "main", "target": "live"}, {"pattern": "x", "target": "moon"}]}
    heard = await service.call("PUT", routes, wrong)
    assert (heard.status, heard.body["error"]["param"]) == (400, "routes[1].target")
    known = "live, staging, preview, ignore"
    assert heard.body["error"]["message"] == f"routes[1].target: 'moon' is none of {known}."
    unknown = {"routes": [{"pattern": "main", "target": "live", "to": "x"}]}
    heard = await service.call("PUT", routes, unknown)
    assert heard.body["error"]["param"] == "routes[0].to"


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"\xff\xfe",
        b"null x",
        b'{"ref": NaN}',
        b"[" * 60_000,
        b'{"ref":' * 9_000,
        b'{"ref": "\\ud800"}',
        b"\x00",
    ],
)
async def test_body_that_is_no_json_is_refused(service, acme, data: bytes) -> None:
    heard = await service.call(
        "POST",
        f"{acme.production}/builds",
        data=data,
        headers={"Content-Type": "application/json"},
    )
    assert heard.status == 400
    assert heard.code in ("request.json_invalid", "request.invalid")


@pytest.mark.parametrize("body", [[], None, 5, "x", True])
async def test_json_that_is_no_object_has_the_code_that_says_so(service, acme, body) -> None:
    heard = await service.call(
        "POST",
        f"{acme.production}/promote",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    assert (heard.status, heard.code) == (400, "request.json_invalid")
    assert heard.body["error"]["message"] == "The body must be one JSON object."


async def test_packed_body_is_415(service, acme) -> None:
    packed = gzip.compress(b'{"ref": "main"}')
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    heard = await service.post(f"{acme.production}/builds", data=packed, headers=headers)
    assert (heard.status, heard.code) == (415, "request.media_type_unsupported")


async def test_other_content_types_are_415(service, acme) -> None:
    builds = f"{acme.production}/builds"
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/xml"):
        heard = await service.call("POST", builds, data=b"{}", headers={"Content-Type": kind})
        assert (heard.status, heard.code) == (415, "request.media_type_unsupported")
    heard = await service.call("POST", builds, data=b"{}", skip_auto_headers=["Content-Type"])
    assert (heard.status, heard.code) == (415, "request.media_type_unsupported")
    assert "of no kind that was told" in heard.body["error"]["message"]
    for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        heard = await service.call("POST", builds, data=b"{}", headers={"Content-Type": kind})
        assert heard.status == 202
    heard = await service.call(
        "POST", builds, data=b"", headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert heard.status == 202


async def test_body_that_is_too_large_is_413_also_in_chunks(service, acme) -> None:
    builds = f"{acme.production}/builds"
    kind = {"Content-Type": "application/json"}
    heard = await service.call("POST", builds, data=b" " * 70_000, headers=kind)
    assert (heard.status, heard.code) == (413, "request.too_large")

    async def chunks():
        for _ in range(100):
            yield b" " * 1000

    heard = await service.call("POST", builds, data=chunks(), headers=kind)
    assert (heard.status, heard.code) == (413, "request.too_large")


async def test_query_that_is_unknown_double_or_wrong_is_named(service, acme) -> None:
    for query, param in (
        ("limt=5", "limt"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("limit=5&limit=6", "limit"),
    ):
        heard = await service.get(f"/v1/sites?{query}")
        assert (heard.status, heard.body["error"]["param"]) == (400, param), query
    heard = await service.get("/v1/jobs?resource_type=site")
    assert heard.body["error"]["message"] == "resource_type: 'site' is none of build, deployment."
    heard = await service.get("/v1/jobs?status=done")
    assert (heard.status, heard.body["error"]["param"]) == (400, "status")
    assert (await service.get("/v1/jobs?status=queued&resource_type=build")).status == 200


async def test_version_is_echoed_and_a_malformed_one_refused(service) -> None:
    heard = await service.get("/v1/sites")
    assert heard.headers["Forge-Version"] == "2026-06-23"
    heard = await service.get("/v1/sites", headers={"Forge-Version": "2026-01-01"})
    assert heard.headers["Forge-Version"] == "2026-01-01"
    for wrong in ("yesterday", "2026-13-01", "2026-1-1", "2026-02-31", "0000-01-01", ""):
        heard = await service.get("/v1/sites", headers={"Forge-Version": wrong})
        assert (heard.status, heard.code) == (400, "request.version_invalid")
        assert heard.headers["Forge-Version"] == "2026-06-23"


@pytest.mark.parametrize(
    "name", ["%00", "%ff", "%ED%A0%80", "..", "%2e%2e", "a%2fb", "'--", "%F0%9F%98%80", "x" * 5000]
)
async def test_strange_names_in_a_path_are_not_found(service, acme, name: str) -> None:
    for path in (
        f"/v1/sites/{name}",
        f"{acme.path}/environments/{name}",
        f"{acme.production}/builds/{name}",
        f"{acme.production}/artifacts/{name}",
        f"{acme.production}/deployments/{name}",
        f"/v1/jobs/{name}",
        f"/v1/jobs/{name}/stream",
    ):
        assert (await service.get(path)).status == 404, path


@pytest.mark.parametrize("ref", ["\0", "a\0b", "\n", "-x", "..", "refs/../x", "😀", "@{-1}", "^"])
async def test_strange_refs_are_not_found(service, acme, ref: str) -> None:
    heard = await service.post(f"{acme.production}/builds", {"ref": ref})
    assert (heard.status, heard.code) == (404, "ref.not_found")


async def test_client_that_breaks_off_a_body_harms_nobody(service, acme) -> None:
    port = int(service.url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {acme.production}/builds HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n"
    head += f"Content-Type: application/json\r\nAuthorization: Bearer {service.secret}\r\n\r\n"
    writer.write(head.encode() + b'{"ref":')
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()
    assert (await service.get(f"{acme.production}/builds")).data == []


async def test_openapi_document_lists_every_route_and_needs_no_key(service) -> None:
    heard = await service.get("/v1/openapi.json", secret="")
    assert heard.status == 200
    described = json.loads(heard.raw)
    assert described["openapi"].startswith("3.1")
    served = {(e.path, e.method.lower()) for e in service.api.endpoints}
    assert {(p, m) for p, methods in described["paths"].items() for m in methods} == served
    again = await service.get(
        "/v1/openapi.json", secret="", headers={"If-None-Match": heard.headers["ETag"]}
    )
    assert (again.status, again.raw) == (304, b"")


async def test_openapi_document_has_no_loose_references_and_unique_operations(service) -> None:
    described = json.loads((await service.get("/v1/openapi.json")).raw)
    schemas = described["components"]["schemas"]
    text = json.dumps(described)
    for part in text.split('"$ref": "')[1:]:
        reference = part.partition('"')[0]
        assert reference.removeprefix("#/components/schemas/") in schemas
    ids = [o["operationId"] for methods in described["paths"].values() for o in methods.values()]
    assert len(ids) == len(set(ids))


async def test_openapi_document_has_the_refusals_that_any_client_may_hear(service) -> None:
    document = json.loads((await service.get("/v1/openapi.json")).raw)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            expected = (
                {"400", "500"} if path == "/v1/openapi.json" else {"400", "401", "429", "500"}
            )
            expected |= {"409"} if method != "get" else set()
            expected |= {"408", "413", "415"} if method in ("post", "put", "patch") else set()
            assert expected <= set(operation["responses"]), (method, path)
    assert (await service.get("/v1/openapi.json?all=1", secret="")).status == 400


async def test_answers_have_every_field_that_the_document_promises(service, acme) -> None:
    await acme.release(b"one")
    described = json.loads((await service.get("/v1/openapi.json")).raw)
    build = (await service.get(f"{acme.production}/builds")).data[0]
    artifact = (await service.get(f"{acme.production}/artifacts")).data[0]
    deployment = (await service.get(f"{acme.production}/deployments")).data[0]
    release = (await service.get(f"{acme.production}/releases")).data[0]
    for name, value in (
        ("Site", (await service.get(acme.path)).data),
        ("Environment", (await service.get(acme.production)).data),
        ("Job", (await service.get("/v1/jobs")).data[0]),
        ("Build", build),
        ("Artifact", artifact),
        ("Deployment", deployment),
        ("Release", release),
    ):
        schema = described["components"]["schemas"][name]
        assert set(schema["required"]) <= set(value) <= set(schema["properties"]), name


async def test_wrong_parameter_of_a_query_is_named_in_plain_words(service, acme) -> None:
    for query, says in (
        ("limit=1000", "limit must be at most 100."),
        ("limit=0", "limit must be at least 1."),
        ("limit=many", "limit must be a whole number."),
    ):
        heard = await service.get(f"/v1/sites?{query}")
        assert (heard.status, heard.body["error"]["message"]) == (400, says)
