"""Advice: what to add to a commit of which nothing tells how it is built or served. Pure."""

from __future__ import annotations

from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles import php, python, python_server
from hooks.builds.profiles.managed_toml import Profile
from hooks.builds.profiles.node_server import UNDETECTED
from hooks.builds.profiles.package_json import PACKAGE_JSON
from hooks.builds.profiles.plan import INDEX, MANAGED_TOML, PROCFILE, Listing


def _built_by(command: str, web: str, language: str) -> str:
    return (
        f"there is no profile for {language}, but where the server has it {MANAGED_TOML} can say"
        f' [build] command = "{command}" and [run] web = "{web}"'
    )


_SERVERS = {
    Profile.NODE: "node server.js",
    Profile.PYTHON: "gunicorn app:app --bind 127.0.0.1:$PORT",
    Profile.PHP: 'php -S "127.0.0.1:$PORT" -t FOLDER',
}
_LACKS = {
    Profile.NODE: ": package.json has neither a build script nor one that starts a server",
    Profile.PHP: ": there is no index.php, and no folder public or web beside composer.json",
}
# What there is no profile for, and what to add for it.
_NO_PROFILE = {
    "Dockerfile": f"images are not built here; add a {PROCFILE} with what its CMD runs",
    "Containerfile": f"images are not built here; add a {PROCFILE} with what its CMD runs",
    "go.mod": _built_by("go build -o server .", "./server", "Go"),
    "Cargo.toml": _built_by("cargo build --release", "./target/release/NAME", "Rust"),
    "hugo.toml": (
        "where the server has Hugo, managed.toml can say"
        ' [build] command = "hugo" and output = "public"'
    ),
    "Gemfile": _built_by(
        "bundle config set path vendor/bundle && bundle install",
        "bundle exec puma -b tcp://127.0.0.1:$PORT",
        "Ruby",
    ),
}


def without_web(listing: Listing) -> BuildFailedError:
    """Return the failure of a site whose program is not named."""
    where = "The Procfile has no" if listing.has_file(PROCFILE) else "There is no Procfile with a"
    return BuildFailedError(
        UNDETECTED,
        f"{where} `web:` line: add one with the command that serves HTTP on $PORT, such as"
        " `web: python3 app.py`, or set run.web in managed.toml.",
    )


def serves_nothing(listing: Listing, profile: Profile) -> BuildFailedError:
    """Return the failure of a site whose profile is known, and not what it serves."""
    where = _where(listing)
    server = _SERVERS.get(profile, "./server")
    lacks = _LACKS.get(profile, "")
    if profile is Profile.PYTHON:
        lacks = f": {python_server.lack(listing)}"
    return BuildFailedError(
        UNDETECTED,
        f"Nothing in {where} says what a {profile} site serves{lacks}. Add a {PROCFILE} with the"
        f" command that serves HTTP on $PORT, such as `web: {server}`; or, where a command writes"
        f" files, [build] command and output to {MANAGED_TOML}.",
    )


def undetected(listing: Listing) -> BuildFailedError:
    """Return the failure of a site that no profile fits."""
    looked = (
        f"Looked in {_where(listing)} for {PROCFILE} (a web process), {PACKAGE_JSON} (with a"
        f" build or start script), {python.REQUIREMENTS}, {python.PYPROJECT} and {python.UV_LOCK},"
        f" {php.COMPOSER_JSON} and {php.INDEX}, {INDEX} (a static site), and {MANAGED_TOML}."
    )
    found = "Found none of them."
    if MANAGED_TOML in listing.kinds:
        found = f"Found {MANAGED_TOML}, which sets neither build.command, build.output nor run.web."
    if PACKAGE_JSON in listing.kinds:
        found = (
            f"Found {PACKAGE_JSON}, without a build script or a server to start: where a"
            ' command makes the site, scripts has it as "build", and what serves it as "start".'
        )
    if php.COMPOSER_JSON in listing.kinds:
        found = f"Found {php.COMPOSER_JSON}{_LACKS[Profile.PHP]}."
    if unread := python.unread(listing):
        found = f"{unread[0][0].upper()}{unread[0][1:]}."
    if (other := listing.first_file(*_NO_PROFILE)) is not None:
        found = f"There is a {other}: {_NO_PROFILE[other]}."
    advice = (
        f"Add an {INDEX}, or a {PROCFILE} with a line `web: COMMAND`, or a {MANAGED_TOML} with"
        " [build] output or [run] web. For a site in a sub-folder: [build] root."
    )
    return BuildFailedError(UNDETECTED, f"{looked} {found} {advice}")


def without_package(listing: Listing) -> BuildFailedError:
    """Return the failure of what is called a Node site and is none."""
    return BuildFailedError(
        UNDETECTED, f"A node site has a {PACKAGE_JSON}, and {_where(listing)} has none."
    )


def _where(listing: Listing) -> str:
    return "the root of the commit" if listing.where == "." else f"the folder {listing.where!r}"
