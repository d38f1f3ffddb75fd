"""PHP: an `index.php`, and what `composer.json` asks for."""

from __future__ import annotations

from hooks.builds.profiles.plan import Listing, Need, Recipe

COMPOSER_JSON, COMPOSER_LOCK, INDEX = "composer.json", "composer.lock", "index.php"
WORKERS_COUNT = 4

_INSTALL = (
    "composer install --no-dev --no-interaction --no-progress --prefer-dist --optimize-autoloader"
)
_PHP = Need(("php",), "php-cli")
_COMPOSER = Need(("composer",), "composer and unzip")
_DOCUMENT_ROOTS = ("public", "web")


def document_root(listing: Listing) -> str | None:
    """Return the folder with the `index.php` that answers: where frameworks have it, or the top.

    None when nothing looks like a site.
    """
    if listing.has_file(INDEX):
        return "."
    if not listing.has_file(COMPOSER_JSON):
        return None
    return next((name for name in _DOCUMENT_ROOTS if listing.has_folder(name)), None)


def recipe(listing: Listing) -> Recipe:
    """Return what a PHP site does by itself: PHP's own server, with a few processes."""
    has_composer = listing.has_file(COMPOSER_JSON)
    root = document_root(listing)
    web = None
    if root is not None:
        web = f'PHP_CLI_SERVER_WORKERS={WORKERS_COUNT} php -S "127.0.0.1:$PORT" -t {root}'
    notes = []
    if has_composer and not listing.has_file(COMPOSER_LOCK):
        notes.append(
            f"there is no {COMPOSER_LOCK}: the versions that are installed may differ from build to"
            " build"
        )
    by = [name for name in (COMPOSER_JSON, COMPOSER_LOCK) if listing.has_file(name)]
    return Recipe(
        by=tuple(by) or ((INDEX,) if listing.has_file(INDEX) else ()),
        install=(_INSTALL,) if has_composer else (),
        web=web,
        needs=(_PHP,),
        client_needs=(_COMPOSER,) if has_composer else (),
        notes=tuple(notes),
        is_public=root == ".",
    )
