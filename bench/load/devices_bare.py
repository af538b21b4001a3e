"""The least that a server of devices can be: groups of WebSockets that are broadcast to."""

import asyncio
import sys
from collections import defaultdict

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

MESSAGE = (
    '{"type":"delta","text":"@%016d ","ts":1700000000000,'
    '"run_id":"run_0000000000000000000000000000","event_id":"evt_0000000000000000000000000000","seq":%d}'
)


async def main(port: int, rate: float) -> None:
    """Serve; the path names the group, and each group is told something `rate` times a second."""
    groups: defaultdict[str, set[ServerConnection]] = defaultdict(set)

    async def joined(one: ServerConnection) -> None:
        path = one.request.path if one.request else ""
        groups[path].add(one)
        try:
            await one.wait_closed()
        finally:
            groups[path].discard(one)

    async with serve(joined, "127.0.0.1", port, compression=None, ping_interval=30):
        loop = asyncio.get_running_loop()
        number, began, told = 0, loop.time(), 0
        while True:
            names = sorted(groups)
            due = began + told / (rate * max(1, len(names)))
            if not names or due > loop.time():
                if not names:
                    began, told = loop.time(), 0
                await asyncio.sleep(max(0.001, due - loop.time()))
                continue
            number += 1
            told += 1
            broadcast(groups[names[number % len(names)]], MESSAGE % (number, number))


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
