"""What serves a Python project that has no Procfile: tables."""

from __future__ import annotations

import pytest

from hooks.builds.errors import BuildFailedError
from tests.hooks.builds.profiles.test_detection import plan, scripts, steps

MANAGE = 'os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")'
GUNICORN = "gunicorn {} --bind 127.0.0.1:$PORT"
STREAMLIT = (
    "streamlit run {}.py --server.headless true --server.address 127.0.0.1 --server.port $PORT"
)
GRADIO = "GRADIO_SERVER_NAME=127.0.0.1 GRADIO_SERVER_PORT=$PORT python app.py"
FASTAPI = "fastapi run --host 127.0.0.1 --port $PORT"
COLLECT = ("build", "python manage.py collectstatic --no-input")


def project(*dependencies):
    return f"[project]\ndependencies = {list(dependencies)}"


@pytest.mark.parametrize(
    ("found", "web"),
    [
        (plan("app.py", requirements="flask\ngunicorn==23.0.0\n"), GUNICORN.format("app:app")),
        (plan("main.py", requirements="Flask\nGunicorn>=20"), GUNICORN.format("main:app")),
        (plan("wsgi.py", "uv.lock", pyproject=project("gunicorn")), GUNICORN.format("wsgi:app")),
        (
            plan("app.py", pyproject='[build-system]\n[tool.poetry.dependencies]\ngunicorn = "*"'),
            GUNICORN.format("app:app"),
        ),
        (plan("app.py", requirements="flask\nquart\ngunicorn"), GUNICORN.format("app:app")),
        (plan("main.py", requirements="fastapi\nuvicorn"), "uvicorn main:app --port $PORT"),
        (
            plan("main.py", requirements="fastapi\nuvicorn[standard] ~= 0.3\ngunicorn"),
            "uvicorn main:app --port $PORT",
        ),
        (plan(requirements="fastapi[all]"), "fastapi run --host 127.0.0.1 --port $PORT"),
        (
            plan(requirements="fastapi [ all, standard ] >= 0.115"),
            "fastapi run --host 127.0.0.1 --port $PORT",
        ),
        (
            plan("main.py", "uv.lock", pyproject=project("fastapi[standard]>=0.115")),
            "fastapi run --host 127.0.0.1 --port $PORT",
        ),
        (
            plan(requirements="django\ngunicorn", manage=MANAGE),
            GUNICORN.format("mysite.wsgi"),
        ),
        (
            plan(requirements="gunicorn", manage=MANAGE.replace("site", ".conf")),
            GUNICORN.format("my.conf.wsgi"),
        ),
        (
            plan(requirements="gunicorn", manage=MANAGE.replace('ings"', 'ings.production"')),
            GUNICORN.format("mysite.wsgi"),
        ),
        (
            plan(requirements="django\nuvicorn", manage=MANAGE),
            "uvicorn mysite.asgi:application --port $PORT",
        ),
        (
            plan("app.py", requirements="gunicorn", Procfile="release: ./migrate"),
            GUNICORN.format("app:app"),
        ),
        (
            plan("app.py", requirements="gunicorn", package=scripts(build="vite build")),
            GUNICORN.format("app:app"),
        ),
        (
            plan("app.py", requirements="gunicorn", Procfile="web: gunicorn a:b"),
            "gunicorn a:b",
        ),
        (
            plan(
                "main.py",
                "poetry.lock",
                pyproject="""[tool.poetry.dependencies]
                fastapi = {extras = ["standard"], version = "^0.115"}""",
            ),
            "fastapi run --host 127.0.0.1 --port $PORT",
        ),
        (
            plan("main.py", "streamlit_app.py", requirements="streamlit\nfastapi\nuvicorn"),
            "uvicorn main:app --port $PORT",
        ),
        (
            plan("main.py", "streamlit_app.py", requirements="streamlit\nfastapi[standard]"),
            FASTAPI,
        ),
        (
            plan("app.py", "streamlit_app.py", requirements="streamlit\ngunicorn"),
            GUNICORN.format("app:app"),
        ),
        (
            plan("app.py", "streamlit_app.py", requirements="streamlit"),
            STREAMLIT.format("streamlit_app"),
        ),
        (
            plan("streamlit_app.py", requirements="streamlit\nuvicorn"),
            STREAMLIT.format("streamlit_app"),
        ),
        (plan("main.py", requirements="streamlit>=1.40"), STREAMLIT.format("main")),
        (plan("app.py", requirements="streamlit\nuvicorn"), "uvicorn app:app --port $PORT"),
        (plan("app.py", requirements="gradio==5.0"), GRADIO),
        (
            plan("app.py", requirements="streamlit", package=scripts(test="x")),
            STREAMLIT.format("app"),
        ),
        (plan("app.py", requirements="gradio\ngunicorn"), GUNICORN.format("app:app")),
    ],
)
def test_server_that_a_project_depends_on_serves_what_has_the_usual_name(found, web):
    assert (found.profile, found.run.web) == ("python", web)
    assert found.explanation.endswith(f"runs {web}")
    assert steps(found)[-1][1].startswith("PYTHONHASHSEED=0")


@pytest.mark.parametrize(
    ("found", "profile"),
    [
        (plan("index.html", "app.py", requirements="gunicorn"), "static"),
        (
            plan("site/", "app.py", requirements="gunicorn", toml='[build]\noutput = "site"'),
            "static",
        ),
        (plan("app.py", requirements="gunicorn", package=scripts(start="node a")), "node"),
        (plan("app.py", requirements="streamlit", package=scripts(build="vite build")), "node"),
        (plan("app.py", requirements="gradio", package=scripts(build="vite build")), "node"),
    ],
)
def test_what_else_is_said_comes_first(found, profile):
    assert found.profile == profile


@pytest.mark.parametrize(
    ("names", "texts", "words"),
    [
        (("app.py",), {"requirements": "flask"}, "it has app.py, and no server for it among"),
        (("app.py",), {"requirements": "flask\nuvicorn"}, "it has app.py, and no server for it"),
        (
            ("main.py",),
            {"requirements": "fastapi\ngunicorn"},
            "main.py and fastapi, and lacks uvicorn",
        ),
        (("app.py",), {"requirements": "# gunicorn"}, "it has app.py, and no server for it"),
        ((), {"requirements": "django", "manage": MANAGE}, "it has manage.py, and no server for"),
        ((), {"requirements": "gunicorn", "manage": "a"}, "manage.py does not name the settings"),
        ((), {"requirements": "gunicorn"}, "there is neither manage.py nor one of app.py, main.py"),
    ],
)
def test_project_that_nothing_serves_is_told_what_is_missing(names, texts, words):
    with pytest.raises(BuildFailedError, match=words):
        plan(*names, **texts)


def test_static_files_are_collected_where_django_serves_them():
    texts = {"manage": MANAGE, "package": scripts(build="vite build")}
    found = plan(requirements="gunicorn\nwhitenoise", **texts)
    assert [step for step in steps(found) if step[0] == "build"] == [
        ("build", "npm run build"),
        COLLECT,
    ]
    assert COLLECT in steps(plan(requirements="whitenoise", Procfile="web: a", manage=MANAGE))
    assert COLLECT not in steps(plan(requirements="gunicorn", manage=MANAGE))
    assert COLLECT not in steps(plan("app.py", requirements="gunicorn\nwhitenoise"))
    found = plan(requirements="gunicorn\nwhitenoise", toml="[build]\ncommand = false", **texts)
    assert "build" not in [name for name, _ in steps(found)]


@pytest.mark.parametrize(
    "line",
    [
        "gunicorn==23.0.0  # as locked",
        "gunicorn==23.0.0 --hash=sha256:00 --hash=sha256:11",
        "gunicorn==23.0.0 \\\n    --hash=sha256:00",
        "gunicorn ; sys_platform != 'win32'",
        "gunicorn>=20,<24 ; python_version >= '3.8' # here",
        "gunicorn @ https://example.org/gunicorn.whl",
        "  Gunicorn [gevent] >= 20",
        "gunicorn>=20.0.*",
        "gunicorn[gevent] >= 20.0.*, < 24",
    ],
)
def test_requirement_is_read_as_pip_reads_it(line):
    """Source: PEP 508; pip, "Requirements File Format"."""
    assert plan("app.py", requirements=f"flask\n{line}").run.web == GUNICORN.format("app:app")


@pytest.mark.parametrize(
    "line",
    [
        "gunicorn ; sys_platform == 'win32'",
        "gunicorn ; python_version < '3'",
        "# gunicorn",
        "-r gunicorn.txt",
        "gunicorn-extras",
        "gunicorn ; " + "(" * 900 + "os_name == 'posix'" + ")" * 900,
        "gunicorn ; os_name ~= 'x'",
        "gunicorn" + " " * 4000,
        "./gunicorn.whl",
        "gunicorn>=20.0.* ; sys_platform == 'win32'",
        "-e gunicorn==1",
        "https://example.org/gunicorn==1",
        "gunicorn extras>=1",
        "git+https://example.org/gunicorn.git#egg=gunicorn",
    ],
)
def test_requirement_that_is_for_others_or_none_does_not_count(line):
    with pytest.raises(BuildFailedError, match="no server for it among what it depends on"):
        plan("app.py", requirements=f"flask\n{line}")


@pytest.mark.parametrize("wanted", ['{extras = "standard"}', "{extras = [1]}", "[1]", "3"])
def test_poetry_dependency_of_an_odd_kind_is_its_name(wanted):
    text = f'[tool.poetry.dependencies]\nfastapi = {wanted}\nuvicorn = "*"'
    found = plan("main.py", "poetry.lock", pyproject=text)
    assert found.run.web == "uvicorn main:app --port $PORT"
