"""Pings the server both ways, and then sends it 110 full frames in one go."""

FRAMES = 110
FULL = 1500 - 14 - 20 - 8
"""Bytes in a datagram that makes a frame of 1,500: it has headers of Ethernet, IP and UDP, too."""
SERVER = "10.9.0.1", 7


async def pinged(guest, ip, address):
    """Seconds, once the address is known: the first ping asks for it."""
    while True:
        try:
            await ip.ping(address)
            return await ip.ping(address)
        except OSError:  # it is not up yet
            await guest.sleep(0.02)


async def main(guest):
    lan = await guest.ip("10.0.0.2/24", nic=0)
    wan = await guest.ip("10.9.0.2/24", nic=1)
    print("over the lan a ping takes less than 40 ms:", await pinged(guest, lan, "10.0.0.1") < 0.04)
    print(f"over the wan it takes {round(await pinged(guest, wan, SERVER[0]) * 20) * 50} ms")
    with wan.udp() as socket:
        began = guest.time()
        for number in range(1, FRAMES + 1):
            await socket.send_to(b"last".ljust(FULL) if number == FRAMES else bytes(FULL), SERVER)
        count, _ = await socket.receive_from()
        print(f"the answer to the last came after {round((guest.time() - began) * 20) * 50} ms")
        print(count.decode(), "of", FRAMES, "have arrived")
