"""The example server: many clients at once, and its page in a browser."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import io
import json
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.serving import example, served
from PIL import Image

import fastdiff
from fastdiff.demo import load_model
from fastdiff.demo.pictures import tile

WHY = "not installed: pip install fastdiff-sampler[serve] httpx"
pytest.importorskip("fastapi", reason=f"fastapi is {WHY}")
pytest.importorskip("uvicorn", reason=f"uvicorn is {WHY}")
httpx: Any = pytest.importorskip("httpx", reason=f"httpx is {WHY}")

CLIENTS = 200
METHODS = ("dpm3", "ddim", "unipc", "dpmpp2m_sde")


async def told(response: Any) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
    """The server-sent events of a response."""
    name = ""
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def client(http: Any, number: int, rng: random.Random) -> tuple[str, dict[str, Any], Any]:
    """What a client asked for, what it did, and how it ended."""
    asked = {"digit": number % 10, "method": METHODS[number % 4], "steps": rng.randint(2, 5), "seed": 1000 + number}
    asked["guidance"] = (None, 2.0, 4.0)[number % 3]
    plan = rng.choice(["wait"] * 6 + ["cancel", "leave", "change"])
    at = rng.randint(1, asked["steps"])
    await asyncio.sleep(rng.random())
    seen, own = [], None
    async with http.stream("GET", "/events") as response, contextlib.aclosing(told(response)) as events:
        async for name, data in events:
            if name == "session":
                answer = await http.post("/requests", json={**asked, **{"session": data["key"]}})
                assert answer.status_code == 200, answer.text
                own = answer.json()["id"]
                continue
            assert data["id"] == own
            if name != "preview":
                assert seen == sorted(set(seen)), seen
                return (name if plan != "change" else "changed", asked, data)
            seen.append(data["done"])
            if len(seen) == at and plan == "leave":
                return "left", asked, None
            if len(seen) == at and plan == "cancel":
                assert (await http.delete(f"/requests/{own}")).status_code in (204, 404)
            if len(seen) == at and plan == "change":
                answer = await http.patch(f"/requests/{own}", json={"guidance": 1.0})
                assert answer.status_code in (204, 404, 409), answer.text
    raise AssertionError("the events ended without an end")


def quiet(stats: dict[str, Any]) -> bool:
    """Whether nothing is left behind."""
    return stats["idle"] and stats["requests"] == stats["sessions"] == 0


def pixels(url: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))) as image:
        return np.asarray(image).astype(int)


@pytest.mark.slow
def test_two_hundred_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random methods, steps, arrivals, cancellations and changes: nothing lost, mixed up or left behind."""
    # httpx looks for it at every request, through all of sys.path where it is not there.
    monkeypatch.setitem(sys.modules, "sniffio", None)
    app = example().create(slots=16)

    async def all_of_them(address: str) -> list[tuple[str, dict[str, Any], Any]]:
        limits = httpx.Limits(max_connections=None)
        async with contextlib.AsyncExitStack() as stack:
            # Several, since the time that one takes grows with the square of its connections.
            several = [
                httpx.AsyncClient(base_url=address, limits=limits, timeout=120.0, verify=False) for _ in range(20)
            ]
            for one in several:
                await stack.enter_async_context(one)
            http, rng = several[0], random.Random(11)
            found = await asyncio.gather(
                *(client(several[i % 20], i, random.Random(rng.random())) for i in range(CLIENTS))
            )
            ends = time.monotonic() + 20.0
            while not quiet(stats := (await http.get("/stats")).json()) and time.monotonic() < ends:
                await asyncio.sleep(0.05)
            assert quiet(stats), stats
            return found

    with served(app) as address:
        found = asyncio.run(all_of_them(address))
    assert not app.state.requests and not app.state.sessions and not app.state.engine._known
    kinds = [kind for kind, _, _ in found]
    assert kinds.count("done") > 120 and {"left", "cancelled", "changed"} <= set(kinds) and "failed" not in kinds

    groups: dict[Any, list[tuple[dict[str, Any], Any]]] = defaultdict(list)
    for kind, asked, data in found:
        if kind == "done":
            groups[asked["method"], asked["steps"], asked["guidance"]].append((asked, data))
    model = load_model()
    for (method, steps, guidance), group in groups.items():
        labels = {"y": torch.tensor([asked["digit"] for asked, _ in group])}
        none = {"y": torch.full_like(labels["y"], 10)}
        given = {"model_kwargs": labels} if guidance is None else {"cond": labels, "uncond": none, "guidance": guidance}
        seeds = [asked["seed"] for asked, _ in group]
        x = fastdiff.sample(
            model,
            shape=(len(group), 1, 8, 8),
            method=method,
            steps=steps,
            seed=seeds,
            schedule="ddpm",
            clip=(-1.0, 1.0),
            **given,
        )
        for image, (asked, data) in zip(x, group, strict=True):
            # The network's sums depend on its batch: a level of 255 may round the other way.
            expected = np.asarray(tile(image[0].numpy(), 10)).astype(int)
            assert np.abs(pixels(data["image"]) - expected).max() <= 2, asked


def test_what_the_server_refuses() -> None:
    async def main(address: str) -> None:
        async with httpx.AsyncClient(base_url=address) as http:
            async with http.stream("GET", "/events") as response, contextlib.aclosing(told(response)) as events:
                session = (await anext(events))[1]["key"]
                for asked, status, message in (
                    ({"digit": 3, "method": "ode", "steps": 5}, 422, "chooses its steps from the error"),
                    ({"digit": 3, "method": "dpm33"}, 422, "did you mean"),
                    ({"digit": 11}, 422, "less than or equal to 9"),
                    ({"digit": 1, "guidence": 3.0}, 422, "Extra inputs are not permitted"),
                    ({"digit": 1, "session": "another"}, 404, "open GET /events first"),
                ):
                    answer = await http.post("/requests", json={"session": session, **asked})
                    assert answer.status_code == status and message in answer.text
                for number in ("NaN", "Infinity", "1e999"):
                    content = f'{{"session": "{session}", "digit": 3, "guidance": {number}}}'
                    answer = await http.post("/requests", content=content, headers={"content-type": "application/json"})
                    assert answer.status_code == 422 and "guidance" in answer.text
                assert (await http.delete("/requests/7")).status_code == 404
                methods = (await http.get("/methods")).json()
                assert methods["euler_cfg_pp"] and not methods["dpm3"] and "ode" not in methods
                slow = {"session": session, "digit": 1, "method": "ddpm", "steps": 200}
                for _ in range(2):
                    assert (await http.post("/requests", json=slow)).status_code == 200
                # Both run by then, and the next waits.
                assert {(await anext(events))[1]["id"] for _ in range(8)} == {1, 2}
                answers = [await http.post("/requests", json=slow) for _ in range(2)]
                assert [a.status_code for a in answers] == [200, 503] and "requests wait" in answers[1].text

    with served(example().create(slots=2, queue=1, pace=0.005, parked=0)) as address:
        asyncio.run(main(address))


def test_a_client_that_reads_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for it does not grow: first it gets no previews, and then it may ask for nothing more."""
    served_by = example()
    app = served_by.create(slots=2)

    async def main(address: str) -> None:
        async with httpx.AsyncClient(base_url=address) as http:
            async with http.stream("GET", "/events") as response, contextlib.aclosing(told(response)) as events:
                asked = {"session": (await anext(events))[1]["key"], "digit": 3, "steps": 5}
                monkeypatch.setattr(served_by, "BEHIND", 1)
                assert (await http.post("/requests", json=asked)).status_code == 200
                assert (await anext(events))[0] == "done"
                monkeypatch.setattr(served_by, "BEHIND", 0)
                answer = await http.post("/requests", json=asked)
                assert answer.status_code == 429 and "read its stream first" in answer.text

    with served(app) as address:
        asyncio.run(main(address))


def test_every_method_that_the_page_offers_makes_a_digit() -> None:
    async def main(address: str) -> dict[str, str]:
        ended: dict[str, str] = {}
        async with httpx.AsyncClient(base_url=address) as http:
            offered, asked = (await http.get("/methods")).json(), dict[int, str]()
            async with http.stream("GET", "/events") as response, contextlib.aclosing(told(response)) as events:
                session = (await anext(events))[1]["key"]
                for method, guided in offered.items():
                    given = {"digit": 3, "method": method, "steps": 3, "guidance": 0.6 if guided else None}
                    answer = await http.post("/requests", json={"session": session, **given})
                    assert answer.status_code == 200, f"{method}: {answer.text}"
                    asked[answer.json()["id"]] = method
                while len(ended) < len(asked):
                    name, data = await anext(events)
                    if name != "preview":
                        ended[asked[data["id"]]] = name
        return ended

    with served(example().create()) as address:
        ended = asyncio.run(main(address))
    assert len(ended) > 50 and set(ended.values()) == {"done"}


@pytest.mark.skipif(importlib.util.find_spec("PySide6") is None, reason="PySide6, with Chromium, is not installed")
def test_the_page_in_chromium(tmp_path: Path) -> None:
    """Several digits form at once; one is cancelled, one's guidance changed, while they do."""
    script = Path(__file__).resolve().parents[1] / "helpers" / "browser.py"
    picture = tmp_path / "page.png"
    with served(example().create(slots=16, pace=0.15)) as address:
        done = subprocess.run([sys.executable, str(script), address, str(picture)], capture_output=True, text=True)
    if "QtWebEngine" in done.stderr and done.returncode and not done.stdout:
        pytest.skip(f"Qt WebEngine does not start here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    kinds = [kind.split()[-1] for kind, _ in found["cards"]]
    assert sorted(set(kinds)) == ["cancelled", "done"] and kinds.count("cancelled") == 1, found
    assert found["changed"] == "guidance 8"
    with Image.open(picture) as seen:
        assert seen.size[0] >= 1000
