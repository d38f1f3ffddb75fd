"""PHP: an `index.php`, and what `composer.json` asks for."""

from __future__ import annotations

import posixpath
import re
import shlex

from hooks.builds.profiles.plan import Listing, Need, Recipe

COMPOSER_JSON, COMPOSER_LOCK, INDEX = "composer.json", "composer.lock", "index.php"
WORKERS_COUNT = 4

_INSTALL = (
    "composer install --no-dev --no-interaction --no-progress --prefer-dist --optimize-autoloader"
)
_PHP = Need(("php",), "php-cli")
_COMPOSER = Need(("composer",), "composer and unzip")
# CakePHP has an index.php at the top too, for servers that cannot be told of another folder.
_WEBROOT, _CAKE_FOLDERS = "webroot", ("webroot", "config", "src")
_DOCUMENT_ROOTS = ("public", "web")
# Many settings of PHP leave the environment out of $_ENV, where Symfony and Laravel look.
_SERVER = (
    f"PHP_CLI_SERVER_WORKERS={WORKERS_COUNT} php -d variables_order=EGPCS"
    ' -S "127.0.0.1:$PORT" -t {}'
)
# PHP's own server answers 404 to a path with a dot that is no file, be it a route of the program.
# Its name is one that nobody knows: an upload may be moved to /tmp under a name of the visitor's.
_ROUTER = '"$router"'
_WRITE_ROUTER = (
    "router=$(mktemp -d /tmp/router.XXXXXXXX)/router.php;"
    ' echo \'<?php $top = $_SERVER["DOCUMENT_ROOT"]; $index = "$top/index.php";'
    ' if (file_exists($top . $_SERVER["SCRIPT_NAME"]) || !is_file($index)) { return false; }'
    ' $_SERVER["SCRIPT_NAME"] = $_SERVER["PHP_SELF"] = "/index.php"; chdir($top);'
    f' require $_SERVER["SCRIPT_FILENAME"] = $index;\' > {_ROUTER}'
)
# A release is read-only, and Laravel writes into its own folder. Compiled templates are those of
# one release. Source: Laravel, `Application::storagePath`, config/view.php, config/logging.php.
_LARAVEL = (
    (
        'export LARAVEL_STORAGE_PATH="${LARAVEL_STORAGE_PATH:-/data/storage}"'
        ' VIEW_COMPILED_PATH="${VIEW_COMPILED_PATH:-/tmp/views}"'
        ' LOG_CHANNEL="${LOG_CHANNEL:-stderr}"'
    ),
    (
        "for name in app/public logs framework/cache/data framework/sessions;"
        ' do mkdir -p "$LARAVEL_STORAGE_PATH/$name"; done'
    ),
)
_LARAVEL_NOTE = (
    "Laravel's storage is in /data/storage, from Laravel 10 on, and its log where `mf logs` looks"
)
# Without development dependencies its own `dev` does not even begin.
# Source: Symfony, "How to Deploy a Symfony Application".
_SYMFONY = 'export APP_ENV="${APP_ENV:-prod}" APP_DEBUG="${APP_DEBUG:-0}"'
_ARTISAN, _SYMFONY_LOCK = "artisan", "symfony.lock"
# What a Procfile names elsewhere, and which of its options have a word of their own.
# Source: Heroku, "Customizing Web Server and Runtime Settings for PHP".
_ELSEWHERE = re.compile(r"(?:vendor/bin/)?heroku-(?:php|hhvm)-(?:apache2|nginx)")
_SHELL_WORD = re.compile(r"(?:[\w./-]|\$\w+|\$\{\w+\})+")  # a variable, which the shell knows
_WITH_VALUE = frozenset(("-C", "-c", "-F", "-f", "-i", "-l", "-p", "-w"))


def document_root(listing: Listing) -> str | None:
    """Return the folder with the `index.php` that answers: where frameworks have it, or the top.

    None when nothing looks like a site.
    """
    has_composer = listing.has_file(COMPOSER_JSON)
    if has_composer and all(map(listing.has_folder, _CAKE_FOLDERS)):
        return _WEBROOT
    if listing.has_file(INDEX):
        return "."
    if not has_composer:
        return None
    return next((name for name in _DOCUMENT_ROOTS if listing.has_folder(name)), None)


def served_folder(web: str) -> str | None:
    """Return the folder that a command has Heroku's servers of PHP serve, None for others."""
    try:
        program, *words = shlex.split(web) or [""]
    except ValueError:  # a quote that does not end
        return None
    if not _ELSEWHERE.fullmatch(program):
        return None
    pairs = zip(["", *words], words, strict=False)
    folders = [word for before, word in pairs if word[:1] != "-" and before not in _WITH_VALUE]
    return posixpath.normpath(folders[0]) if folders else "."


def recipe(listing: Listing, root: str | None) -> Recipe:
    """Return what a PHP site does by itself: PHP's own server, with a few processes.

    `root`: the folder that it serves, None without one.
    """
    has_composer = listing.has_file(COMPOSER_JSON)
    notes = []
    if has_composer and not listing.has_file(COMPOSER_LOCK):
        notes.append(
            f"there is no {COMPOSER_LOCK}: the versions that are installed may differ from build to"
            " build"
        )
    by = [name for name in (COMPOSER_JSON, COMPOSER_LOCK) if listing.has_file(name)]
    install = _INSTALL
    if listing.has_file(_SYMFONY_LOCK):
        install = f"{_SYMFONY} && {_INSTALL}"
    environment = _environment(listing, root)
    return Recipe(
        by=tuple(by) or ((INDEX,) if listing.has_file(INDEX) else ()),
        install=(install,) if has_composer else (),
        web=_web(listing, root, environment) if root is not None else None,
        environment=environment,
        needs=(_PHP,),
        client_needs=(_COMPOSER,) if has_composer else (),
        notes=tuple(notes),
        web_notes=(_LARAVEL_NOTE,) if environment == _LARAVEL else (),
        is_public=root == ".",
    )


def _environment(listing: Listing, root: str | None) -> tuple[str, ...]:
    if root in (None, ".") or not listing.has_file(COMPOSER_JSON):
        return ()
    if listing.has_file(_ARTISAN):
        return _LARAVEL
    return (_SYMFONY,) if listing.has_file(_SYMFONY_LOCK) else ()


def _web(listing: Listing, root: str, environment: tuple[str, ...]) -> str:
    folder = f'"{root}"' if "$" in root and _SHELL_WORD.fullmatch(root) else shlex.quote(root)
    server = _SERVER.format(folder)
    if root == "." or not listing.has_file(COMPOSER_JSON):
        return server
    # No shell waits beside the server: signals reach it.
    return "\n".join((*environment, _WRITE_ROUTER, f"exec env {server} {_ROUTER}"))
