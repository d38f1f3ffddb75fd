"""Submodules: the commits of other sites of this server that a commit has in its tree.

They are put in their places before a build begins, and theirs in turn. Whoever started the build
must be allowed to fetch from each of those sites: a build reads nothing that its actor may not.

Source: gitsubmodules(7); gitmodules(5); git-submodule(1), "add", for relative addresses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from hooks.builds.errors import BuildFailedError
from storage.errors import printable
from storage.git.config import GitConfig
from storage.git.errors import RepositoryCorruptError, RepositoryError
from storage.model import ActorRef, Site
from storage.records import sites
from storage.records.db import Records
from storage.repos import Graft, Grafts, Repositories
from storage.trees import Visits

SUBMODULE_UNAVAILABLE = "build.submodule_unavailable"
GITMODULES = ".gitmodules"
GITMODULES_BYTES_MAX = 256 * 1024
COUNT_MAX = 100
DEPTH_MAX = 10
FAULTS_COUNT_MAX = 10
_USUAL_PORTS = {"http": 80, "https": 443}

MayFetch = Callable[[ActorRef, str], bool]
"""Whether an actor may fetch from the site of this id. Called in a thread."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A commit in whose tree submodules are looked for. `path` leads there from the build's folder,
    with a slash behind it.
    """

    site: Site
    commit: str
    folder: str = "."
    path: str = ""
    depth: int = 0


@dataclass(frozen=True, slots=True)
class _Found:
    """A submodule: where it lies, its commit, and its site or what is wrong."""

    path: str
    commit: str
    site: Site | None = None
    fault: str = ""

    def but(self, fault: str) -> _Found:
        return replace(self, site=None, fault=fault)


class Submodules:
    """Finds the commits that belong in the places of submodules. Blocking; from any thread."""

    def __init__(
        self, records: Records, repositories: Repositories, may_fetch: MayFetch, *, server_url: str
    ) -> None:
        self._records = records
        self._repositories = repositories
        self._may_fetch = may_fetch
        self._server_url = server_url

    def grafts(
        self, site_id: str, actor: ActorRef, commit: str, folder: str, *, visits: Visits
    ) -> Grafts:
        """Return what lies in the place of each submodule below a folder of a commit.

        `visits` counts the files and folders of all of them.

        Raises:
            BuildFailedError: `build.submodule_unavailable`, naming paths with their addresses.
            TreeTooLargeError: There are too many files and folders. Or what `visits` raises.
            RepositoryError: Something cannot be read.
        """
        site = sites.find(self._records.reader(), site_id)
        assert site is not None, "a site that goes cancels its builds"
        found: dict[str, Graft] = {}
        faults: list[str] = []
        places = [_Place(site, commit, folder)]
        while places:
            place = places.pop()
            for each in self._look(place, actor, visits):
                path = place.path + each.path
                if each.site is None:
                    faults.append(f"{printable(os.fsencode(path))}: {each.fault}")
                    if len(faults) == FAULTS_COUNT_MAX:
                        raise _unavailable(faults)
                    continue
                if len(found) == COUNT_MAX or place.depth == DEPTH_MAX:
                    raise _too_many()
                found[path] = Graft(each.site.id, each.commit)
                places.append(_Place(each.site, each.commit, ".", f"{path}/", place.depth + 1))
        if faults:
            raise _unavailable(faults)
        return found

    def _look(self, place: _Place, actor: ActorRef, visits: Visits) -> Iterator[_Found]:
        """Yield the submodules of a place; at last those whose sites may be fetched."""
        listed: dict[str, str] | None = None
        wanted: dict[Site, list[_Found]] = {}
        for path, commit in self._repositories.submodules(
            place.site.id, place.commit, place.folder, visits=visits
        ):
            if listed is None:
                listed = self._gitmodules(place)
            url = listed.get(path if place.folder == "." else f"{place.folder}/{path}")
            each = self._find(place.site, actor, url, _Found(path, commit))
            if each.site is None:
                yield each
                continue
            wanted.setdefault(each.site, []).append(each)
            if sum(map(len, wanted.values())) > COUNT_MAX:
                raise _too_many()
        for site, submodules in wanted.items():
            yield from self._reached(site, submodules)

    def _reached(self, site: Site, submodules: list[_Found]) -> Iterator[_Found]:
        """Say of those that no branch or tag of their site leads to what is wrong with them."""
        try:
            reached = self._repositories.reachable(site.id, {each.commit for each in submodules})
        except RepositoryError as error:
            for each in submodules:
                yield each.but(f"the repository of {site.name!r} cannot be read: {error}")
            return
        for each in submodules:
            if each.commit in reached:
                yield each
                continue
            yield each.but(
                f"no branch or tag of {site.name!r} has the commit {each.commit[:12]}: push it"
                " there first"
            )

    def _gitmodules(self, place: _Place) -> dict[str, str]:
        """Return the address of each submodule by its path from the top of the repository."""
        content = self._repositories.read_file(
            place.site.id, place.commit, GITMODULES, GITMODULES_BYTES_MAX
        )
        try:
            config = GitConfig.parse(
                (content or b"").decode("utf-8", "surrogateescape"), GITMODULES
            )
        except RepositoryCorruptError:
            return {}
        values = config.section("submodule.")
        return {
            path.strip("/"): values[f"{name}.url"]
            for key, path in values.items()
            if (name := key.removesuffix(".path")) != key and f"{name}.url" in values
        }

    def _find(self, site: Site, actor: ActorRef, url: str | None, each: _Found) -> _Found:
        """Find the site that an address in one of `site`'s commits means, or say what is wrong."""
        if url is None:
            return each.but(
                f"{GITMODULES} says no address for it: `git submodule add` does, and `git rm"
                " --cached` removes what is there by mistake"
            )
        shown = printable(os.fsencode(without_password(url)))
        name = site_of(url, site.name, self._server_url)
        if name is None:
            return each.but(
                f"{shown} is not on this server: only its own sites can be submodules here. Push"
                " that repository to a site, and name it as ../SITE.git"
            )
        wanted = sites.find(self._records.reader(), name)
        if wanted is None or (wanted.id != site.id and not self._may_fetch(actor, wanted.id)):
            return each.but(
                f"there is no site {name!r} for {shown}, or {actor.label!r}, who started this"
                " build, may not fetch from it"
            )
        return replace(each, site=wanted)


def site_of(url: str, of_site: str, server_url: str) -> str | None:
    """Return the name of the site that a submodule's address means, None for one elsewhere.

    `of_site`: the site whose commit has the address. Pure.
    """
    server = urlsplit(server_url)
    if url.startswith(("./", "../")):
        parts = [*_parts(server.path), f"{of_site}.git"]
        for part in _parts(url):
            if part == ".." and not parts:
                return None
            if part == "..":
                parts.pop()
            elif part != ".":
                parts.append(part)
    else:
        try:
            address = urlsplit(url)
            is_here = _host(url) == _host(server_url)
        except ValueError:
            return None
        if address.scheme not in _USUAL_PORTS or not is_here:
            return None
        parts = _parts(address.path)
    above = _parts(server.path)
    if len(parts) != len(above) + 1 or parts[:-1] != above:
        return None
    name = parts[-1].removesuffix(".git")
    return name if name and name.isascii() else None  # as all names of sites are


def without_password(url: str) -> str:
    """Return an address as it may be shown."""
    scheme, colon, rest = url.partition("://")
    if not colon:
        return url[:200]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"[:200]


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _host(url: str) -> tuple[str, int | None]:
    address = urlsplit(url)
    return (address.hostname or "").lower(), address.port or _USUAL_PORTS.get(address.scheme)


def _unavailable(faults: list[str]) -> BuildFailedError:
    what = "A submodule" if len(faults) == 1 else f"{len(faults)} submodules"
    if len(faults) == FAULTS_COUNT_MAX:
        what += ", or more,"
    return BuildFailedError(
        SUBMODULE_UNAVAILABLE,
        f"{what} cannot be had. {'; '.join(faults)}. To build with their folders empty, set [build]"
        ' submodules = "ignore" in managed.toml.',
    )


def _too_many() -> BuildFailedError:
    return BuildFailedError(
        SUBMODULE_UNAVAILABLE,
        f"There are more than {COUNT_MAX} submodules, or more than {DEPTH_MAX} inside one another.",
    )
