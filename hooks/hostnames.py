"""Host names that people give: one spelling for each, or what is wrong with it. Pure.

Source: RFC 1123, 2.1; RFC 1035, 2.3.4; for letters beyond ASCII's RFC 5891 and Unicode TS #46.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import idna

from storage.model import Domain

CHARS_MAX: Final = 253
LABEL_CHARS_MAX: Final = 63
TEXT_CHARS_MAX: Final = 1000  # as people type it: letters of other scripts, before they are encoded
EXAMPLE: Final = "www.example.com"

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_ENCODED = "xn--"
# What ends so is read as an address, whatever stands before it: 127.1 and 0x7f.1 are one.
# Source: WHATWG URL, "ends-in-a-number checker".
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class HostnameError(ValueError):
    """The text is no host name that visitors could come by."""


def normal(text: str) -> str:
    """Return the one spelling of a host name: lower case, A-labels, without a final dot.

    Raises:
        HostnameError: It is none; the message is for who gave it.
    """
    if len(text) > TEXT_CHARS_MAX:
        raise HostnameError(f"A host name has at most {CHARS_MAX} characters.")
    name = _mapped(text).removesuffix(".")
    _refuse_what_is_more(name)
    name = ".".join(_label(label, text) for label in name.split("."))
    last = name.rpartition(".")[2]
    if _NUMBER.fullmatch(last):
        raise HostnameError(f"{_shown(text)} is an address: give a name, such as {EXAMPLE}.")
    if last == name:
        raise HostnameError(f"A host name has two labels at least, such as {EXAMPLE}.")
    if len(name) > CHARS_MAX:
        raise HostnameError(f"A host name has at most {CHARS_MAX} characters.")
    return name


@dataclass(frozen=True, slots=True)
class PlatformNames:
    """The names that are the server's own: all at or below the sites' domain, and at or below the
    name that git and the API answer at, where that is a name.
    """

    sites: str = "localhost"
    server: str = ""

    def of(self, label: str) -> str:
        """The whole name of the environment that is called so below the sites' domain."""
        return f"{label}.{self.sites}"

    def is_server(self, label: str) -> bool:
        """Say whether the environment that is called so would have the server's own name."""
        return self.of(label) == self.server

    def include(self, hostname: str) -> bool:
        own = [name for name in (self.sites, self.server) if name]
        return any(f".{hostname}".endswith(f".{name}") for name in own)


def served_names(names: PlatformNames, domains: Iterable[Domain]) -> dict[str, list[str]]:
    """Return the host names of custom domains by environment, in the order given.

    Left out is what has become the platform's own since: the settings may say otherwise by now, or
    records were put back on a server with other ones.
    """
    found: dict[str, list[str]] = {}
    for domain in domains:
        if not names.include(domain.hostname):
            found.setdefault(domain.env_id, []).append(domain.hostname)
    return found


def _mapped(text: str) -> str:
    """Lower case; letters that stand for others, such as full-width ones, as those."""
    if text.isascii():
        return text.lower()
    try:
        return idna.uts46_remap(text, std3_rules=False)
    except idna.IDNAError as error:
        raise HostnameError(
            f"{_shown(text)} is no host name by the rules for letters beyond a to z (IDNA)."
        ) from error


def _refuse_what_is_more(name: str) -> None:
    """Say what people most often give besides the name."""
    alone = f"Give the host name alone, such as {EXAMPLE}"
    if not name:
        raise HostnameError(f"A host name is needed, such as {EXAMPLE}.")
    if "/" in name:
        raise HostnameError(f"{alone}: no scheme and no path.")
    if name.count(":") == 1:
        raise HostnameError(f"{alone}: no port.")
    if ":" in name or name.startswith("["):
        raise HostnameError(f"{_shown(name)} is an address: give a name, such as {EXAMPLE}.")
    if "*" in name:
        raise HostnameError("There are no wildcards here: give each name by itself.")


def _label(label: str, text: str) -> str:
    if not label:
        raise HostnameError(f"{_shown(text)} is no host name: nothing stands between two dots.")
    if label.isascii() and not label.startswith(_ENCODED):
        encoded = label
    else:
        try:
            encoded = idna.alabel(label).decode("ascii")
        except (idna.IDNAError, UnicodeError) as error:
            raise HostnameError(
                f"{_shown(text)} is no host name by the rules for letters beyond a to z (IDNA)."
            ) from error
    if len(encoded) > LABEL_CHARS_MAX:
        raise HostnameError(
            f"Between two dots of a host name stand at most {LABEL_CHARS_MAX} characters."
        )
    if not _LABEL.fullmatch(encoded):
        raise HostnameError(
            f"{_shown(text)} is no host name: it has letters, digits and hyphens, and no hyphen "
            "beside a dot."
        )
    return encoded


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}...")
