"""What this guest tells its host of itself, by key-value pairs: its system, its addresses, its clock. Child side.

The names are those that Linux's daemon uses. What becomes known while no driver has the component waits for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vsp_vsc.integration.kvp.ip_info import IpInfo
    from vsp_vsc.integration.kvp.protocol import Value
    from vsp_vsc.integration.kvp.vsc import KvpDriver
    from vsp_vsc.integration.time_sync.vsc import TimeSyncDriver

VERSION: Final = "0.1"


class Told:
    """One guest's facts."""

    def __init__(self, name: str) -> None:
        major, minor = VERSION.split(".")
        self._facts: dict[str, Value] = {
            "FullyQualifiedDomainName": name,
            "IntegrationServicesVersion": VERSION,
            "NetworkAddressIPv4": "",
            "NetworkAddressIPv6": "",
            "OSBuildNumber": VERSION,
            "OSName": "Partita guest kernel",
            "OSMajorVersion": major,
            "OSMinorVersion": minor,
            "OSVersion": VERSION,
            "ProcessorArchitecture": "model",
        }
        self._adapters: dict[str, IpInfo] = {}
        self._driver: KvpDriver | None = None

    def bind(self, driver: KvpDriver) -> None:
        """A driver that the host asks: it gets all that is known."""
        self._driver = driver
        driver.tell(self._facts)
        driver.adapters |= self._adapters

    def follow_clock(self, driver: TimeSyncDriver) -> None:
        """Tell after each of the host's samples how far the guest's date was off."""
        from vsp_vsc.integration.time_sync.protocol import DRIFT_KEY

        driver.on_told = lambda: self._tell(DRIFT_KEY, f"{driver.drift / 10:g}")

    def address(self, mac: bytes, address: str, gateway: str | None) -> None:
        """One more address on an adapter."""
        import ipaddress

        from vsp_vsc.integration.kvp.ip_info import IpInfo

        adapter = mac.hex(":").upper()
        known = self._adapters.get(adapter, IpInfo(adapter))
        gateways = known.gateways + ((ipaddress.ip_address(gateway),) if gateway else ())
        info = IpInfo(adapter, False, (*known.addresses, ipaddress.ip_interface(address)), gateways)
        self._adapters[adapter] = info
        if self._driver is not None:
            self._driver.adapters[adapter] = info
        every = [one.ip for info in self._adapters.values() for one in info.addresses]
        for version in (4, 6):
            self._tell(f"NetworkAddressIPv{version}", ";".join(str(ip) for ip in every if ip.version == version))

    def _tell(self, key: str, value: Value) -> None:
        self._facts[key] = value
        if self._driver is not None:
            self._driver.tell({key: value})
