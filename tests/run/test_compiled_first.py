"""`torch.compile` of a sampler that never ran before, and eager calls of one that was recorded: neither depends on the
other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx

import fastdiff
from fastdiff import guidance, names
from fastdiff.guidance import Guidance, Place
from fastdiff.losses import ddpm_loss, q_sample
from fastdiff.ops import registry
from fastdiff.run.compiled import joined, parts

X, OTHER = torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
CONDITIONS = {"cond": {"y": torch.ones(2)}, "uncond": {"y": torch.zeros(2)}}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        out: torch.Tensor = self.linear(x) + 1e-3 * t.reshape(-1, 1)
        return out if y is None else out * (1 + y.reshape(-1, 1))


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_LOADED", {})
    monkeypatch.setattr(names, "ANNOUNCED", set())
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graphs(call: Callable[..., torch.Tensor], *runs: tuple[Any, ...]) -> int:
    """Compiles `call`, first of all; compares each run with an eager one, which stands between; how many graphs."""
    count = CompileCounter()
    compiled = torch.compile(call, fullgraph=True, backend=count)
    for arguments in runs:
        got = compiled(*arguments)
        assert torch.equal(got, call(*arguments))
    return int(count.frame_count)


@pytest.mark.filterwarnings("ignore:the model, Net, is in training mode")
def test_the_first_call_is_compiled() -> None:
    # In training mode, as a network is that nobody called eval() of: the warning is no graph break.
    net, sampler = Net(), fastdiff.Sampler("unipc", 2, schedule="ddpm", clip="dynamic")
    assert graphs(lambda x: sampler(net, x), (X,), (OTHER,), (X,)) == 1
    # Another batch is one more graph, which also was not bound before.
    assert graphs(lambda x: sampler(net, x), (X[:1],), (OTHER[:1],)) == 1


class Plain(Guidance):
    """A form of a user's that is no dataclass."""

    batched = True

    def weights(self, at: Place) -> tuple[float, float]:
        return 2.0, -1.0


def test_forms_of_guidance_are_bound_while_they_are_compiled() -> None:
    net, weak, plain = Net().eval(), Net().eval(), Plain()
    samplers = [fastdiff.Sampler("dpmpp2m", 2, schedule="ddpm") for _ in range(5)]

    def call(x: torch.Tensor) -> torch.Tensor:
        made = [
            samplers[0](net, x, guidance=guidance.Rescale(3.0, phi=0.7), **CONDITIONS),
            samplers[1](net, x, guidance=lambda t: 1.0 + t / 500, **CONDITIONS),
            samplers[2](net, x, guidance=guidance.Autoguidance(guidance.Interval(2.0, 0.1, 5.0), weak)),
            samplers[3](net, x, classifier_grad=lambda x, t: -0.1 * x, correct_x0=lambda x0, t: x0.clamp(-2, 2)),
            samplers[4](net, x, guidance=plain, **CONDITIONS),
        ]
        return torch.stack(made)

    assert graphs(call, (X,), (OTHER,)) == 1


def test_numbers_as_arguments() -> None:
    net, sampler = Net().eval(), fastdiff.Sampler("dpmpp2m", 2, schedule="ddpm")
    runs = [(X, 2.0), (OTHER, 3.0)]
    assert graphs(lambda x, scale: sampler(net, x, guidance=scale, **CONDITIONS), *runs) == 2


def test_frames() -> None:
    sampler = fastdiff.Sampler("euler", 2, schedule="flow", prediction="flow")
    frames = fastdiff.Frames(1, "autoregressive", block=3)
    assert graphs(lambda x: sampler(lambda x, t: 0.5 * x + t, x, frames=frames), (X,), (OTHER,)) == 1


def test_sample_in_two_functions() -> None:
    net, schedule = Net().eval(), fastdiff.schedules.flow(shift=3.0)

    def one(x: torch.Tensor) -> torch.Tensor:
        return fastdiff.sample(net, x, steps=2, schedule="ddpm")

    def two(x: torch.Tensor, steps: int) -> torch.Tensor:
        return fastdiff.sample(net, x, steps=steps, schedule=schedule, prediction="flow")

    first, second = (torch.compile(f, fullgraph=True, backend="eager") for f in (one, two))
    for x in (X, OTHER):
        assert torch.equal(first(x), one(x))
        for steps in (2, 3):
            assert torch.equal(second(x, steps), two(x, steps))


def test_a_sampler_is_not_made_inside() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        return fastdiff.Sampler("unipc", 2, schedule="ddpm")(lambda x, t: x, x)

    with pytest.raises(Exception, match=r"a Sampler is made inside a compiled function: make it before, sampler = "):
        torch.compile(call, fullgraph=True, backend="eager")(X)


@pytest.mark.parametrize("given", [{"seed": torch.tensor([1, 2])}, {"guidance": torch.ones(2), **CONDITIONS}], ids=str)
def test_values_of_tensors_are_not_known(given: dict[str, Any]) -> None:
    net, sampler = Net().eval(), fastdiff.Sampler("dpmpp2m", 2, schedule="ddpm")
    with pytest.raises(Exception, match=r"(seed|guidance) is a tensor inside a compiled function.*: give numbers, "):
        torch.compile(lambda x: sampler(net, x, **given), fullgraph=True, backend="eager")(X)


def test_a_sampler_is_whole_after_it_was_recorded() -> None:
    net, sampler = Net().eval(), fastdiff.Sampler("dpmpp2m_sde", 2, schedule="ddpm")

    class Policy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sampler(self.net, x)

    exported = torch.export.export(Policy(), (X,), strict=False)
    want = fastdiff.Sampler("dpmpp2m_sde", 2, schedule="ddpm")(net, OTHER)
    for _ in range(3):
        assert torch.equal(sampler(net, OTHER), want)
    assert torch.equal(exported.module()(OTHER), want)
    traced = make_fx(lambda x: sampler(net, x))(X)
    assert torch.equal(sampler(net, OTHER), want) and torch.equal(traced(OTHER), want)


def test_calls_without_x_and_upwards_are_compiled() -> None:
    net = Net().eval()
    sampler = fastdiff.Sampler("dpmpp2m", 3, schedule="ddpm")
    # A function hides the network's device, which is then torch's default.
    assert graphs(lambda: sampler(lambda x, t: net(x, t), shape=(2, 6), seed=1), ()) == 1
    assert graphs(lambda x: sampler.invert(net, x), (X,), (OTHER,)) == 1


# The compiler's own, where a graph that was broken goes on.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_loss_is_compiled() -> None:
    """Their times go through the host, which breaks the graph, but no more than that."""
    net = Net()
    t, noise = torch.tensor([3, 700]), torch.randn(2, 6, generator=torch.Generator().manual_seed(1))

    def loss(x0: torch.Tensor) -> torch.Tensor:
        x_t = q_sample(x0, t, "ddpm", noise=noise)
        return ddpm_loss(net, x0, "ddpm", t=t, noise=noise) + 1e-3 * x_t.mean()

    torch.testing.assert_close(torch.compile(loss, backend="eager")(X), loss(X))


def test_parts_of_a_form() -> None:
    form = guidance.Autoguidance(guidance.Interval(2.0, 0.1, 5.0), lambda x, t: x)
    made = joined(parts(form))
    assert isinstance(made, guidance.Autoguidance) and made.key == form.key
    # The network has no influence on the rows: that it is asked for would be a mistake of the form's.
    with pytest.raises(RuntimeError, match="depend on an attribute that its key leaves out: let `key` be the object"):
        made.network(X, X)


def test_functionalize_is_refused() -> None:
    sampler = fastdiff.Sampler("dpmpp2m", 2, schedule="ddpm")
    with pytest.raises(TypeError, match=r"as inside torch.vmap and the transforms of torch.func: call the"):
        torch.func.functionalize(lambda x: sampler(lambda x, t: x, x))(X)


def test_torchs_default_device() -> None:
    with torch.device("meta"):
        assert fastdiff.sample(lambda x, t: x, shape=(2, 3), steps=2, schedule="ddpm").device.type == "meta"
        assert fastdiff.sample(lambda x, t: x, X, steps=2, schedule="ddpm").device.type == "cpu"
