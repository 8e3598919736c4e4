"""k-diffusion's functions given what they do not take: each error names the argument and what is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fastdiff.integrations.k_diffusion as sampling

X = torch.zeros(2, 3)
SIGMAS = sampling.get_sigmas_karras(3, 0.1, 10.0)


def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return 0.5 * x


LISTED = {"model": denoiser, "x": X, "sigmas": SIGMAS}
RANGED = {"model": denoiser, "x": X, "sigma_min": 0.1, "sigma_max": 10.0}


@pytest.mark.parametrize(
    ("call", "given", "message"),
    [
        (sampling.sample_euler, {**LISTED, "model": 3}, r"model got 3; expected a function, called as model\(x, sigma"),
        (
            sampling.sample_euler,
            {**LISTED, "callback": "no"},
            r"callback got 'no'; expected a function, called as call",
        ),
        (sampling.sample_euler, {**LISTED, "callback": []}, r"callback got \[\]; expected a function"),
        (sampling.sample_euler, {**LISTED, "s_churn": [1.0]}, r"s_churn=\[1.0\]: expected a number"),
        (sampling.sample_euler, {**LISTED, "s_tmin": np.ones(2)}, r"s_tmin=array.*: expected a number"),
        (sampling.sample_lms, {**LISTED, "order": {}}, r"order=\{\}: expected a number"),
        (sampling.sample_dpmpp_2m_sde, {**LISTED, "noise_sampler": 1.0}, r"noise_sampler got 1.0; expected a function"),
        (sampling.run, {**LISTED, "method": "euler", "options": 3}, r"options got 3; expected a dict of options"),
        (sampling.sample_dpm_fast, {**RANGED, "n": 3, "sigma_min": None}, "sigma_min=None: expected a number"),
        (sampling.sample_dpm_fast, {**RANGED, "n": 3, "callback": 1}, "callback got 1; expected a function"),
        (sampling.sample_dpm_adaptive, {**RANGED, "accept_safety": "a"}, "accept_safety='a': expected a number"),
        (sampling.sample_dpm_adaptive, {**RANGED, "rtol": []}, r"rtol=\[\]: expected a number"),
        (sampling.sample_dpm_adaptive, {**RANGED, "model": None}, "model got None; expected a function"),
        (sampling.log_likelihood, {**RANGED, "model": "m"}, "model got 'm'; expected a function"),
        (sampling.get_sigmas_vp, {"n": 1.5}, "n=1.5: expected an integer"),
        (sampling.get_sigmas_vp, {"n": 3, "beta_d": "a"}, "beta_d='a': expected a number"),
        (
            sampling.BrownianTreeNoiseSampler,
            {"x": [1.0], "sigma_min": 0.1, "sigma_max": 10.0},
            r"x must be a torch.Tensor of shape \(B, ...\), got list",
        ),
    ],
)
def test_what_is_not_taken(call: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(**given)


@pytest.mark.parametrize("kind", [float, np.float32, torch.tensor])
def test_numbers_of_all_kinds(kind: Any) -> None:
    want = sampling.sample_dpmpp_2m_sde(**LISTED, eta=0.5, extra_args={}, noise_sampler=lambda a, b: torch.ones_like(X))
    got = sampling.sample_dpmpp_2m_sde(**LISTED, eta=kind(0.5), noise_sampler=lambda a, b: torch.ones_like(X))
    assert torch.equal(got, want)
