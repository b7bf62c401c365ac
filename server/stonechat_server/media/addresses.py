"""Which addresses files may be fetched from: those of the public internet, and no others.

A host that an operator allows may have any address in its DNS records, also one inside the
operator's network. So each address that a name resolves to is checked, and the connection goes to
the address that was checked.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host. Raises `OSError`."""

MAX_ADDRESSES = 16
"""No more addresses of a host are looked at."""
_PUBLIC_IPV6 = ip_network("2000::/3")
_NOT_PUBLIC = [
    ip_network(network)
    for network in (
        *("100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15"),
        "168.63.129.16/32",  # the inside of Azure, though the address looks public
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),  # tunnels and examples
    )
]


class AddressError(ValueError):
    """A host has an address that is not public."""


def is_public(text: str) -> bool:
    """Whether an address belongs to the public internet.

    IPv6 addresses that stand for IPv4 ones (mapped, NAT64, 6to4, Teredo) never do.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if any(address.version == n.version and address in n for n in _NOT_PUBLIC):
        return False
    if isinstance(address, IPv6Address):
        return address in _PUBLIC_IPV6 and address.is_global
    assert isinstance(address, IPv4Address)
    is_special = address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not is_special


def check_addresses(addresses: Sequence[str]) -> list[str]:
    """Return the addresses of a host if all of them are public. Raises `AddressError`."""
    chosen = list(dict.fromkeys(addresses))
    if not chosen or not all(map(is_public, chosen)):
        raise AddressError("its host has an address that is not public")
    return chosen[:MAX_ADDRESSES]


class Resolver:
    """Asks the system for addresses, in few threads of its own: an answer may take long."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(4, "stonechat-resolve")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, _look_up, host, port)
        return [str(entry[4][0]) for entry in found]

    def close(self) -> None:
        """Ask no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int) -> list[tuple[int, int, int, str, tuple[str | int, ...]]]:
    return [(*entry,) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
