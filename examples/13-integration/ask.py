"""The host's part: each component once, on the virtual clock, where minutes take no time."""

import pathlib

import trio

import partitions
from partitions import determinism
from partitions.host import Pool

HERE = pathlib.Path(__file__).parent


async def main(folder=HERE):
    """Raises `NoAnswer` where the guest does not do as it is asked."""
    async with partitions.open_host(folder, clock="virtual") as host:
        vm = host["steward"]
        await vm.start()
        await trio.sleep(0.5)

        print("kvp:", await vm.kvp.get("state"), "|", (await vm.kvp.items())["OSName"])
        await vm.kvp.set("greeting", "good morning", Pool.EXTERNAL)  # and it stays
        await vm.kvp.set("breath", "hold")
        await trio.sleep(5)
        print("heartbeat:", vm.heartbeat)
        await vm.kvp.delete("breath")
        await trio.sleep(5)
        print("heartbeat:", vm.heartbeat)

        print("file-copy:", await vm.copy_file(HERE / "README.md", "/srv/", create_path=True) > 0)
        async with vm.frozen():
            print("vss:", vm.freeze_state.value, "- now its disks can be copied")
        print("vss:", vm.freeze_state.value)
        await vm.pause()
        await trio.sleep(3600)
        await vm.resume()
        await trio.sleep(1)
        print("time-sync: set", vm.clock.syncs, "times, wrong by", vm.clock.drift, "now")

        ended = await vm.shut_down(reason="the example is over")
        print("shutdown:", ended)
        return vm.console.text.rstrip()


if __name__ == "__main__":
    print(determinism.run(main, clock="virtual"))
