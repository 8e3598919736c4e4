"""Makes the figures of docs/gallery.md: ``python tools/figures.py [NAME ...]``. One function a figure."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

import fastdiff
from fastdiff import plot, schedules
from fastdiff.demo import load_classifier, load_model, pictures
from fastdiff.demo.noisy_classifier import classifier_grad, load_noisy_classifier

# Below index 8 (sigma = 0.04) the digits no longer change visibly, as in the demo.
T_END = 8.0


def sample_consistency(out: Path) -> None:
    """The same ten x_T at 5 to 100 steps, with DDIM (eta = 0) and dpm3. Without labels: x_T alone decides."""
    model = load_model()
    x = fastdiff.randn((10, 1, 8, 8), seed=3)
    spacings = {"ddim": "uniform", "dpm3": "logsnr"}
    rows, images = [], []
    for method, spacing in spacings.items():
        for steps in (5, 10, 20, 50, 100):
            rows.append(f"{method}, {steps} steps")
            options = {"t_end": T_END} if spacing == "logsnr" else {}
            images.append(fastdiff.sample(model, x, method=method, steps=steps, spacing=spacing, **options))
    sheet = torch.stack(images)[:, :, 0].numpy()
    columns = [f"x_T {i}" for i in range(10)]
    title = "One x_T a column, at more and more steps; no label is given"
    pictures.sheet(sheet, rows, columns, title, scale=6).save(out / "sample_consistency.png", optimize=True)


class Mixture:
    """The exact network of a Gaussian mixture in the plane, float64: eps(x, t) on the VP SDE."""

    weights = np.array([0.5, 0.3, 0.2])
    means = np.array([[1.0, 0.4], [-0.8, 0.9], [-0.2, -1.1]])
    stds = np.array([0.2, 0.3, 0.25])

    def __init__(self) -> None:
        self.schedule = schedules.vp_linear()

    def eps(self, x: NDArray[np.float64], alpha: float, sigma: float) -> NDArray[np.float64]:
        variance = (alpha * self.stds) ** 2 + sigma**2
        offset = x[:, None] - alpha * self.means
        log_p = np.log(self.weights / variance) - 0.5 * (offset**2).sum(-1) / variance
        p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return sigma * np.einsum("nk,nkd->nd", p / variance, offset)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        point = self.schedule.at(float(t[0]))
        return torch.from_numpy(self.eps(x.double().numpy(), point.alpha, point.sigma)).to(x)

    def solve(self, x: NDArray[np.float64], t_start: float, t_end: float) -> NDArray[np.float64]:
        """The probability flow ODE to about 1e-12: with y = x/alpha and r = sigma/alpha it is dy/dr = eps."""
        (_, _, a0, s0, _), (_, _, a1, s1, _) = self.schedule.at(t_start), self.schedule.at(t_end)

        def slope(log_r: float, y: NDArray[np.float64]) -> NDArray[np.float64]:
            r = float(np.exp(log_r))
            return r * self.eps(y.reshape(x.shape), 1.0, r).ravel()

        span = (float(np.log(s0 / a0)), float(np.log(s1 / a1)))
        found = solve_ivp(slope, span, (x / a0).ravel(), method="DOP853", rtol=1e-13, atol=1e-14)
        return a1 * found.y[:, -1].reshape(x.shape)


def convergence(out: Path) -> None:
    """Error against network evaluations for several methods, on a Gaussian mixture in float64."""
    model, t_start, t_end = Mixture(), 1.0, 1e-3
    x = fastdiff.randn((64, 2), seed=1, dtype=torch.float64, prior=True)
    truth = model.solve(x.numpy(), t_start, t_end)
    errors = {}
    for method in ("ddim", "dpm2", "dpmpp2m", "heun", "unipc", "dpmpp3m", "dpm3", "dpm3s"):
        evaluations, found = [], []
        for steps in (6, 9, 15, 24, 42, 72, 126, 222, 402):
            # A step of Heun's method is two evaluations; singlestep methods count evaluations themselves.
            count = steps // 2 if method == "heun" else steps
            options = {"t_start": t_start, "t_end": t_end, "schedule": model.schedule, "spacing": "logsnr"}
            sampler = fastdiff.Sampler(method, count, dtype=torch.float64, **options)
            evaluations.append(float(sampler.plan.nfe))
            found.append(float(np.sqrt(np.mean((sampler(model, x).numpy() - truth) ** 2))))
        order = fastdiff.methods()[method]["order"]
        errors[f"{method} (order {order})"] = (evaluations, found)
    plot.convergence(
        errors,
        out / "convergence.png",
        ylabel="root mean square error",
        title="Gaussian mixture, VP SDE, t from 1 to 0.001, equal steps of log-SNR, float64",
    )


def classifier_guidance(out: Path) -> None:
    """The same x_T without labels, unguided and guided by the classifier of noisy digits at several scales."""
    model, guide, judge = load_model(), load_noisy_classifier(), load_classifier()
    labels, scales = torch.arange(10), (0.0, 1.0, 3.0, 10.0)
    many, rows, images = labels.repeat_interleave(30), [], []
    for scale in scales:
        found = fastdiff.sample(
            model,
            shape=(300, 1, 8, 8),
            method="dpmpp2m",
            steps=25,
            spacing="logsnr",
            t_end=T_END,
            seed=2,
            classifier_grad=classifier_grad(guide, many, scale) if scale else None,
        )
        with torch.no_grad():
            accuracy = (judge(found.clamp(-1.0, 1.0)).argmax(1) == many).double().mean().item()
        rows.append(f"scale {scale:g} ({accuracy:.0%})")
        images.append(found[::30, 0])
    columns = [f"asked: {digit}" for digit in range(10)]
    title = "No label is given to the network: the classifier alone asks for a digit"
    pictures.sheet(torch.stack(images).numpy(), rows, columns, title, scale=7).save(
        out / "classifier_guidance.png", optimize=True
    )


FIGURES: dict[str, Callable[[Path], None]] = {
    "sample_consistency": sample_consistency,
    "convergence": convergence,
    "classifier_guidance": classifier_guidance,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(FIGURES)}")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "images")
    options = parser.parse_args()
    wrong = [name for name in options.names if name not in FIGURES]
    if wrong:
        parser.error(f"got {', '.join(wrong)}; expected names among {', '.join(FIGURES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or FIGURES:
        FIGURES[name](options.out)
        print(options.out / f"{name}.png")


if __name__ == "__main__":
    main()
