"""A real HTTP server of files in a process of its own, which can be slow, fail, or damage an answer if asked to.

aiohttp answers the ranges. RangeHTTPServer, nginx and Moto do that too, but the delays, failures and damage, and the
counts that tests look at, would then be a proxy of ours in front of them.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from aiohttp import web

COUNTS = "/counts"


@dataclass(frozen=True)
class WebServer:
    url: str

    def counts(self) -> dict[str, Any]:
        """Returns `whole` and `part`, requests by path, and `at_once`, the most that were answered at a time."""
        with urlopen(self.url + COUNTS) as answer:
            return json.load(answer)


@contextmanager
def web_server(folder: Path, *options: str) -> Iterator[WebServer]:
    command = [sys.executable, "-m", "tests.support.web", str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield WebServer(process.stdout.readline().strip())
        finally:
            process.kill()


class Files:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.whole: Counter[str] = Counter()
        self.part: Counter[str] = Counter()
        self.damaged: set[tuple[str, str | None]] = set()
        self.now = self.at_once = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == COUNTS:
            return web.json_response({"whole": self.whole, "part": self.part, "at_once": self.at_once})
        (self.part if "Range" in request.headers else self.whole)[request.path] += 1
        self.now += 1
        self.at_once = max(self.at_once, self.now)
        try:
            await asyncio.sleep(random.uniform(*self.options.latency_ms) / 1000)
            return await self._file(request)
        finally:
            self.now -= 1

    async def _file(self, request: web.Request) -> web.StreamResponse:
        path = self.options.folder / request.path.lstrip("/")
        place = (request.path, request.headers.get("Range"))
        if self.options.damage_first and path.suffix == ".tar" and place not in self.damaged:
            self.damaged.add(place)
            begin, end = map(int, place[1].removeprefix("bytes=").split("-"))
            data = bytearray(path.read_bytes()[begin : end + 1])
            data[len(data) // 2] ^= 0x55
            return web.Response(status=206, body=bytes(data))
        if random.random() < self.options.failing:
            return web.Response(status=503)
        if not path.is_file():
            return web.Response(status=404)
        if "Range" in request.headers or not self.options.pause_seconds or path.suffix != ".tar":
            return web.FileResponse(path)
        data = path.read_bytes()
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[: len(data) // 2])
        await asyncio.sleep(self.options.pause_seconds)
        await response.write(data[len(data) // 2 :])
        return response


async def serve(options: argparse.Namespace) -> None:
    runner = web.ServerRunner(web.Server(Files(options).answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency-ms", type=float, nargs=2, default=[0, 0])
    parser.add_argument("--failing", type=float, default=0.0, help="share of requests that are answered by 503")
    parser.add_argument("--damage-first", action="store_true", help="change a byte of the first answer to each range")
    parser.add_argument("--pause-seconds", type=float, default=0.0, help="in the middle of whole tars")
    asyncio.run(serve(parser.parse_args()))
