"""TOML from a commit: text that may have been made to take long."""

from __future__ import annotations

import re
import tomllib
from typing import Any

KEY_PARTS_MAX = 32
_PART = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(
    rf"""(?<![A-Za-z0-9_\\-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{KEY_PARTS_MAX}}}"""
)


def read_toml(text: str) -> dict[str, Any]:
    """Parse TOML; a mark of byte order in front is left out.

    Keys of more than `KEY_PARTS_MAX` parts are refused: the time that tomllib takes grows with
    their square: half a minute for 64 KiB.

    Raises:
        ValueError: It is no TOML, or too deep; says what and where.
    """
    if _LONG_KEY.search(text):
        raise ValueError(f"a key has more than {KEY_PARTS_MAX} parts")
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
