"""A program of ours on the same switch as a real kernel: each pings the other."""


async def main(guest):
    ip = await guest.ip("10.0.0.2/24")
    answers = silence = 0
    while silence < (3 if answers else 60):  # until the kernel is gone, or does not come
        try:
            await ip.ping("10.0.0.1")
        except OSError:
            silence += 1
        else:
            answers, silence = answers + 1, 0
        await guest.sleep(1)
    print("the kernel has answered", answers, "pings, from", dict(ip.neighbours) or "nowhere")
