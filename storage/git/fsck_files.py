"""What git's checks look for in files that git itself acts on: `.gitmodules`, `.gitattributes`.

A `.gitmodules` names folders that are written and URLs that are handed to programs, as soon as
somebody clones with submodules: what escapes there runs code (CVE-2018-11235, CVE-2018-17456,
CVE-2020-11008). Source: git's fsck.c, `fsck_blob`; config.c; submodule-config.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote_to_bytes

from storage.git.errors import ObjectMissingError
from storage.git.fsck import Finding, FsckRules, SpecialFile
from storage.git.fsck_names import GITATTRIBUTES, GITMODULES
from storage.git.object_formats import BLOB
from storage.git.objects import ObjectStore

MODULES_BYTES_MAX = 1 << 20  # git reads up to core.bigFileThreshold, 512 MiB
ATTRIBUTES_BYTES_MAX = 100 << 20  # git's own, and the line's
ATTRIBUTES_LINE_BYTES_MAX = 2048
_SHOWN_MAX = 200


class _UnparsableError(Exception):
    """A text is none of git's config files."""


def check_files(
    store: ObjectStore, files: Iterable[SpecialFile], rules: FsckRules, *, is_partial: bool
) -> list[str]:
    """Check the content of files that trees name; return what does not refuse.

    `is_partial`: the repository may lack blobs on purpose.

    Raises:
        PackInvalidError: one is refused by the rules.
    """
    warnings = []
    for name, oid in sorted(files):
        warnings += rules.judge(oid, file_findings(store, name, oid, is_partial=is_partial))
    return warnings


def file_findings(
    store: ObjectStore, name: str, oid: bytes, *, is_partial: bool = False
) -> Iterator[Finding]:
    """Yield what is wrong with the content of a special file; `is_partial` as above."""
    group = name.removeprefix(".")
    try:
        kind, size = store.kind_and_size(oid)
    except ObjectMissingError:
        if not is_partial:
            yield Finding(f"{group}Missing", f"unable to read {name} blob")
        return
    if kind != BLOB:
        yield Finding(f"{group}Blob", f"non-blob found at {name}")
    elif size > (MODULES_BYTES_MAX if name == GITMODULES.name else ATTRIBUTES_BYTES_MAX):
        yield Finding(f"{group}Large", f"{name} too large to parse")
    elif name == GITATTRIBUTES.name:
        if any(len(line) >= ATTRIBUTES_LINE_BYTES_MAX for line in _lines(store.get(oid)[1])):
            yield Finding(f"{group}LineLength", f"{name} has too long lines to parse")
    else:
        yield from modules_findings(store.get(oid)[1])


def _lines(data: bytes) -> list[bytes]:
    return data.split(b"\0", 1)[0].split(b"\n")


# .gitmodules


def modules_findings(data: bytes) -> Iterator[Finding]:
    """Yield what is wrong with the content of a `.gitmodules`."""
    try:
        for variable, value in _settings(data):
            section, _, rest = variable.partition(b".")
            name, dot, key = rest.rpartition(b".")
            if section == b"submodule" and dot:
                yield from _setting_findings(name, key, value)
    except _UnparsableError:
        yield Finding("gitmodulesParse", "could not parse gitmodules blob")


def _setting_findings(name: bytes, key: bytes, value: bytes | None) -> Iterator[Finding]:
    if not name or b".." in re.split(rb"[/\\]", name):
        yield Finding("gitmodulesName", f"disallowed submodule name: {_shown(name)}")
    if value is None:
        return
    if key == b"url" and not _is_good_url(value):
        yield Finding("gitmodulesUrl", f"disallowed submodule url: {_shown(value)}")
    if key == b"path" and value.startswith(b"-"):
        yield Finding("gitmodulesPath", f"disallowed submodule path: {_shown(value)}")
    if key == b"update" and value.startswith(b"!"):
        yield Finding("gitmodulesUpdate", f"disallowed submodule update setting: {_shown(value)}")


def _shown(value: bytes) -> str:
    text = value[:_SHOWN_MAX].decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


# Atomic where an alternative may fail half way: from a possessive group Python before 3.11.5, as
# Debian 12 has it, would go on from there.
_RELATIVE = re.compile(rb"(?>(?:\.\.?[/\\])+)")
_BY_CURL = re.compile(rb"(?:https?|ftps?)(?:::(.*)|://.*)", re.DOTALL)
_HOST = re.compile(rb"[^:]+?://(?:[^@/?#]*@)?+([^/?#]*)", re.DOTALL)


def _is_good_url(url: bytes) -> bool:
    """Say whether a URL is what it looks like, for git and for what git hands it to."""
    if url.startswith(b"-"):
        return False
    if relative := _RELATIVE.match(url):
        # One that leaves the root of the other one's path would begin to change its host.
        is_leaving = b".." in relative[0] and url[relative.end() : relative.end() + 1] in (
            b":",
            b"/",
        )
        return not is_leaving and b"\n" not in unquote_to_bytes(url)
    by_curl = _BY_CURL.fullmatch(url)
    if by_curl is None:
        return True
    host = _HOST.match(by_curl[1] if by_curl[1] is not None else url)
    return host is not None and bool(host[1]) and b"\n" not in unquote_to_bytes(url)


# git's config files: to the letter, as what is read differently would not be seen here

_BLANK = re.compile(rb"(?:[ \t\r\n]++|[#;][^\n]*+)*+")
_SECTION = re.compile(rb'\[([A-Za-z0-9.-]*+)(?:[ \t\r]++"((?:[^"\\\n]|\\[^\n])*+)")?\]')
_KEY = re.compile(rb"([A-Za-z][A-Za-z0-9-]*+)[ \t]*+(?:(=)|(?=\n))")
_VALUE = re.compile(
    rb'((?>(?:[^"\\\n#;]++|\\[\ntbn"\\]|"(?>(?:[^"\\\n]++|\\[\ntbn"\\])*)")*))(?:[#;][^\n]*+)?\n'
)
_VALUE_HEAD = re.compile(rb'(?>(?:[ \t\r]++|\\\n|"(?>(?:\\\n)*)")*)')  # what adds nothing to it
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


def _settings(data: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """Yield the settings of a config file, as git reads them, up to the first mistake.

    Raises:
        _UnparsableError: there is one.
    """
    text = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n") + b"\n"
    section = b""
    at = _end_of_blank(text, 0)
    while at < len(text):
        if head := _SECTION.match(text, at):
            section = head[1].lower()
            if head[2] is not None:
                section += b"." + _ESCAPED.sub(rb"\1", head[2])
            if not section:
                raise _UnparsableError
            section += b"."
            end = head.end()
        elif key := _KEY.match(text, at):
            value, end = None, key.end()
            if key[2]:
                found = _VALUE.match(text, end)
                if found is None:
                    raise _UnparsableError
                value, end = _plain(found[1]), found.end()
            yield section + key[1].lower(), value
        else:
            raise _UnparsableError
        at = _end_of_blank(text, end)


def _end_of_blank(text: bytes, at: int) -> int:
    found = _BLANK.match(text, at)
    assert found is not None
    return found.end()


def _plain(raw: bytes) -> bytes:
    """Return a value without its quotes and escapes, up to a NUL, where a string of C ends."""
    head = _VALUE_HEAD.match(raw)
    assert head is not None
    parts = []
    for part in raw[head.end() :].rstrip(b" \t\r").split(b"\\\\"):
        quoted = b'"'.join(piece.replace(b'"', b"") for piece in part.split(b'\\"'))
        quoted = quoted.replace(b"\\\n", b"").replace(b"\\n", b"\n")
        parts.append(quoted.replace(b"\\t", b"\t").replace(b"\\b", b"\b"))
    return b"\\".join(parts).split(b"\0", 1)[0]
