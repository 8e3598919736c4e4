"""Handwritten digits over HTTP: every request with its own method, steps and guidance, all in one batch.

    pip install "fastdiff-sampler[serve]"
    python examples/serve/app.py            # http://127.0.0.1:8000

GET /events is one stream of server-sent events for all requests of a client: `session` with its key, then of each
request, by its id, a `preview` for every evaluation, and `done`, `failed` or `cancelled`. POST /requests asks for a
digit, PATCH /requests/{id} changes its guidance while it runs, DELETE cancels it. What a client that goes away has
asked for is cancelled. One stream for all, because browsers open six connections to a server at most.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

import fastdiff
from fastdiff.demo import load_model
from fastdiff.demo.pictures import tile
from fastdiff.engine import Closed, QueueFull

PAGE = Path(__file__).with_name("page.html")
Stream = asyncio.Queue[str]
"""What a client is yet to be told; an empty text ends its stream."""

NOTHING = 10
"""The class that the network was trained with where it was given none."""

BEHIND = 1000
"""Events that may wait for a client that reads slowly: with half as many it gets no more previews, and with as many it
may ask for nothing more."""


class Told(BaseModel):
    """What a client says; fields that nobody reads are refused."""

    model_config = ConfigDict(extra="forbid")


class Asked(Told):
    """A digit, and how it is to be made; `session` is the key of the stream that tells of it."""

    session: str
    digit: int = Field(ge=0, le=9)
    method: str = "dpm3"
    steps: int = Field(default=10, ge=1, le=200)
    guidance: float | None = Field(default=None, ge=-50, le=50)
    seed: int = Field(default=0, ge=0, lt=2**63)
    priority: int = Field(default=0, ge=-100, le=100)


class Changed(Told):
    """Another guidance."""

    guidance: float | None = Field(ge=-50, le=50)


def png(x0: torch.Tensor, scale: int = 10) -> str:
    """A sample (1, 8, 8) in [-1, 1] as a data URL."""
    file = io.BytesIO()
    tile(x0[0].cpu().numpy(), scale).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def event(name: str, **data: Any) -> str:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def create(slots: int = 16, queue: int = 256, pace: float = 0.0, parked: int | None = None) -> FastAPI:
    """The application; `app.state` has its engine, requests and sessions.

    Args:
        slots, queue, parked: as of `fastdiff.Engine`.
        pace: seconds that every tick waits, so that a person can watch.
    """
    model = load_model()

    def network(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        time.sleep(pace)
        out: torch.Tensor = model(x, t, y)
        return out

    nothing = {"y": torch.tensor([NOTHING])}
    engine = fastdiff.Engine(
        network,
        slots=slots,
        queue=queue,
        parked=parked,
        shape=(1, 8, 8),
        schedule="ddpm",
        prediction="eps",
        uncond=nothing,
    )
    # Of each method, whether it is CFG++.
    offered = {name: told["guided"] for name, told in fastdiff.methods().items() if not told["adaptive"]}
    requests: dict[int, fastdiff.Request] = {}
    sessions: dict[str, tuple[Stream, set[asyncio.Task[None]]]] = {}
    numbers = itertools.count(1)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close(cancel=True)

    app = FastAPI(title="fastdiff digits", lifespan=lifespan)
    app.state.engine, app.state.requests, app.state.sessions = engine, requests, sessions

    def found(number: int) -> fastdiff.Request:
        if number not in requests:
            raise HTTPException(404, f"no request {number} is under way")
        return requests[number]

    async def follow(number: int, request: fastdiff.Request, told: Stream) -> None:
        """Tell a client what becomes of its request."""
        try:
            async with contextlib.aclosing(engine.follow(request)) as previews:
                async for preview in previews:
                    name = "done" if preview.done == preview.nfe else "preview"
                    if name == "preview" and told.qsize() >= BEHIND // 2:
                        continue
                    told.put_nowait(event(name, id=number, done=preview.done, nfe=preview.nfe, image=png(preview.x0)))
        except Exception as error:
            name = "cancelled" if request.cancelled() else "failed"
            told.put_nowait(event(name, id=number, error=f"{type(error).__name__}: {error}"))
        finally:
            requests.pop(number, None)

    async def stream() -> AsyncIterator[str]:
        key, told, tasks = secrets.token_urlsafe(16), Stream(), set[asyncio.Task[None]]()
        sessions[key] = told, tasks
        try:
            yield event("session", key=key)
            while message := await told.get():
                yield message
        finally:
            del sessions[key]
            for task in tasks:
                task.cancel()

    @app.exception_handler(RequestValidationError)
    def refused(request: Request, error: RequestValidationError) -> JSONResponse:
        """Without what was sent, which may be a number that JSON does not have."""
        told = [{name: one[name] for name in ("loc", "msg", "type")} for one in error.errors()]
        return JSONResponse({"detail": told}, 422)

    @app.get("/events")
    def events() -> StreamingResponse:
        return StreamingResponse(stream(), media_type="text/event-stream")

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    @app.get("/methods")
    def methods() -> dict[str, bool]:
        """Each method, and whether it is CFG++, whose guidance must be given, about 0.6."""
        return offered

    @app.get("/stats")
    def stats() -> dict[str, Any]:
        return {**engine.stats._asdict(), "requests": len(requests), "sessions": len(sessions), "idle": engine.idle}

    @app.post("/requests")
    async def submit(asked: Asked) -> dict[str, int]:
        if asked.session not in sessions:
            raise HTTPException(404, "no such session: open GET /events first, and give the key that it tells")
        told, tasks = sessions[asked.session]
        if told.qsize() >= BEHIND:
            raise HTTPException(429, f"{told.qsize()} events of this session wait to be read: read its stream first")
        try:
            request = engine.submit(
                asked.method,
                asked.steps,
                seed=asked.seed,
                guidance=asked.guidance,
                cond={"y": torch.tensor([asked.digit])},
                priority=asked.priority,
                # What a method of CFG++ computes with is the unconditional x0, which has no clip.
                clip=None if offered.get(asked.method) else (-1.0, 1.0),
                previews=True,
            )
        except (QueueFull, Closed) as error:
            raise HTTPException(503, str(error)) from None
        except (ValueError, TypeError) as error:
            raise HTTPException(422, str(error)) from None
        number = next(numbers)
        requests[number] = request
        task = asyncio.create_task(follow(number, request, told))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return {"id": number, "nfe": request.nfe}

    @app.patch("/requests/{number}")
    def change(number: int, changed: Changed) -> Response:
        try:
            found(number).guidance = changed.guidance
        except (ValueError, TypeError) as error:
            raise HTTPException(409, str(error)) from None
        return Response(status_code=204)

    @app.delete("/requests/{number}")
    def cancel(number: int) -> Response:
        found(number).cancel()
        return Response(status_code=204)

    return app


def main() -> None:
    import uvicorn

    parser = argparse.ArgumentParser(description="Handwritten digits over HTTP")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--slots", type=int, default=16, help="requests that run at a time")
    parser.add_argument("--pace", type=float, default=0.1, help="seconds that every tick waits")
    args = parser.parse_args()
    app = create(args.slots, pace=args.pace)

    class Server(uvicorn.Server):
        """Ends the streams of events when it is stopped: an open page keeps its own, and the server would wait."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            for told, _ in app.state.sessions.values():
                told.put_nowait("")
            super().handle_exit(sig, frame)

    with contextlib.suppress(KeyboardInterrupt):
        Server(uvicorn.Config(app, host=args.host, port=args.port)).run()


if __name__ == "__main__":
    main()
