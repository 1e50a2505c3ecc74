"""Finds the echo service by its name, pings it, talks to it, and tries what must fail."""

NAMES = ("10.0.0.1", 40000)


async def ask(guest, socket, question):
    """One question to the name service; again where no answer comes, as datagrams may get lost."""
    while True:
        await socket.send_to(question.encode(), NAMES)
        try:
            answer, _ = await socket.receive_from(timeout=0.5)
            return answer.decode()
        except TimeoutError:
            pass
        except OSError:  # "port unreachable": it is not up yet
            await guest.sleep(0.05)


async def main(guest):
    network = await guest.network()
    print("my address is", network.mac.hex("-"))
    ip = await guest.ip("10.0.0.3/24")
    with ip.udp() as socket:
        while (echo := await ask(guest, socket, "who is echo")) == "nobody":
            await guest.sleep(0.05)
        print("echo is", echo)

        # The first ping asks for the MAC address by ARP; the answer's way is the same as the question's.
        for size in (56, 1472, 4000):
            seconds = await ip.ping(echo, size=size)
            print(f"{size} bytes there and back in less than a second: {seconds < 1}")
        print("neighbours:", ", ".join(sorted(ip.neighbours)))

        # 4,000 bytes do not fit a frame: they went in fragments.
        await socket.send_to(b"Is there anybody?", (echo, 7))
        print((await socket.receive_from())[0].decode())

        # Nobody has this port, and the other host says so.
        try:
            await socket.send_to(b"hello?", (echo, 9))
            await socket.receive_from()
        except OSError as error:
            print("refused:", error)

        # Nobody has this address, so nobody answers ARP.
        try:
            await ip.ping("10.0.0.99", timeout=0.2)
        except TimeoutError as error:
            print("lost:", error)

        await socket.send_to(b"bye", (echo, 7))
        await socket.receive_from()
        await ask(guest, socket, "bye")
    statistics = network.statistics()
    print("dropped and refused:", statistics.dropped, statistics.refused)
