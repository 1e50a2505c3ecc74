"""An HTTP server in a guest: h11, a library that knows nothing of Hyper-V, on streams that Trio's server hands out."""

import trio


async def main(guest):
    try:
        import h11
    except ImportError:
        guest.print("this example needs h11: pip install 'partita[watch]'")
        return 1

    async def serve(stream):
        connection = h11.Connection(h11.SERVER)
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Request):
                target = event.target.decode("ascii")
            elif isinstance(event, h11.EndOfMessage):
                guest.print(f"{guest.name}: {target}")
                body = f"hello from {guest.name}, up for {guest.time():.1f} s; you asked for {target}\n".encode()
                headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
                answer = h11.Response(status_code=200, headers=headers)
                for part in (answer, h11.Data(data=body), h11.EndOfMessage()):
                    await stream.send_all(connection.send(part))
                if connection.our_state is h11.MUST_CLOSE:
                    return
                connection.start_next_cycle()
            elif isinstance(event, h11.ConnectionClosed):
                return

    async def guarded(stream):
        try:
            await serve(stream)
        except (h11.RemoteProtocolError, trio.BrokenResourceError) as error:
            guest.print(f"{guest.name}: a client went wrong: {error}")

    listener = await guest.listen(80)
    guest.print("serving on port 80: curl --unix-socket http.sock http://web/")
    return await trio.serve_listeners(guarded, [listener])
