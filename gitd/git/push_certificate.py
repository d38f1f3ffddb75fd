"""Signed pushes: the certificate that a pusher signs, and the nonce that makes it of this moment.

Source: gitprotocol-pack(5), "Push Certificate"; git-receive-pack(1), "PRE-RECEIVE HOOK";
git-config(1), `receive.certNonceSeed`, `receive.certNonceSlop`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from dataclasses import dataclass
from pathlib import Path

SEED_KEY, SLOP_KEY = "receive.certnonceseed", "receive.certnonceslop"
END_LINE = b"push-cert-end\n"
_SIGNATURE = re.compile(
    rb"^-----BEGIN (?:PGP SIGNATURE|PGP MESSAGE|SIGNED MESSAGE|SSH SIGNATURE)-----", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was signed, and the signature behind it.

    Attributes:
        content: all of it, as it came.
        payload: the signed part: a head of lines, an empty line, and the commands.
    """

    content: bytes
    payload: bytes
    signature: bytes

    @classmethod
    def parse(cls, content: bytes) -> Certificate:
        """Take a certificate apart.

        Raises:
            ValueError: it has no head.
        """
        if b"\n\n" not in content:
            raise ValueError("malformed push certificate")
        starts = [found.start() for found in _SIGNATURE.finditer(content)]
        end = starts[-1] if starts else len(content)
        return cls(content, content[:end], content[end:])

    @property
    def commands(self) -> list[bytes]:
        """The lines `<old> <new> <ref>`."""
        return self.payload.partition(b"\n\n")[2].splitlines()

    def values(self, name: bytes) -> list[bytes]:
        """Return what the head has under a name, in order."""
        lines = self.payload.partition(b"\n\n")[0].split(b"\n")
        return [line[len(name) + 1 :] for line in lines if line.startswith(name + b" ")]

    def is_about(self, options: list[str] | None) -> bool:
        """Say whether the push options are those that were signed."""
        signed = [value.decode("utf-8", "replace") for value in self.values(b"push-option")]
        return signed == list(options or ())


# the nonce


def make_nonce(seed: str, repository: Path, stamp: int) -> str:
    """Make the nonce of a repository and a time in seconds: whoever has the seed can check it."""
    text = f"{os.fspath(repository)}:{stamp}"
    digest = hmac.new(os.fsencode(seed), os.fsencode(text), hashlib.sha256)
    return f"{stamp}-{digest.hexdigest()}"


@dataclass(frozen=True, slots=True)
class NonceVerdict:
    """What hooks are told about the nonce of a certificate.

    Attributes:
        nonce: the one that counts: this moment's, or the pusher's where it is as good.
        status: `OK`, `SLOP` (true but old), `BAD` or `MISSING`, as git says it.
        slop_s: how old it is, if that is the matter.
    """

    nonce: str
    status: str
    slop_s: int | None = None


def judge_nonce(
    certificate: Certificate, *, seed: str, repository: Path, now_s: int, slop_s_max: int
) -> NonceVerdict:
    """Hold the nonce of a certificate against those that this repository gives out."""
    fresh = make_nonce(seed, repository, now_s)
    found = certificate.values(b"nonce")
    if not found:
        return NonceVerdict(fresh, "MISSING")
    nonce = found[0].decode("utf-8", "replace")
    if nonce == fresh:
        return NonceVerdict(fresh, "OK")
    stamp = re.match(r"([1-9][0-9]{0,17})-", nonce)
    if stamp is None:
        return NonceVerdict(fresh, "BAD")
    true = make_nonce(seed, repository, int(stamp[1]))
    if not hmac.compare_digest(true.encode(), nonce.encode()):
        return NonceVerdict(fresh, "BAD")
    age_s = now_s - int(stamp[1])
    if abs(age_s) <= slop_s_max:
        return NonceVerdict(nonce, "OK")
    return NonceVerdict(fresh, "SLOP", age_s)
