"""A page: what a visitor reads when no site can answer."""

from __future__ import annotations

from html import escape

from aiohttp import web

from hooks.http_server import SERVER

_TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; margin: 20vh auto 0; max-width: 34rem; }}
h1 {{ font-size: 1.25rem; }}
p {{ color: #555; }}
</style>
<h1>{title}</h1>
<p>{text}</p>
</html>
"""


def page(status: int, title: str, text: str, *, retry_after_s: int | None = None) -> web.Response:
    """Make a small page of ours. Never cached: it speaks of a passing state."""
    headers = {
        "Cache-Control": "no-store",
        "Server": SERVER,
        "X-Content-Type-Options": "nosniff",
    }
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    return web.Response(
        status=status,
        text=_TEMPLATE.format(title=escape(title), text=escape(text)),
        content_type="text/html",
        headers=headers,
    )


def unknown_host() -> web.Response:
    return page(404, "No site here", "No environment answers to this host name.")


def served() -> web.Response:
    return page(200, "Served here", "An environment answers to this host name.")


def not_served() -> web.Response:
    return page(404, "Not served here", "No environment answers to this host name.")


def nothing_released() -> web.Response:
    return page(
        404, "Nothing here yet", "This environment has no release. Push to its branch to make one."
    )


def suspended() -> web.Response:
    return page(503, "This site is suspended", "It serves nothing until it is resumed.")


def unavailable(code: str) -> web.Response:
    return page(
        503, "This site is unavailable", f"Its release cannot be served: {code}.", retry_after_s=10
    )


def starting(starts_in_s: int | None = None) -> web.Response:
    """`starts_in_s`: its program ended, and is started again then."""
    if starts_in_s is None:
        return page(503, "This site is starting", "Try again in a moment.", retry_after_s=2)
    return page(
        503,
        "This site is down",
        f"Its program ended. It is started again within {starts_in_s} s.",
        retry_after_s=starts_in_s,
    )


def bad_gateway() -> web.Response:
    return page(502, "This site did not answer", "Its process broke off or answered nonsense.")


def gateway_timeout() -> web.Response:
    return page(504, "This site did not answer in time", "Its process is busy or hangs.")


def bad_request(text: str) -> web.Response:
    return page(400, "Bad request", text)


def head_too_large() -> web.Response:
    return page(431, "Too many headers", "A request's headers are at most 32 KiB: delete cookies.")


def internal_error() -> web.Response:
    return page(500, "Something went wrong", "This is our fault, and it has been logged.")


def damaged_file() -> web.Response:
    return page(500, "This file is damaged", "It is not what was released, so it is not served.")


def not_found() -> web.Response:
    return page(404, "Not found", "This site has no such page.")


def method_not_allowed() -> web.Response:
    response = page(405, "Method not allowed", "This site only answers GET and HEAD.")
    response.headers["Allow"] = "GET, HEAD"
    return response
