"""Custom domains of an environment. Source: contract §5 "Preview URL", and our decision 0096."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from gitd.api import answers
from gitd.api.endpoint import Call, ListReply, Reply, created
from gitd.api.paging import PageQuery, list_name, next_cursor, read_cursor
from gitd.api.reading import NoBody, NoQuery
from hooks.domains import Domains, find
from hooks.follow import Addresses
from hooks.hostnames import TEXT_CHARS_MAX, PlatformNames
from storage.model import Domain, Environment
from storage.records import domains

ONLY_HERE = "localhost"  # a domain whose names lead nobody else to this machine


class DomainBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole host name: no scheme, no port, no path, no wildcard."""

    hostname: Annotated[
        str,
        msgspec.Meta(
            max_length=TEXT_CHARS_MAX, description="Such as www.example.com; in any spelling."
        ),
    ]


@dataclass(frozen=True, slots=True)
class DnsHelp:
    """What makes a name lead here: the server's own names do so themselves; `addresses` are its
    own, as far as the settings say them.
    """

    names: PlatformNames
    addresses: tuple[str, ...] = ()

    def of(self, environment: Environment) -> answers.DomainDns:
        is_local = f".{self.names.sites}".endswith(f".{ONLY_HERE}")
        cname = None if is_local else self.names.of(environment.hostname)
        return answers.DomainDns(cname, list(self.addresses))


class EnvironmentDomains:
    def __init__(self, use_cases: Domains, addresses: Addresses, dns: DnsHelp) -> None:
        self._domains = use_cases
        self._addresses = addresses
        self._dns = dns

    async def list(self, call: Call[PageQuery, NoBody]) -> ListReply:
        name = list_name("domains", call.environment.id)
        (before,) = read_cursor(call.query.cursor, name)
        page = domains.page(
            call.db, call.environment.id, before=before, limit_count=call.query.limit
        )
        cursor = next_cursor(name, page)
        return ListReply([self._answer(call.environment, row) for row in page.items], cursor)

    async def create(self, call: Call[NoQuery, DomainBody]) -> Reply:
        made = await self._domains.add(
            call.environment,
            call.body.hostname,
            call.actor.ref,
            only_env=call.actor.env_id,
            claim=call.claim,
        )
        path = answers.environment_path(call.site, call.environment)
        return created(
            self._answer(call.environment, made.value),
            f"{path}/domains/{made.value.id}",
            replayed=made.replayed,
        )

    async def show(self, call: Call[NoQuery, NoBody]) -> Reply:
        row = find(call.db, call.environment, call.named("domain"))
        return Reply(self._answer(call.environment, row))

    async def delete(self, call: Call[NoQuery, NoBody]) -> Reply:
        row = await self._domains.remove(call.environment, call.named("domain"))
        return Reply(answers.Deleted(row.id))

    def _answer(self, environment: Environment, row: Domain) -> answers.Domain:
        return answers.domain(self._addresses, row, self._dns.of(environment))
