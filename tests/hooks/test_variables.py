"""Variables and secrets: where they hold, what they may be, and which builds get them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hooks.builds.control.given import given_to_build
from hooks.builds.errors import BuildFailedError
from hooks.errors import InvalidRequestError, NotFoundError, RefusedError
from hooks.variable_rules import VALUE_BYTES_MAX, name_fault, value_fault
from hooks.variables import PLACE_COUNT_MAX, Variables
from storage.model import Environment, Site, VariableUse
from storage.records import variables as rows

BUILD, RUN, BOTH = VariableUse.BUILD, VariableUse.RUN, VariableUse.BOTH
ODD = 'a$b ${c} `d` "e" \'f\' \\n\n{"g": [1]}\t\u00e9\U0001f511 \r\n'


@pytest.fixture
def held(world) -> Variables:
    return world.variables


async def put(
    held: Variables,
    site: Site,
    environment: Environment | None,
    name: str,
    value: str,
    *,
    is_secret: bool = True,
    used_in: VariableUse = BUILD,
) -> None:
    await held.put(site, environment, name, value, is_secret=is_secret, used_in=used_in)


def of_build(world, held: Variables, environment: Environment, *declared: str):
    return held.for_build(world.records.reader(), environment.site_id, environment.id, declared)


async def test_environment_wins_over_its_site_name_by_name(world, held) -> None:
    site = await world.site()
    production, staging = (world.environment(site, slug) for slug in ("production", "staging"))
    await put(held, site, None, "TOKEN", "of the site")
    await put(held, site, None, "URL", ODD, is_secret=False)
    await put(held, site, staging, "TOKEN", "of staging")
    assert of_build(world, held, production, "TOKEN", "URL").values.secrets == {
        "TOKEN": "of the site"
    }
    found = of_build(world, held, staging, "TOKEN", "URL")
    assert (found.values.secrets, found.values.plain) == ({"TOKEN": "of staging"}, {"URL": ODD})
    await held.delete(site, staging, "TOKEN", is_secret=True)
    assert of_build(world, held, staging, "TOKEN").values.secrets == {"TOKEN": "of the site"}


async def test_other_sites_have_none_of_it(world, held) -> None:
    site, other = await world.site(), await world.site("other")
    await put(held, site, None, "TOKEN", "a long secret")
    found = of_build(world, held, world.environment(other), "TOKEN")
    assert (found.missing, found.undeclared) == (("TOKEN",), ())


async def test_build_gets_what_it_declares_and_never_what_is_only_for_running(world, held) -> None:
    site = await world.site()
    production = world.environment(site)
    await put(held, site, None, "BUILD_TOKEN", "for builds", used_in=BUILD)
    await put(held, site, None, "DATABASE_URL", "for running", used_in=RUN)
    await put(held, site, None, "SHARED", "for either", used_in=BOTH)
    found = of_build(world, held, production, "SHARED")
    assert given_to_build(found).secrets == {"SHARED": "for either"}
    assert found.undeclared == ("BUILD_TOKEN",)
    with pytest.raises(BuildFailedError) as raised:
        given_to_build(of_build(world, held, production, "DATABASE_URL", "ABSENT"))
    assert raised.value.code == "build.variable_missing"
    assert "ABSENT is not set" in str(raised.value)
    assert "DATABASE_URL is set only for what runs" in str(raised.value)


async def test_digest_follows_what_is_given_and_tells_nothing_of_it(world, held) -> None:
    site = await world.site()
    production, staging = (world.environment(site, slug) for slug in ("production", "staging"))
    await put(held, site, None, "TOKEN", "one long secret")
    first = of_build(world, held, production, "TOKEN").digest
    assert of_build(world, held, staging, "TOKEN").digest == first
    assert of_build(world, held, production).digest != first
    await put(held, site, staging, "TOKEN", "another secret")
    assert of_build(world, held, staging, "TOKEN").digest != first
    await put(held, site, staging, "TOKEN", "one long secret")
    assert of_build(world, held, staging, "TOKEN").digest == first


async def test_values_are_nowhere_in_the_database(world, held) -> None:
    site = await world.site()
    await put(held, site, None, "TOKEN", "canary-5f0c9d", is_secret=True)
    await put(held, site, None, "URL", "canary-5f0c9d", is_secret=False)
    world.records.close()
    for path in world.root.glob("gitd.db*"):
        assert b"canary-5f0c9d" not in path.read_bytes()
    assert "canary" not in repr(held.__dict__)


async def test_secret_is_not_made_readable_by_setting_a_variable(world, held) -> None:
    site = await world.site()
    await put(held, site, None, "TOKEN", "a long secret")
    with pytest.raises(RefusedError, match="TOKEN is a secret here"):
        await put(held, site, None, "TOKEN", "x", is_secret=False)
    with pytest.raises(NotFoundError):
        await held.delete(site, None, "TOKEN", is_secret=False)
    assert of_build(world, held, world.environment(site), "TOKEN").values.secrets


async def test_number_of_variables_is_bounded(world, held) -> None:
    site = await world.site()
    for number in range(PLACE_COUNT_MAX):
        await put(held, site, None, f"N{number}", "x", is_secret=False)
    with pytest.raises(RefusedError, match="at most 100"):
        await put(held, site, None, "ONE_MORE", "x", is_secret=False)
    await put(held, site, None, "N0", "y", is_secret=False)


async def test_what_is_deleted_takes_its_variables_along(world, held) -> None:
    site = await world.site()
    await put(held, site, world.environment(site), "TOKEN", "a long secret")
    await put(held, site, None, "TOKEN", "a long secret")
    await world.sites.delete(site)
    assert not rows.has_any(world.records.reader())


async def test_fault_never_repeats_the_value(world, held) -> None:
    site = await world.site()
    for value in ("brief", "canary\0canary", "canary" * VALUE_BYTES_MAX, "canary\ud800"):
        with pytest.raises(InvalidRequestError) as raised:
            await put(held, site, None, "TOKEN", value)
        assert value[:5] not in str(raised.value)


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "path", "LD_PRELOAD", "GITD_SITE", "PORT", "https_proxy", "npm_config_proxy"),
        *("", "1A", "A=B", "A B", "A-B", "\u00c9", "N" * 129, "BASH_ENV"),
    ],
)
def test_names_of_the_platform_and_odd_ones_are_refused(name: str) -> None:
    assert name_fault(name)


@settings(deadline=None, max_examples=30)
@given(st.from_regex(r"X_[A-Za-z0-9_]{1,80}", fullmatch=True))
def test_ordinary_names_are_taken(name: str) -> None:
    assert name_fault(name) is None


def test_short_values_are_for_variables_and_for_what_runs() -> None:
    assert value_fault("1234 567", is_secret=True, used_in=BOTH)
    assert value_fault("1234 5678", is_secret=True, used_in=BOTH) is None
    assert value_fault("1", is_secret=True, used_in=RUN) is None
    assert value_fault("", is_secret=False, used_in=BUILD) is None
