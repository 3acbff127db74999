"""Requests whose body and answer come when a test says so."""

import asyncio
import json
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message

from serve.request.record import REQUEST_RECORD, RequestRecord


@dataclass
class Visit:
    """A request that sends its body, and gets its answer, when the test says so."""

    method: str = "POST"
    path: str = "/v1/predict"
    body: asyncio.Event = field(default_factory=asyncio.Event)
    finish: asyncio.Event = field(default_factory=asyncio.Event)
    answer: list[Message] = field(default_factory=list)

    async def through(self, gate: ASGIApp) -> "Visit":
        REQUEST_RECORD.set(RequestRecord(self.method, self.path))  # as `Access` does, which stands in front of it
        scope = {"type": "http", "method": self.method, "path": self.path, "headers": [], "visit": self}
        await gate(scope, self._receive, self._send)
        return self

    async def _receive(self) -> Message:
        await self.body.wait()
        return {"type": "http.request", "body": b"a video"}

    async def _send(self, message: Message) -> None:
        self.answer.append(message)

    @property
    def code(self) -> str:
        return "ok" if self.answer[0]["status"] == 200 else str(json.loads(self.answer[1]["body"])["error"]["code"])
