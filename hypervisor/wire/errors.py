"""What a decoder of a peer's bytes may raise, and nothing else. Both sides."""


class WireError(Exception):
    """The peer's bytes do not say what the layout asks for. The peer is at fault, never our caller."""


class ShortMessage(WireError):
    """Fewer bytes than the layout needs."""

    def __init__(self, what: str, needed: int, got: int) -> None:
        super().__init__(f"{what}: {needed} bytes needed, {got} there")
        self.needed = needed
        self.got = got


class BadValue(WireError):
    """A field has a value that its layout or its state forbids."""


class TooMany(WireError):
    """A count is larger than the stated limit or than the bytes that follow it."""
