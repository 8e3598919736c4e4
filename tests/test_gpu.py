"""On a GPU: back ends against the reference, capture and replay, memory, threads. Skipped, with the reason,
elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from helpers.stage_cases import check, random_case

import fastdiff
from fastdiff import ops
from fastdiff.ops import philox
from fastdiff.run import graph

pytestmark = pytest.mark.gpu

KERNELS = ("cuda", "triton")
FIXED = sorted(name for name, m in fastdiff.methods().items() if not m["adaptive"] and not m["guided"])
SHAPE = (3, 2, 9, 7)
REPLAYS = 1000
BUSY = (16, 2, 128, 128)


def backend(name: str):
    module = ops.load(name)
    ok, why = module.available()
    if not ok:
        pytest.skip(f"{name}: {why}")
    return module


class Net(torch.nn.Module):
    """Small, smooth, dependent on x, t and y; parameters of any dtype."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        h = torch.tanh(self.conv(x) + t.to(x.dtype).reshape(-1, 1, 1, 1) / 1000)
        return h if y is None else h + y.to(x.dtype).reshape(-1, 1, 1, 1)


@pytest.fixture(autouse=True)
def _clean():
    yield
    graph.clear_graphs()


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().cuda()


@pytest.mark.parametrize("seed", range(150))
@pytest.mark.parametrize("name", KERNELS)
def test_random_stages(name: str, seed: int) -> None:
    """Every conversion, guidance, clip, history, noise, dtype, odd size, aliasing, per-sample rows: the CPU tests'
    cases."""
    check(backend(name), random_case(seed, device="cuda"))


@pytest.mark.parametrize("n", [1, 7, 1025, 4096])
@pytest.mark.parametrize("name", KERNELS)
def test_normals(name: str, n: int) -> None:
    """Within the contract of the NumPy truth, for two seeds at once."""
    out = torch.full((2, n), float("nan"), device="cuda")
    seeds = torch.tensor([5, -3], device="cuda")
    index = torch.tensor([0, 9], dtype=torch.int32, device="cuda")
    backend(name).normal_(out, seeds, index, 4, philox.PRIOR)
    want = torch.stack(
        [torch.from_numpy(philox.normals(n, s, i, 4, philox.PRIOR)) for s, i in ((5, 0), (2**64 - 3, 9))]
    )
    # 2 units in the last place, or 1e-6: DESIGN's contract.
    tolerance = torch.maximum(2.0 * want.abs() * 2.0**-23, torch.tensor(1e-6))
    assert ((out.cpu() - want).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1, 7, 1025, 70000])
@pytest.mark.parametrize("name", KERNELS)
def test_quantiles(name: str, n: int, dtype: torch.dtype) -> None:
    """The order statistics themselves; between two of them, one rounding of each operation."""
    x = torch.randn(3, n, dtype=dtype, device="cuda")
    for q in (0.0, 0.5, 0.995, 1.0):
        got, want = (torch.full((3,), float("nan"), dtype=dtype, device="cuda") for _ in range(2))
        backend(name).quantile_(got, x, q)
        ops.load("reference").quantile_(want, x, q)
        torch.testing.assert_close(got, want, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("name", KERNELS)
def test_whole_loops_agree_with_the_cpu(name: str, method: str) -> None:
    """float64 from the same x: only the noise's rounding (1e-6) and the network's differ."""
    backend(name)
    network = Net().double()
    x = fastdiff.randn(SHAPE, seed=1, dtype=torch.float64)
    draws: dict[int, torch.Tensor] = {}

    def noise(draw: int, like: torch.Tensor) -> torch.Tensor:
        if draw not in draws:
            draws[draw] = fastdiff.randn(SHAPE, seed=2, draw=draw + 1, dtype=torch.float64)
        return draws[draw].to(like.device)

    options = {"method": method, "steps": 5, "dtype": torch.float64, "noise": noise}
    want = fastdiff.sample(network, x, backend="reference", **options)
    got = fastdiff.sample(network.cuda(), x.cuda(), backend=name, **options)
    # The network's convolution may differ by some units of 2^-53 for each of few evaluations, amplified by large
    # coefficients of the noise-space methods: relative to the largest element.
    assert (got.cpu() - want).abs().max() <= 1e-9 * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", FIXED)
def test_capture_and_replay(net: Net, method: str, dtype: torch.dtype) -> None:
    """Replays equal the eager loop bit for bit, whatever the network's dtype, with another seed as well."""
    network = net.to(dtype)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    captured = fastdiff.Sampler(method, 4, dtype=state, graph=True)
    eager = fastdiff.Sampler(method, 4, dtype=state, graph=False)
    for seed in (1, 2, 1):
        assert torch.equal(captured(network, shape=SHAPE, seed=seed), eager(network, shape=SHAPE, seed=seed))


def test_every_value_may_change_between_replays(net: Net) -> None:
    ones = torch.ones(3, device="cuda")
    base = {"shape": SHAPE, "guidance_scale": 2.0, "cond": {"y": ones}, "uncond": {"y": 0 * ones}}
    changes = [
        ({}, {}),
        ({}, {"seed": 5}),
        ({}, {"first_sample": 7}),
        ({}, {"seed": [4, 5, 6]}),
        ({}, {"shape": None, "x": torch.full(SHAPE, 0.25, device="cuda")}),
        ({}, {"guidance_scale": 0.5}),
        ({}, {"cond": {"y": 3 * ones}}),
        ({}, {"uncond": {"y": -ones}}),
        ({"schedule": "cosine"}, {}),
        ({"spacing": "trailing"}, {}),
        ({"eta": 0.25}, {}),
        ({"clip": (-0.5, 0.25)}, {}),
    ]
    for build, call in changes:
        options = {"eta": 1.0, "clip": (-1.0, 1.0), **build}
        arguments = {**base, **call}
        got = fastdiff.Sampler("ddim", 4, graph=True, **options)(net, **arguments)
        want = fastdiff.Sampler("ddim", 4, graph=False, **options)(net, **arguments)
        assert torch.equal(got, want), (build, call)
    assert len(graph.CACHE.entries) == 1


def test_dynamic_thresholding_and_autocast_are_captured(net: Net) -> None:
    for cast in (False, True):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=cast):
            got = fastdiff.Sampler("dpmpp2m", 4, clip="dynamic", graph=True)(net, shape=SHAPE)
            want = fastdiff.Sampler("dpmpp2m", 4, clip="dynamic", graph=False)(net, shape=SHAPE)
        assert torch.equal(got, want)


def test_autocast_casts_the_weights_inside_the_graph(net: Net) -> None:
    """A copy that autocast had kept from before the capture would be stale, and its memory another's."""
    sampler, eager = fastdiff.Sampler("dpm3", 4, graph=True), fastdiff.Sampler("dpm3", 4, graph=False)
    for factor in (1.0, 0.5, 3.0):
        with torch.no_grad():
            net.conv.weight.mul_(factor)
        results = []
        for run in (sampler, eager):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                results.append(run(net, shape=SHAPE))
        assert torch.equal(*results), factor
    assert len(graph.CACHE.entries) == 1


def test_compiled_network_is_captured(net: Net) -> None:
    compiled = torch.compile(net)
    got = fastdiff.Sampler("dpm3", 4, graph=True)(compiled, shape=SHAPE)
    want = fastdiff.Sampler("dpm3", 4, graph=False)(compiled, shape=SHAPE)
    assert torch.equal(got, want)


def test_a_network_that_makes_graphs_of_its_own(net: Net) -> None:
    """Said before anything is compiled or captured."""
    compiled = torch.compile(net, mode="reduce-overhead")
    with pytest.raises(RuntimeError, match=r"graph=True: the model makes or replays CUDA graphs of its own"):
        fastdiff.Sampler("dpm3", 4, graph=True)(compiled, shape=SHAPE)


def test_two_shapes_and_two_streams(net: Net) -> None:
    sampler, eager = fastdiff.Sampler("dpm3", 4, graph=True), fastdiff.Sampler("dpm3", 4, graph=False)
    want = {b: eager(net, shape=(b, 2, 9, 7)) for b in (1, 4)}
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(5):
        for b in (1, 4):
            with torch.cuda.stream(side if b == 4 else torch.cuda.current_stream()):
                got = sampler(net, shape=(b, 2, 9, 7))
            torch.cuda.synchronize()
            assert torch.equal(got, want[b])


def test_deterministic_over_100_replays(net: Net) -> None:
    sampler = fastdiff.Sampler("dpmpp2m_sde", 5, graph=True)
    first = sampler(net, shape=SHAPE, seed=3)
    assert all(torch.equal(sampler(net, shape=SHAPE, seed=3), first) for _ in range(100))


def test_memory_constant_over_1000_replays(net: Net) -> None:
    sampler = fastdiff.Sampler("dpm3", 4, graph=True)
    for _ in range(3):
        sampler(net, shape=SHAPE)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for seed in range(REPLAYS):
        sampler(net, shape=SHAPE, seed=seed)
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


def test_clear_graphs_frees_memory(net: Net) -> None:
    before = torch.cuda.memory_allocated()
    fastdiff.Sampler("dpm3", 4, graph=True)(net, shape=(64, 2, 64, 64))
    assert torch.cuda.memory_allocated() > before
    fastdiff.clear_graphs()
    torch.cuda.empty_cache()
    # A few bytes stay with the sampler's cached tables, which went with it, and with libraries' workspaces.
    assert torch.cuda.memory_allocated() - before < 64 * 2 * 64 * 64 * 4


def test_two_threads(net: Net) -> None:
    sampler, eager = fastdiff.Sampler("ddpm", 5, graph=True), fastdiff.Sampler("ddpm", 5, graph=False)
    sampler(net, shape=SHAPE)
    want = [eager(net, shape=SHAPE, seed=i) for i in range(40)]
    got: list[torch.Tensor | None] = [None] * 40

    def work(first: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for i in range(first, 40, 2):
                got[i] = sampler(net, shape=SHAPE, seed=i)
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


class Waits(Net):
    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x, t) * float(x.abs().max() > -1)


class OwnGenerator(Net):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator("cuda")

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        noise = torch.randn(x.shape, generator=self.generator, device=x.device)
        return super().forward(x, t) + 0 * noise


class HoldsCpu(Net):
    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x, t) + torch.ones(1).to(x.device)


@pytest.mark.parametrize("kind", [Waits, HoldsCpu])
def test_networks_that_cannot_be_captured(kind: type[Net]) -> None:
    """One warning and the eager result under auto, an error under True; and the device goes on working."""
    before = torch.cuda.current_stream()
    model = kind().cuda()
    want = fastdiff.Sampler("dpm3", 4, graph=False)(model, shape=SHAPE)
    auto = fastdiff.Sampler("dpm3", 4, graph="auto")
    assert torch.equal(auto(model, shape=SHAPE), want)
    with pytest.warns(UserWarning, match=r"cannot be captured in a CUDA graph.*(waits for the device|CPU)"):
        assert torch.equal(auto(model, shape=SHAPE), want)
    assert torch.cuda.current_stream() == before
    # What torch before 2.13 leaves broken: the allocator, the default generator, and the model's own pool of memory.
    torch.cuda.empty_cache()
    assert torch.isfinite(torch.randn(3, device="cuda")).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(auto(model, shape=SHAPE), want)
    for shape in (SHAPE, (1, *SHAPE[1:])):
        with pytest.raises(RuntimeError, match=r"graph=True: the model cannot be captured: it (waits|copies|holds)"):
            fastdiff.Sampler("dpm3", 4, graph=True)(model, shape=shape)
    fine = Net().cuda()
    got = fastdiff.Sampler("dpm3", 4, graph=True)(fine, shape=SHAPE)
    assert torch.equal(got, fastdiff.Sampler("dpm3", 4, graph=False)(fine, shape=SHAPE))


def test_a_model_captures_after_it_could_not() -> None:
    """A failure for one shape leaves the graphs of another, and those to come, as they were."""

    class Sometimes(Net):
        def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
            factor = float(x.abs().max() > -1) if len(x) == 2 else 1.0
            return super().forward(x, t) * factor

    model, sampler = Sometimes().cuda(), fastdiff.Sampler("dpm3", 4, graph=True)
    eager = fastdiff.Sampler("dpm3", 4, graph=False)
    for batch in (3, 2, 3, 1, 2, 1, 3):
        shape = (batch, *SHAPE[1:])
        if batch == 2:
            with pytest.raises(RuntimeError, match=r"it (waits for the device|copies between)"):
                sampler(model, shape=shape)
        else:
            assert torch.equal(sampler(model, shape=shape), eager(model, shape=shape))
    assert len(graph.CACHE.entries) == 2


def test_a_generator_of_the_network() -> None:
    """Torch refuses it in a capture, or, since it registers generators by itself, records it."""
    model = OwnGenerator().cuda()
    want = fastdiff.Sampler("dpm3", 4, graph=False)(model, shape=SHAPE)
    try:
        got = fastdiff.Sampler("dpm3", 4, graph=True)(model, shape=SHAPE)
    except RuntimeError as error:
        assert "a generator that the graph does not know" in str(error)
    else:
        assert torch.equal(got, want)


def test_a_graph_dropped_while_another_stream_replays_it(net: Net) -> None:
    """Its buffers are the allocator's to give away only after that replay."""
    sampler = fastdiff.Sampler("ddpm", 10, graph=True)
    want = fastdiff.Sampler("ddpm", 10, graph=False)(net, shape=BUSY, seed=3)
    side = torch.cuda.Stream()
    for _ in range(5):
        sampler(net, shape=BUSY, seed=2)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            got = sampler(net, shape=BUSY, seed=3)
        fastdiff.clear_graphs()
        spoil = [torch.full(BUSY, float("nan"), device="cuda") for _ in range(8)]
        torch.cuda.synchronize()
        assert torch.equal(got, want)
        del spoil


def test_no_synchronisation_in_the_loop(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own watch on synchronising calls, for the eager loop and for replays."""
    sampler = fastdiff.Sampler("unipc", 6, graph=False)
    replayed = fastdiff.Sampler("unipc", 6, graph=True)
    replayed(net, shape=SHAPE)
    state = sampler.begin(shape=SHAPE)
    replay, replays = graph._replay, []

    def watched(*arguments: object) -> torch.Tensor:
        replays.append(arguments)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return replay(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    torch.cuda.set_sync_debug_mode("error")
    try:
        while not state.done:
            state = sampler.step(state, net(state.input, state.time).detach())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    monkeypatch.setattr(graph, "_replay", watched)
    replayed(net, shape=SHAPE, seed=1)
    assert len(replays) == 1


SANITIZED = """
import torch
from helpers.stage_cases import check, random_case
from fastdiff import ops
for name in ("cuda", "triton"):
    module = ops.load(name)
    if module.available()[0]:
        for seed in range(6):
            check(module, random_case(seed, device="cuda"))
        module.quantile_(torch.empty(2, device="cuda"), torch.randn(2, 1025, device="cuda"), 0.5)
torch.cuda.synchronize()
"""


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool: str) -> None:
    places = [os.environ.get("PATH", ""), os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")]
    found = shutil.which("compute-sanitizer", path=os.pathsep.join(places))
    if found is None:
        pytest.skip("compute-sanitizer is not installed")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    # PyTorch's caching allocator would hide accesses past the end of a tensor.
    environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    # Libraries ask the driver for functions that it may lack, which is no error of a kernel.
    options = ["--report-api-errors", "no"] if tool == "memcheck" else []
    command = [found, "--tool", tool, *options, "--target-processes", "application-only", "--error-exitcode", "9"]
    command += [sys.executable, "-c", SANITIZED]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
