"""Custom domains: who gets a name, who hears of it, and when it is free again."""

from __future__ import annotations

import asyncio

import pytest

from hooks.domains import DOMAINS_COUNT_MAX, Domains
from hooks.errors import InvalidRequestError, NotFoundError, RefusedError
from hooks.hostnames import PlatformNames
from storage.errors import RecordConflictError
from storage.model import SYSTEM
from storage.records import domains as rows

NAMES = PlatformNames("localhost", "forge.example")


@pytest.fixture
def domains(world) -> Domains:
    return Domains(world.jobs, NAMES)


async def names_of(world, environment) -> tuple[str, ...]:
    """What a host is told that the environment is called."""
    return (await world.told(environment.id)).hostnames


async def test_hosts_are_told_of_a_name_at_once_and_of_its_removal(world, domains) -> None:
    production = world.environment(await world.site())
    heard = world.rolls.desired()
    await anext(heard)
    await domains.add(production, "Shop.Example.", SYSTEM)
    assert (await anext(heard)).environment.hostnames == ("acme-store.localhost", "shop.example")
    await domains.add(production, "bücher.example", SYSTEM)
    assert (await anext(heard)).environment.hostnames[1:] == (
        "shop.example",
        "xn--bcher-kva.example",
    )
    await domains.remove(production, "SHOP.example")
    assert (await anext(heard)).environment.hostnames[1:] == ("xn--bcher-kva.example",)
    await heard.aclose()
    again = world.reopen()
    assert (await names_of(again, production))[1:] == ("xn--bcher-kva.example",)


async def test_name_is_one_environments_until_it_is_removed_there(world, domains) -> None:
    acme, other = await world.site(), await world.site("other")
    production, staging = world.environment(acme), world.environment(acme, "staging")
    await domains.add(production, "shop.example", SYSTEM)
    for environment, code, says in (
        (production, "domain.exists", "leads to production already"),
        (staging, "domain.taken", "The site's production has it"),
        (world.environment(other), "domain.taken", "Something else on this server has it"),
    ):
        with pytest.raises(RefusedError) as refused:
            await domains.add(environment, "SHOP.example.", SYSTEM)
        assert refused.value.code == code
        assert says in str(refused.value)
    with pytest.raises(NotFoundError):
        await domains.remove(staging, "shop.example")
    await domains.remove(production, "shop.example")
    made = await domains.add(world.environment(other), "shop.example", SYSTEM)
    assert rows.of_hostname(world.records.reader(), "shop.example") == made.value
    assert await names_of(world, production) == ("acme-store.localhost",)
    assert await names_of(world, world.environment(other)) == ("other.localhost", "shop.example")


async def test_of_many_who_ask_for_a_name_at_once_one_gets_it(world, domains) -> None:
    sites = [await world.site(f"site-{number}") for number in range(8)]
    asked = (domains.add(world.environment(site), "shop.example", SYSTEM) for site in sites)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    refused = [each for each in answers if isinstance(each, RefusedError)]
    assert (len(refused), {each.code for each in refused}) == (7, {"domain.taken"})


async def test_names_of_a_site_that_is_deleted_are_free(world, domains) -> None:
    acme, other = await world.site(), await world.site("other")
    await domains.add(world.environment(acme), "shop.example", SYSTEM)
    await domains.add(world.environment(acme, "staging"), "next.shop.example", SYSTEM)
    await world.sites.delete(acme)
    for name in ("shop.example", "next.shop.example"):
        await domains.add(world.environment(other), name, SYSTEM)
    assert len(await names_of(world, world.environment(other))) == 3


@pytest.mark.parametrize(
    "hostname",
    ["other.localhost", "x.y.localhost", "forge.example", "FORGE.example.", "a.forge.example"],
)
async def test_names_of_the_server_itself_are_nobodys(world, domains, hostname) -> None:
    production = world.environment(await world.site())
    with pytest.raises(RefusedError) as refused:
        await domains.add(production, hostname, SYSTEM)
    assert refused.value.code == "domain.reserved"


async def test_what_is_no_host_name_names_the_field(world, domains) -> None:
    production = world.environment(await world.site())
    with pytest.raises(InvalidRequestError) as refused:
        await domains.add(production, "https://shop.example/", SYSTEM)
    assert refused.value.param == "hostname"


async def test_name_that_the_settings_took_since_is_not_served(world, domains) -> None:
    """A server that moved, or records that were put back on one with another domain."""
    production = world.environment(await world.site())
    await domains.add(production, "shop.example", SYSTEM)
    await domains.add(production, "www.elsewhere.example", SYSTEM)
    world.rolls._wanted._names = PlatformNames("example")
    assert await names_of(world, production) == ("acme-store.example",)
    world.rolls._wanted._names = PlatformNames("shop.example")
    assert (await names_of(world, production))[1:] == ("www.elsewhere.example",)


async def test_previews_have_no_names_of_their_own(world, domains) -> None:
    site = await world.site()
    preview = (await world.sites.create_environment(site, "preview", "topic", ephemeral=True)).value
    with pytest.raises(RefusedError) as refused:
        await domains.add(preview, "shop.example", SYSTEM)
    assert refused.value.code == "domain.not_for_previews"


async def test_environment_has_so_many_names_and_no_more(world, domains) -> None:
    production = world.environment(await world.site())
    for number in range(DOMAINS_COUNT_MAX):
        await domains.add(production, f"shop-{number}.example", SYSTEM)
    with pytest.raises(RefusedError) as refused:
        await domains.add(production, "one-more.example", SYSTEM)
    assert refused.value.code == "domain.too_many"
    await domains.remove(production, "shop-0.example")
    await domains.add(production, "one-more.example", SYSTEM)


async def test_suspended_environment_keeps_its_names(world, domains) -> None:
    production = world.environment(await world.site())
    await domains.add(production, "shop.example", SYSTEM)
    await world.sites.suspend_environment(production, lambda: None)
    told = await world.told(production.id)
    assert (told.is_suspended, told.hostnames[1:]) == (True, ("shop.example",))


async def test_records_keep_a_name_once_and_let_it_go_with_its_environment(world, domains) -> None:
    production = world.environment(await world.site())
    made = (await domains.add(production, "shop.example", SYSTEM)).value
    with pytest.raises(RecordConflictError):
        world.records.write(lambda db: rows.add(db, made))
    world.records.write(lambda db: db.execute("DELETE FROM environment"))
    assert rows.every(world.records.reader()) == []
