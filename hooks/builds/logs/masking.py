"""Masking: the values of secrets, found in what a build writes, in the forms that it writes them.

A value is looked for as it is, in base64 at each of the three places that it can begin at, in
hexadecimal, and as URLs, JSON, HTML, shells and Python's `repr` spell it, by what the libraries of
the usual languages do; and so is each longer line of it. What may stand in the name of a host is
looked for in lower case too: such names are made so on the way. White space does not count:
programs wrap what they print. What a build encodes in a way of its own is not found: it holds the
value, and can do with it as it likes.
"""

from __future__ import annotations

import base64
import bisect
import html
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

MASK = b"***"
FORM_BYTES_MIN = 8  # a form that is shorter, without white space, is not looked for
HELD_BYTES_MAX = 64 << 10  # white space among them; a form may be longer without any
_SPACE = b" \t\r\n"
_IN_HOSTS = re.compile(rb"[A-Za-z0-9._-]+")
_ARMOUR = b"-----"  # around every key in PEM: no secret
# What encoders of URLs leave as it is, besides letters, digits and "-._~".
# Source: RFC 3986 2.3; ECMA-262 "URI Handling Functions"; URL Standard 1.3; Go's net/url.
_LEFT_IN_URLS = (
    "",  # RFC 3986: Python's quote with safe="", PHP's rawurlencode, Ruby's ERB, curl
    "/",  # Python's quote
    "!'()*",  # encodeURIComponent
    "!#$&'()*+,/:;=?@",  # encodeURI
    "!$%&'()*+,",  # the user and password of a URL object
    "!$%&'()*+,/:;=@[\\]|",  # its path, "^" or not
    "!$%&'()*+,/:;=@[\\]^|",
    "!$%&()*+,/:;=?@[\\]^`{|}",  # its query
    "$&+=:@",  # Go's PathEscape
    "$&+,;=",  # Go's UserPassword
)
_LEFT_IN_FORMS = ("", "*")  # application/x-www-form-urlencoded, where a space is "+"


@dataclass(frozen=True, slots=True)
class Form:
    """One spelling of a secret's value, without white space. `is_whole`: of all of it."""

    name: str
    what: str
    squeezed: bytes
    is_whole: bool


class Masker:
    """Knows the secrets of one build. Without any it changes nothing. It prints as nothing."""

    def __init__(self, secrets: Mapping[str, str] | None = None) -> None:
        once: dict[bytes, Form] = {}
        self._telling: list[Form] = []
        for name, value in (secrets or {}).items():
            forms = _forms(name, value)
            self._telling += _telling(forms)
            for form in forms:
                once.setdefault(form.squeezed, form)
        self._forms = sorted(once.values(), key=lambda form: -len(form.squeezed))

    def __repr__(self) -> str:
        return f"Masker({len(self._forms)} forms)"

    @property
    def is_needed(self) -> bool:
        return bool(self._forms)

    def masked(self, text: str) -> str:
        """Return a whole text with what is secret replaced by `***`."""
        if not self._forms:
            return text
        data = text.encode(errors="surrogateescape")
        return _replaced(data, self.spans(data)).decode(errors="replace")

    def stream(self) -> MaskedStream:
        """Return what masks bytes that come in pieces."""
        return MaskedStream(self)

    def shown(self, data: bytes, masked_bytes: int = 0) -> tuple[bytes, int]:
        """Return what can be shown of `data`, masked, and where the rest begins: more bytes may
        follow it, and show that it is the beginning of a secret.

        `masked_bytes`: so many at its beginning were shown as a mask before.
        """
        if not self._forms:
            return data, len(data)
        spans, at = self.spans(data), self._open_from(data)
        at = min((start for start, end in spans if start < at < end), default=at)
        done = [span for span in spans if span[1] <= at]
        return _replaced(data[:at], done, min(masked_bytes, at)), at

    def found_in(self, pieces: Iterable[bytes]) -> Form | None:
        """Return a form of a whole secret that is in the contents of a file, None without one."""
        keep_bytes = max((len(form.squeezed) for form in self._telling), default=1) - 1
        kept = b""
        for piece in pieces if self._telling else ():
            data = kept + piece.translate(None, _SPACE)
            for form in self._telling:
                if form.squeezed in data:
                    return form
            kept = data[-keep_bytes:]
        return None

    def spans(self, data: bytes) -> list[tuple[int, int]]:
        """Where secrets are in `data`: from, to; in order and apart from each other."""
        squeezed = data.translate(None, _SPACE)
        spans = [
            (start, start + len(form.squeezed))
            for form in self._forms
            for start in _places(squeezed, form.squeezed)
        ]
        if not spans:
            return []
        places = [at for at, byte in enumerate(data) if byte not in _SPACE]
        return [(places[start], places[end - 1] + 1) for start, end in _merged(spans)]

    def _open_from(self, data: bytes) -> int:
        """From where on `data` may be a beginning of a secret."""
        squeezed = data.translate(None, _SPACE)
        begun = max(_begun(squeezed, form.squeezed) for form in self._forms)
        return _place(data, len(squeezed) - begun) if begun else len(data)


@dataclass(slots=True)
class MaskedStream:
    """Masks what comes in pieces. It holds back what may turn out to be a secret's beginning.

    White space may follow that without end: then the beginning is shown as a mask, and remembered
    without the white space, lest the rest be shown when it comes.
    """

    _masker: Masker
    held_bytes_max: int = HELD_BYTES_MAX
    _held: bytes = field(default=b"", init=False, repr=False)
    _masked_bytes: int = field(default=0, init=False)  # so many of them were shown, as a mask

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes, and return those that can be shown by now."""
        data = self._held + chunk
        if self._held and not chunk.strip(_SPACE):  # which decides nothing
            shown, at = b"", 0
        else:
            shown, at = self._masker.shown(data, self._masked_bytes)
        self._held, self._masked_bytes = data[at:], max(0, self._masked_bytes - at)
        if len(self._held) > self.held_bytes_max:
            shown += self._let_go()
        return shown

    @property
    def held_bytes(self) -> int:
        """So many bytes are held back."""
        return len(self._held)

    def end(self, last: bytes = b"") -> bytes:
        """Take the last bytes, and return all that was held back. What comes after that has nothing
        to do with it.
        """
        data, self._held = self._held + last, b""
        masked_bytes, self._masked_bytes = self._masked_bytes, 0
        return _replaced(data, self._masker.spans(data), masked_bytes) if data else b""

    def _let_go(self) -> bytes:
        self._held = self._held.translate(None, _SPACE)
        is_masked = self._masked_bytes == len(self._held)
        self._masked_bytes = len(self._held)
        return b"" if is_masked else MASK


def _forms(name: str, value: str) -> list[Form]:
    forms: list[Form] = []

    def add(what: str, spellings: Iterable[bytes], *, is_whole: bool = True) -> None:
        for spelling in spellings:
            squeezed = spelling.translate(None, _SPACE)
            if len(squeezed) >= FORM_BYTES_MIN:
                forms.append(Form(name, what, squeezed, is_whole))

    data = value.encode()
    add("as it is", [data])
    for encoded in dict.fromkeys([data, data.strip(), data.strip() + b"\n"]):
        add("in base64", _in_base64(encoded))
        add("in base64, as in a URL", _in_urls(base64.b64encode(encoded).decode()))
        add("in hexadecimal", [encoded.hex().encode(), encoded.hex().upper().encode()])
    add("as in a URL", _in_urls(value))
    add("as in JSON", _in_json(value))
    add("as in HTML", _in_html(value))
    add("as in a shell", [value.replace("'", each).encode() for each in ("'\\''", "'\"'\"'")])
    add("as in Python", [repr(value)[1:-1].encode()])
    lines = (line for line in data.splitlines() if not line.startswith(_ARMOUR))
    add("in part", lines, is_whole=False)
    lowered = [each.squeezed.lower() for each in forms if _IN_HOSTS.fullmatch(each.squeezed)]
    add("in lower case", dict.fromkeys(lowered), is_whole=False)
    return forms


def _telling(forms: Sequence[Form]) -> list[Form]:
    """Return those whole forms that no other one is in: a file without them has none."""
    whole = {form.squeezed: form for form in reversed(forms) if form.is_whole}
    return [
        form
        for form in whole.values()
        if not any(other != form.squeezed and other in form.squeezed for other in whole)
    ]


def _in_base64(data: bytes) -> list[bytes]:
    """All of it, and the characters that follow from it alone where it begins in mid-group."""
    forms = []
    encoders: tuple[Callable[[bytes], bytes], ...] = (base64.b64encode, base64.urlsafe_b64encode)
    for encode in encoders:
        forms.append(encode(data))
        for skipped in range(3):
            bits = 8 * (skipped + len(data))
            encoded = encode(bytes(skipped) + data)
            forms.append(encoded[-(-8 * skipped // 6) : bits // 6])
    return forms


def _in_urls(value: str) -> list[bytes]:
    spelled = [quote(value, safe=left) for left in _LEFT_IN_URLS]
    spelled += [quote(value, safe=" " + left).replace(" ", "+") for left in _LEFT_IN_FORMS]
    spelled += [each.replace("~", "%7E") for each in spelled]
    spelled.append("".join(f"%{byte:02X}" for byte in value.encode()))
    return [each.encode() for each in dict.fromkeys([*spelled, *map(_lower_escapes, spelled)])]


def _lower_escapes(text: str) -> str:
    first, *rest = text.split("%")
    return "%".join([first, *(each[:2].lower() + each[2:] for each in rest)])


def _in_json(value: str) -> list[bytes]:
    spelled = [json.dumps(value, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False)]
    spelled += [_without_markup(each) for each in spelled]
    spelled += [each.replace("/", "\\/") for each in spelled]
    return [each.encode() for each in dict.fromkeys(spelled)]


def _without_markup(text: str) -> str:
    """Escape in JSON what HTML would read. Source: Go's encoding/json, "HTMLEscape"."""
    return "".join(f"\\u{ord(each):04x}" if each in "&<>" else each for each in text)


def _in_html(value: str) -> list[bytes]:
    spelled = [html.escape(value, quote=False)]
    for double in ("&quot;", "&#34;"):
        spelled += [
            spelled[0].replace('"', double).replace("'", single)
            for single in ("'", "&#x27;", "&#39;", "&#039;", "&apos;")
        ]
    return [each.encode() for each in dict.fromkeys(spelled)]


def _places(data: bytes, form: bytes) -> list[int]:
    """Where `form` begins in `data`, overlaps too."""
    places = []
    at = data.find(form)
    while at >= 0:
        places.append(at)
        at = data.find(form, at + 1)
    return places


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _replaced(data: bytes, spans: Sequence[tuple[int, int]], masked_bytes: int = 0) -> bytes:
    """Put masks for spans; none for the first bytes, which were masked before."""
    pieces = []
    at = masked_bytes
    for start, end in spans:
        if start >= masked_bytes:
            pieces += [data[at:start], MASK]
        at = max(at, end)
    return b"".join([*pieces, data[at:]])


def _place(data: bytes, count: int) -> int:
    """Where the byte lies that so many others go before, white space not counted."""
    ends = range(1, len(data) + 1)
    return bisect.bisect_left(ends, count + 1, key=lambda e: len(data[:e].translate(None, _SPACE)))


def _begun(data: bytes, form: bytes) -> int:
    """How many bytes at the end of `data` are the beginning of `form`, and not all of it."""
    window = data[-(len(form) - 1) :]
    at = window.find(form[:1])
    while at >= 0:
        # What differs early, which is nearly all, is not copied to be compared.
        is_like = window.startswith(form[: min(FORM_BYTES_MIN, len(window) - at)], at)
        if is_like and form.startswith(window[at:]):
            return len(window) - at
        at = window.find(form[:1], at + 1)
    return 0
