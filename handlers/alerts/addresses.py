"""Which addresses messages may be sent to: the public internet, and what the operator allows besides.

A channel's URL comes from a tenant's admin; without this it could reach whatever the agent's host can. The check is
made where names are resolved, in the thread that sends: whatever the name says by then, and wherever a service leads.
"""

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Generator, Iterable
from typing import Any, Final

_IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_EVERYTHING: Final = "*"
NOT_PUBLIC: Final = "leads to an address that is not public and that the operator does not allow"


class AddressRefused(OSError):
    """The name leads to an address that messages may not be sent to."""


class Reachable:
    """Public addresses, and the hosts and networks in ``allowed`` (``*``: everything)."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._hosts: set[str] = set()
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for entry in allowed:
            try:
                self._networks.append(ipaddress.ip_network(entry))
            except ValueError:
                self._hosts.add(entry.lower())

    def allows(self, host: str, address: str) -> bool:
        """Whether messages may go to ``address``, to which ``host`` resolves."""
        if _EVERYTHING in self._hosts or host.lower() in self._hosts:
            return True
        found = _embedded(ipaddress.ip_address(address.partition("%")[0]))
        if any(found in network for network in self._networks):
            return True
        return found.is_global and not found.is_multicast

    def may_lead_to(self, host: str) -> bool:
        """Whether anything that ``host`` resolves to now is allowed; a name that does not resolve may be, later."""
        try:
            found = _resolve(host, None)
        except (OSError, UnicodeError):
            return True
        return any(self.allows(host, str(entry[4][0])) for entry in found)


def _embedded(address: _IPAddress) -> _IPAddress:
    """The IPv4 address inside an IPv6 one, where there is one that packets would go to."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


class _Sending(threading.local):
    reachable: Reachable | None = None
    turned_away: list[str] | None = None


_sending: Final = _Sending()
_resolve: Final = socket.getaddrinfo


def _checked(host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
    found = _resolve(host, port, *args, **kwargs)
    reachable = _sending.reachable
    if reachable is None:
        return found
    name = host.decode() if isinstance(host, bytes) else host or ""
    kept = [entry for entry in found if reachable.allows(name, str(entry[4][0]))]
    if not kept:
        if _sending.turned_away is not None:
            _sending.turned_away.append(name)
        raise AddressRefused(NOT_PUBLIC)
    return kept


@contextlib.contextmanager
def only(reachable: Reachable) -> Generator[list[str]]:
    """Within this block this thread connects to ``reachable`` addresses only; yields the names that were refused.

    The libraries that send resolve names through this one function of the standard library; it is replaced once, and
    does what it always did for every other thread.
    """
    if socket.getaddrinfo is not _checked:
        socket.getaddrinfo = _checked
    turned_away: list[str] = []
    _sending.reachable, _sending.turned_away = reachable, turned_away
    try:
        yield turned_away
    finally:
        _sending.reachable = _sending.turned_away = None
