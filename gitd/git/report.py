"""What a client is told of its refs.

Source: gitprotocol-pack(5), "Report Status".
"""

from __future__ import annotations

from gitd.git.pkt_line import FLUSH, pkt_lines
from gitd.git.push_request import Wish
from gitd.git.side_band import SideBandAnswer


async def send_report(answer: SideBandAnswer, wish: Wish, *, unpack_status: str) -> None:
    """Tell what became of each ref, if the client asked for it."""
    if not wish.can(b"report-status-v2") and not wish.can(b"report-status"):
        return
    lines = [f"unpack {unpack_status}\n".encode()]
    for command in wish.commands:
        if command.error is None:
            lines.append(b"ok %s\n" % command.name)
        else:
            reason = command.error.replace("\n", " ").encode("utf-8", "replace")
            lines.append(b"ng %s %s\n" % (command.name, reason))
    await answer.send(pkt_lines(lines) + FLUSH)
