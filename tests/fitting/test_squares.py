"""Least squares of a stage, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiff.fitting.squares import join, products, solve


def data(rows: int = 40) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randn(rows, 2, 3, generator=generator, dtype=torch.float64) for _ in range(4)]
    return columns, torch.randn(rows, 2, 3, generator=generator, dtype=torch.float64)


def test_the_least_squares_are_those_of_numpy() -> None:
    columns, target = data()
    found = solve(products(columns, target), robust=False)
    matrix = torch.stack([c.flatten() for c in columns], 1).numpy()
    expected = np.linalg.lstsq(matrix, target.flatten().numpy(), rcond=None)[0]
    # The ridge, 1e-9 of the columns' sizes, changes well-conditioned coefficients by about as much.
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-8)


def test_batches_add_up() -> None:
    columns, target = data()
    parts = [products([c[i : i + 13] for c in columns], target[i : i + 13]) for i in range(0, 40, 13)]
    whole = solve(products(columns, target), robust=True)
    # Sums in another order: a few units in the last place of float64 times the condition of 4 random columns.
    torch.testing.assert_close(solve(join(parts), robust=True), whole, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("robust", [False, True])
def test_an_exact_relation_is_found(robust: bool) -> None:
    columns, _ = data()
    true = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)
    target = sum(c * v for c, v in zip(true, columns, strict=True))
    torch.testing.assert_close(solve(products(columns, target), robust), true, rtol=0, atol=1e-7)


def test_a_few_hard_samples_do_not_rule_the_robust_fit() -> None:
    columns, _ = data()
    true = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)
    target = sum(c * v for c, v in zip(true, columns, strict=True))
    assert isinstance(target, torch.Tensor)
    target[:2] += 30.0
    plain = (solve(products(columns, target), False) - true).abs().max()
    robust = (solve(products(columns, target), True) - true).abs().max()
    assert robust < 0.05 * plain
