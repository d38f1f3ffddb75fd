"""What a build gets of a push: a folder of it, the submodules in it, and no pointers for files."""

from __future__ import annotations

import json
from dataclasses import replace

PAGE = "<!doctype html><title>t</title><p>{}</p>"
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def test_two_sites_of_one_repository_each_serve_their_folder(shared) -> None:
    shared.new_site("shop-web")
    shared.new_site("shop-docs")
    work = shared.work("shop-web", "monorepo")
    work.git("remote", "add", "docs", f"{shared.url}/shop-docs.git")
    work.commit(
        {
            "managed.toml": '[build]\nroot = "web"\n[sites]\nshop-docs = "tools/docs"\n',
            "web/index.html": PAGE.format("the shop"),
            "tools/docs/managed.toml": '[build]\ncommand = "mkdir out && cat a b > out/index.html"',
            "tools/docs/a": "made of ",
            "tools/docs/b": "docs",
        }
    )
    assert "static, by web/index.html: serves the whole of web, as committed" in work.push()
    said = work.git("push", "--progress", "docs", "main").stderr
    assert "static, by managed.toml: build; serves what the build writes" in said
    assert shared.serves("the shop", "shop-web")
    assert shared.visit("shop-docs").body == b"made of docs"
    assert shared.visit("shop-web", "/managed.toml").status == 404


def test_submodule_of_another_site_is_built_by_who_may_fetch_it(shared) -> None:
    shared.new_site("theme")
    shared.new_site("blog")
    theme = shared.work("theme", "theme-work")
    pinned = theme.commit({"index.html": "the theme", "style.css": "body{}"})
    theme.push()
    work = shared.work("blog", "blog-work")
    work.commit({".gitmodules": '[submodule "t"]\n\tpath = theme\n\turl = ../theme.git\n'})
    work.git("update-index", "--add", "--cacheinfo", f"160000,{pinned},theme")
    files = {"index.html": PAGE.format("the blog")}
    for name, text in files.items():
        (work.path / name).write_text(text)
    work.git("add", *files)
    work.git("commit", "--quiet", "--message", "with a theme")

    made = shared.gitd(
        "key", "create", "--label", "ci", "--scope", "deployments:write", "--site", "blog", "--json"
    )
    work.server = replace(shared, token=json.loads(made)["secret"])
    said = work.push()
    assert "BUILD FAILED (build.submodule_unavailable)" in said
    assert "theme: there is no site 'theme' for ../theme.git, or 'ci', who started this" in said

    shared.mf(
        *("build", "--site", "blog", "--env", "production", "--ref", "main"), "--deploy", "--wait"
    )
    assert shared.serves("the blog", "blog")
    assert shared.visit("blog", "/theme/style.css").body == b"body{}"


def test_pointers_of_lfs_are_told_by_name_and_taken_when_that_is_wished(shared) -> None:
    shared.new_site("films")
    work = shared.work("films", "films-work")
    work.commit({"index.html": PAGE.format("films"), "media/intro.mp4": POINTER})
    said = work.push()
    assert "BUILD FAILED (build.lfs_pointers)" in said
    assert (
        "1 file is a pointer of Git LFS, whose contents are not in the commit: media/intro" in said
    )
    work.commit({"managed.toml": '[build]\nlfs = "ignore"'})
    work.push()
    assert shared.visit("films", "/media/intro.mp4").body == POINTER.encode()
