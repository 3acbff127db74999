"""Following the alias: what is served while versions come, fail and vanish."""

import asyncio
from collections.abc import Callable

from serve.replica.alias_watch import AliasWatch
from serve.replica.errors import ModelUnavailable


class Store:
    """A registry that a test moves by hand; versions named `bad…` cannot be loaded."""

    def __init__(self, version: str | None) -> None:
        self.version = version
        self.loads: list[str] = []
        self.retired: list[str] = []

    def resolve(self) -> str:
        if self.version is None:
            raise ModelUnavailable("nothing there")
        return self.version

    def load(self, version: str) -> str:
        self.loads.append(version)
        if version.startswith("bad"):
            raise RuntimeError("/secret/path is broken")
        return f"model {version}"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def run(version: str | None, scenario: Callable[[Store, AliasWatch[str]], object]) -> None:
    async def watched() -> None:
        store = Store(version)
        watch = AliasWatch(store.resolve, store.load, store.retired.append, poll_seconds=0.01)
        await watch.start()
        try:
            await scenario(store, watch)  # type: ignore[misc]
        finally:
            watch.close()

    asyncio.run(watched())


def test_a_moved_alias_is_swapped_and_loaded_once() -> None:
    async def scenario(store: Store, watch: AliasWatch[str]) -> None:
        assert (watch.model, watch.problem) == ("model 1", None)
        store.version = "2"
        await until(lambda: watch.model == "model 2")
        await asyncio.sleep(0.05)
        assert (store.loads, store.retired) == (["1", "2"], ["model 1"])

    run("1", scenario)


def test_a_model_that_comes_later_is_found() -> None:
    async def scenario(store: Store, watch: AliasWatch[str]) -> None:
        assert (watch.model, watch.problem) == (None, "nothing there")
        store.version = "1"
        await until(lambda: watch.model == "model 1")
        assert watch.problem is None

    run(None, scenario)


def test_a_bad_version_leaves_the_old_one_and_says_so_without_paths() -> None:
    async def scenario(store: Store, watch: AliasWatch[str]) -> None:
        store.version = "bad"
        await until(lambda: watch.problem is not None)
        await asyncio.sleep(0.05)
        assert watch.model == "model 1"
        assert "secret" not in str(watch.problem)
        assert store.loads == ["1", "bad"]  # not again and again
        store.version = "1"
        await until(lambda: watch.problem is None)

    run("1", scenario)


def test_a_registry_that_is_away_changes_nothing() -> None:
    async def scenario(store: Store, watch: AliasWatch[str]) -> None:
        store.version = None
        await until(lambda: watch.problem == "nothing there")
        assert watch.model == "model 1"

    run("1", scenario)
