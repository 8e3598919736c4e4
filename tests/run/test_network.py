"""What a model may be, what it states, and what it may return."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers.models import wavy

import fastdiff
from fastdiff.run.network import Network, misfit, placement, sample_shape

X = torch.linspace(-2, 2, 2 * 4 * 3 * 3).reshape(2, 4, 3, 3)


def config(**values):
    return SimpleNamespace(config=SimpleNamespace(**values))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (wavy, None),
        (SimpleNamespace(sample_shape=(3, 8, 8)), (3, 8, 8)),
        (SimpleNamespace(sample_shape=torch.Size([5])), (5,)),
        (config(in_channels=4, sample_size=64), (4, 64, 64)),
        (config(in_channels=4, sample_size=(32, 48)), (4, 32, 48)),
        (config(in_channels=4, sample_size=[8, 9], sample_frames=7), (4, 7, 8, 9)),
        (config(in_channels=4, sample_size=None), None),
        (config(in_channels=4), None),
    ],
)
def test_sample_shape(model, shape) -> None:
    assert sample_shape(model) == shape


def test_placement() -> None:
    assert placement(wavy) == (None, None)
    assert placement(torch.nn.Linear(2, 2).bfloat16()) == (torch.device("cpu"), torch.bfloat16)
    assert placement(torch.nn.ReLU()) == (None, None)
    assert placement(SimpleNamespace(device=torch.device("cpu"), dtype=torch.float16)) == (
        torch.device("cpu"),
        torch.float16,
    )
    # A diffusion pipeline's `device` may be a string and its `dtype` anything: then they tell nothing.
    assert placement(SimpleNamespace(device="cuda", dtype="fp16")) == (None, None)
    # Offloaded weights lie nowhere; the device is then x's or the one asked for.
    assert placement(torch.nn.Linear(2, 2, device="meta")) == (None, torch.float32)


def test_quantised_weights_do_not_set_the_inputs_dtype() -> None:
    class Quantised(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Parameter(torch.zeros(2).to(torch.float8_e4m3fn), requires_grad=False)
            self.second = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))

        def forward(self, x, t):
            assert x.dtype == torch.bfloat16
            return x

    assert fastdiff.sample(Quantised(), X).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("state", [torch.float32, torch.float64])
def test_the_network_keeps_its_dtype(state, dtype) -> None:
    seen = set()
    linear = torch.nn.Linear(3, 3, dtype=dtype)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear

        def forward(self, x, t):
            seen.add((x.dtype, t.dtype))
            # As sinusoidal embeddings do: t times float32 frequencies, into layers of the network's dtype.
            (t[:, None] * torch.ones(1, 3)).to(dtype)
            return self.linear(x)

    assert fastdiff.sample(Model(), X, dtype=state).dtype == state
    assert seen == {(dtype, torch.float64 if dtype == torch.float64 else torch.float32)}


def test_float64_state_with_a_float32_network_that_embeds_time() -> None:
    layer = torch.nn.Linear(4, 1)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, t):
            return x * self.layer(t[:, None] * torch.ones(4) / 1000).reshape(-1, 1, 1, 1)

    assert fastdiff.sample(Model(), X, dtype=torch.float64).dtype == torch.float64


def test_another_output_dtype_than_the_parameters() -> None:
    linear = torch.nn.Linear(3, 3).bfloat16()
    for cast in (torch.float16, torch.float32, torch.float64):
        got = fastdiff.sample(lambda x, t, cast=cast: linear(x.bfloat16()).to(cast), X)
        # float16 holds every bfloat16 of this size but the smallest; the wider ones hold all.
        want = fastdiff.sample(lambda x, t: linear(x.bfloat16()), X)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-3 if cast == torch.float16 else 0)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (
            lambda x, t: x[:, :2],
            ValueError,
            r"returned shape \(2, 2, 3, 3\), expected \(2, 4, 3, 3\), the shape of its input$",
        ),
        (
            lambda x, t: torch.cat([x, x], 1),
            ValueError,
            r"returned shape \(2, 8, 3, 3\), expected \(2, 4, 3, 3\).*"
            r"twice the channels.*learned variance.*chunk\(2, dim=1\)\[0\]",
        ),
        (lambda x, t: x[:1], ValueError, r"returned shape \(1, 4, 3, 3\), expected"),
        (lambda x, t: x.to(torch.int32), TypeError, "returned torch.int32; expected a floating-point tensor"),
        (lambda x, t: torch.complex(x, x), TypeError, "returned torch.complex64; expected a floating-point"),
        (lambda x, t: x.to("meta"), ValueError, "a tensor on meta, its input is on cpu: move the model there"),
        (
            lambda x, t: None,
            TypeError,
            "returned NoneType; expected a tensor, a tuple whose first entry is one, or an object",
        ),
        (lambda x, t: {"pred": x}, TypeError, "returned dict; expected a tensor"),
        (lambda x, t: (), TypeError, "returned tuple; expected a tensor"),
        (lambda x, t: 1.0, TypeError, "returned float; expected a tensor"),
        (lambda x, t: x.numpy(), TypeError, "returned ndarray; expected a tensor"),
        (3, TypeError, r"model must be callable as model\(x, t, \*\*kwargs\), got int"),
        (None, TypeError, "model must be callable .* got NoneType"),
    ],
)
def test_errors(model, error, words) -> None:
    with pytest.raises(error, match=words):
        fastdiff.sample(model, X)


def test_an_output_dtype_that_the_back_end_does_not_read() -> None:
    from fastdiff import ops

    if not ops.load("cpu").available()[0]:
        pytest.skip("the cpu back end is not built")
    with pytest.raises(
        TypeError, match=r"returned torch.float8_e5m2.*'cpu' does not read.*cast it, lambda x, t.*float\(\)"
    ):
        fastdiff.sample(lambda x, t: x.to(torch.float8_e5m2), X, backend="cpu")


def test_errors_inside_the_model_are_its_own() -> None:
    def model(x, t):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fastdiff.sample(model, X)


def test_network_repeats_only_batched_tensors() -> None:
    batched, single = torch.arange(2.0), torch.arange(3.0)
    n = Network(wavy, 2, {"a": batched, "b": single, "c": torch.tensor(2.0)}, {"y": batched}, {"y": -batched})
    assert n.kwargs["a"].tolist() == [0, 1, 0, 1] and n.kwargs["b"] is single and n.kwargs["c"].ndim == 0
    assert n.kwargs["y"].tolist() == [0, 1, 0, -1] and n.guided


def test_transformers_get_the_time_by_name() -> None:
    class Transformer(torch.nn.Module):
        """The order of diffusers' transformers: the text, not the time, is the second argument."""

        def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, timestep: torch.Tensor):
            return hidden_states * encoder_hidden_states[:, None] + timestep[:, None]

    x, t, text = torch.ones(2, 3), torch.tensor([5.0, 7.0]), torch.tensor([2.0, 3.0])
    out = Network(Transformer(), 2, {"encoder_hidden_states": text})(x, t)
    assert out.tolist() == [[7.0] * 3, [10.0] * 3]


def test_a_pipeline_is_not_a_network() -> None:
    class Pipeline:
        unet = scheduler = None

        def __call__(self, prompt: str) -> None: ...

    with pytest.raises(TypeError, match=r"model is a pipeline, Pipeline; expected its network: pass model\.unet"):
        fastdiff.sample(Pipeline(), shape=(1, 3, 8, 8))


class Named(torch.nn.Module):
    def forward(self, x: torch.Tensor, encoder_hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return x


CALLED = r" \(the model is called as model\("
WRAP = r"x, t\): wrap it, such as lambda x, t: model\(x\) for a network without a time\)"


@pytest.mark.parametrize("method", ["ddim", "heun", "ode"])
@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (
            torch.nn.Linear(3, 3).eval(),
            {},
            r"Linear.forward\(\) takes 2 positional arguments but 3 were given" + CALLED + WRAP,
        ),
        (lambda x: x, {}, "takes 1 positional argument but 2 were given" + CALLED + WRAP),
        (
            lambda x, t, y: x,
            {},
            "missing 1 required positional argument: 'y'" + CALLED + r"x, t\): give what it is .* model_kwargs",
        ),
        (
            lambda x, t: x,
            {"y": X},
            "unexpected keyword argument 'y'" + CALLED + r"x, t, y=...\): leave out of model_kwargs",
        ),
    ],
)
def test_a_call_that_the_model_cannot_take(model, given, message: str, method: str) -> None:
    steps = None if method == "ode" else 3
    with pytest.raises(TypeError, match=message):
        fastdiff.sample(model, X[..., 0], method=method, steps=steps, schedule="ddpm", model_kwargs=given)


def test_another_type_error_of_the_model_is_its_own() -> None:
    with pytest.raises(TypeError) as seen:
        fastdiff.sample(lambda x, t: x + "a", X, schedule="ddpm")  # type: ignore[arg-type,return-value]
    assert str(seen.value) == "unsupported operand type(s) for +: 'Tensor' and 'str'"
    # What is written in C++ has no signature; a network with its time by name says itself what it misses.
    assert misfit(max, error := TypeError("max"), ("x", "t"), {}) is error
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'encoder_hidden_states'$"):
        fastdiff.sample(Named().eval(), X, schedule="ddpm")
