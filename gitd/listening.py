"""Listening: the sockets of git, the API and sites, and what is wrong with their addresses."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from pathlib import Path

import structlog

from gitd.config import Config, is_loopback, parse_address
from gitd.errors import StartError
from gitd.systemd import inherited_sockets, is_given_sockets

log = structlog.get_logger(__name__)

ASK_S = 1.0
_LISTENS = "0A"  # TCP_LISTEN


def try_addresses(config: Config, *, with_sites: bool) -> None:
    """See that the addresses can be listened on, before anything is made.

    Raises:
        StartError: One of them cannot; the message says what to do.
    """
    if not is_given_sockets():
        _own_front_socket(config).close()
    if with_sites:
        sites_socket(config).close()


def front_socket(config: Config) -> socket.socket:
    """The socket for git and the API: the service manager's, or one of our own.

    Raises:
        StartError: The address cannot be listened on; the message says what to do.
    """
    _warn_of_links(config)
    inherited = inherited_sockets().get("http")
    if inherited is not None:
        _warn_of_another_address(inherited, config.server.listen)
        return inherited
    host, _ = parse_address(config.server.listen, "server.listen")
    if not is_loopback(host) and not config.server.trusted_proxies:
        log.warning(
            "plain_http_beyond_this_machine",
            listen=config.server.listen,
            advice="put a TLS proxy in front and name it in server.trusted_proxies",
        )
    return _own_front_socket(config)


def sites_socket(config: Config) -> socket.socket:
    """A socket for the sites of a host that this process starts.

    Raises:
        StartError: The address cannot be listened on; the message says what to do.
    """
    return bound_socket(config.sites.listen, "sites.listen", "--sites")


def _own_front_socket(config: Config) -> socket.socket:
    if _overlap(config.server.listen, config.sites.listen):
        raise StartError(
            f"git and sites cannot both listen on {config.sites.listen}: "
            "choose another port for one of them, with --listen or --sites."
        )
    return bound_socket(config.server.listen, "server.listen", "--listen", is_guarded=may_guard())


def expect_alone(listener: socket.socket, config: Config) -> None:
    """See that no other process listens where `listener` does by now, which is git's and the API's.

    Where a host guards that address, the kernel lets two of this user listen that came to it at the
    same moment. At least one of them is refused here. Source: proc(5), /proc/net/tcp.

    Raises:
        StartError: Another one does; the message says what to do.
    """
    table = "tcp6" if listener.family == socket.AF_INET6 else "tcp"
    try:
        lines = Path("/proc/net", table).read_text().splitlines()[1:]
    except OSError:  # a kernel that does not tell
        return
    rows = [fields for line in lines if (fields := line.split())[3] == _LISTENS]
    own = str(os.fstat(listener.fileno()).st_ino)
    here = {fields[1] for fields in rows if fields[9] == own}
    if any(fields[1] in here and fields[9] != own for fields in rows):
        taken = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        raise _refusal(config.server.listen, taken, "--listen")


def may_guard() -> bool:
    """Whether a site host may keep an address for this process alone: it has another user."""
    return os.geteuid() == 0


def bound_socket(
    address: str, setting: str, option: str, *, is_guarded: bool = False
) -> socket.socket:
    """A socket that is bound to the address that `setting` gave, or `option` in its place.

    `is_guarded`: beside a socket of this process's user that keeps the address and does not listen.

    Raises:
        StartError: It cannot be; the message says what to do.
    """
    host, port = parse_address(address, setting)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if is_guarded:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
        if is_guarded:  # only now: an address of another machine may answer, or never
            _refuse_listener(family, (host, port))
    except OSError as error:
        bound.close()
        raise _refusal(address, error, option) from error
    return bound


def _refusal(address: str, error: OSError, option: str) -> StartError:
    return StartError(f"cannot listen on {address}: {error.strerror}. {advice(error, option)}")


def _refuse_listener(family: socket.AddressFamily, address: tuple[str, int]) -> None:
    """Raises OSError where somebody listens: with SO_REUSEPORT two gitd would share visitors."""
    with socket.socket(family) as asking:
        asking.settimeout(ASK_S)
        if address[1] and asking.connect_ex(address) in (0, errno.EAGAIN):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def advice(error: OSError, option: str) -> str:
    """What to do when an address cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        return f"Stop what has that address, or choose another with {option}."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"Choose another port with {option}: those below 1024 are root's."
    return f"Choose an address of this machine with {option}, or 0.0.0.0 for all of them."


def _warn_of_another_address(inherited: socket.socket, setting: str) -> None:
    """Links are made from the setting, but the service manager's socket is what answers."""
    if inherited.family not in (socket.AF_INET, socket.AF_INET6):
        return
    host, port, *_ = inherited.getsockname()
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if parse_address(setting, "server.listen") != (host, port):
        log.warning(
            "listens_elsewhere_than_set",
            listens=address,
            setting=setting,
            advice="say ListenStream= of gitd.socket in server.listen too, or the other way round",
        )


def _warn_of_links(config: Config) -> None:
    """Links name an address that others cannot reach, as long as no setting names a better one."""
    server, sites = config.server, config.sites
    if _is_unspecified(server.listen) and not server.public_url:
        log.warning(
            "links_name_no_address",
            link=server.url,
            advice="set server.public_url to the URL that people reach this server by",
        )
    host, _ = parse_address(sites.listen, "sites.listen")
    if not is_loopback(host) and sites.domain == "localhost":
        log.warning(
            "sites_have_local_names",
            link=sites.url_of("NAME"),
            advice="set sites.domain to a domain whose names all lead here",
        )


def _overlap(one: str, other: str) -> bool:
    (host, port), (other_host, other_port) = (
        parse_address(address, "listen") for address in (one, other)
    )
    same = host == other_host or _is_unspecified(one) or _is_unspecified(other)
    return same and port == other_port


def _is_unspecified(address: str) -> bool:
    host, _ = parse_address(address, "listen")
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
