"""A UDP echo service that tells the name service where it is."""

NAMES = ("10.0.0.1", 40000)


async def introduce(ip):
    """Until the name service has heard of us: it may not be up yet."""
    with ip.udp() as socket:
        while True:
            await socket.send_to(b"I am echo", NAMES)
            try:
                answer, _ = await socket.receive_from(timeout=0.5)
                return answer.decode()
            except OSError:  # nobody has the port, or no answer came
                pass


async def main(guest):
    network = await guest.network(0)
    ip = await guest.ip("10.0.0.2/24")
    print("frames of up to", network.mtu, "bytes, link", "up" if network.link_up else "down")
    with ip.udp(7) as socket:
        print("the name service says:", await introduce(ip))
        data = b""
        while data != b"bye":
            data, peer = await socket.receive_from()
            await socket.send_to(data, peer)
    print("who uses our address beside us:", list(ip.conflicts) or "nobody")
