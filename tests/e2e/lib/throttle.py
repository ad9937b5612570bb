"""A slow line: throttle.py LISTEN-ADDRESS:PORT TO-ADDRESS:PORT BYTES-PER-SECOND passes connections on, as slowly as that
towards who made them."""

import asyncio
import sys

PIECE = 16 << 10


async def copy(reader, writer, rate=None):
    try:
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()
            if rate:
                await asyncio.sleep(len(piece) / rate)
        writer.write_eof()
    except (ConnectionError, OSError):
        writer.close()


async def main(listen, to, rate):
    async def serve(reader, writer):
        there, back = await asyncio.open_connection(*to)
        await asyncio.gather(copy(reader, back), copy(there, writer, rate))
        writer.close()

    async with await asyncio.start_server(serve, *listen) as server:
        print("listening", flush=True)
        await server.serve_forever()


def address(text):
    host, _, port = text.rpartition(":")
    return host, int(port)


asyncio.run(main(address(sys.argv[1]), address(sys.argv[2]), int(sys.argv[3])))
