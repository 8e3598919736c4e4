from __future__ import annotations

import math

import pytest
import torch

from fastdiff.demo.unet import UNet, time_embedding


def randomized(seed: int = 0, **options: object) -> UNet:
    """A small network whose zero-initialised layers hold noise, so that every input can reach the output."""
    torch.manual_seed(seed)
    model = UNet(**{"channels": 16, **options})  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def inputs(batch: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.rand(batch, generator=generator) * 999, torch.arange(batch) % 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("batch", [1, 7])
def test_output_has_shape_and_dtype_of_the_input(dtype: torch.dtype, batch: int) -> None:
    x, t, y = inputs(batch, dtype)
    out = randomized().to(dtype)(x, t, y)
    assert out.shape == x.shape and out.dtype == dtype
    assert out.isfinite().all() and out.abs().max() > 0


def test_lower_precision_follows_float64() -> None:
    x, t, y = inputs(4, torch.float64)
    truth = randomized().double()(x, t, y)
    # About 20 layers, each rounding sums of up to 600 terms: errors of some 20 roundings of a value near the largest.
    for dtype in (torch.float32, torch.bfloat16):
        out = randomized().to(dtype)(x.to(dtype), t, y).double()
        assert (out - truth).abs().max() <= 20 * torch.finfo(dtype).eps * truth.abs().max()


def test_no_label_is_the_null_class_and_labels_matter() -> None:
    model = randomized()
    x, t, y = inputs(5)
    null = torch.full((5,), model.null_class)
    assert model.null_class == 10
    assert torch.equal(model(x, t), model(x, t, null))
    assert ((model(x, t, y) - model(x, t, null)).abs().amax(dim=(1, 2, 3)) > 0).all()


def test_rows_do_not_depend_on_each_other() -> None:
    model = randomized().double()
    x, t, y = inputs(6, torch.float64)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(6)])
    # Other batch sizes may sum in another order: a few hundred float64 roundings.
    torch.testing.assert_close(model(x, t, y), alone, rtol=1e-12, atol=1e-13)


def test_fractional_times_and_integer_times() -> None:
    model = randomized()
    x, _, y = inputs(3)
    whole = torch.tensor([0, 500, 999])
    assert torch.equal(model(x, whole, y), model(x, whole.float(), y))
    assert not torch.equal(model(x, whole.float() + 0.5, y), model(x, whole, y))


def test_time_embedding_is_the_paper_s_formula() -> None:
    t, width = torch.tensor([0.0, 3.5, 999.0], dtype=torch.float64), 6
    values = time_embedding(t, width)
    for row, time in enumerate(t.tolist()):
        for k in range(3):
            angle = time * 10_000.0 ** (-k / 3)
            assert values[row, k].item() == pytest.approx(math.cos(angle), abs=1e-12)
            assert values[row, 3 + k].item() == pytest.approx(math.sin(angle), abs=1e-12)


def test_neighbouring_times_differ_in_bfloat16() -> None:
    """bfloat16 cannot tell 998 from 999; the network is given the time in float32 and must."""
    values = time_embedding(torch.tensor([998.0, 999.0]), 32).to(torch.bfloat16)
    assert not torch.equal(values[0], values[1])


def test_attributes_that_sampling_reads() -> None:
    model = UNet()
    assert (model.sample_shape, model.prediction, model.schedule) == ((1, 8, 8), "eps", "ddpm")


def test_demo_network_fits_the_size_limit() -> None:
    assert 4 * sum(p.numel() for p in UNet().parameters()) < 3.6e6


def test_the_same_class_makes_a_cifar_network() -> None:
    with torch.device("meta"):
        model = UNet(32, 3, 128, (1, 2, 2, 2), 2, (16,))
        out = model(torch.empty(2, 3, 32, 32), torch.empty(2))
    assert out.shape == (2, 3, 32, 32) and model.sample_shape == (3, 32, 32)
    assert 30e6 < sum(p.numel() for p in model.parameters()) < 45e6


def test_an_image_that_cannot_be_halved_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"image_size=10 cannot be halved 2 times.*UNet\(image_size=12\)"):
        UNet(10, mults=(1, 2, 2))
