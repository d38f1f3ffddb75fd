"""Who pushes, as reflogs and the operator's hooks are told."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

_NOT_IN_NAMES = str.maketrans("", "", "<>\n")  # git leaves them out too


@dataclass(frozen=True, slots=True)
class Pusher:
    """The name and the address of one push.

    Attributes:
        remote_user: None when nobody is logged in.
        server_environ: the server's own environment, whose GIT_COMMITTER_* goes first.
    """

    remote_user: str | None
    remote_addr: str
    server_environ: Mapping[str, str]

    @property
    def committer(self) -> tuple[str, str]:
        """The name and address for reflogs: the operator's own, if the environment has one."""
        user = (self.remote_user or "").translate(_NOT_IN_NAMES) or "anonymous"
        return (
            self.server_environ.get("GIT_COMMITTER_NAME") or user,
            self.server_environ.get("GIT_COMMITTER_EMAIL") or f"{user}@http.{self.remote_addr}",
        )

    def environ(self) -> dict[str, str]:
        """Make the environment of hooks: the server's, and who pushes from where."""
        name, email = self.committer
        environ = {
            **self.server_environ,
            "GIT_COMMITTER_NAME": name,
            "GIT_COMMITTER_EMAIL": email,
            "REMOTE_ADDR": self.remote_addr,
            "GATEWAY_INTERFACE": "CGI/1.1",
            "SERVER_NAME": socket.gethostname(),
        }
        if self.remote_user is not None:
            environ["REMOTE_USER"] = self.remote_user
        return environ
