"""What only an asyncio client has: a loop it belongs to, awaits that are cancelled, a loop that is never blocked."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
import uvloop

import farm.errors as errors
from farm.client import AsyncClient
from tests.fakerouter import FakeRouter

X = np.ones((1, 4), np.float32)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    return uvloop.run if request.param == "uvloop" else asyncio.run


@pytest.fixture(params=["direct", "zeromq"])
def client(request, runtime_dir, router):
    return AsyncClient(runtime_dir, lane=request.param)


async def until(holds):
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.001)


def test_second_loop_is_refused_by_name(client, run):
    async def use():
        await client.infer("double", X)

    async def close():
        await client.close()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(use())
    with pytest.raises(errors.InvalidRequest, match="belongs to another event loop"):
        run(use())
    loop.run_until_complete(close())
    loop.close()


def test_cancelled_await_tells_the_farm_and_gets_its_slot_back_with_the_reply(client, router, run):
    async def main():
        async with client:
            await client.infer("double", X)
            router.mode = "hold"
            task = asyncio.create_task(client.infer("double", X, deadline_ms=10_000))
            await until(lambda: router.kept)
            request_id = router.kept[0][1].id
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: client._engine.session.free_count() == 256)
            assert router.cancelled == [request_id]
            router.mode = "answer"
            assert (await client.infer("double", X)).source == "model"

    run(main())


def test_cancelled_await_that_was_not_sent_yet_gives_its_slot_back(client, router, run):
    async def main():
        async with client:
            await client.infer("double", X)
            task = asyncio.create_task(client.infer("double", X))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: client._engine.session.free_count() == 256)

    run(main())


def test_timeout_around_an_await(client, router, run):
    async def main():
        async with client:
            router.mode = "silent"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.infer("double", X, deadline_ms=10_000), 0.03)

    run(main())


def test_cancelled_wait_for_a_slot_or_a_lease_keeps_nothing(runtime_dir, router, run):
    async def main():
        async with AsyncClient(runtime_dir, slot_count=1) as client:
            async with client.lease("double", {"x": ((1, 4), "float32")}):
                tasks = [asyncio.create_task(client.infer("double", X, deadline_ms=10_000))]

                async def lease():
                    async with client.lease("double", {"x": ((1, 4), "float32")}):
                        pass

                tasks.append(asyncio.create_task(lease()))
                await until(lambda: len(client._engine.waiting) == 2)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await until(lambda: client._engine.session.free_count() == 1)
            await client.infer("double", X)

    run(main())


@pytest.mark.slow
@pytest.mark.parametrize("count", [40, 128])
def test_many_concurrent_calls_all_end(client, run, count):
    async def call(number):
        for i in range(20):
            reply = await client.infer("double", X * (number + i))
            assert reply.outputs["y"][0, 0] == 2 * (number + i)

    async def main():
        async with client:
            await asyncio.gather(*(call(n) for n in range(count)))
            assert client._engine.session.free_count() == 256

    run(main())


@pytest.mark.slow
def test_calls_outlive_routers_and_the_loop_goes_on(runtime_dir, run):
    async def main():
        router = FakeRouter(runtime_dir)
        longest, stop = 0.0, False
        loop = asyncio.get_running_loop()

        async def tick():
            nonlocal longest
            while not stop:
                start = loop.time()
                await asyncio.sleep(0.005)
                longest = max(longest, loop.time() - start)

        async with AsyncClient(runtime_dir) as client:
            ticking = asyncio.create_task(tick())
            calls = [asyncio.create_task(client.infer("double", X, deadline_ms=10_000)) for _ in range(20)]
            for epoch in range(2, 6):
                await asyncio.to_thread(router.close)
                calls += [asyncio.create_task(client.infer("double", X, deadline_ms=10_000)) for _ in range(20)]
                await asyncio.sleep(0.02)
                router = await asyncio.to_thread(FakeRouter, runtime_dir, epoch=epoch)
                await asyncio.sleep(0.02)
            replies = await asyncio.gather(*calls)
            assert {reply.source for reply in replies} == {"model"}
            stop = True
            await ticking
        router.close()
        assert longest < 0.5

    run(main())


def test_view_let_go_in_another_thread_wakes_the_loop(runtime_dir, router, run):
    async def main():
        async with AsyncClient(runtime_dir, slot_count=1) as client:
            async with client.lease("double", {"x": ((1, 4), "float32")}) as lease:
                held = [(await lease.infer()).outputs["y"]]
            letting_go = threading.Timer(0.03, held.clear)
            letting_go.start()
            assert (await client.infer("double", X, deadline_ms=5000)).source == "model"
            letting_go.join()

    run(main())


def test_client_made_outside_a_loop_and_never_used_closes(runtime_dir, run):
    client = AsyncClient(runtime_dir)
    run(client.close())
    run(client.close())
