"""One evaluation: what becomes of a network's output before a stage reads it.

The table's loop, the adaptive driver and loops that callers own all come through here. It checks the output, splits
the halves of guidance or asks for the classifier's gradient, and takes the weights of guidance that follow from the
outputs. It makes the predicted x0 for hooks, for the user's correction and for the bounds of dynamic thresholding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from fastdiff.bind import Binding, Site
from fastdiff.guidance import Blend, Outputs
from fastdiff.ops import Backend, Buffers, Coeffs, address, returned, tracing
from fastdiff.ops.layout import CG, CU, PG, PU, QG, QU, W1, W2, StageSpec
from fastdiff.plan import SECOND
from fastdiff.run.corrections import CorrectX0, CorrectXt, corrected
from fastdiff.run.history import comparable, reads_only, same_bits, trust_input
from fastdiff.run.network import Network
from fastdiff.run.threshold import Threshold

Callback = Callable[[int, float, torch.Tensor, torch.Tensor], None]


@dataclass(slots=True)
class Hooks:
    """What a run reports while it goes, and the user's corrections. All are optional, and what is absent costs nothing.

    Attributes:
        progress: given how far the run is: steps done, or percent of the way of an adaptive method.
        callback: (number, time, x, x0): the stage of a plan, or the accepted steps of an adaptive method.
        trajectory: (time, x, x0) of every step.
        finite: whether outputs are checked for NaN and Inf.
    """

    progress: Callable[[float], None] | None = None
    callback: Callback | None = None
    trajectory: list[tuple[float, torch.Tensor, torch.Tensor]] | None = None
    finite: bool = False
    correct_x0: CorrectX0 | None = None
    correct_xt: CorrectXt | None = None

    @property
    def watches(self) -> bool:
        """Whether the predicted x0 is reported."""
        return self.callback is not None or self.trajectory is not None


class Seen(NamedTuple):
    """What an evaluation gives besides the outputs that the stage reads.

    Attributes:
        blend: how the outputs are combined, sample by sample, or None where the row says it.
        x0: the predicted x0, corrected and thresholded, where it is needed.
    """

    blend: Blend | None = None
    x0: torch.Tensor | None = None


NOTHING = Seen()


class Evaluator:
    """What one run does with each output of the network.

    Args:
        keeps_input: whether the network is given memory that the sampler still needs afterwards, so that a change in
            place must be seen.

    Attributes:
        recorded: whether operations are recorded, so that outputs may have no memory.
        lends: whether the network is called on memory of the sampler's own. Not under a compiler, which knows no
            versions of tensors.
        storage: the address of the last output's storage; 0 where `recorded`.
    """

    def __init__(
        self,
        network: Network,
        backend: Backend,
        binding: Binding,
        hooks: Hooks,
        threshold: Threshold | None,
        state_dtype: torch.dtype,
        keeps_input: bool,
    ) -> None:
        self.network, self.backend, self.binding, self.hooks = network, backend, binding, hooks
        self.threshold, self.state_dtype = threshold, state_dtype
        self.admitted: torch.dtype | None = None
        # Of the outputs of this run, known from the first.
        self.shape: torch.Size | None = None
        self.device: torch.device | None = None
        self.nbytes = 0
        self.version = self.storage = 0
        self.recorded = tracing()
        self.lends = not (self.recorded and torch.compiler.is_compiling())
        self.keeps_input = keeps_input and self.lends
        # Asked for at every evaluation.
        self.guided, self.gradient = network.guided, binding.guidance.gradient
        self.halves, self.reverses = len(binding.guidance.halves), binding.guidance.reverses
        self.plain = not self.halves and self.gradient is None
        # Of the guidance, from one evaluation to the next.
        self.memory: dict[str, torch.Tensor] = {}
        # How many more inputs are compared with a copy: a change behind torch leaves the version as it is.
        known = self.recorded or not self.keeps_input or reads_only(network.model)
        self.compared = 0 if known else math.inf
        self.copy: torch.Tensor | None = None

    def on(self, network: Network) -> Evaluator:
        """The same for another network."""
        return Evaluator(
            network, self.backend, self.binding, self.hooks, self.threshold, self.state_dtype, self.keeps_input
        )

    def of(self, model: Any, kwargs: dict[str, Any]) -> Evaluator:
        """One of another run of such a model, that knows what its outputs are like."""
        other: Evaluator = Evaluator.__new__(Evaluator)
        other.__dict__.update(self.__dict__, network=self.network.of(model, kwargs))
        return other

    def give(self, given: torch.Tensor) -> None:
        """The network is about to be called on `given`."""
        if self.keeps_input:
            self.version = given._version
            self.copy = given.clone() if self.compared > 0 and comparable(given) else None

    def complete(self) -> None:
        """A whole run went through: its model leaves its input alone."""
        if self.compared:
            trust_input(self.network.model)

    def admit(self, out: torch.Tensor, given: torch.Tensor, site: Site, report: bool = True) -> torch.Tensor:
        """The output, contiguous, after checks of the input's memory, the dtype and, where asked for, of NaN and Inf.

        Raises:
            RuntimeError: the network changed its input in place.
            TypeError: a dtype that the back end does not read.
            FloatingPointError: NaN or Inf.
        """
        changed = self.keeps_input and given._version != self.version
        if self.copy is not None and not changed:
            changed, self.copy, self.compared = not same_bits(given, self.copy), None, self.compared - 1
        if changed:
            raise RuntimeError(
                "the model changed its input in place, which the sampler still needs: let it work on a copy, "
                "lambda x, t, **kw: model(x.clone(), t, **kw)"
            )
        if out.dtype is not self.admitted:
            ok, why = self.backend.supports(given.device, self.state_dtype, out.dtype)
            if not ok:
                raise TypeError(
                    f"the model returned {out.dtype}, which the back end {self.backend.NAME!r} does not read: {why}; "
                    "cast it, lambda x, t, **kw: model(x, t, **kw).float()"
                )
            self.admitted, self.shape = out.dtype, None
        if self.recorded:
            out = out.contiguous()
        else:
            if out.is_neg():
                out = out.resolve_neg()
            contiguous = out.is_contiguous()
            self.storage = address("the model's output", out, contiguous)
            if not contiguous:
                out = out.contiguous()
                self.storage = out.data_ptr()
            if self.shape is None:
                self.shape, self.device, self.nbytes = out.shape, out.device, out.nbytes
        if self.hooks.finite and report:
            require_finite(out, site, self.network.batch, self.state_dtype, halves=self.binding.guidance.halves)
        return out

    def quick(self, blended: bool) -> bool:
        """Whether nothing but the stage looks at the outputs, which lie as the network's halves do."""
        hooks = self.hooks
        if self.recorded or self.threshold is not None or blended or self.gradient is not None:
            return False
        if self.reverses or self.network.outputs > 1:
            return False
        watched = (hooks.progress, hooks.callback, hooks.trajectory, hooks.correct_x0, hooks.correct_xt)
        return not hooks.finite and all(hook is None for hook in watched)

    def read(self, out: torch.Tensor, buf: Buffers, site: Site, coeffs: Coeffs, watch: bool = False) -> Seen:
        """Put an admitted output at `buf.u` where the stage reads it; `watch`: whether hooks want the predicted x0."""
        buf.first = out
        if self.plain and site.x0 is None:
            return NOTHING
        u, blend = buf.u, None
        assert u is not None
        if self.halves:
            batch = len(u)
            outputs = tuple(out.narrow(0, k * batch, batch) for k in range(self.halves))
            buf.first, buf.second = outputs[1 if self.reverses else 0], outputs[0 if self.reverses else 1]
            if site.numbers is not None:
                blend = self._blend(outputs, u, site, buf)
        elif self.gradient is not None:
            # Of two times the classifier is given that of x.
            # Two times are of the whole batch: the first is where the network is evaluated.
            clock = site.clock[0] if self.network.two_times else site.clock
            buf.first, buf.second = with_gradient(self.gradient, u, clock.clone(), out)
            if self.hooks.finite:
                require_finite(buf.second, site, len(u), self.state_dtype, "classifier_grad")
        hooks = self.hooks
        if site.x0 is None or not (watch or self.threshold is not None or hooks.correct_x0 is not None):
            return NOTHING if blend is None else Seen(blend)
        values, spec = site.x0
        x0 = torch.empty_like(u)
        own = Coeffs(values, coeffs.draws, coeffs.seeds, coeffs.index, rows=coeffs.rows, inner=coeffs.inner)
        data, row = placed(own, site.row, blend)
        self.backend.stage(spec, row, data, Buffers(u=u, first=buf.first, second=buf.second, u_out=x0))
        if hooks.correct_x0 is not None:
            x0 = corrected("correct_x0", hooks.correct_x0(x0, site.t), u)
            buf.first, buf.second = _instead(x0, buf.first, buf.second, site.spec)
            # It stands for the guided output now. Hooks may write into it before the stage has read it.
            blend, x0 = None, x0.clone() if watch else x0
        if self.threshold is not None:
            self.threshold(x0, coeffs)
        if watch:
            x0 = clamped(x0, coeffs)
        return Seen(blend, x0)

    def _blend(self, outputs: tuple[torch.Tensor, ...], u: torch.Tensor, site: Site, buf: Buffers) -> Blend:
        """The weights that the guidance takes from the outputs, and what it reads instead of the second."""
        assert site.numbers is not None
        learned = site.spec.learned > 0
        values = tuple(v.chunk(2, dim=1)[0] for v in outputs) if learned else outputs
        blend = self.binding.guidance.blend(Outputs(values, u, site.numbers, self.memory))
        if blend.second is not None:
            second = blend.second
            if learned:
                second = torch.cat([second, outputs[1].chunk(2, dim=1)[1].to(second.dtype)], dim=1)
            # The kernels read both in one dtype.
            buf.first, buf.second = outputs[0].to(second.dtype), second.contiguous()
        return blend


def own_rows(coeffs: Coeffs, row: int) -> torch.Tensor:
    """(1, WIDTH), or (B, WIDTH) where each sample has a row of its own: fresh memory."""
    # By select instead of indexing, which tests on fake tensors cannot do.
    if coeffs.rows is None:
        return coeffs.table.select(0, row).unsqueeze(0).clone()
    return coeffs.table.index_select(0, coeffs.rows)


def placed(coeffs: Coeffs, row: int, blend: Blend | None) -> tuple[Coeffs, int]:
    """The coefficients and the row of a stage whose g is `blend`: a row for each sample, written on the device."""
    if blend is None:
        return coeffs, row
    table, batch = own_rows(coeffs, row), len(coeffs.seeds)
    table = table.repeat(batch, 1) if len(table) != batch else table
    table.select(1, W1).copy_(blend.w1)
    table.select(1, W2).copy_(blend.w2)
    if blend.wu is not None:
        # Where g is read, u is.
        for of_u, of_g in ((CU, CG), (PU, PG), (QU, QG)):
            table.select(1, of_u).add_(table.select(1, of_g) * blend.wu)
    return with_rows(coeffs, table, row), 0


def with_rows(coeffs: Coeffs, table: torch.Tensor, row: int) -> Coeffs:
    """`coeffs` with these rows: one for the batch, or one for each sample."""
    if coeffs.rows is None:
        draws = coeffs.draws.select(0, row).repeat(len(table), 1)
    else:
        draws = coeffs.draws.index_select(0, coeffs.rows)
    each = len(table) > 1 or coeffs.rows is not None
    rows = torch.arange(len(table), dtype=torch.int32, device=table.device) if each else None
    return replace(coeffs, table=table, draws=draws, rows=rows)


def with_gradient(
    gradient: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], u: torch.Tensor, t: torch.Tensor, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's output and the classifier's gradient, in the wider dtype of the two."""
    # The loop runs without gradients, which a classifier's needs.
    with torch.enable_grad():
        grad = gradient(u.detach().clone(), t)
    if not isinstance(grad, torch.Tensor) or grad.shape != u.shape:
        got = tuple(grad.shape) if isinstance(grad, torch.Tensor) else type(grad).__name__
        raise ValueError(f"classifier_grad returned {got}, expected a tensor of x's shape {tuple(u.shape)}")
    grad = returned("classifier_grad", grad)
    wider = torch.promote_types(out.dtype, grad.dtype)
    return out.to(wider), grad.detach().to(device=out.device, dtype=wider).contiguous()


def require_finite(
    out: torch.Tensor,
    site: Site,
    batch: int,
    dtype: torch.dtype,
    what: str = "the network",
    halves: tuple[str, ...] = (),
) -> None:
    """FloatingPointError where an output has NaN or Inf in the state's dtype, with the place and the sample. Waits for
    the device."""
    good = torch.isfinite(out.to(dtype)).reshape(len(out), -1).all(dim=1)
    if site.ignored is not None:
        good = good | site.ignored
    if bool(good.all()):
        return
    row = int(torch.argmin(good.int()))
    sample = row % batch
    half = f", in the {halves[row // batch]} half" if halves and len(out) > batch else ""
    where = site.where[sample % len(site.where)]
    raise FloatingPointError(
        f"{what} returned NaN or Inf at {where} for sample {sample} of {batch}{half}: check the network's dtype, "
        "its input scale and prediction=..."
    )


def _instead(
    x0: torch.Tensor, first: torch.Tensor, second: torch.Tensor | None, spec: StageSpec
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Let the stage, which is bound to the prediction of x0, read the corrected one instead of the network's output."""
    # Beside x0, the second half of the channels still gives the variance.
    joined = torch.cat([x0, first.chunk(2, dim=1)[1].to(x0.dtype)], dim=1) if spec.learned else x0
    reads = second is not None and spec.mask >> SECOND & 1
    return joined, second.to(x0.dtype) if second is not None and reads else None


def clamped(x0: torch.Tensor, c: Coeffs) -> torch.Tensor:
    """A predicted x0 within the bounds of its samples, as the stage takes it."""
    if c.lo is None or c.hi is None or c.scale is None:
        return x0
    column = (-1,) + (1,) * (x0.ndim - 1)
    return torch.maximum(torch.minimum(x0, c.hi.reshape(column)), c.lo.reshape(column)) * c.scale.reshape(column)
