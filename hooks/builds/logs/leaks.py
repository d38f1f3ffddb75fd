"""Leaks: the values of secrets where a build must not leave them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from hooks.builds.errors import BuildFailedError
from hooks.builds.logs.masking import Masker
from storage.source import SourceEntry, SourceFile, SourceLink


def refuse_secrets(
    entries: Iterable[SourceEntry], masker: Masker, *, is_stopped: Callable[[], bool]
) -> None:
    """Look for the values of secrets in what a build made. Reads all of it: blocking.

    Returns early when `is_stopped` says so, which is asked for each piece of a file: the caller
    knows.

    Raises:
        BuildFailedError: `build.secret_in_output`, naming the file and the secret.
    """
    for entry in entries if masker.is_needed else ():
        if is_stopped():
            return
        form = masker.found_in(_names(entry)) or masker.found_in(_contents(entry, is_stopped))
        if form is not None:
            path = masker.masked(os.fsdecode(entry.path))
            raise BuildFailedError(
                "build.secret_in_output",
                f"{path} holds the secret {form.name}, {form.what}: artifacts are kept, copied and"
                " served. Let the build not write it there; if it is no secret, set it as a"
                " variable instead.",
            )


def _names(entry: SourceEntry) -> list[bytes]:
    return [entry.path, b"\n", entry.target if isinstance(entry, SourceLink) else b""]


def _contents(entry: SourceEntry, is_stopped: Callable[[], bool]) -> Iterator[bytes]:
    if isinstance(entry, SourceFile):
        data = entry.read()
        for piece in [data] if isinstance(data, bytes) else data:
            if is_stopped():
                return
            yield piece
