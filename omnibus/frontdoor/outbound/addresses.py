"""Which addresses of the network the front door connects to when somebody outside names a host. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from omnibus.errors import ConfigError

Network = IPv4Network | IPv6Network
_REFUSED: tuple[Network, ...] = (
    ip_network("168.63.129.16/32"),  # Azure answers its virtual machines there
    ip_network("2002::/16"),  # these three have an IPv4 address inside, which a router may send anywhere
    ip_network("2001::/32"),
    ip_network("64:ff9b::/96"),
    ip_network("fec0::/10"),  # sites of before have private networks there
)
"""Addresses that are public by their form alone."""


@dataclass(frozen=True, slots=True)
class AddressRule:
    """Public addresses, and those of the networks that an operator names; no loopback, private, link-local or metadata ones."""

    allowed: tuple[Network, ...] = ()

    @classmethod
    def of(cls, networks: Iterable[str]) -> AddressRule:
        """The rule with these networks, such as `10.1.0.0/16` or one address; raises ConfigError for what is none."""
        try:
            return cls(tuple(ip_network(text) for text in networks))
        except ValueError as error:
            raise ConfigError(f"OMNIBUS_ALLOWED_NETWORKS: {error}", param="allowed_networks") from error

    def permits(self, text: str) -> bool:
        """Whether an IP address may be connected to; what is none may not."""
        try:
            address: IPv4Address | IPv6Address = ip_address(text.partition("%")[0])
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        if any(address in network for network in self.allowed if network.version == address.version):
            return True
        is_public = address.is_global and not address.is_multicast and not address.is_reserved
        return is_public and not any(address in one for one in _REFUSED if one.version == address.version)
