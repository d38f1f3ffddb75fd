"""Dependency caches, on control's side: which one a build gets, and what it leaves for the next.

A cache belongs to one site and profile. Builds of previews read those of the site's other
environments and keep their own: what a branch of a stranger left reaches no production. They read
their own after the others: what they begin with then, production may begin with too, and so what
they give may be remembered for it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec
from blake3 import blake3

from hooks.builds.caches.dependencies import UNLOCKED
from hooks.builds.sources.tree import TreeSize, tar_chunks
from hooks.builds.wire import CacheAnswer, CacheRequest
from hooks.jobs import Jobs
from storage.artifacts import ArtifactStore, KeptTree
from storage.digest import Digest
from storage.errors import ArtifactCorruptError, ArtifactMissingError, StorageError
from storage.ids import new_id
from storage.manifest import Entry, FileEntry, LinkEntry
from storage.model import Build, BuildCache
from storage.records import artifacts, build_caches, environments
from storage.source import Limits, SourceDirectory, SourceEntry, SourceFile, SourceLink
from storage.tar import scan_tar

CHANGES_SHOWN_MAX = 5
_PREVIEW = " of previews"


class BuildCaches:
    """The caches of one server. Blocking, from any thread."""

    def __init__(self, jobs: Jobs, store: ArtifactStore, *, size_bytes_max: int) -> None:
        self._jobs = jobs
        self._records = jobs.records
        self._store = store
        self.size_bytes_max = size_bytes_max

    def find(self, build: Build, asked: CacheRequest) -> CacheAnswer:
        """Return the cache with this very key, else the one that was used last, and say why."""
        if build.clean:
            return CacheAnswer("not used: the build is clean")
        reader = self._records.reader()
        key = encode_key(asked.key)
        scopes = self._scopes(build, asked.profile)
        for scope in scopes:
            found = build_caches.find(reader, build.site_id, scope, key)
            if found is not None:
                self._touch(found)
                is_borrowed = scope != scopes[-1]
                said = f"hit: {_size(found)}"
                return CacheAnswer(said, found.tree_digest, is_hit=True, is_borrowed=is_borrowed)
        for scope in scopes:
            found = build_caches.newest(reader, build.site_id, scope)
            if found is not None:
                self._touch(found)
                why = changes(decode_key(found.cache_key), asked.key)
                return CacheAnswer(f"miss: {why}; begins with {_size(found)}", found.tree_digest)
        built = artifacts.has_profile(reader, build.site_id, asked.profile)
        why = "earlier builds left none, or it was collected" if built else "first build"
        return CacheAnswer(f"miss: {why}")

    def write_tar(self, build: Build, digest: str, out: BinaryIO) -> None:
        """Write a cache as a tar; only one that `find` may give to the build.

        Raises:
            ArtifactMissingError: There is none such (any more).
            ArtifactCorruptError: Something in it is not what it was.
        """
        caches = build_caches.of_site(self._records.reader(), build.site_id)
        if not any(
            cache.tree_digest == digest and cache.profile in self._scopes(build, cache.profile)
            for cache in caches
        ):
            raise ArtifactMissingError(f"no cache {digest}")
        with self._store.reading(Digest.parse(digest)) as manifest:
            out.writelines(tar_chunks(map(self._entry, manifest.entries)))

    def is_of_previews(self, build: Build, digest: str) -> bool:
        """Say whether no cache of the site but one that a preview left has this content."""
        caches = build_caches.of_site(self._records.reader(), build.site_id)
        return not any(
            cache.tree_digest == digest and not cache.profile.endswith(_PREVIEW) for cache in caches
        )

    def keep(self, build: Build, asked: CacheRequest, tar: Path) -> CacheAnswer:
        """Keep a tree for the next build. What may not or cannot be kept is no error."""
        if build.clean:
            return CacheAnswer("not kept: the build is clean")

        def record(db: sqlite3.Connection, kept: KeptTree) -> None:
            now = self._jobs.clock()
            cache = BuildCache(
                id=new_id("cache"),
                site_id=build.site_id,
                profile=self._scopes(build, asked.profile)[-1],
                cache_key=encode_key(asked.key),
                tree_digest=str(kept.digest),
                files=kept.files,
                size_bytes=kept.size_bytes,
                created_at=now,
                used_at=now,
            )
            build_caches.put(db, cache)

        limits = Limits(size_bytes_max=self.size_bytes_max)
        try:
            with tar.open("rb") as stream:
                entries = scan_tar(stream, is_file=True)
                kept, _ = self._store.keep_tree(entries, limits=limits, record=record)
        except StorageError as error:
            return CacheAnswer(f"not kept: {error}")
        return CacheAnswer(f"kept: {_size(kept)}", str(kept.digest))

    def _scopes(self, build: Build, profile: str) -> tuple[str, ...]:
        """Whose caches the build reads, its own last: it writes that one alone."""
        profile = profile.removesuffix(_PREVIEW)
        if environments.is_preview(self._records.reader(), build.env_id):
            return (profile, f"{profile}{_PREVIEW}")
        return (profile,)

    def _touch(self, cache: BuildCache) -> None:
        now = self._jobs.clock()
        self._records.write(lambda db: build_caches.touch(db, cache.id, now))

    def _entry(self, entry: Entry) -> SourceEntry:
        if isinstance(entry, FileEntry):
            path = self._store.layout.blob(entry.digest, executable=entry.executable)
            read = partial(_read_blob, path, entry)
            return SourceFile(entry.path, entry.size_bytes, entry.executable, read)
        if isinstance(entry, LinkEntry):
            return SourceLink(entry.path, entry.target)
        return SourceDirectory(entry.path)


def encode_key(parts: Mapping[str, str]) -> str:
    return msgspec.json.encode(dict(parts), order="sorted").decode()


def decode_key(text: str) -> dict[str, str]:
    return msgspec.json.decode(text, type=dict[str, str])


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say what makes two keys differ: versions by what they are, contents by their names."""
    said = []
    names = before.keys() ^ now.keys()
    # One that counts no more, or only now, is there all the same: a lock file came or went.
    stand_ins = names & set(UNLOCKED) if names - set(UNLOCKED) else set()
    for name in sorted((before.keys() | now.keys()) - stand_ins):
        was, has = before.get(name), now.get(name)
        if was == has:
            continue
        if was is None or has is None:
            said.append(f"{name} is {'new' if was is None else 'gone'}")
        elif was[0].isdigit() and "." in was:
            said.append(f"{name} {was} -> {has}")
        else:
            said.append(f"{name} changed")
    more = len(said) - CHANGES_SHOWN_MAX
    return ", ".join(said[:CHANGES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def _read_blob(path: str, entry: FileEntry) -> Iterator[bytes]:
    """Read a stored file, and find out at its end whether it is what it was."""
    hasher = blake3()
    with Path(path).open("rb") as file:
        while piece := file.read(1 << 20):
            hasher.update(piece)
            yield piece
    if Digest(hasher.digest()) != entry.digest:
        raise ArtifactCorruptError(entry.path, "is not what it was when it was kept")


def _size(tree: BuildCache | KeptTree) -> str:
    return str(TreeSize(tree.files, tree.size_bytes))
