"""Who signed something, as `gpg`, `gpgsm` or `ssh-keygen` of the operator tell it.

The programs and the keys that they trust are the operator's; a repository names them in its config
(`gpg.program`, `gpg.x509.program`, `gpg.ssh.program`, `gpg.ssh.allowedSignersFile`).
Source: git-config(1), `gpg.*`; gnupg's doc/DETAILS, "Format of the --status-fd output";
ssh-keygen(1), "-Y verify".
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.git.config import GitConfig

_STATUSES = {
    "GOODSIG": "G",
    "BADSIG": "B",
    "ERRSIG": "E",
    "EXPSIG": "X",
    "EXPKEYSIG": "Y",
    "REVKEYSIG": "R",
}
_GNUPG_LINE = re.compile(rf"^\[GNUPG:\] ({'|'.join(_STATUSES)}) (\S+)(?: (.*))?$", re.MULTILINE)
_SSH_GOOD = re.compile(r'Good "git" signature (?:for (.*) )?with .*? ?key (\S+)')


@dataclass(frozen=True, slots=True)
class Signer:
    """What is known about a signature.

    Attributes:
        status: as git log's `%G?`: `G` good, `B` bad, `U` good but of nobody known, `X`, `Y`, `R`
            expired or revoked, `E` not to be checked, `N` none.
    """

    status: str = "N"
    name: str = ""
    key: str = ""


class SignatureCheck:
    """Asks the operator's programs.

    Args:
        environ: what they find in their environment.
        timeout_s: longest time for each.
    """

    def __init__(self, config: GitConfig, environ: Mapping[str, str], timeout_s: float) -> None:
        self._config = config
        self._environ = environ
        self._timeout_s = timeout_s

    async def signer_of(self, payload: bytes, signature: bytes) -> Signer:
        """Return who signed `payload`. Raises nothing for what a pusher can send."""
        if not signature:
            return Signer()
        try:
            with tempfile.TemporaryDirectory(prefix="gitd-signature-") as folder:
                path = Path(folder) / "signature"
                path.write_bytes(signature)
                if signature.startswith(b"-----BEGIN SSH"):
                    return await self._ask_ssh(payload, path)
                return await self._ask_gnupg(payload, path, signature)
        except (OSError, TimeoutError):
            return Signer("E")

    async def _ask_gnupg(self, payload: bytes, path: Path, signature: bytes) -> Signer:
        if signature.startswith(b"-----BEGIN SIGNED MESSAGE"):
            program = self._config.text("gpg.x509.program") or "gpgsm"
            options = list[str]()
        else:
            config = self._config
            program = config.text("gpg.openpgp.program") or config.text("gpg.program") or "gpg"
            options = ["--keyid-format=long"]
        said = await self._run(
            program, *options, "--status-fd=1", "--verify", str(path), "-", stdin=payload
        )
        found = _GNUPG_LINE.findall(said)
        if len(found) != 1:  # of two signatures, which one would count?
            return Signer("E")
        ((status, key, name),) = found
        return Signer(_STATUSES[status], "" if status == "ERRSIG" else name, key)

    async def _ask_ssh(self, payload: bytes, path: Path) -> Signer:
        program = self._config.text("gpg.ssh.program") or "ssh-keygen"
        allowed = self._config.text("gpg.ssh.allowedsignersfile")
        if not allowed:
            return Signer("E")
        allowed = os.fspath(Path(allowed).expanduser())
        revoked = self._config.text("gpg.ssh.revocationfile")
        more = ("-r", os.fspath(Path(revoked).expanduser())) if revoked else ()
        names = await self._run(program, "-Y", "find-principals", "-f", allowed, "-s", str(path))
        for name in filter(None, names.splitlines()):
            said = await self._run(
                program, "-Y", "verify", "-n", "git", "-f", allowed, "-I", name,
                "-s", str(path), *more, stdin=payload,
            )  # fmt: skip
            if good := _SSH_GOOD.match(said):
                return Signer("G", good[1] or "", good[2])
        if names.strip():
            return Signer("B")
        said = await self._run(
            program, "-Y", "check-novalidate", "-n", "git", "-s", str(path), stdin=payload
        )
        good = _SSH_GOOD.match(said)
        return Signer("U", "", good[2]) if good else Signer("B")

    async def _run(self, program: str, *arguments: str, stdin: bytes = b"") -> str:
        """Return what a program says on its standard output, whatever its exit status."""
        process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            env=self._environ,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                out, _ = await process.communicate(stdin)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return out.decode("utf-8", "replace")
