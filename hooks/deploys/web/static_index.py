"""A static index: which file of a release a visitor's path stands for. Pure."""

from __future__ import annotations

import mimetypes
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from storage.digest import Digest
from storage.layout import blob_mtime
from storage.manifest import DirectoryEntry, FileEntry, LinkEntry, Manifest

LINK_HOPS_MAX: Final = 16

_TYPES = mimetypes.MimeTypes(filenames=())  # ours alone: the same on every machine
for _suffix, _type in {
    ".avif": "image/avif",
    ".gz": "application/gzip",
    ".ico": "image/x-icon",
    ".js": "text/javascript",
    ".jsonld": "application/ld+json",
    ".map": "application/json",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".otf": "font/otf",
    ".rss": "application/rss+xml",
    ".atom": "application/atom+xml",
    ".ttf": "font/ttf",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}.items():
    _TYPES.add_type(_type, _suffix)


def content_type(name: str) -> str:
    """Return the media type that a file's name stands for; text is UTF-8."""
    dot = name.rfind(".", name.rfind("/") + 2)  # one that begins the name begins no suffix
    media_type = _TYPES.types_map[True].get(name[dot:].lower(), "application/octet-stream")
    if media_type.startswith("text/"):
        return f"{media_type}; charset=utf-8"
    return media_type


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file of the release, and what HTTP says of it. `path` is relative to the release."""

    path: str
    size_bytes: int
    mtime_s: int
    etag: str
    content_type: str


@dataclass(frozen=True, slots=True)
class Redirect:
    """The same thing under its proper path; `location` is a path, never a host."""

    location: str


class StaticIndex:
    """The files of a manifest by the paths that visitors ask for. Pure."""

    def __init__(self, manifest: Manifest) -> None:
        self._files: dict[str, StaticFile] = {}
        self._directories: set[str] = {""}
        self._links: dict[str, str] = {}
        for entry in manifest.entries:
            path = entry.path.decode()
            match entry:
                case FileEntry():
                    self._files[path] = _static_file(path, entry.size_bytes, entry.digest)
                case DirectoryEntry():
                    self._directories.add(path)
                case LinkEntry():
                    self._links[path] = entry.target.decode()

    def find(self, url_path: str) -> StaticFile | Redirect | None:
        """Return what a raw (still percent-encoded) URL path stands for.

        In this order: the file of that name; for `/dir/` its `index.html`; for `/about` the file
        `about.html`; for a directory with an `index.html` the redirect to its path with a slash.
        """
        segments = _decoded_segments(url_path)
        if segments is None:
            return None
        path = "/".join(segments)
        if url_path.endswith("/"):
            return self._file(f"{path}/index.html" if path else "index.html")
        found = self._file(path) or self._file(f"{path}.html")
        if found is None and self._file(f"{path}/index.html") is not None:
            return Redirect("/" + "/".join(quote(segment, safe="") for segment in segments) + "/")
        return found

    def fallback(self, url_path: str) -> StaticFile | None:
        """Return the page that answers, as its own, where there is no file: `200.html`.

        None for a path whose last name has a dot: it asks for a file, and a script that a newer
        release has not any more must not be answered with a page.
        """
        segments = _decoded_segments(url_path)
        if segments is None or (segments and "." in segments[-1]):
            return None
        return self._file("200.html")

    def not_found_page(self) -> StaticFile | None:
        return self._file("404.html")

    def _file(self, path: str) -> StaticFile | None:
        found = self._files.get(path)
        if found is None and self._links:
            resolved = self._resolve(path)
            found = self._files.get(resolved) if resolved is not None else None
        return found

    def _resolve(self, path: str) -> str | None:
        """Follow the links in a path, within the manifest: one that leaves it leads nowhere.

        It ends at the first name that is no folder, for a visitor's path has as many names as he
        likes.
        """
        done: list[str] = []
        rest = path.split("/")[::-1]
        hops = 0
        while rest:
            name = rest.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if not done:
                    return None
                done.pop()
                continue
            here = "/".join([*done, name])
            target = self._links.get(here)
            if target is None:
                if rest and here not in self._directories:
                    return None
                done.append(name)
                continue
            hops += 1
            if hops > LINK_HOPS_MAX or target.startswith("/"):
                return None
            rest += target.split("/")[::-1]
        return "/".join(done)


def _static_file(path: str, size_bytes: int, digest: Digest) -> StaticFile:
    return StaticFile(
        path=path,
        size_bytes=size_bytes,
        mtime_s=blob_mtime(digest),
        etag=f'"{digest.hex()[:32]}"',
        content_type=content_type(path),
    )


def _decoded_segments(url_path: str) -> list[str] | None:
    """Split a URL path into names; None when it cannot name anything in a manifest.

    Split first and decode then, so that `%2F` makes no new segments; and `.`, `..` and empty
    names are no names here, however they are written.
    """
    if not url_path.startswith("/"):
        return None
    raw = url_path[1:]
    segments = []
    for part in raw.removesuffix("/").split("/") if raw not in ("", "/") else []:
        try:
            name = unquote_to_bytes(part).decode()
        except UnicodeDecodeError:
            return None
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            return None
        segments.append(name)
    return None if raw == "/" else segments
