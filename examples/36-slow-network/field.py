"""Pings over a cable that takes its time, now more, now less; and sends datagrams, some of which get lost."""

READINGS = 200
SERVER = "10.9.0.1", 7


async def main(guest):
    ip = await guest.ip("10.9.0.3/24")
    times = []
    while len(times) < 10:
        try:
            times.append(await ip.ping(SERVER[0], timeout=0.1))
        except OSError:  # lost, or it is not up yet
            await guest.sleep(0.02)
    print("no ping took less than 20 ms:", min(times) >= 0.02)
    print("all took the same time:", max(times) - min(times) < 0.001)
    with ip.udp() as socket:
        for _ in range(READINGS):
            await socket.send_to(b"reading", SERVER)
        for _ in range(10):  # one of them arrives
            await socket.send_to(b"last", SERVER)
        count, _ = await socket.receive_from()
    print("some were lost:", int(count) <= READINGS)
    print("more than a quarter was lost:", int(count) < READINGS * 3 // 4)
