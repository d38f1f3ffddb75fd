from __future__ import annotations

import time

import pytest

from hooks.deploys.web.static_index import Redirect, StaticFile, StaticIndex, content_type
from storage.digest import Digest
from storage.manifest import DirectoryEntry, FileEntry, LinkEntry, Manifest

FILES = {
    "index.html",
    "404.html",
    "about.html",
    "docs/index.html",
    "docs/guide.html",
    "both.html",
    "both/index.html",
    "empty/keep.txt",
    "a b/ü.txt",
    "per%cent.txt",
    "assets/app.js",
}
LINKS = {
    "latest": "docs",
    "home.html": "index.html",
    "docs/up": "../assets",
    "loop": "loop2",
    "loop2": "loop",
    "out": "../etc",
    "chain": "latest/guide.html",
}


@pytest.fixture(scope="module")
def index():
    folders = {"docs", "both", "empty", "a b", "assets"}
    return StaticIndex(
        Manifest.of(
            [DirectoryEntry(name.encode()) for name in folders]
            + [FileEntry(name.encode(), False, 3, Digest.of(name.encode())) for name in FILES]
            + [LinkEntry(name.encode(), target.encode()) for name, target in LINKS.items()]
        )
    )


@pytest.mark.parametrize(
    ("url_path", "path"),
    [
        ("/", "index.html"),
        ("/index.html", "index.html"),
        ("/about", "about.html"),
        ("/about.html", "about.html"),
        ("/docs/", "docs/index.html"),
        ("/docs/guide", "docs/guide.html"),
        ("/both", "both.html"),
        ("/both/", "both/index.html"),
        ("/a%20b/%C3%BC.txt", "a b/ü.txt"),
        ("/per%25cent.txt", "per%cent.txt"),
        ("/%61bout", "about.html"),
        ("/latest/guide.html", "docs/guide.html"),
        ("/latest/", "docs/index.html"),
        ("/home.html", "index.html"),
        ("/home", "index.html"),
        ("/docs/up/app.js", "assets/app.js"),
        ("/latest/up/app.js", "assets/app.js"),
        ("/chain", "docs/guide.html"),
    ],
)
def test_a_path_finds_its_file(index, url_path, path):
    found = index.find(url_path)
    assert isinstance(found, StaticFile)
    assert found.path == path


@pytest.mark.parametrize(
    ("url_path", "location"), [("/docs", "/docs/"), ("/latest", "/latest/"), ("/d%6fcs", "/docs/")]
)
def test_a_folder_with_an_index_is_redirected_to_its_slash(index, url_path, location):
    assert index.find(url_path) == Redirect(location)


@pytest.mark.parametrize(
    "url_path",
    [
        "",
        "*",
        "about",
        "//",
        "//docs",
        "//docs/",
        "/docs//",
        "/./about",
        "/docs/../about",
        "/docs/%2e%2e/about",
        "/..",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/docs%2fguide.html",
        "/docs%2Findex.html",
        "/about%00",
        "/%ff",
        "/%C3%28",
        "/About",
        "/empty",
        "/empty/",
        "/about/",
        "/about.html/",
        "/index.html/x",
        "/loop",
        "/loop/x",
        "/out",
        "/out/passwd",
        "/docs\\guide.html",
        "/nothing",
        "/404/",
    ],
)
def test_a_path_that_names_nothing_finds_nothing(index, url_path):
    assert index.find(url_path) is None


@pytest.mark.parametrize("prefix", ["", "docs/", "latest/", "latest/up/", "about.html/"])
def test_a_path_of_names_without_end_holds_up_nobody(index, prefix):
    """From each name on it was put together anew, where a release had a link."""
    path = f"/{prefix}{'x/' * 60_000}x"
    began = time.process_time()
    assert index.find(path) is None
    assert time.process_time() - began < 5  # about 0.02 s; it took a minute


def test_a_redirect_never_leaves_the_site():
    name = "\\evil.example"
    index = StaticIndex(
        Manifest.of(
            [
                DirectoryEntry(name.encode()),
                FileEntry(f"{name}/index.html".encode(), False, 1, Digest.of(b"x")),
            ]
        )
    )
    assert index.find("/%5Cevil.example") == Redirect("/%5Cevil.example/")


def test_equal_content_has_an_equal_etag_and_other_content_another(index):
    one, other = index.find("/about"), index.find("/both")
    assert one.etag.startswith('"')
    assert one.etag != other.etag
    assert index.find("/home.html").etag == index.find("/").etag


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("index.html", "text/html; charset=utf-8"),
        ("INDEX.HTML", "text/html; charset=utf-8"),
        ("a.css", "text/css; charset=utf-8"),
        ("a.js", "text/javascript; charset=utf-8"),
        ("a.mjs", "text/javascript; charset=utf-8"),
        ("a.json", "application/json"),
        ("a.svg", "image/svg+xml"),
        ("a.png", "image/png"),
        ("a.webp", "image/webp"),
        ("a.woff2", "font/woff2"),
        ("a.wasm", "application/wasm"),
        ("a.webmanifest", "application/manifest+json"),
        ("a.tar.gz", "application/gzip"),
        ("a.txt", "text/plain; charset=utf-8"),
        ("a.xml", "text/xml; charset=utf-8"),
        ("a.pdf", "application/pdf"),
        ("LICENSE", "application/octet-stream"),
        (".well-known", "application/octet-stream"),
    ],
)
def test_the_name_gives_the_media_type(name, media_type):
    assert content_type(name) == media_type


@pytest.mark.parametrize(
    ("url_path", "is_page"),
    [
        ("/", True),
        ("/users/7", True),
        ("/users/7/", True),
        ("/v1.2/notes", True),
        ("/%C3%BC", True),
        ("/assets/app-1a2b.js", False),
        ("/assets/app%2Ejs", False),
        ("/favicon.ico", False),
        ("/.git", False),
        ("/../etc", False),
        ("//", False),
        ("/%ff", False),
        ("x", False),
    ],
)
def test_page_of_its_own_answers_for_paths_that_name_no_file(url_path, is_page):
    page = FileEntry(b"200.html", False, 3, Digest.of(b"page"))
    found = StaticIndex(Manifest.of([page])).fallback(url_path)
    assert (found.path if found else None) == ("200.html" if is_page else None)


def test_site_without_such_a_page_has_no_fallback(index):
    assert index.fallback("/users/7") is None
