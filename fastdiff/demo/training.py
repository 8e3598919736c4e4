"""One training loop for the demo's networks: average of the weights, checkpoints, a progress bar, Ctrl-C.

Every step draws its randomness from (seed, step) alone, so a run that was interrupted and resumed ends in the same
weights.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from tqdm import tqdm

from fastdiff.files import write_whole

BATCH = 128
LEARNING_RATE = 1e-3
WARM_UP = 200
LABEL_DROPOUT = 0.1
EMA_DECAY = 0.999

Loss = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
"""(model, images, labels, generator) -> scalar: what one batch is trained on."""


class Trainer:
    """The network, the average of its weights and the optimizer, after ``step`` of ``steps`` steps.

    Args:
        model: the network; its parameters are trained in place.
        images, labels: the data, (N, ...) and (N,).
        steps: length of the whole run, which the learning rate depends on.
        seed: of everything that is drawn.
        loss: what a batch is trained on.
        batch: size of a batch.
        label: what is trained, kept in the checkpoint: a run is only continued as what it was.
        mixed: mixed precision (torch.amp): float16 with a scaled loss on CUDA, else bfloat16, which needs no scale.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        steps: int,
        seed: int,
        loss: Loss,
        batch: int = BATCH,
        label: str = "unet",
        mixed: bool = False,
    ) -> None:
        self.model, self.loss, self.label, self.mixed = model, loss, label, mixed
        self.device = next(model.parameters()).device
        self.images, self.labels = images.to(self.device), labels.to(self.device)
        self.steps, self.seed, self.batch, self.step = steps, seed, batch, 0
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=mixed and self.device.type == "cuda")
        self.average = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)

    @property
    def settings(self) -> dict[str, str]:
        """What a checkpoint must agree in."""
        found = {"steps": self.steps, "seed": self.seed, "batch": self.batch, "label": self.label, "mixed": self.mixed}
        return {key: str(value) for key, value in found.items()}

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        warm_up = min(1.0, (self.step + 1) / WARM_UP)
        return LEARNING_RATE * warm_up * 0.5 * (1.0 + math.cos(math.pi * self.step / self.steps))

    def train_step(self) -> Tensor:
        """One step of the optimizer; the loss, a tensor of one element."""
        number = self.seed * 1_000_003 + self.step
        generator = torch.Generator().manual_seed(number)
        # Dropout draws from torch's own generator. Its numbers depend on the step too, and differ from `generator`'s.
        torch.manual_seed(-1 - number)
        chosen = torch.randint(len(self.images), (self.batch,), generator=generator).to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        half = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        with torch.autocast(self.device.type, half, enabled=self.mixed):
            loss = self.loss(self.model, self.images[chosen], self.labels[chosen], generator)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        decay = min(EMA_DECAY, self.step / (self.step + 9))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                self.average[name].lerp_(parameter, 1.0 - decay)
        return loss.detach()

    def save(self, path: Path) -> None:
        """Writes everything needed to continue; the file is whole at every moment, even if this is interrupted."""
        tensors = {f"average.{name}": value for name, value in self.average.items()}
        for name, parameter in self.model.named_parameters():
            tensors[f"model.{name}"] = parameter.detach()
            state = self.optimizer.state.get(parameter, {})
            for key in ("exp_avg", "exp_avg_sq", "step"):
                if key in state:
                    tensors[f"{key}.{name}"] = state[key]
        write(path, tensors, {"step": str(self.step), "scaler": json.dumps(self.scaler.state_dict()), **self.settings})

    def load(self, path: Path) -> None:
        """Continues from a file written by ``save``.

        Raises:
            ValueError: the file belongs to a run with other settings, or is damaged. Nothing is changed then.
        """
        tensors, meta = read(path)
        expected = self.settings
        found = {key: meta.get(key, "nothing") for key in expected}
        if found != expected:
            got = ", ".join(f"{key}={value}" for key, value in found.items())
            wanted = ", ".join(f"{key}={value}" for key, value in expected.items())
            raise ValueError(
                f"{path} holds a run with {got}, but this one has {wanted}: pass the same --steps and --seed, "
                "or leave --resume out to start again"
            )
        step, scaler = self._checked(path, tensors, meta)
        self.step = step
        self.scaler.load_state_dict(scaler)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
                if f"step.{name}" in tensors:
                    self.optimizer.state[parameter] = {
                        key: tensors[f"{key}.{name}"].to(self.device if key != "step" else "cpu", copy=True)
                        for key in ("step", "exp_avg", "exp_avg_sq")
                    }

    def _checked(
        self, path: Path, tensors: dict[str, Tensor], meta: dict[str, str]
    ) -> tuple[int, dict[str, float | int]]:
        """The step and the scaler's state, after a look at everything that `load` takes."""

        def damaged(why: str) -> ValueError:
            return ValueError(f"{path} is damaged: {why}; delete it, or leave --resume out, to begin again")

        text = meta.get("step", "")
        if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) <= self.steps):
            raise damaged(f"its step is {text!r:.40}, of {self.steps}")
        try:
            scaler = json.loads(meta.get("scaler", ""))
        except (ValueError, RecursionError):
            scaler = None
        wanted = self.scaler.state_dict()
        numbers = isinstance(scaler, dict) and all(isinstance(v, int | float) for v in scaler.values())
        if not numbers or set(scaler) != set(wanted):
            raise damaged("the scaler's state is not one")
        for name, parameter in self.model.named_parameters():
            kinds = ["model", "average"]
            if int(text) > 0:
                kinds += ["exp_avg", "exp_avg_sq", "step"]
            for kind in kinds:
                value = tensors.get(f"{kind}.{name}")
                shape = () if kind == "step" else tuple(parameter.shape)
                if value is None and kind in ("exp_avg", "exp_avg_sq", "step") and f"step.{name}" not in tensors:
                    continue
                if value is None or tuple(value.shape) != shape or not bool(torch.isfinite(value).all()):
                    got = "missing" if value is None else f"of shape {tuple(value.shape)}, or not finite"
                    raise damaged(f"{kind}.{name} is {got}; expected finite numbers of shape {shape}")
        return int(text), scaler


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What ``write`` wrote. ValueError, with the file and the reason, for anything else."""
    content = path.read_bytes()
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no safetensors file, or is damaged: {error!s:.200}") from None
    return tensors, header.get("__metadata__", {})


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Saves so that no half-written file is ever found at ``path``."""
    write_whole(path, save({name: value.contiguous().cpu() for name, value in tensors.items()}, metadata))


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C into a flag to be read between steps; a second Ctrl-C stops at once."""
    stopped = False
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)


def drop_labels(labels: Tensor, null: int, generator: torch.Generator) -> Tensor:
    """Labels with a tenth of them replaced by the null class, for classifier-free guidance (Ho & Salimans 2022)."""
    dropped = torch.rand(len(labels), generator=generator) < LABEL_DROPOUT
    return torch.where(dropped.to(labels.device), null, labels)


def stratified(batch: int, generator: torch.Generator) -> Tensor:
    """(batch,) numbers in [0, 1), one from each of as many equal slices: uniform, with sums that vary less."""
    return (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch


def run(trainer: Trainer, checkpoint: Path, resume: bool, every: int = 500) -> float | None:
    """Trains to the end; the smoothed loss, or None if Ctrl-C came before, when ``checkpoint`` holds the run."""
    if resume and checkpoint.exists():
        trainer.load(checkpoint)
    trainer.model.train()
    smooth, label = float("nan"), trainer.label
    with (
        interruptible() as stopped,
        tqdm(total=trainer.steps, initial=trainer.step, desc=label, mininterval=1.0) as bar,
    ):
        while trainer.step < trainer.steps and not stopped():
            loss = trainer.train_step().item()
            smooth = loss if math.isnan(smooth) else smooth + 0.02 * (loss - smooth)
            bar.update()
            bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
            if trainer.step % every == 0:
                trainer.save(checkpoint)
    trainer.save(checkpoint)
    if trainer.step < trainer.steps:
        print(f"stopped at step {trainer.step} of {trainer.steps}; continue with --resume")
        return None
    return smooth


def command_line(module: str, doc: str | None, steps: int) -> argparse.ArgumentParser:
    """The arguments that every training script has; `steps` by default. For `parse`."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=(doc or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("digits"), help="folder for all that is written (digits)")
    parser.add_argument("--steps", type=int, default=steps, help=f"training steps ({steps})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads for PyTorch (its own default)")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The options, checked; the threads are set, and the folder is made."""
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"got --steps {options.steps}, expected at least 1, such as --steps {parser.get_default('steps')}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    return options
