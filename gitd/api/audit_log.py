"""The audit log: who changed what. Source: contract §5 "Audit log"."""

from __future__ import annotations

from gitd.api import answers
from gitd.api.endpoint import Call, ListReply
from gitd.api.paging import PageQuery, list_name, next_cursor, read_cursor
from gitd.api.reading import NoBody
from storage.records import audit_log

PATH = "/v1/audit-log"


class AuditLog:
    async def list(self, call: Call[PageQuery, NoBody]) -> ListReply:
        actor = call.actor
        name = list_name("audit-log", actor.site_id, actor.env_id)
        (before,) = read_cursor(call.query.cursor, name)
        page = audit_log.page(
            call.db,
            site_id=actor.site_id,
            env_id=actor.env_id,
            before=before,
            limit_count=call.query.limit,
        )
        cursor = next_cursor(name, page)
        return ListReply([answers.audit_entry(entry) for entry in page.items], cursor)
