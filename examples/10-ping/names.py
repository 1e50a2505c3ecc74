"""A name service in one datagram each way: `I am NAME`, `who is NAME`, `bye`."""

PORT = 40000


async def main(guest):
    ip = await guest.ip("10.0.0.1/24")
    known = {}
    with ip.udp(PORT) as socket:
        while True:
            question, peer = await socket.receive_from()
            match question.decode().split():
                case ["I", "am", name]:
                    known[name] = peer[0]
                    answer = "welcome"
                case ["who", "is", name]:
                    answer = known.get(name, "nobody")
                case _:
                    answer = "bye"
            await socket.send_to(answer.encode(), peer)
            if answer == "bye":
                break
    for name, address in sorted(known.items()):
        print(f"{name} was {address}")
