"""Who may come in: what is refused before its body is read, and how a shutdown waits for who is inside."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from serve.gateway.admission import Admission, Gate
from tests.support.visits import Visit


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await scope["visit"].finish.wait()
    await send({"type": "http.response.start", "status": 200, "headers": []})


def run(scenario: Callable[[Admission, Callable[..., Any]], Awaitable[None]]) -> None:
    async def bounded() -> None:
        admission = Admission(max_working=1)
        gate = Gate(application, admission)

        async def start(**what: str) -> tuple[Visit, asyncio.Task[Visit]]:
            visit = Visit(**what)
            task = asyncio.create_task(visit.through(gate))
            await asyncio.sleep(0)
            return visit, task

        async with asyncio.timeout(10):
            await scenario(admission, start)

    asyncio.run(bounded())


def test_what_is_too_much_is_refused_before_its_body_is_read() -> None:
    async def scenario(admission: Admission, start: Callable[..., Any]) -> None:
        slow, uploading = await start()
        working, task = await start()
        working.body.set()
        await asyncio.sleep(0.01)
        refused, _ = await start()
        assert refused.code == "overloaded"  # at once: its body was not asked for
        assert (b"retry-after", b"1") in refused.answer[0]["headers"]
        seen, _ = await start(method="GET", path="/readyz")
        assert not seen.answer
        for visit in (working, slow, seen):
            visit.body.set()
            visit.finish.set()
        assert {(await done).code for done in (task, uploading)} == {"ok"}
        another, _ = await start()
        assert not another.answer

    run(scenario)


def test_a_shutdown_waits_for_those_inside_and_lets_nobody_in() -> None:
    async def scenario(admission: Admission, start: Callable[..., Any]) -> None:
        inside, task = await start()
        closing = asyncio.create_task(admission.close())
        await asyncio.sleep(0.01)
        for path in ("/v1/predict", "/readyz"):
            assert (await start(path=path))[0].code == "shutting_down"
        alive, _ = await start(method="GET", path="/healthz")
        assert not alive.answer
        for visit in (alive, inside):
            assert not closing.done()
            visit.body.set()
            visit.finish.set()
        await closing
        assert (await task).code == "ok"

    run(scenario)


def test_a_request_that_is_given_up_leaves() -> None:
    async def scenario(admission: Admission, start: Callable[..., Any]) -> None:
        visit, task = await start()
        visit.body.set()
        await asyncio.sleep(0.01)
        assert (admission.num_requests, admission.num_working) == (1, 1)
        task.cancel()
        await asyncio.wait([task])
        assert (admission.num_requests, admission.num_working) == (0, 0)

    run(scenario)
