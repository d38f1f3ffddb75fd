"""What a push asks for, before any pack: its commands, capabilities and options.

Source: gitprotocol-pack(5), "Reference Update Request and Packfile Transfer".
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field

from gitd.git.body import BodyReader
from gitd.git.errors import BodyInvalidError, BodyTooLargeError
from gitd.git.limits import GitLimits
from gitd.git.pkt_line import Marker
from gitd.git.push import RefUpdate
from gitd.git.push_certificate import END_LINE, Certificate
from storage.git.object_formats import NULL_OID, OID_DIGITS, unhex

CAPABILITIES_MAX = 1_000  # different ones in one push; git's client says some ten
_NEED_OFFER = frozenset({b"atomic", b"push-options"})


@dataclass(slots=True)
class Command:
    """One line of a push, and what became of it.

    Attributes:
        error: why it is refused, as the report says it.
        may_be_undone: its ref has moved, and a power cut may undo that: `error` says so.
        is_skipped: accepted, and nothing to do: hooks do not hear of it.
        is_absent: a deletion of what is not there: accepted, and heard of beforehand only.
    """

    name: bytes
    old: bytes
    new: bytes
    error: str | None = None
    may_be_undone: bool = False
    is_skipped: bool = False
    is_absent: bool = False

    @property
    def update(self) -> RefUpdate:
        return RefUpdate(os.fsdecode(self.name), self.old.hex(), self.new.hex())

    @property
    def is_delete(self) -> bool:
        return self.new == NULL_OID

    @property
    def is_refused(self) -> bool:
        return self.error is not None and not self.may_be_undone

    @property
    def is_going(self) -> bool:
        """Whether there is still something to do."""
        return not (self.is_refused or self.is_skipped or self.is_absent)


@dataclass(slots=True)
class Wish:
    """A push as it was asked for.

    Attributes:
        shallow: raw oids of commits that the pusher has no parents of.
        new_borders: of these, where the history is to end here too.
        shallow_tips: what is to be pushed that ends at such a border.
        options: None when the capability was not used.
        certificate: of a signed push; its commands are those of the certificate.
        refusal: why all of it is refused: it exceeds a bound, and was not read further.
    """

    commands: list[Command] = field(default_factory=list)
    shallow: list[bytes] = field(default_factory=list)
    new_borders: list[bytes] = field(default_factory=list)
    shallow_tips: list[bytes] = field(default_factory=list)
    capabilities: set[bytes] = field(default_factory=set)
    options: list[str] | None = None
    certificate: Certificate | None = None
    refusal: str | None = None

    def can(self, capability: bytes) -> bool:
        return capability in self.capabilities

    @property
    def needs_pack(self) -> bool:
        return any(not command.is_delete for command in self.commands)

    def refuse_all(self, reason: str) -> None:
        """Refuse what is not refused yet."""
        for command in self.commands:
            command.error = command.error or reason

    def hook_lines(self) -> bytes:
        """Return the commands that there is still something to do for, as hooks read them."""
        return b"".join(
            b"%s %s %s\n" % (command.old.hex().encode(), command.new.hex().encode(), command.name)
            for command in self.commands
            if command.is_going
        )

    @property
    def agent(self) -> str:
        for capability in self.capabilities:
            if capability.startswith(b"agent="):
                return capability[6:].decode("utf-8", "replace")
        return ""


async def read_wish(body: BodyReader, limits: GitLimits, *, offered: Collection[bytes]) -> Wish:
    """Read up to the pack.

    `offered`: the capabilities of the advertisement. As with git, those of `_NEED_OFFER` are not
    heard where they were not offered, and a signed push without a nonce is ignored.

    Raises:
        BodyInvalidError: it is no push.
        BodyTooLargeError: it goes on without a command.
    """
    wish = Wish()
    unheard = _NEED_OFFER.difference(offered)
    may_sign = any(capability.startswith(b"push-cert=") for capability in offered)
    certificate: bytes | None = None
    total_bytes = 0
    while not isinstance(line := await body.pkt(), Marker):
        total_bytes += len(line)
        line = line.removesuffix(b"\n")
        if line.startswith(b"shallow "):
            wish.shallow.append(_oid(line[8:]))
        elif line.startswith(b"push-cert\0"):
            wish.capabilities = set(_as_c_string(line[10:]).split()) - unheard
            certificate = await _read_certificate(body, limits)
        else:
            # Any line may name capabilities, though git's client says them once.
            line, _, capabilities = line.partition(b"\0")
            if capabilities:
                wish.capabilities.update(_as_c_string(capabilities).split())
                wish.capabilities -= unheard
            wish.commands.append(_command(line))
        if len(wish.capabilities) > CAPABILITIES_MAX:
            raise BodyInvalidError(f"a push may name {CAPABILITIES_MAX} capabilities at most")
        if total_bytes > limits.request_bytes_max:
            wish.refusal = (
                f"the commands of a push have {limits.request_bytes_max} bytes at most "
                "(git.request_bytes_max): push fewer refs at once"
            )
            if not wish.commands:
                raise BodyTooLargeError(wish.refusal)
            return wish
        if len(wish.commands) > limits.commands_max:
            wish.refusal = _too_many_commands(limits)
            return wish
        if len(wish.shallow) > limits.wants_max:
            raise BodyInvalidError("too many shallow lines")
    if line is Marker.END and (wish.commands or certificate is not None):
        raise BodyInvalidError("the request ends before its first flush")
    if certificate is not None:
        if not may_sign:
            return Wish()
        _take_certified(wish, certificate, limits)
    _require_sha1(wish.capabilities)
    if wish.can(b"push-options") and wish.commands and wish.refusal is None:
        await _read_options(body, wish, limits)
    if wish.certificate is not None and not wish.certificate.is_about(wish.options):
        for command in wish.commands:
            command.error = "inconsistent push options"
    return wish


async def _read_certificate(body: BodyReader, limits: GitLimits) -> bytes:
    lines: list[bytes] = []
    total_bytes = 0
    while (line := await body.pkt()) != END_LINE:
        if isinstance(line, Marker):
            raise BodyInvalidError("protocol error: the push certificate has no end")
        total_bytes += len(line)
        if total_bytes > limits.request_bytes_max:
            raise BodyTooLargeError(
                f"a push certificate has {limits.request_bytes_max} bytes at most "
                "(git.request_bytes_max)"
            )
        lines.append(line)
    return b"".join(lines)


def _take_certified(wish: Wish, content: bytes, limits: GitLimits) -> None:
    if wish.commands:
        raise BodyInvalidError("protocol error: got both push certificate and unsigned commands")
    try:
        wish.certificate = Certificate.parse(content)
    except ValueError as error:
        raise BodyInvalidError(f"protocol error: {error}") from error
    lines = wish.certificate.commands
    wish.commands = [_command(line) for line in lines[: limits.commands_max]]
    if len(lines) > limits.commands_max:
        wish.refusal = _too_many_commands(limits)


def _too_many_commands(limits: GitLimits) -> str:
    return (
        f"a push may update {limits.commands_max} refs at most (git.commands_max): "
        "push fewer at once"
    )


async def _read_options(body: BodyReader, wish: Wish, limits: GitLimits) -> None:
    options: list[str] = []
    total_bytes = 0
    while not isinstance(line := await body.pkt(), Marker):
        total_bytes += len(line)
        options.append(_as_c_string(line.removesuffix(b"\n")).decode("utf-8", "replace"))
        is_long = total_bytes > limits.push_options_bytes_max
        if is_long or len(options) > limits.push_options_max:
            wish.refusal = (
                f"a push may have {limits.push_options_max} options of "
                f"{limits.push_options_bytes_max} bytes at most (git.push_options_max, "
                "git.push_options_bytes_max)"
            )
            return
    wish.options = options


def _as_c_string(data: bytes) -> bytes:
    """Cut what git's own server does not see: hooks cannot be told of it."""
    return data.partition(b"\0")[0]


def _command(line: bytes) -> Command:
    old, _, rest = line.partition(b" ")
    new, space, name = _as_c_string(rest).partition(b" ")
    if not space or not name:
        raise BodyInvalidError(f"protocol error: expected old/new/ref, got {line[:200]!r}")
    return Command(name=name, old=_oid(old), new=_oid(new))


def _oid(digits: bytes) -> bytes:
    if not OID_DIGITS.fullmatch(digits):
        raise BodyInvalidError(f"protocol error: expected an object id, got {digits[:80]!r}")
    return unhex(digits)


def _require_sha1(capabilities: Collection[bytes]) -> None:
    for capability in capabilities:
        if capability.startswith(b"object-format=") and capability != b"object-format=sha1":
            raise BodyInvalidError("error: unsupported object format")
