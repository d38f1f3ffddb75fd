"""The chain of the audit log: each line has the digest of the line before it, and its own.

    digest     BLAKE3-256 of the line as the API shows it without its digest: as JSON in UTF-8, with
               sorted keys and no spaces
    previous   the digest of the line before; 32 zero bytes where there was none
    sequence   1, 2, 3, ... without a gap; old lines are forgotten from the beginning

Whoever changes a line, takes one away or slips one in has to write all lines behind it anew. Then
the digest of the newest line, the head, is another than the one that somebody noted elsewhere.
Knows no database and no server.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from storage.digest import DIGEST_BYTES, Digest
from storage.envelope import encode_json
from storage.errors import AuditLogInvalidError

BEFORE_ALL: Final = Digest(bytes(DIGEST_BYTES))
FAULTS_MAX: Final = 20  # that are told; one change in the middle is one fault
_DIGEST = "digest"
_SEQUENCE = re.compile("[0-9]{1,18}", re.ASCII)


def digest_of(line: Mapping[str, object]) -> Digest:
    """Return what the digest of a line has to be. `line`: as the API shows it."""
    return Digest.of(encode_json({name: line[name] for name in line if name != _DIGEST}))


@dataclass(slots=True)
class ChainReport:
    """What became of checking lines.

    Attributes:
        first, last: The sequences of the first and the last line; None without any.
        follows: The digest that the first line follows from.
        head: The digest of the last line.
        missing: So many lines are not there between the first and the last.
        faults: A sentence for each, up to `FAULTS_MAX`.
        fault_count: Of all of them.
        notes: A sentence for each noted head of which nobody can tell.
    """

    count: int = 0
    first: int | None = None
    last: int | None = None
    follows: str | None = None
    head: str | None = None
    missing: int = 0
    faults: list[str] = field(default_factory=list)
    fault_count: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def noted_head(self) -> str | None:
        """The head as it is to be noted: `SEQUENCE:DIGEST`."""
        return None if self.last is None else f"{self.last}:{self.head}"

    def blame(self, fault: str) -> None:
        self.fault_count += 1
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(fault)

    def add(self, sequence: int, previous: str, digest: str, *, is_partial: bool = False) -> None:
        """Go on to the next line, and say so where it does not follow from the one before."""
        if self.last is None:
            self.first, self.follows = sequence, previous
        elif sequence <= self.last:
            self.blame(f"line {sequence} is there twice")
        elif sequence > self.last + 1:
            self.missing += sequence - self.last - 1
            if not is_partial:
                self.blame(f"lines {self.last + 1} to {sequence - 1} are missing")
        elif previous != self.head:
            self.blame(f"line {sequence} does not follow from line {self.last}")
        self.count, self.last, self.head = self.count + 1, sequence, digest


def check_lines(
    lines: Iterable[Mapping[str, object]],
    *,
    is_partial: bool = False,
    noted: Collection[str] = (),
) -> ChainReport:
    """Check lines in the order of their sequences, the oldest first.

    `is_partial`: lines may be missing, as for a key that sees one site. `noted`: heads that were
    noted before, which the log has to have. One is `SEQUENCE:DIGEST`, of which it can be told that
    the log may not have it any more, or show it; or the digest alone, which has to be there.

    Raises:
        AuditLogInvalidError: A line is none of an audit log.
    """
    report = ChainReport()
    seen: set[str] = set()
    places: dict[int, str] = {}
    wanted = {place[0] for place in map(_noted_place, noted) if place is not None}
    for line in lines:
        sequence, previous, digest = _place(line)
        if digest != str(digest_of(line)):
            report.blame(f"line {sequence} ({line.get('id')}) is not as it was written")
        report.add(sequence, previous, digest, is_partial=is_partial)
        if report.count == 1:
            seen.add(previous)  # of what was forgotten
            places[sequence - 1] = previous
        seen.add(digest)
        if sequence in wanted:
            places[sequence] = digest
    for head in noted:
        _look_for(head, report, seen, places, is_partial=is_partial)
    return report


def _look_for(
    head: str,
    report: ChainReport,
    seen: Collection[str],
    places: Mapping[int, str],
    *,
    is_partial: bool,
) -> None:
    absent = f"the head {head}, which was noted before, is not in it"
    place = _noted_place(head)
    if place is None:
        if head not in seen:
            begins = f": it begins with line {report.first}" if report.first != 1 else ""
            report.blame(absent + begins)
        return
    sequence, digest = place
    if sequence in places:
        if places[sequence] != digest:
            report.blame(f"{absent}: its line {sequence} is another")
    elif report.first is not None and sequence < report.first:
        report.notes.append(f"the head {head} is older than its first line: it cannot be told")
    elif is_partial:
        report.notes.append(f"the head {head} is of a line that is not in it: it cannot be told")
    else:
        report.blame(absent)


def _noted_place(head: str) -> tuple[int, str] | None:
    """The sequence and the digest that a head names; None of one that is a digest alone."""
    sequence, _, digest = head.partition(":")
    return (int(sequence), digest) if _SEQUENCE.fullmatch(sequence) else None


def in_order(lines: object) -> list[Mapping[str, object]]:
    """Sort lines that may be in any order, such as the API's. `lines`: what was read of JSON.

    Raises:
        AuditLogInvalidError: It is no list, or a line is none of an audit log.
    """
    if not isinstance(lines, list) or not all(isinstance(line, Mapping) for line in lines):
        raise AuditLogInvalidError("it is no list of lines of an audit log")
    return sorted(lines, key=lambda line: _place(line)[0])


def _place(line: Mapping[str, object]) -> tuple[int, str, str]:
    sequence, previous, digest = (line.get(name) for name in ("sequence", "previous", _DIGEST))
    is_int = isinstance(sequence, int) and not isinstance(sequence, bool)
    if not (is_int and isinstance(previous, str) and isinstance(digest, str)):
        raise AuditLogInvalidError(
            "a line has no `sequence`, `previous` and `digest`: it is no audit log, or one of a"
            " server whose log had no chain yet"
        )
    assert isinstance(sequence, int), "looked at just now"
    return sequence, previous, digest
