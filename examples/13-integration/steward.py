"""A guest whose host asks things of it: it tells what it hears, and ends when it has been alone for a while."""

import trio

from vsp_vsc.integration.heartbeat.protocol import ApplicationState
from vsp_vsc.integration.heartbeat.vsc import HeartbeatDriver
from vsp_vsc.integration.kvp.protocol import Pool
from vsp_vsc.integration.protocol import RING_BYTES, Component
from vsp_vsc.integration.responder import Responder, responding


async def hold_still(guest):
    """What a database does: write out what is in memory, then write no more until the host has its copy."""
    backup = await guest.driver("vss")

    async def freeze():
        print("vss: written out; I hold still")

    async def thaw():
        print("vss: I go on")

    backup.on_freeze, backup.on_thaw = freeze, thaw


async def take_files(copies):
    """Each file that the host puts here."""
    while True:
        path = await copies.receive()
        print(f"file-copy: {path} has come, {len(copies.files[path])} bytes")


async def beat(guest, pools):
    """The kernel's heart would always beat; this one stops while the host says so."""
    await guest.unbind("heartbeat")
    heart = HeartbeatDriver()
    heart.application = ApplicationState.HEALTHY

    async def answer(body, version):
        while pools[Pool.EXTERNAL].get("breath") == "hold":
            await guest.sleep(0.1)
        return heart.answer(body, version)

    channel = await guest.open_channel("heartbeat", ring_bytes=RING_BYTES)
    async with responding(channel, Responder(Component.HEARTBEAT, answer)):
        await trio.sleep_forever()


async def main(guest):
    pools = (await guest.driver("kvp")).pools
    clock, shutdown = await guest.driver("time-sync"), await guest.driver("shutdown")
    kernels = shutdown.on_request

    def asked(flags, text):
        print(f"shutdown: {flags.name.lower() if flags else 'power off'}, because: {text}")
        return kernels(flags, text)

    shutdown.on_request = asked
    await hold_still(guest)
    guest.start_soon(take_files, await guest.driver("file-copy"))
    guest.start_soon(beat, guest, pools)
    await guest.sleep(0.3)
    print("time-sync: the host has told me the date:", clock.now() is not None)
    print("kvp: the host calls me", pools[Pool.AUTO_EXTERNAL].get("VirtualMachineName"))
    pools[Pool.GUEST]["state"] = "at your service"
    until = guest.time() + guest.args.get("alone", 0.5)
    while pools[Pool.EXTERNAL] or guest.time() < until:
        await guest.sleep(0.1)
    print("nobody wants anything of me")
