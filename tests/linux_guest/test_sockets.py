"""Linux's hv_sock and Debian's socat as the other end of Hyper-V sockets: AF_VSOCK in the guest. Root side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
import trio

from partitions.host import Host, Vm
from tests.linux_guest import guest, socat

MODULES = ("hv_vmbus", "hv_sock")
ECHO, BLOB, DONE = 7000, 7001, 7009
"""Ports that the guest listens on: what comes goes back; a file; a file is made when the host has finished."""
SUM, NAME, NOBODY = 5000, 5001, 5099
"""Ports of the host's: the MD5 of all that came; a line for a line; one that nobody listens on."""
CALLS = 25
MEBIBYTES = 4
PATTERN = bytes(range(251)) * (MEBIBYTES * 4178)
"""About as many bytes, and no multiple of any power of two."""

SERVE = f"""
socat VSOCK-LISTEN:{ECHO},fork EXEC:/bin/cat &
socat -u OPEN:/blob VSOCK-LISTEN:{BLOB},fork &
socat -u VSOCK-LISTEN:{DONE} CREATE:/done &
await 60 test -e /done
"""
CALL = f"socat -t 30 - VSOCK-CONNECT:2:{SUM} </blob"
MANY = f"""
for i in $(seq {CALLS}); do echo $i | socat -t 30 - VSOCK-CONNECT:2:{NAME}; done
await 20 sh -c '[ $(ls /sys/bus/vmbus/devices | wc -l) = '$(cat /before)' ]' && echo nothing left
"""
STEPS = {
    "drivers": socat.INSTALL
    + f"all; dd if=/dev/urandom of=/blob bs=65536 count={MEBIBYTES * 16} 2>/dev/null; md5sum </blob",
    "before": "ls /sys/bus/vmbus/devices | wc -l | tee /before",
    "serve": SERVE,
    "call": CALL,
    "many": MANY,
    "nobody": f"socat -u /dev/null VSOCK-CONNECT:2:{NOBODY}",
    "complaints": "dmesg | grep -E 'hv_|vmbus|vsock' | grep -iE 'error|fail|warn|timed out|invalid|short' || true",
}


async def all_of(stream: trio.abc.ReceiveStream) -> bytes:
    """Until its end."""
    data = bytearray()
    async for chunk in stream:
        data += chunk
    return bytes(data)


class Seen:
    """What the host did and heard while the guest ran."""

    def __init__(self) -> None:
        self.echoed = 0
        self.echo_right = False
        self.blob = ""
        self.calls = 0
        self.sockets_left = -1

    async def serve(self, host: Host, vm: Vm) -> None:
        """The guest listens: call it."""
        stream = await self._connected(vm, ECHO)
        async with stream, trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(PATTERN)
                await stream.send_eof()

            nursery.start_soon(send)
            came = await all_of(stream)
        self.echoed, self.echo_right = len(came), came == PATTERN
        async with await self._connected(vm, BLOB) as stream:
            self.blob = hashlib.md5(await all_of(stream)).hexdigest()
        for number in range(CALLS):
            async with await self._connected(vm, ECHO) as stream:
                await stream.send_all(b"call %d" % number)
                await stream.send_eof()
                self.calls += await all_of(stream) == b"call %d" % number
        await (await self._connected(vm, DONE)).aclose()

    async def _connected(self, vm: Vm, port: int) -> trio.abc.HalfCloseableStream:
        """socat begins to listen a moment after the step does."""
        with trio.fail_after(30):
            while True:
                try:
                    return await vm.connect(port)
                except OSError:
                    await trio.sleep(0.1)

    async def sum(self, stream: trio.abc.HalfCloseableStream) -> None:
        """One of the host's services."""
        async with stream:
            await stream.send_all(hashlib.md5(await all_of(stream)).hexdigest().encode() + b"\n")

    async def name(self, stream: trio.abc.HalfCloseableStream) -> None:
        """Another."""
        async with stream:
            await stream.send_all(b"host heard " + await all_of(stream))


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="module")
def linux(tmp_path_factory: pytest.TempPathFactory, seen: Seen) -> guest.Evidence:
    plan = guest.Plan(steps=STEPS, modules=MODULES, extra=socat.fetch())

    async def listen(host: Host, vm: Vm) -> None:
        vm.listen(SUM, seen.sum)
        vm.listen(NAME, seen.name)

    return guest.boot(plan, tmp_path_factory.mktemp("sockets"), {"drivers": listen, "serve": seen.serve})


def test_the_host_calls_the_guest(linux: guest.Evidence, seen: Seen, evidence: Callable[[str, str], None]) -> None:
    """What socat's cat sends back is what was sent; a file of the guest's arrives whole; half closes end both."""
    assert seen.echoed == len(PATTERN)
    assert seen.echo_right
    assert seen.blob == linux["drivers"].split()[0]
    assert seen.calls == CALLS
    evidence("hv_sock", f"{len(PATTERN)} bytes there and back, a file of {MEBIBYTES} MiB, {CALLS} calls of the guest")


def test_the_guest_calls_the_host(linux: guest.Evidence, evidence: Callable[[str, str], None]) -> None:
    """CID 2 is the host: what it heard has the guest's own checksum, and its answer comes after the half close."""
    assert linux["call"].strip() == linux["drivers"].split()[0]
    assert linux["many"].splitlines()[:-1] == [f"host heard {i}" for i in range(1, CALLS + 1)]
    evidence("hv_sock", f"the guest sent {MEBIBYTES} MiB, checksum {linux['call'].strip()}, and called {CALLS} times")


def test_nobody_listens(linux: guest.Evidence) -> None:
    """A port without a listener is an error to the guest's program."""
    assert linux.steps["nobody"].status != 0


def test_nothing_is_left(linux: guest.Evidence) -> None:
    """Each connection was a device on the guest's bus; afterwards all are gone. Nobody complained on either side."""
    assert linux["many"].splitlines()[-1] == "nothing left"
    assert linux["complaints"] == ""
    assert linux.statistics.faults == 0
