"""Which addresses stay on this machine, and so may be sent secrets in plaintext."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether ``host``, a name or an address, is this machine itself and nothing beyond it."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def target_is_local(target: str) -> bool:
    """Whether everything sent to the gRPC target ``target`` stays on this machine.

    Targets are ``host:port``, possibly with a scheme before it (``dns:host:port``, ``dns:///host:port``), a
    list of addresses (``ipv4:127.0.0.1:1,127.0.0.2:1``) or a Unix socket (``unix:path``). What cannot be told
    is taken not to be local, such as a name that a DNS server of the target's choice resolves
    (``dns://server/host:port``).
    """
    scheme, colon, rest = target.partition(":")
    if colon and scheme in ("unix", "unix-abstract"):
        return True
    if colon and scheme in ("dns", "ipv4", "ipv6"):
        if rest.startswith("//"):
            server, _, rest = rest[2:].partition("/")
            if server:
                return False
        target = rest
    return all(is_loopback(_host(address)) for address in target.split(","))


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    if address.count(":") > 1:  # IPv6 without a port
        return address
    return address.partition(":")[0]
