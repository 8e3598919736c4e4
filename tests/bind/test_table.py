"""Binding a plan: conversions against algebra, clipping, guidance, masks, the opening row."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers.analytic import Array, mixture
from helpers.run_plan import network, run

from fastdiff.bind import Binding, bind, bind_stages, bind_stages_x0, rounded
from fastdiff.guidance import AdaptiveProjected, CFGPlusPlus, ClassifierFree, Guidance, Place
from fastdiff.ops.layout import CG, CLIP, CU, IN_SCALE, LINEAR, NEXT_U, NEXT_X, NONE, PG, PU, QU, QX, RAW, W1, W2, WIDTH
from fastdiff.plan import H1, NREG, SECOND, ZA, M, U, X
from fastdiff.prediction import PREDICTIONS, conversion, score_shift
from fastdiff.solvers import plan

MIXTURE = mixture([0.4, 0.6], [[-1.2, 0.4], [0.8, -0.6]], [0.25, 0.4])
OTHER = mixture([1.0], [[0.5, 0.5]], [0.6])
Z = np.array([[0.5, -1.1], [1.0, 0.3], [-1.7, -0.2]])
SPACES = ("noise", "data", "velocity", "score")


def quantities(alpha: float, sigma: float, x0: Array, eps: Array) -> dict[str, Array]:
    """Every prediction and every space, from their definitions."""
    v = alpha * eps - sigma * x0
    both = {"eps": eps, "x0": x0, "v": v, "score": -eps / sigma, "flow": eps - x0, "flow_to_data": x0 - eps, "edm": -v}
    return both | {"noise": eps, "data": x0, "velocity": eps - x0}


@pytest.mark.parametrize(("prediction", "space"), list(itertools.product(PREDICTIONS, SPACES)))
def test_conversion_against_algebra(prediction: str, space: str) -> None:
    rng = np.random.default_rng(5)
    # Variance-preserving, sub-VP, VE and flow pairs, and others.
    for alpha, sigma in [(0.6, 0.8), (0.6, 0.64), (1.0, 7.0), (0.3, 0.7), *rng.uniform(0.1, 2.0, (20, 2)).tolist()]:
        x0, eps = rng.normal(size=(2, 50))
        values = quantities(alpha, sigma, x0, eps)
        cu, cg = conversion(prediction, space, alpha, sigma)
        u = alpha * x0 + sigma * eps
        # Some ten roundings of terms as large as the greatest of cu·u and cg·g.
        scale = 1.0 + np.abs(cu * u).max() + np.abs(cg * values[prediction]).max()
        assert np.abs(cu * u + cg * values[prediction] - values[space]).max() < 1e-15 * 10 * scale


@pytest.mark.parametrize(
    ("prediction", "space"), [("eps", "noise"), ("x0", "data"), ("score", "score"), ("flow", "velocity")]
)
def test_the_same_quantity_is_passed_on_raw(prediction: str, space: str) -> None:
    assert conversion(prediction, space, 0.6, 0.8) == (0.0, 1.0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_zero_terminal_snr(prediction: str) -> None:
    # u = sigma·eps: x0 can be had from v, x0 and flow alone.
    if prediction in ("eps", "score"):
        with pytest.raises(
            ValueError, match=rf"prediction='{prediction}' cannot be used where alpha=0, sigma=1: .*'v', 'x0' or 'flow'"
        ):
            conversion(prediction, "data", 0.0, 1.0)
        return
    values = quantities(0.0, 1.0, np.array([0.3]), np.array([-1.4]))
    for space in ("data", "noise", "velocity"):
        cu, cg = conversion(prediction, space, 0.0, 1.0)
        assert cu * values["eps"] + cg * values[prediction] == pytest.approx(values[space], abs=1e-15)


def test_no_noise() -> None:
    values = quantities(1.0, 1.0, np.array([0.3]), np.array([-1.4]))
    cu, cg = conversion("eps", "data", 1.0, 0.0)
    assert cu * 0.3 + cg * values["eps"] == 0.3
    for prediction, space in (("x0", "noise"), ("v", "score")):
        with pytest.raises(ValueError, match=r"alpha=1, sigma=0"):
            conversion(prediction, space, 1.0, 0.0)


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError, match=r"unknown prediction 'epsi'; did you mean 'eps'\? Valid: eps, x0, v, score, flow"
    ):
        bind(plan("dpm3", 3), Binding("epsi"))
    with pytest.raises(ValueError, match=r"unknown space 'nois'; did you mean 'noise'\?"):
        conversion("eps", "nois", 0.6, 0.8)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_classifier_shift_is_that_of_the_score(prediction: str) -> None:
    alpha, sigma, u, score, grad = 0.6, 0.7, 1.3, -0.4, 0.9

    def predict(score: float) -> float:
        eps = -sigma * score
        return float(quantities(alpha, sigma, np.array((u - sigma * eps) / alpha), np.array(eps))[prediction])

    shift = score_shift(prediction, alpha, sigma)
    assert predict(score) + shift * grad == pytest.approx(predict(score + grad), rel=1e-14)


def test_the_opening_writes_the_first_input() -> None:
    p = plan("dpm3", 4)
    for copies in (0, 1, 2):
        table = bind(p, copies=copies)
        row, spec = table.values[0], table.specs[0]
        assert (spec.convert, spec.guided, spec.u_mask, spec.x_mask, spec.copies) == (NONE, False, 1 << X, 0, copies)
        expected = np.zeros(WIDTH)
        expected[[IN_SCALE, NEXT_U + X]] = 1.0
        assert np.array_equal(row, expected)
        # The last stage has no input to write.
        assert [s.copies for s in table.specs[1:]] == [copies] * 3 + [0]


def test_shapes_rows_and_times() -> None:
    p = plan("heun", 4, "edm", s_churn=2.0)
    table = bind(p)
    assert table.values.shape == (len(p.stages) + 1, WIDTH) and table.values.dtype == np.float64
    assert table.draws.dtype == np.int32 and table.draws.tolist() == [[-1] * 3, *[list(s.draws) for s in p.stages]]
    assert table.times.tolist() == [s.model_time for s in p.stages]
    for s, row in zip(p.stages, table.values[1:], strict=True):
        assert tuple(row[NEXT_U : NEXT_U + NREG]) == s.next_u and tuple(row[NEXT_X : NEXT_X + NREG]) == s.next_x


@pytest.mark.parametrize("method", ["dpm3", "unipc", "heun", "dpm3s", "ddpm", "dpmpp2m_sde"])
def test_masks_are_the_pattern_of_zeros(method: str) -> None:
    p = plan(method, 6, "vp_linear", "time_uniform")
    table = bind(p, Binding("x0"))
    for s, spec in zip(p.stages, table.specs[1:], strict=True):
        assert [bool(spec.u_mask >> j & 1) for j in range(NREG)] == [c != 0 for c in s.next_u]
        if s.next_x == s.next_u or s.next_x == tuple(np.eye(NREG)[X]):
            assert spec.x_mask == 0
        else:
            assert [bool(spec.x_mask >> j & 1) for j in range(NREG)] == [c != 0 for c in s.next_x]
        used = [j for j in range(NREG) if spec.mask >> j & 1]
        assert spec.reads_x == (X in used) and spec.noises == sum(j >= ZA for j in used)
        assert spec.history == max((j - H1 + 1 for j in used if H1 <= j < SECOND), default=0)
        assert [spec.reads_h(i) for i in range(6)] == [H1 + i in used for i in range(6)]
        assert spec.reads_u == (spec.m_reads_u or U in used) and M in used


def test_conversion_kinds() -> None:
    p = plan("dpm3", 3)
    kinds = {k: {s.convert for s in bind(p, Binding(k)).specs[1:]} for k in PREDICTIONS}
    assert kinds == {"eps": {RAW}, **{k: {LINEAR} for k in ("x0", "v", "score", "flow", "flow_to_data", "edm")}}
    # eps = −sigma·score does not need u.
    assert [s.m_reads_u for s in bind(p, Binding("score")).specs[1:]] == [False] * 3
    assert all(s.m_reads_u for s in bind(p, Binding("v")).specs[1:])
    assert {s.convert for s in bind(p, Binding(clip=True)).specs[1:]} == {CLIP}
    assert bind_stages_x0(p.stages[:1], Binding())[1][0].convert == LINEAR
    lifted = bind(plan("heun", 3, "edm", s_churn=2.0)).specs[1]
    assert lifted.convert == NONE and not lifted.m_reads_u


@pytest.mark.parametrize(("prediction", "method"), list(itertools.product(PREDICTIONS, ["dpm3", "dpmpp2m"])))
def test_clip_rows(prediction: str, method: str) -> None:
    p = plan(method, 4, "vp_linear")
    plain, clipped = bind(p, Binding(prediction)), bind(p, Binding(prediction, clip=True))
    for s, a, b in zip(p.stages, plain.values[1:], clipped.values[1:], strict=True):
        assert (b[PU], b[PG]) == conversion(prediction, "data", s.alpha, s.sigma)
        assert (b[QU], b[QX]) == conversion("x0", p.space, s.alpha, s.sigma)
        # Where nothing is clipped, the way through x0 is the direct one, up to what the division by alpha costs.
        tolerance = 1e-15 * 10 * (1.0 + abs(b[QU]) + abs(b[QX] * b[PU]) + abs(b[QX] * b[PG]))
        assert b[QU] + b[QX] * b[PU] == pytest.approx(a[CU], abs=tolerance)
        assert b[QX] * b[PG] == pytest.approx(a[CG], abs=tolerance)
    x = Z.copy()
    wide = run(p, network(MIXTURE, prediction), x, prediction, clip=(-1e9, 1e9))
    assert np.abs(wide - run(p, network(MIXTURE, prediction), x, prediction)).max() < 1e-10
    narrow = run(plan("ddim", 5), network(MIXTURE, "v"), x, "v", clip=(-0.1, 0.2))
    assert narrow.min() == pytest.approx(-0.1, abs=1e-12) and narrow.max() == pytest.approx(0.2, abs=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_guidance_weights(prediction: str, scale: float) -> None:
    p = plan("dpmpp2m", 5, "vp_linear")
    table = bind(p, Binding(prediction, ClassifierFree(scale)))
    assert all(s.guided for s in table.specs[1:]) and not any(s.guided for s in bind(p, Binding(prediction)).specs)
    assert np.array_equal(table.values[1:, [W1, W2]], [[scale, 1.0 - scale]] * 5)
    result = run(p, network(MIXTURE, prediction), Z, prediction, guidance=(scale, network(OTHER, prediction)))

    def mixed(u: Array, stage: object) -> Array:
        a, b = (network(d, prediction)(u, stage) for d in (MIXTURE, OTHER))  # type: ignore[arg-type]
        return b + scale * (a - b)

    # eps from other predictions loses 1/alpha_T = 150; the scale multiplies rounding at each of the 5 steps.
    assert np.abs(result - run(p, mixed, Z, prediction)).max() < 1e-11 * max(1.0, scale)


def test_input_scale_belongs_to_the_next_stage() -> None:
    import dataclasses

    p = plan("dpm2", 3)
    scales = (0.5, 0.25, 2.0)
    p = dataclasses.replace(
        p, stages=tuple(dataclasses.replace(s, in_scale=c) for s, c in zip(p.stages, scales, strict=True))
    )
    assert bind(p).values[:, IN_SCALE].tolist() == [0.5, 0.25, 2.0, 1.0]


@pytest.mark.parametrize("method", ["heun", "unipc", "ddpm", "dpmpp2m_sde"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    "form",
    [ClassifierFree(lambda t: 1.0 + t), CFGPlusPlus(0.6), AdaptiveProjected(2.0)],
    ids=["function", "cfg++", "projected"],
)
def test_no_row_depends_on_those_beside_it(method: str, clip: bool, form: Guidance) -> None:
    p = plan(method, 5, "vp_linear")
    places, binding = [Place(s, p.space, "v") for s in p.stages], Binding("v", form, clip)
    rows, specs = bind_stages(places, binding, copies=range(len(places)), learned=1)
    for k, place in enumerate(places):
        row, spec = bind_stages([place], binding, copies=[k], learned=1)
        assert row.tobytes() == rows[k].tobytes() and spec == [specs[k]]


def test_numbers_are_rounded_as_torch_rounds_them() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((64, WIDTH)) * 10.0 ** random.uniform(-46.0, 38.0, (64, WIDTH))
    # Halfway between two numbers of float32, the largest, and a subnormal one.
    values[0, :4] = 1.0 + 2.0**-24, 1.0 + 3 * 2.0**-24, -np.finfo(np.float32).max, 2.0**-149
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(rounded(values[:, ::2], dtype), torch.from_numpy(values).to(dtype)[:, ::2])
        assert rounded(values[:, ::2], dtype).is_contiguous()
