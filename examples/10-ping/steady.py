"""Pings the echo service twice a second, for an hour: time to pull its cable, and to look at the frames."""


async def main(guest):
    ip = await guest.ip("10.0.0.3/24")
    for _ in range(guest.args["times"]):
        try:
            seconds = await ip.ping("10.0.0.2", timeout=0.5)
            guest.print(f"{seconds * 1000:.1f} ms")
        except OSError as error:  # no answer, nobody there, no cable
            guest.print(error)
        await guest.sleep(0.5)
