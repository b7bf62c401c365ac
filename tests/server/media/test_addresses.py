"""Images are fetched from public addresses only."""

import pytest

from stonechat_server.media.addresses import AddressError, check_addresses, is_public

PUBLIC = ["8.8.8.8", "2606:4700:4700::1111"]
REFUSED = {
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd12::1"],
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "link-local": ["169.254.169.254", "fe80::1", "fe80::1%eth0", "fec0::1"],
    "multicast": ["224.0.0.1", "239.255.255.250", "ff02::1", "ff0e::1"],
    "unspecified": ["0.0.0.0", "0.1.2.3", "::"],
    "reserved": ["240.0.0.1", "255.255.255.255", "192.0.0.192", "198.18.0.1", "192.0.2.1"],
    "examples": ["203.0.113.1", "2001:db8::1", "3fff::1"],
    "carrier": ["100.64.0.1", "100.127.255.255", "100.100.100.200"],
    "cloud": ["168.63.129.16", "fd00:ec2::254"],
    "mapped": ["::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "::ffff:0:10.0.0.1"],
    "NAT64": ["64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::a00:1"],
    "tunnels": ["2002:7f00:1::", "2002:808:808::1", "2001:0:7f00:1::", "2001:20::1", "192.88.99.1"],
    "other forms": ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost", ""],
}


@pytest.mark.parametrize("address", [a for addresses in REFUSED.values() for a in addresses])
def test_refused(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(AddressError):
        check_addresses([PUBLIC[0], address])


def test_public() -> None:
    assert check_addresses([PUBLIC[0], PUBLIC[1], PUBLIC[0]]) == PUBLIC


def test_a_name_without_addresses() -> None:
    with pytest.raises(AddressError):
        check_addresses([])
