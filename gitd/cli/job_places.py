"""Where jobs are: the names of their sites and environments, for people."""

from __future__ import annotations

from collections.abc import Sequence

from gitd.cli.answers import Fields, as_fields, text_at
from gitd.cli.client import Api, endpoint
from gitd.cli.exits import CliError


def with_places(api: Api, jobs: Sequence[Fields]) -> list[Fields]:
    """The jobs with the names of their sites and environments, as `place.site` and `place.env`.

    Where a name cannot be had the id stands: what it named is gone, or the key may not read it.
    """
    asked = {text_at(job, "resource.site_id") for job in jobs}
    names = {site_id: _site(api, site_id) for site_id in sorted(asked) if site_id}
    slugs: dict[str, str] = {}
    for site_id in names:
        slugs |= _environments(api, site_id)
    return [{**job, "place": _place(job, names, slugs)} for job in jobs]


def _place(job: Fields, names: dict[str, str], slugs: dict[str, str]) -> Fields:
    site_id, env_id = text_at(job, "resource.site_id"), text_at(job, "resource.env_id")
    return {"site": names.get(site_id, site_id), "env": slugs.get(env_id, env_id)}


def _site(api: Api, site_id: str) -> str:
    try:
        return text_at(as_fields(api.get(endpoint("sites", site_id)), "site"), "name") or site_id
    except CliError:
        return site_id


def _environments(api: Api, site_id: str) -> dict[str, str]:
    """The slugs of a site's environments, by their ids."""
    try:
        found = api.some(endpoint("sites", site_id, "environments"), None).items
    except CliError:
        return {}
    return {text_at(each, "id"): text_at(each, "slug") for each in found}
