"""The same from outside, with a disk: start the VM, plug a controller in, wait until the guest has seen it, pull it."""

import pathlib

import trio

import partitions

HERE = pathlib.Path(__file__).parent


async def said(lines, words):
    """Until the guest has printed this."""
    async for line in lines:
        print("desk |", line.text)
        if line.text.startswith(words):
            return


async def main(folder=HERE):
    """Raises `HotPlugError` where a device cannot be added or removed, with the reason."""
    async with partitions.open_host(folder) as host:
        vm = host["desk"]
        lines = vm.console.follow()
        await vm.start()
        await said(lines, "devices at the start")
        await vm.add_device("spare", partitions.DiskTable(path="spare.img", size=64 << 10))
        await said(lines, "disk:")
        print("host | plugged in:", ", ".join(vm.devices))
        await vm.remove_device("spare")  # the file is closed then
        print("host |", (pathlib.Path(folder) / "spare.img").read_bytes()[:18].decode())
        await said(lines, "went: storage")
        await said(lines, "devices at the end")
        return await vm.wait()


if __name__ == "__main__":
    print(trio.run(main))
