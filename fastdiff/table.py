"""From a plan to the numbers that the kernels read: prediction type, guidance and clipping are bound here.

NumPy only. The result is a float64 table (rows of `WIDTH` coefficients) and, per stage, a `StageSpec`: the structure
that kernels are specialised on. Values may change without a new specialisation, structure may not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastdiff.names import unknown
from fastdiff.plan import AUX, H1, IDENTITY, MAX_DRAWS, MAX_HISTORY, NREG, ZA, M, Plan, Stage, U, X

PREDICTIONS = ("eps", "x0", "v", "score", "flow")
PREVIOUS = "previous"
"""The mean of the next, cleaner state: apart from `PREDICTIONS`, as it is a statement about a step, not a time."""
ALL_PREDICTIONS = (*PREDICTIONS, PREVIOUS)

# Columns of a table row; csrc/stage.h and triton_kernels/stage.py use the same order, and a test compares them.
W1, W2, CU, CG, PU, PG, QU, QX, IN_SCALE, NEXT_U, NEXT_X = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9 + NREG
S0, S1, QG = NEXT_X + NREG, NEXT_X + NREG + 1, NEXT_X + NREG + 2
WIDTH = 40

# How m is made: not at all, m = g, m = cu·u + cg·g, through the clipped x0, or that and qg·g, past the clip.
NONE, RAW, LINEAR, CLIP, BLEND = 0, 1, 2, 3, 4


class StageSpec(NamedTuple):
    """The structure of one stage: which streams are read and written. Hashable; kernels are specialised on it.

    Attributes:
        convert: NONE, RAW, LINEAR, CLIP or BLEND.
        guided: whether g = w1·out + w2·aux (else g = out).
        m_reads_u: whether m needs u (cu, pu or qu is not zero).
        u_mask, x_mask: bit j is set where next_u[j] (next_x[j]) is not zero, j indexing `plan.REGISTERS`. 0: not
            computed.
        copies: how often the network's next input is written: 0, 1, or 2 (both halves of a guidance batch).
        spread: 0; or 1 where the network gives twice the channels, the prediction and then v: the register za is
            multiplied by e and aux by e², e = exp(S0 + S1·v), element by element. 2 where aux has twice the channels
            too (the unconditional output).
    """

    convert: int
    guided: bool
    m_reads_u: bool
    u_mask: int
    x_mask: int
    copies: int
    spread: int = 0

    @property
    def clips(self) -> bool:
        """Whether bounds of x0 are read."""
        return self.convert in (CLIP, BLEND)

    @property
    def mask(self) -> int:
        """Registers read by either output."""
        return self.u_mask | self.x_mask

    @property
    def spreads(self) -> bool:
        """Whether v is read."""
        return self.spread > 0 and bool(self.mask >> AUX & 3)

    @property
    def reads_x(self) -> bool:
        return bool(self.mask >> X & 1)

    @property
    def reads_u(self) -> bool:
        return self.m_reads_u or bool(self.mask >> U & 1)

    @property
    def history(self) -> int:
        """How many history entries must be given (h1 … h_history)."""
        return (self.mask >> H1 & (1 << MAX_HISTORY) - 1).bit_length()

    def reads_h(self, i: int) -> bool:
        """Whether h_{i+1} is read."""
        return bool(self.mask >> (H1 + i) & 1)

    def reads_z(self, i: int) -> bool:
        """Whether draw i (0: za, 1: zb, 2: zc) is used."""
        return bool(self.mask >> (ZA + i) & 1)

    @property
    def noises(self) -> int:
        return sum(self.reads_z(i) for i in range(MAX_DRAWS))


def _mask(row: tuple[float, ...]) -> int:
    return sum(1 << j for j, c in enumerate(row) if c)


def conversion(prediction: str, space: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(cu, cg) with m = cu·u + cg·g, for a network that predicts `prediction` and a solver that works in `space`.

    u = alpha·x0 + sigma·eps; v = alpha·eps − sigma·x0 (Salimans and Ho 2022, App. D; for any alpha, sigma); score =
    −eps/sigma; flow velocity = eps − x0 (Lipman et al. 2023, straight paths). "velocity" space is eps − x0.

    Raises:
        ValueError: unknown names; or a conversion that divides by zero (x0 from eps where alpha = 0: zero terminal
            SNR).
    """
    a, s = alpha, sigma
    square, total = a * a + s * s, a + s
    x0: tuple[float, float] | None
    eps: tuple[float, float] | None
    form: tuple[float, float] | None
    # Each prediction as (x0 from u, g) and (eps from u, g); None where it would divide by zero.
    if prediction == "eps":
        x0, eps = ((1 / a, -s / a) if a else None), (0.0, 1.0)
    elif prediction == "x0":
        x0, eps = (0.0, 1.0), ((1 / s, -a / s) if s else None)
    elif prediction == "v":
        x0, eps = (a / square, -s / square), (s / square, a / square)
    elif prediction == "score":
        x0, eps = ((1 / a, s * s / a) if a else None), (0.0, -s)
    elif prediction == "flow":
        x0, eps = (1 / total, -s / total), (1 / total, a / total)
    else:
        raise ValueError(unknown("prediction", prediction, PREDICTIONS))
    if space == "data":
        form = x0
    elif space == "noise":
        form = eps
    elif space == "velocity":
        if prediction == "flow":
            form = (0.0, 1.0)
        else:
            form = None if x0 is None or eps is None else (eps[0] - x0[0], eps[1] - x0[1])
    elif space == "score":
        form = None if eps is None or not s else ((0.0, 1.0) if prediction == "score" else (-eps[0] / s, -eps[1] / s))
    else:
        raise ValueError(unknown("space", space, ("noise", "data", "velocity", "score")))
    if form is None:
        raise ValueError(
            f"a network with prediction={prediction!r} cannot be used where alpha={a:g}, sigma={s:g}: the conversion "
            f"to {space} divides by zero. At zero terminal SNR the network must predict 'v', 'x0' or 'flow'; else "
            "start at a time with alpha > 0 (t_start=...)"
        )
    return form


def check_previous(prediction: str | None, method: str) -> None:
    """ValueError where the network gives the posterior mean of a step that `method` does not take."""
    if prediction == PREVIOUS and method != "ddpm":
        raise ValueError(
            f"prediction='previous' with method {method!r}: the network gives the mean of the next, cleaner state, "
            "which only the steps of method='ddpm' have; for other methods give a network that predicts 'eps', 'x0' or "
            "'v'"
        )


def previous_conversion(stage: Stage) -> tuple[float, float]:
    """(cu, cg) with x0 = cu·x + cg·g, g the mean of q(x_t | x_s, x0), s -> t the step of this DDPM stage.

    The mean is c_x·x + c_0·x0 (Ho et al. 2020, eq. 7): c_x and c_0 are the stage's own coefficients of x and m.
    """
    c_x, c_0 = stage.next_u[X], stage.next_u[M]
    if not c_0:
        raise ValueError(
            f"prediction='previous' at model time {stage.model_time:g}: the step's mean does not depend on x0, which "
            "cannot be found from it; expected steps to a cleaner time: method='ddpm' without times of your own"
        )
    return -c_x / c_0, 1.0 / c_0


def classifier_shift(prediction: str, alpha: float, sigma: float) -> float:
    """The factor of grad log p(y | u) in the network's output: score += grad (Dhariwal and Nichol 2021, Algorithm 2).

    In eps that is −sigma, in x0 sigma²/alpha, and in v and flow what follows from these.
    """
    if prediction == PREVIOUS:
        raise ValueError(
            "classifier_form='score' with prediction='previous': the network gives a step's mean, not a score; use "
            "classifier_form='mean', which shifts that mean"
        )
    if prediction == "score":
        return 1.0
    if prediction == "eps":
        return -sigma
    if alpha == 0:
        raise ValueError(
            f"classifier guidance of prediction={prediction!r} needs alpha > 0: start at an earlier t_start"
        )
    if prediction == "x0":
        return sigma**2 / alpha
    if prediction == "v":
        return -sigma * (alpha**2 + sigma**2) / alpha
    return -sigma * (alpha + sigma) / alpha


class Table(NamedTuple):
    """A bound plan: `values` float64 (stages + 1, WIDTH), `draws` int32 (stages + 1, 3), one spec per row,
    `times` (stages,).

    Row 0 is the opening: it writes the first network input from x. Row k + 1 is the plan's stage k.
    """

    values: np.ndarray
    draws: np.ndarray
    specs: tuple[StageSpec, ...]
    times: np.ndarray


def bind(
    plan: Plan,
    prediction: str = "eps",
    *,
    space: str | None = None,
    guidance_scale: float | None = None,
    classifier: str = "",
    clip: bool = False,
    copies: int = 1,
) -> Table:
    """Fix prediction type, classifier-free guidance and clipping of x0: the numbers and the structure of every stage.

    Args:
        plan: the solver's table.
        prediction: what the network gives: one of `PREDICTIONS`, or `PREVIOUS` with DDPM's plans.
        space: overrides the plan's space (the predicted-x0 probe uses "data").
        guidance_scale: s in g = s·out + (1 − s)·aux (Ho and Salimans 2022, eq. 6, with w = s − 1); None: no guidance.
        classifier: what aux = grad log p(y | u), already scaled, does: "": there is none; "score": it is added to the
            score; "score_after_clip": to the score that the clipped x0 stands for; "mean": times the step's variance to
            its mean (Dhariwal and Nichol 2021, Algorithms 2 and 1).
        clip: whether m goes through the clamped x0.
        copies: how often the next network input is written (2 with batched guidance; 0 where the state serves as
            input).

    Raises:
        ValueError: an unknown prediction, one that the plan's method cannot use, or a conversion that divides by zero
            at some stage.
    """
    check_previous(prediction, plan.method)
    space = space or plan.space
    wide = 0 if not plan.wide else (1 if guidance_scale is None else 2)
    rows, draws, specs = [_opening(plan)], [(-1, -1, -1)], [_opening_spec(copies)]
    for k, stage in enumerate(plan.stages):
        following = plan.stages[k + 1 :]
        in_scale = next((s.in_scale for s in following if s.evaluate), 1.0)
        row, spec = _bind_stage(stage, prediction, space, guidance_scale, classifier, clip)
        row[IN_SCALE] = in_scale
        writes_input = bool(following) and following[0].evaluate
        specs.append(spec._replace(copies=copies if writes_input else 0, spread=wide if stage.evaluate else 0))
        rows.append(row)
        draws.append(stage.draws)
    times = np.array([s.model_time for s in plan.stages])
    return Table(np.stack(rows), np.array(draws, dtype=np.int32), tuple(specs), times)


def model_value_rows(values: np.ndarray, specs: Sequence[StageSpec]) -> tuple[np.ndarray, tuple[StageSpec, ...]]:
    """Those rows with u' = m and no other output: bound to the "data" space, they give the predicted x0."""
    rows = values.copy()
    rows[:, NEXT_U : NEXT_X + NREG] = 0.0
    rows[:, NEXT_U + M] = 1.0
    return rows, tuple(s._replace(u_mask=1 << M, x_mask=0, copies=0) for s in specs)


def _opening(plan: Plan) -> np.ndarray:
    row = np.zeros(WIDTH)
    row[IN_SCALE] = next((s.in_scale for s in plan.stages if s.evaluate), 1.0)
    row[NEXT_U + X] = 1.0
    return row


def _opening_spec(copies: int) -> StageSpec:
    return StageSpec(NONE, False, False, 1 << X, 0, copies)


def _convert(stage: Stage, prediction: str, space: str) -> tuple[float, float]:
    # DDPM's plans work in data space, as does the only override.
    if prediction == PREVIOUS:
        return previous_conversion(stage)
    return conversion(prediction, space, stage.alpha, stage.sigma)


def _bind_stage(
    stage: Stage, prediction: str, space: str, guidance_scale: float | None, classifier: str, clip: bool
) -> tuple[np.ndarray, StageSpec]:
    row = np.zeros(WIDTH)
    row[NEXT_U : NEXT_U + NREG] = stage.next_u
    row[NEXT_X : NEXT_X + NREG] = stage.next_x
    u_mask, x_mask = _mask(stage.next_u), _mask(stage.next_x)
    if stage.next_x in (IDENTITY, stage.next_u):
        x_mask = 0
    if stage.spread:
        row[S0], row[S1] = stage.spread
    if classifier == "mean" and stage.variance:
        row[[NEXT_U + AUX, NEXT_X + AUX]] += stage.variance
        u_mask |= 1 << AUX
    if not stage.evaluate:
        return row, StageSpec(NONE, False, False, u_mask, x_mask, 0)
    if classifier == "score_after_clip":
        if stage.alpha == 0:
            raise ValueError("classifier_form='score_after_clip' needs alpha > 0: start at an earlier t_start")
        shift = classifier_shift("x0" if space == "data" else "eps", stage.alpha, stage.sigma)
        row[[NEXT_U + AUX, NEXT_X + AUX]] += shift * row[[NEXT_U + M, NEXT_X + M]]
        u_mask |= 1 << AUX
    guided = classifier == "score" or guidance_scale is not None
    if guidance_scale is not None:
        row[W1], row[W2] = guidance_scale, 1.0 - guidance_scale
    else:
        row[W1], row[W2] = 1.0, (classifier_shift(prediction, stage.alpha, stage.sigma) if guided else 0.0)
    if clip:
        row[PU], row[PG] = _convert(stage, prediction, "data")
        row[QU], row[QX] = conversion("x0", space, stage.alpha, stage.sigma)
        convert = CLIP
        if w := stage.unclipped:
            # The part of x0 that the clip leaves alone, written out in u and g.
            row[[QU, QG]] += w * row[QX] * row[[PU, PG]]
            row[QX] *= 1.0 - w
            convert = BLEND
        reads_u = bool(row[PU] or row[QU])
    else:
        row[CU], row[CG] = _convert(stage, prediction, space)
        convert, reads_u = (RAW if (row[CU], row[CG]) == (0.0, 1.0) else LINEAR), bool(row[CU])
    return row, StageSpec(convert, guided, reads_u, u_mask, x_mask, 0)
