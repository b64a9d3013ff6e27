"""FastAPI on uvicorn, as its users write it: `uvicorn` with two processes, ONNX Runtime in the handler.

Reads what to serve from PEER, a JSON object in the environment: path, input, columns, max_batch. Three ways in: /raw
takes and gives bytes, /json lists of numbers, /batch and /batch-json collect up to 50 requests or 100 ms.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, Request, Response  # type: ignore[import-not-found]
from pydantic import BaseModel

BATCH = 50
BATCH_WAIT_S = 0.1

PEER = json.loads(os.environ["PEER"])
COLUMNS = PEER["columns"]


def session() -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(PEER["path"], options, providers=["CPUExecutionProvider"])


SESSION = session()
NAME = PEER["input"]


def run(rows: Any) -> Any:
    return SESSION.run(None, {NAME: rows})[0]


class Batcher:
    """A queue in this process; what has come within the wait runs together."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue()

    async def infer(self, row: Any) -> Any:
        ended = asyncio.get_running_loop().create_future()
        await self.queue.put((row, ended))
        return await ended

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.queue.get()]
            until = loop.time() + BATCH_WAIT_S
            while len(batch) < BATCH:
                try:
                    batch.append(await asyncio.wait_for(self.queue.get(), until - loop.time()))
                except TimeoutError:
                    break
            answers = run(np.concatenate([row for row, _ in batch]))
            for (_, ended), answer in zip(batch, answers, strict=True):
                if not ended.cancelled():
                    ended.set_result(answer)


BATCHER = Batcher()


@asynccontextmanager
async def lifespan(_: FastAPI) -> Any:
    serving = asyncio.create_task(BATCHER.serve())
    yield
    serving.cancel()


app = FastAPI(lifespan=lifespan)


class Features(BaseModel):
    rows: list[list[float]]


@app.post("/raw")  # type: ignore[untyped-decorator]
async def raw(request: Request) -> Response:
    rows = np.frombuffer(await request.body(), np.float32).reshape(-1, COLUMNS)
    return Response(run(rows).tobytes(), media_type="application/octet-stream")


@app.post("/json")  # type: ignore[untyped-decorator]
async def by_json(features: Features) -> dict[str, Any]:
    return {"outputs": run(np.array(features.rows, np.float32)).tolist()}


@app.post("/batch")  # type: ignore[untyped-decorator]
async def batch(request: Request) -> Response:
    row = np.frombuffer(await request.body(), np.float32).reshape(-1, COLUMNS)
    return Response((await BATCHER.infer(row)).tobytes(), media_type="application/octet-stream")


@app.post("/batch-json")  # type: ignore[untyped-decorator]
async def batch_json(features: Features) -> dict[str, Any]:
    return {"outputs": (await BATCHER.infer(np.array(features.rows, np.float32))).tolist()}


if __name__ == "__main__":
    import uvicorn  # type: ignore[import-not-found]

    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    uvicorn.run(
        "fastapi_server:app",
        host="127.0.0.1",
        port=PEER["port"],
        workers=PEER["workers"],
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
