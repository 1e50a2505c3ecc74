"""Answers pings by itself. Counts each sender's datagrams, and says how many there were whenever it is asked."""

SENDERS = 2


async def main(guest):
    await guest.ip("10.0.0.1/24", nic=0)
    wan = await guest.ip("10.9.0.1/24", nic=1)
    got, done = {}, set()
    with wan.udp(7) as socket:
        while len(done) < SENDERS:
            data, peer = await socket.receive_from()
            got[peer] = got.get(peer, 0) + 1
            if data.startswith(b"last"):
                await socket.send_to(str(got[peer]).encode(), peer)
                done.add(peer)
        await guest.sleep(0.2)  # what is on a cable when its VM goes off is lost
