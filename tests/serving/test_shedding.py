"""What the proxy refuses in place of a full gateway, and when it lets requests in again."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.gateway.admission import Admission, Gate
from serve.messages.refusal import OVERLOADED_SECONDS
from serve.proxy.shedding import Shedding
from serve.request.access_log import Access
from serve.request.error_response import CODE_HEADER
from serve.request.record import RequestObserver, RequestRecord
from tests.support.visits import Visit


class Observer(RequestObserver):
    """Keeps the records that it gets."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def request(self, record: RequestRecord) -> None:
        self.records.append(record)


class Server:
    """The proxy's real middleware before the real ones of gateways that have one place each, one per path."""

    def __init__(self, application: ASGIApp) -> None:
        self.by_proxy, self.by_gateway = Observer(), Observer()
        self.seconds = 0.0
        """What the proxy's clock shows; it moves only when a test moves it, however slow the machine."""
        self._gates: dict[str, ASGIApp] = {}
        self._application = application
        self._shedding = Shedding(self._gateway, self.by_proxy, clock=lambda: self.seconds)

    async def _gateway(self, scope: Scope, receive: Receive, send: Send) -> None:
        gate = self._gates.setdefault(
            scope["path"], Access(Gate(self._application, Admission(max_working=1)), self.by_gateway)
        )
        await gate(scope, receive, send)

    async def start(self, **what: str) -> tuple[Visit, "asyncio.Task[Visit]"]:
        """Starts a request whose body is there."""
        visit = Visit(**what)
        visit.body.set()
        task = asyncio.create_task(visit.through(self._shedding))
        await asyncio.sleep(0.01)
        return visit, task

    @property
    def num_refused(self) -> tuple[int, int]:
        """Refusals by the proxy, and by the gateways."""
        by_proxy, by_gateway = (
            sum("overloaded" in one.refusals for one in by.records) for by in (self.by_proxy, self.by_gateway)
        )
        return by_proxy, by_gateway


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await scope["visit"].finish.wait()
    await send({"type": "http.response.start", "status": 200, "headers": []})


def run(scenario: Callable[[Server], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scenario(Server(application))

    asyncio.run(bounded())


def test_after_a_refusal_each_that_leaves_lets_one_in() -> None:
    async def scenario(server: Server) -> None:
        inside, task = await server.start()
        refused = [(await server.start())[0] for _ in range(5)]
        assert {visit.code for visit in refused} == {"overloaded"}
        assert server.num_refused == (4, 1)
        inside.finish.set()
        assert (await task).code == "ok"
        another, task = await server.start()
        assert not another.answer
        assert (await server.start())[0].code == "overloaded"
        assert server.num_refused == (5, 1)
        another.finish.set()
        assert (await task).code == "ok"

    run(scenario)


def test_the_proxys_refusal_is_the_gateways() -> None:
    async def scenario(server: Server) -> None:
        await server.start()
        (by_gateway, _), (by_proxy, _) = await server.start(), await server.start()
        assert server.num_refused == (1, 1)
        assert by_proxy.answer[1] == by_gateway.answer[1]
        start, headers = by_proxy.answer[0], dict(by_proxy.answer[0]["headers"])
        assert start["status"] == by_gateway.answer[0]["status"] == 503
        assert headers.pop(b"x-content-type-options") == b"nosniff"  # elsewhere the guard adds it
        assert headers == dict(by_gateway.answer[0]["headers"])
        assert headers[CODE_HEADER.lower().encode()] == b"overloaded"
        assert server.by_proxy.records[0].status == 503

    run(scenario)


def test_nothing_else_is_refused_meanwhile() -> None:
    async def scenario(server: Server) -> None:
        await server.start()
        for _ in range(2):
            assert (await server.start())[0].code == "overloaded"
        for what in ({"path": "/other"}, {"method": "GET"}):
            visit, _ = await server.start(**what)
            assert not visit.answer

    run(scenario)


def test_when_the_time_that_a_refusal_named_is_over_the_gateway_is_asked_again() -> None:
    async def scenario(server: Server) -> None:
        await server.start()
        for _ in range(3):
            await server.start()
        assert server.num_refused == (2, 1)
        server.seconds = OVERLOADED_SECONDS - 0.01
        await server.start()
        assert server.num_refused == (3, 1)
        server.seconds = OVERLOADED_SECONDS
        for _ in range(2):
            await server.start()
        assert server.num_refused == (4, 2)

    run(scenario)


def test_one_that_is_given_up_has_left_as_well() -> None:
    async def scenario(server: Server) -> None:
        _, task = await server.start()
        for _ in range(3):
            await server.start()
        assert server.num_refused == (2, 1)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        visit, _ = await server.start()
        assert not visit.answer

    run(scenario)
