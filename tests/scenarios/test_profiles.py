"""Projects as people have them, pushed as they are: installed, built, and answering at their URL.

They need a registry that answers, or are skipped; nothing here names one.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from hooks.builds.profiles.runtimes import MACHINE_PATH
from tests.registry import in_the_way

PACKAGES = {
    "node_modules/is-number": {
        "version": "7.0.0",
        "integrity": "sha512-41Cifkg6e8TylSpdtTpeLVMqvSBEVzTttHvERD741+pnZ8ANv0004MRL43QKPDlK9cGv"
        "Np6NZWZUBlbGXYxxng==",
    },
    "node_modules/left-pad": {
        "version": "1.3.0",
        "dev": True,
        "integrity": "sha512-XI5MPzVNApjAyhQzphX8BkmKsKUxD4LdyK24iZeQGinBN9yTQT3bFlCBy/aVx2HrNcqQ"
        "Gsdot8ghrjyrvMCoEA==",
    },
}
NODE_SERVER = """
const isNumber = require("is-number");
let tools = "with";
try { require("left-pad"); } catch { tools = "without"; }
require("node:http").createServer((request, response) => {
  response.end(`4 is a number: ${isNumber(4)}, ${tools} tools, in ${process.env.NODE_ENV}`);
}).listen(Number(process.env.PORT), "127.0.0.1");
"""
WSGI = """
import six
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"six {six.__version__} by {__name__}".encode()]
"""
ASGI = """
async def app(scope, receive, send):
    said = f"{scope['type']} {scope['path']} {scope['query_string'].decode()}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": said})
"""
SERVE = """
import os
from wsgiref.simple_server import make_server
import app
make_server("127.0.0.1", int(os.environ["PORT"]), app.app).serve_forever()
"""


@pytest.fixture
def project(shared):
    """A developer's work tree for a new site."""

    def make(site):
        shared.new_site(site)
        return shared.work(site, site)

    return make


def requires(*programs):
    missing = [name for name in programs if shutil.which(name, path=MACHINE_PATH) is None]
    return pytest.mark.skipif(bool(missing), reason=f"builds have no {missing} here")


def pushed(work):
    """Push, and skip where it is the registry that does not answer, not to this process either."""
    said = work.push()
    failed = re.search(r"egress: failed (\S+):(\d+)", said)
    if "BUILD FAILED" in said and failed and (error := in_the_way(failed[1], int(failed[2]))):
        pytest.skip(f"no registry answers: {error}")
    return said


def package(**more):
    """A package.json and the lock file that goes with it, as npm writes both."""
    about = {"name": "site", "version": "1.0.0", "dependencies": {"is-number": "7.0.0"}, **more}
    kept = {
        path: entry
        for path, entry in PACKAGES.items()
        if "devDependencies" in about or not entry.get("dev")
    }
    lock = {
        "name": "site",
        "version": "1.0.0",
        "lockfileVersion": 3,
        "packages": {"": about, **kept},
    }
    return {"package.json": json.dumps(about), "package-lock.json": json.dumps(lock)}


@requires("node", "npm")
def test_node_server_runs_with_its_dependencies_and_without_its_tools(shared, project) -> None:
    work = project("node-server")
    scripts = {"start": "node server.js"}
    work.commit(
        {
            "server.js": NODE_SERVER,
            **package(devDependencies={"left-pad": "1.3.0"}, scripts=scripts),
        }
    )
    said = pushed(work)
    assert (
        "node, by package.json and package-lock.json: install, finish; runs node server.js" in said
    )
    assert shared.visit("node-server").body == b"4 is a number: true, without tools, in production"


@requires("node", "npm")
def test_node_site_serves_what_its_build_wrote_and_nothing_else(shared, project) -> None:
    work = project("node-site")
    work.use("node-static")
    work.commit({"index.html": "the source of a page"})
    said = pushed(work)
    assert "node, by package.json and package-lock.json: install, build; serves what" in said
    assert b"<em>Version one</em>" in shared.visit("node-site").body
    assert shared.visit("node-site", "/about.html").status == 200
    assert shared.visit("node-site", "/build.js").status == 404


@requires("python3")
def test_python_application_finds_its_server_and_builds_the_same_twice(shared, project) -> None:
    site = "python-app"
    work = project(site)
    work.use("python-deps")
    said = pushed(work)
    assert "python, by requirements.txt: install, finish; runs gunicorn" in said
    assert b"Hello, visitor." in shared.visit(site, "/?name=visitor").body
    again = ("build", "--site", site, "--env", "production", "--ref", "main", "--clean", "--wait")
    shared.mf(*again)
    rows = shared.api("GET", f"/sites/{site}/environments/production/builds").json["data"]
    assert len(rows) == 2
    assert len({row["artifact_id"] for row in rows}) == 1, "equal builds give equal artifacts"


@requires("python3", "uv")
def test_python_application_is_installed_as_uv_locked_it(shared, project) -> None:
    work = project("uv-locked")
    (work.path / "pyproject.toml").write_text(
        '[project]\nname = "site"\nversion = "1"\nrequires-python = ">=3.9"\n'
        'dependencies = ["six==1.17.0"]\n'
    )
    try:
        subprocess.run(
            ["uv", "lock", "--quiet"], cwd=work.path, check=True, capture_output=True, timeout=60
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"no registry answers uv: {error}")
    work.commit({"app.py": WSGI, "serve.py": SERVE, "Procfile": "web: python serve.py\n"})
    said = pushed(work)
    assert "python, by uv.lock: install, finish; runs python serve.py" in said
    assert shared.visit("uv-locked").body == b"six 1.17.0 by app"


@requires("python3")
def test_asgi_application_answers_by_what_its_own_install_command_brought(shared, project) -> None:
    work = project("asgi-app")
    work.commit(
        {
            "requirements.txt": "no-such-package==0",
            "managed.toml": '[build]\ninstall = "pip install uvicorn==0.34.0"\n',
            "Procfile": "web: uvicorn app:app --port $PORT\n",
            "app.py": ASGI,
        }
    )
    said = pushed(work)
    assert "install  $ python3 -m venv .venv" in said
    assert "runs uvicorn app:app --port $PORT" in said
    assert shared.visit("asgi-app", "/some/path?x=1").body == b"http /some/path x=1"


@requires("php", "composer")
def test_php_application_is_installed_by_composer_and_answers_by_php(shared, project) -> None:
    work = project("php-app")
    work.commit(
        {
            "composer.json": json.dumps({"autoload": {"psr-4": {"App\\": "src/"}}}),
            "src/Hello.php": '<?php namespace App; class Hello { const TEXT = "autoloaded"; }',
            "symfony.lock": "{}",
            "Procfile": 'release: test "$APP_ENV" = prod\n',
            # Of all that it can write nothing takes the place of what gitd puts before it.
            "public/index.php": '<?php require __DIR__."/../vendor/autoload.php";'
            ' file_put_contents("/tmp/router.php", "taken");'
            ' echo App\\Hello::TEXT, $_SERVER["REQUEST_URI"], $_SERVER["SCRIPT_NAME"],'
            ' $_ENV["GITD_SITE"];',
            "public/a.css": "a{}",
            "public/a.b/c.txt": "c",
        }
    )
    said = pushed(work)
    assert "php, by composer.json: install; runs" in said
    for path in ("/some/path?x=1", "/feed.xml", "/john@example.org/a.b?y", "/a.b/d", "/.x", "/"):
        route = f"autoloaded{path}/index.phpphp-app"
        assert shared.visit("php-app", path).body == route.encode(), path
    assert shared.visit("php-app", "/a.css").body == b"a{}"
    assert shared.visit("php-app", "/a.b/c.txt").body == b"c"
    assert b"root:" not in shared.visit("php-app", "/../../../../etc/passwd").body


@requires("php")
def test_procfile_for_a_server_of_php_that_is_elsewhere_serves_its_folder(shared, project) -> None:
    work = project("php-moved")
    work.commit(
        {
            "Procfile": "web: heroku-php-apache2 www/\n",
            "www/index.php": '<?php echo "moved", $_SERVER["REQUEST_URI"];',
        }
    )
    said = pushed(work)
    assert "heroku-php-apache2 is none of this server's: PHP's own server runs" in said
    assert shared.visit("php-moved", "/some/path").body == b"moved/some/path"


@requires("php")
def test_plain_php_site_shows_none_of_its_dot_files(shared, project) -> None:
    work = project("plain-php")
    work.commit({"index.php": "<?php echo 1 + 1;", "a.css": "a{}", ".env": "SECRET=1"})
    assert "php, by index.php: runs" in pushed(work)
    assert shared.visit("plain-php").body == b"2"
    assert shared.visit("plain-php", "/a.css").body == b"a{}"
    assert b"SECRET" not in shared.visit("plain-php", "/.env").body
