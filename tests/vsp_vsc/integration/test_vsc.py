"""The drivers of model guests against hosts that say odd things; numbers are those of the list of malformed inputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hypervisor.wire import BadValue, ShortMessage, WireError
from vsp_vsc.integration.heartbeat.protocol import SEQUENCE_MASK, Beat
from vsp_vsc.integration.heartbeat.vsc import HeartbeatDriver
from vsp_vsc.integration.kvp.ip_info import IpInfo, encode_ip
from vsp_vsc.integration.kvp.protocol import KvpItem, Operation, encode_item, encode_key, encode_request
from vsp_vsc.integration.kvp.vsc import MAX_ITEMS, KvpDriver
from vsp_vsc.integration.protocol import Status, Version
from vsp_vsc.integration.shutdown.protocol import ShutdownFlags, ShutdownRequest
from vsp_vsc.integration.shutdown.vsc import ShutdownDriver
from vsp_vsc.integration.time_sync.protocol import SyncFlags, TimeMessage, TimeReference, file_time
from vsp_vsc.integration.time_sync.vsc import TimeSyncDriver

V = Version(4, 0)
PLATFORM: Any = SimpleNamespace(reference_time=lambda: 0)


def test_94_a_pool_or_an_operation_that_is_none() -> None:
    """Pools end at 4, operations at 5; an adapter that nobody has cannot be given addresses."""
    driver = KvpDriver()
    body = KvpItem().encode()
    assert driver.answer(encode_request(Operation.GET, 5, body), V).status == Status.FAIL
    assert driver.answer(bytes([6, 0]) + bytes(7430), V).status == Status.FAIL
    assert driver.answer(encode_ip(Operation.SET_IP_INFO, IpInfo("none"), V), V).status == Status.FAIL


def test_94_keys_that_cannot_be() -> None:
    """Without a key, past the end of an enumeration, an item that was deleted meanwhile, one too many."""
    driver = KvpDriver()
    assert driver.answer(encode_request(Operation.SET, 0, KvpItem(1).encode()), V).status == Status.FAIL
    assert driver.answer(encode_request(Operation.DELETE, 0, encode_key("k")), V).status == Status.NO_MORE_ITEMS
    for number in range(MAX_ITEMS):
        assert not driver.answer(encode_request(Operation.SET, 0, encode_item(str(number), number)), V).status
    assert driver.answer(encode_request(Operation.SET, 0, encode_item("more", 1)), V).status == Status.FAIL
    assert not driver.answer(encode_request(Operation.SET, 0, encode_item("0", "again")), V).status
    with pytest.raises(ShortMessage):
        driver.answer(encode_request(Operation.SET, 0, b"")[:100], V)


def test_95_a_number_that_jumps_or_wraps() -> None:
    """The answer is the next one, whatever came before."""
    driver = HeartbeatDriver()
    for number, answer in ((7, 8), (3, 4), (SEQUENCE_MASK, 0)):
        assert Beat.decode(driver.answer(Beat(number).encode(), V).body).sequence == answer


@pytest.mark.parametrize("flags", [8, 0x8000_0000, 0xFFFF_FFFF])
def test_flags_that_nobody_knows_are_refused(flags: int) -> None:
    driver = ShutdownDriver()
    driver.on_request = lambda flags, text: True
    assert driver.answer(ShutdownRequest(flags=int(ShutdownFlags.FORCE)).encode(), V).status == Status.SUCCESS
    assert driver.answer(ShutdownRequest(flags=flags).encode(), V).status == Status.FAIL


@pytest.mark.parametrize("version", [Version(3, 0), V])
def test_97_dates_before_and_after_all_calendars(version: Version) -> None:
    """1601 is a date; what is past the year 9999 is none, and the clock stays as it was."""
    driver = TimeSyncDriver(PLATFORM)

    def message(parent: int) -> bytes:
        if version == V:
            return TimeReference(parent, 0, int(SyncFlags.SYNC)).encode()
        return TimeMessage(parent, flags=int(SyncFlags.SYNC)).encode()

    driver.answer(message(0), version)
    moment = driver.now()
    assert moment is not None
    assert file_time(moment) == 0
    with pytest.raises(BadValue, match="a date of"):
        driver.answer(message((1 << 64) - 1), version)
    assert driver.now() == moment


@pytest.mark.parametrize("driver", [HeartbeatDriver(), ShutdownDriver(), TimeSyncDriver(PLATFORM), KvpDriver()])
def test_half_a_message_ends_a_driver(driver: Any) -> None:
    """And raises nothing else than a `WireError`."""
    with pytest.raises(WireError):
        driver.answer(b"\0", V)
