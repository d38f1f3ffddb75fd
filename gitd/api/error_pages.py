"""The pages that `doc_url` points at: one per error code, and their index."""

from __future__ import annotations

from html import escape

from aiohttp import web

from gitd.api.envelope import CLOSED_HEADERS
from gitd.api.errors import CODES, ErrorCode

HEADERS = {
    **CLOSED_HEADERS,
    "Cache-Control": "public, max-age=3600",
    "Vary": "Accept",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
}
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem}}
code{{font-size:.95em}}dt{{margin-top:.8rem}}</style>
<h1><code>{title}</code></h1>
{body}
"""


async def show(request: web.Request) -> web.Response:
    """The page of one code."""
    row = CODES.get(request.match_info["code"])
    if row is None:
        return _page(request, "not found", {"": "There is no such error code. See /errors."}, 404)
    return _page(request, row.code, _facts(row))


async def index(request: web.Request) -> web.Response:
    """All codes."""
    return _page(request, "errors", {row.code: row.meaning for row in CODES.values()})


def _facts(row: ErrorCode) -> dict[str, str]:
    where = f"HTTP {row.status}, type {row.type}" if row.status else "the error of a failed job"
    return {"What it is": where, "What happened": row.meaning, "What to do": row.remedy}


def _page(
    request: web.Request, title: str, facts: dict[str, str], status: int = 200
) -> web.Response:
    if "text/html" in request.headers.get("Accept", ""):
        body = "".join(f"<dt><b>{escape(k)}</b><dd>{escape(v)}" for k, v in facts.items())
        text, kind = _PAGE.format(title=escape(title), body=f"<dl>{body}</dl>"), "text/html"
    else:
        text = "\n".join([title, "", *(f"{k}: {v}" if k else v for k, v in facts.items()), ""])
        kind = "text/plain"
    return web.Response(
        status=status, text=text, content_type=kind, charset="utf-8", headers=HEADERS
    )
