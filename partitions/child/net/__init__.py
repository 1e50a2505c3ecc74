"""A guest's small IPv4 stack on a network driver: ARP, IPv4 with fragments, ICMP echo, UDP. Child side.

`frames` has the layouts, `neighbours` and `fragments` what a host remembers of others, `stack` the protocol: frames and
times in, frames and events out. `ip` joins it to a driver and to the guest's clock; `dhcp` and `leases` get an address
from others. There is no TCP, no multicast membership, no routing between interfaces and no IPv6.
"""
