"""Clients that are no git, at a site: they log in, push, and hear what becomes of it."""

from __future__ import annotations

import io
import os
from contextlib import closing

import pygit2
import pytest
from dulwich import porcelain
from dulwich.client import HTTPUnauthorized
from dulwich.repo import Repo

PAGE = "<!doctype html><p>{}</p>"
LARGE_BYTES = 3 << 20  # more than a client sends in one go, without being asked to log in


class Listener(pygit2.RemoteCallbacks):
    """Knows a password, and remembers what is said and what became of each ref."""

    def __init__(self, password: str) -> None:
        super().__init__(credentials=pygit2.UserPass("x", password))
        self.words = ""
        self.refs: dict[str, str | None] = {}

    def sideband_progress(self, string: str) -> None:
        self.words += string

    def push_update_reference(self, refname: str, message: str | None) -> None:
        self.refs[refname] = message


def test_libgit2_pushes_to_a_site_and_clones_it(server, tmp_path) -> None:
    url = f"{server.url}/acme-store.git"
    repo = pygit2.init_repository(str(tmp_path / "w"), initial_head="main")
    (tmp_path / "w/index.html").write_text(PAGE.format("one"))
    (tmp_path / "w/large").write_bytes(os.urandom(LARGE_BYTES))
    repo.index.add_all()
    who = pygit2.Signature("A", "a@example.com")
    tip = repo.create_commit("refs/heads/main", who, who, "one", repo.index.write_tree(), [])
    remote = repo.remotes.create("origin", url)
    stranger = Listener("no key")
    with pytest.raises(pygit2.GitError, match="authentication"):
        remote.push(["refs/heads/main"], callbacks=stranger)
    heard = Listener(server.token)
    remote.push(["refs/heads/main"], callbacks=heard)
    assert heard.refs == {"refs/heads/main": None}
    assert "main -> production: build_" in heard.words
    assert "production is live after" in heard.words
    assert server.serves("one")
    remote.push([":refs/heads/main"], callbacks=(refused := Listener(server.token)))
    assert refused.refs == {"refs/heads/main": "deletion of the current branch prohibited"}
    clone = pygit2.clone_repository(url, str(tmp_path / "c"), callbacks=Listener(server.token))
    assert clone.head.target == tip


def test_dulwich_pushes_to_a_site_and_clones_it(server, tmp_path) -> None:
    work = server.work()
    work.commit({"index.html": PAGE.format("one")})
    work.push("main")
    url, folder, words = f"{server.url}/acme-store.git", tmp_path / "d", io.BytesIO()
    login = {"username": "anybody", "password": server.token}
    with pytest.raises(HTTPUnauthorized):
        porcelain.clone(url, tmp_path / "e", username="x", password="no key", errstream=words)
    porcelain.clone(url, folder, **login, errstream=words).close()
    (folder / "index.html").write_text(PAGE.format("two"))
    with closing(Repo(str(folder))) as repo:
        porcelain.add(repo, [str(folder / "index.html")])
        who = b"A <a@example.com>"
        porcelain.commit(repo, message=b"two", author=who, committer=who)
        porcelain.push(repo, url, "refs/heads/main", **login, errstream=words)
    assert b"production is live after" in words.getvalue()
    assert server.serves("two")
