"""The pages that a guest gives to its connection: which they are, and what may not be. Both sides."""

from __future__ import annotations

import msgspec

from hypervisor.pages import PAGE_MASK


class ConnectionPages(msgspec.Struct, frozen=True):
    """Guest physical addresses, 0 where there is none."""

    interrupt: int = 0
    """Below 2.4."""
    to_child: int = 0
    """The monitor page in which the host sets triggers; both monitor pages or neither."""
    to_root: int = 0
    """The one in which the guest does."""

    @property
    def monitored(self) -> bool:
        """Whether channels can have a monitor ID."""
        return self.to_root != 0

    @property
    def addresses(self) -> tuple[int, ...]:
        """Of the pages that there are."""
        return tuple(filter(None, (self.interrupt, self.to_child, self.to_root)))

    @property
    def problem(self) -> str:
        """Why these cannot be, for people; empty if nothing is wrong with them as numbers."""
        if bool(self.to_child) != bool(self.to_root):
            return "one monitor page of two"
        addresses = self.addresses
        if any(address & PAGE_MASK for address in addresses):
            return "an address in the middle of a page"
        if len(set(addresses)) < len(addresses):
            return "one page for two purposes"
        return ""
