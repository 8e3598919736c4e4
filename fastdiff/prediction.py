"""The prediction algebra: what a network gives, what a solver works in, and the way from one to the other.

Every prediction is a linear form in the data and the noise, target = p·x0 + q·eps, at x = alpha·x0 + sigma·eps. From
(p, q) follow every conversion, the classifier's shift and the training targets: a new prediction type is one line of
`TARGETS`. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastdiff.names import unknown
from fastdiff.schedules import FlowToData, NoiseSchedule

Form = tuple[Any, Any]
"""(p, q), floats or float64 arrays."""

TARGETS: dict[str, Callable[[Any, Any], Form]] = {
    # Ho et al. 2020, arXiv 2006.11239.
    "eps": lambda alpha, sigma: (0.0, 1.0),
    "x0": lambda alpha, sigma: (1.0, 0.0),
    # Salimans and Ho 2022, arXiv 2202.00512, App. D; here for any alpha and sigma.
    "v": lambda alpha, sigma: (-sigma, alpha),
    # Song et al. 2021, arXiv 2011.13456: the gradient of log p(x), −eps/sigma.
    "score": lambda alpha, sigma: (0.0, -1.0 / sigma),
    # Lipman et al. 2023, arXiv 2210.02747, on straight paths.
    "flow": lambda alpha, sigma: (-1.0, 1.0),
    # The same velocity along a time that is 1 at the data.
    "flow_to_data": lambda alpha, sigma: (1.0, -1.0),
    # Karras et al. 2022, arXiv 2206.00364, eq. 7: F of EDM's preconditioning, in units of the data's deviation.
    "edm": lambda alpha, sigma: (sigma, -alpha),
}
"""(p, q) of each prediction as a function of alpha and sigma."""

PREDICTIONS = tuple(TARGETS)
PREVIOUS = "previous"
"""The mean of the next, cleaner state: apart from `PREDICTIONS`, as it is a statement about a step, not a time."""
ALL_PREDICTIONS = (*PREDICTIONS, PREVIOUS)

SPACES = {"noise": "eps", "data": "x0", "velocity": "flow", "score": "score"}
"""The prediction that a solver's model value is, for each space of a plan."""


def target(prediction: str, alpha: Any, sigma: Any) -> Form:
    """(p, q) of a prediction at alpha and sigma, floats or arrays.

    Raises:
        ValueError: an unknown prediction.
        ZeroDivisionError: a score where sigma is 0.
    """
    if prediction not in TARGETS:
        raise ValueError(unknown("prediction", prediction, PREDICTIONS))
    if prediction == "score" and np.any(np.equal(sigma, 0.0)):
        raise ZeroDivisionError("no score exists where sigma is 0")
    return TARGETS[prediction](alpha, sigma)


def along(prediction: str | None, schedule: NoiseSchedule | None) -> str:
    """The prediction, or the default where none is said: "eps", and on `flow_to_data` the velocity.

    "flow" is the velocity along the network's own time: x0 − eps where that time is 1 at the data.
    """
    if isinstance(schedule, FlowToData):
        return "flow_to_data" if prediction in (None, "flow") else prediction
    return "eps" if prediction is None else prediction


def settled(prediction: str | None, schedule: NoiseSchedule | None) -> str:
    """`along` for a network that is about to run. ValueError on `flow` where nobody says what it gives: it would be
    taken for eps, which hardly a network of flow matching predicts."""
    if prediction is None and schedule is not None and schedule.kind == "flow" and not isinstance(schedule, FlowToData):
        raise ValueError(
            f"the schedule is {schedule!r}, and neither the call nor the model says what the network gives: "
            "prediction='flow' is the velocity eps − x0; 'eps', 'x0' and 'v' are the others"
        )
    return along(prediction, schedule)


def conversion(prediction: str, space: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(cu, cg) with m = cu·u + cg·g, for a network that predicts `prediction` and a solver that works in `space`.

    u = alpha·x0 + sigma·eps and g = p·x0 + q·eps are two equations for x0 and eps; m = P·x0 + Q·eps. Where (P, Q) is
    (p, q) up to a factor, g alone gives m.

    Raises:
        ValueError: unknown names; or a conversion that divides by zero (x0 from eps where alpha = 0: zero terminal
            SNR).
    """
    if space not in SPACES:
        raise ValueError(unknown("space", space, SPACES))
    try:
        p, q = target(prediction, alpha, sigma)
        big_p, big_q = target(SPACES[space], alpha, sigma)
        if big_p * q == big_q * p:
            return 0.0, big_q / q if q else big_p / p
        determinant = alpha * q - sigma * p
        return (big_p * q - big_q * p) / determinant, (alpha * big_q - sigma * big_p) / determinant
    except ZeroDivisionError:
        raise ValueError(
            f"a network with prediction={prediction!r} cannot be used where alpha={alpha:g}, sigma={sigma:g}: the "
            f"conversion to {space} divides by zero. At zero terminal SNR the network must predict 'v', 'x0' or "
            "'flow'; else start at a time with alpha > 0 (t_start=...)"
        ) from None


def score_shift(prediction: str, alpha: float, sigma: float) -> float:
    """The factor of grad log p(y | u) in the network's output: score += grad (Dhariwal and Nichol 2021, arXiv
    2105.05233, Algorithm 2).

    A change of the score by c changes eps by −sigma·c and x0 by (sigma²/alpha)·c, and a prediction by p and q times
    these.
    """
    if prediction == PREVIOUS:
        raise ValueError(
            "classifier_form='score' with prediction='previous': the network gives a step's mean, not a score; use "
            "classifier_form='mean', which shifts that mean"
        )
    if prediction == "score":
        return 1.0
    p, q = target(prediction, alpha, sigma)
    if p == 0:
        return float(-q * sigma)
    if alpha == 0:
        raise ValueError(
            f"classifier guidance of prediction={prediction!r} needs alpha > 0: start at an earlier t_start"
        )
    return float(p * sigma**2 / alpha - q * sigma)


def check_previous(prediction: str | None, method: str) -> None:
    """ValueError where the network gives the posterior mean of a step that `method` does not take."""
    if prediction == PREVIOUS and method != "ddpm":
        raise ValueError(
            f"prediction='previous' with method {method!r}: the network gives the mean of the next, cleaner state, "
            "which only the steps of method='ddpm' have; for other methods give a network that predicts 'eps', 'x0' or "
            "'v'"
        )


def previous_conversion(of_x: float, of_x0: float, model_time: float) -> tuple[float, float]:
    """(cu, cg) with x0 = cu·x + cg·g, g = of_x·x + of_x0·x0 the mean of q(x_t | x_s, x0) (Ho et al. 2020, eq. 7)."""
    if not of_x0:
        raise ValueError(
            f"prediction='previous' at model time {model_time:g}: the step's mean does not depend on x0, which "
            "cannot be found from it; expected steps to a cleaner time: method='ddpm' without times of your own"
        )
    return -of_x / of_x0, 1.0 / of_x0
