"""A repository's `config` file, as far as a server reads it.

Source: git-config(1), "Syntax". Values of `include.path` are followed when they name a file in the
repository's own directory tree or an absolute path, as git does; `includeIf` is not.
"""

from __future__ import annotations

import re
from pathlib import Path

from storage.git.errors import RepositoryCorruptError

_SECTION = re.compile(r'\[\s*([A-Za-z0-9.-]+)\s*(?:"((?:[^"\\]|\\.)*)")?\s*\]')
_KEY = re.compile(r"([A-Za-z][A-Za-z0-9-]*)[ \t]*(=)?")
_ESCAPES = {"n": "\n", "t": "\t", "b": "\b", "\\": "\\", '"': '"'}
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_INCLUDE_DEPTH_MAX = 10


class GitConfig:
    """Settings by dotted key (`receive.denydeletes`); a key may have several values."""

    def __init__(self) -> None:
        self._values: dict[str, list[str | None]] = {}
        self._lines: list[tuple[str, str | None]] = []

    @classmethod
    def read(cls, path: Path) -> GitConfig:
        """Read a file; an absent one is an empty one.

        Raises:
            RepositoryCorruptError: it does not parse.
        """
        config = cls()
        config._load(path, depth=0)
        return config

    @classmethod
    def parse(cls, text: str, name: str) -> GitConfig:
        """Read a text of the same syntax, such as a `.gitmodules`; includes are not followed.

        Raises:
            RepositoryCorruptError: it does not parse; names the file.
        """
        config = cls()
        for key, value in _parse(text, Path(name)):
            config._add(key, value)
        return config

    def _load(self, path: Path, *, depth: int) -> None:
        try:
            text = path.read_text("utf-8", "surrogateescape")
        except FileNotFoundError:
            return
        for key, value in _parse(text, path):
            self._add(key, value)
            if key == "include.path" and value and depth < _INCLUDE_DEPTH_MAX:
                self._load(path.parent / value, depth=depth + 1)

    def _add(self, key: str, value: str | None) -> None:
        self._values.setdefault(key, []).append(value)
        self._lines.append((key, value))

    def text(self, key: str) -> str | None:
        """Return the last value of a key (section and name in lower case), or None."""
        values = self._values.get(key)
        return values[-1] if values else None

    def texts(self, *keys: str) -> list[str]:
        """Return all values of some keys, in the order in which they stand in the files."""
        if not any(key in self._values for key in keys):
            return []
        return [value for key, value in self._lines if key in keys and value is not None]

    def section(self, prefix: str) -> dict[str, str]:
        """Return the last values of the keys below `prefix`, keyed by what follows it."""
        return {
            key[len(prefix) :]: values[-1] or ""
            for key, values in self._values.items()
            if key.startswith(prefix)
        }

    def lines(self, prefix: str) -> list[tuple[str, str | None]]:
        """Return all keys below `prefix`, by what follows it, with their values, as they stand."""
        return [(key[len(prefix) :], value) for key, value in self._lines if key.startswith(prefix)]

    def flag(self, key: str, *, default: bool | None = None) -> bool | None:
        """Return a boolean, `default` when the key is absent; a key without value is true.

        Raises:
            RepositoryCorruptError: the value is no boolean.
        """
        if key not in self._values:
            return default
        said = as_flag(self._values[key][-1])
        return self.number(key) != 0 if said is None else said

    def number(self, key: str, *, default: int | None = None) -> int | None:
        """Return an integer, with k, m or g behind it; `default` when the key is absent.

        Raises:
            RepositoryCorruptError: the value is no number.
        """
        value = self.text(key)
        if value is None:
            return default
        digits = value.rstrip("kmgKMG")
        try:
            return int(digits) * _UNITS[value[len(digits) :].lower()]
        except (ValueError, KeyError) as error:
            raise RepositoryCorruptError(f"bad value '{value}' of {key}") from error


def as_flag(value: str | None) -> bool | None:
    """Return what a value says in words, None where it is neither yes nor no; no value is yes."""
    lowered = "true" if value is None else value.lower()
    if lowered in ("true", "yes", "on"):
        return True
    return False if lowered in ("false", "no", "off", "") else None


def _parse(text: str, path: Path) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    section = ""
    at = 0
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    while at < len(text):
        if text[at].isspace():
            at += 1
        elif text[at] in "#;":
            at = _line_end(text, at)
        elif head := _SECTION.match(text, at):
            section = head[1].lower()
            if head[2] is not None:
                section += "." + re.sub(r"\\(.)", r"\1", head[2])
            at = head.end()
        elif (key := _KEY.match(text, at)) and section:
            value: str | None = None
            at = key.end()
            if key[2]:
                value, at = _value(text, at)
            elif text[at:].split("\n", 1)[0].strip()[:1] not in ("", "#", ";"):
                raise RepositoryCorruptError(f"bad config line in {path.name}: {key[0].strip()}")
            found.append((f"{section}.{key[1].lower()}", value))
        else:
            raise RepositoryCorruptError(f"bad config line in {path.name}")
    return found


def _line_end(text: str, at: int) -> int:
    stop = text.find("\n", at)
    return len(text) if stop < 0 else stop


def _value(text: str, at: int) -> tuple[str, int]:
    out: list[str] = []
    kept = 0  # how much of `out` stays when trailing blanks are cut
    is_quoted = False
    while at < len(text):
        letter = text[at]
        at += 1
        if letter == "\\" and at < len(text):
            if text[at] != "\n":
                out.append(_ESCAPES.get(text[at], text[at]))
                kept = len(out)
            at += 1
        elif letter == '"':
            is_quoted = not is_quoted
            kept = len(out)
        elif letter == "\n":
            break
        elif letter in "#;" and not is_quoted:
            at = _line_end(text, at)
            break
        elif letter.isspace() and not is_quoted:
            if out:
                out.append(letter)
        else:
            out.append(letter)
            kept = len(out)
    return "".join(out[:kept]), at
