"""The audit log: who asks for a change is known where the request comes in, and is written down
where the change is made, in its transaction.

What nobody asks for at that moment (a clean-up, a roll that ends) is the server's own doing, or
that of who began it; it has neither address nor request.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from storage.model import ActorRef


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks for a change, in which request, from which address."""

    actor: ActorRef
    address: str | None
    request_id: str | None


_ASKER: ContextVar[Asker | None] = ContextVar("asker", default=None)


def asker() -> Asker | None:
    """Who asks for what is done now; None when nobody does."""
    return _ASKER.get()


@contextlib.contextmanager
def asked_by(who: Asker | None) -> Iterator[None]:
    """Let the changes that are committed inside be those that `who` asks for; None: nobody."""
    before = _ASKER.set(who)
    try:
        yield
    finally:
        _ASKER.reset(before)
