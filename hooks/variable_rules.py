"""Rules of variables: what they can be named, and what their values can be."""

from __future__ import annotations

import re

from storage.model import VariableUse

NAME_CHARS_MAX = 128
VALUE_BYTES_MAX = 32 * 1024
MASKED_CHARS_MIN = 8
"""Secrets of builds have at least so many characters that are no spaces: shorter ones occur in
any log, and cannot be masked."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_RESERVED_PREFIXES = ("LD_", "GITD_", "GLIBC_", "MALLOC_")
_RESERVED = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "OLDPWD", "SHLVL", "TMPDIR", "_"),
        *("IFS", "ENV", "BASH_ENV", "PORT", "HOST", "CI", "DATA_DIR"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("NPM_CONFIG_PROXY", "NPM_CONFIG_HTTPS_PROXY", "YARN_HTTP_PROXY", "YARN_HTTPS_PROXY"),
    }
)


def name_fault(name: str) -> str | None:
    """Say why a variable cannot have this name, as a clause; None when it can."""
    if not _NAME.fullmatch(name) or len(name) > NAME_CHARS_MAX:
        return (
            f"A name has letters, digits and underscores, begins with no digit, and has at most"
            f" {NAME_CHARS_MAX} characters, such as NPM_TOKEN"
        )
    upper = name.upper()
    if upper in _RESERVED or upper.startswith(_RESERVED_PREFIXES):
        return f"{name} is the platform's own"
    return None


def value_fault(value: str, *, is_secret: bool, used_in: VariableUse) -> str | None:
    """Say why this cannot be a value, as a clause without the value; None when it can."""
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError:
        return "A value is Unicode text: this one has half of a surrogate pair"
    if "\0" in value:
        return "A value holds no NUL: no process could be given it"
    if size_bytes > VALUE_BYTES_MAX:
        return f"A value has at most {VALUE_BYTES_MAX:,} bytes in UTF-8"
    chars = sum(not each.isspace() for each in value)
    if is_secret and used_in is not VariableUse.RUN and chars < MASKED_CHARS_MIN:
        return (
            f"A secret that builds get has at least {MASKED_CHARS_MIN} characters, spaces not"
            " counted: a shorter one could not be masked in their logs"
        )
    return None
