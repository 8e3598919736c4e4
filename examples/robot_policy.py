"""Action chunks of a robot policy: flow matching where t = 1 is data, 16 actions of 7 joints, 4 to 10 network calls.

    python examples/robot_policy.py

The policy is a small network without training, so that the example runs anywhere; put your own in its place. What it
prints is the time of a control step, and how far fewer network calls are from many.
"""

from __future__ import annotations

import argparse
import time

import torch

import fastdiff

HORIZON, JOINTS, FEATURES = 16, 7, 32


class Policy(torch.nn.Module):
    """The velocity x0 − eps of a chunk of actions, for an observation; its time is 0 at the noise and 1 at the data."""

    sample_shape = (HORIZON, JOINTS)
    schedule, prediction = "flow_to_data", "flow"

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Linear(JOINTS + FEATURES + 1, 64), torch.nn.SiLU(), torch.nn.Linear(64, JOINTS)
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        seen = torch.cat([observation, t.reshape(-1, 1)], dim=1)[:, None].expand(-1, HORIZON, -1)
        return torch.tanh(self.body(torch.cat([x, seen], dim=2))) - x


def main(repeats: int = 100) -> None:
    """Act `repeats` times with each number of steps."""
    torch.manual_seed(0)
    policy = Policy().eval()
    # The same noise for every chunk: what changes is the observation.
    observations = torch.randn(repeats, 1, FEATURES)
    fine = fastdiff.Sampler("euler", 200, schedule="flow_to_data")
    for method, steps in (("euler", 10), ("euler", 4), ("dpmpp2m", 10), ("dpmpp2m", 4)):
        sampler = fastdiff.Sampler(method, steps, schedule="flow_to_data")
        for _ in range(3):
            actions = sampler(policy, model_kwargs={"observation": observations[0]})
        begin = time.perf_counter()
        for observation in observations:
            actions = sampler(policy, model_kwargs={"observation": observation})
        each = (time.perf_counter() - begin) / repeats
        error = (actions - fine(policy, model_kwargs={"observation": observations[-1]})).abs().max()
        print(f"{method:8s} {steps:3d} steps: {1e3 * each:.2f} ms a chunk {tuple(actions.shape)}, error {error:.1e}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
