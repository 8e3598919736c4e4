"""From a user's model to one contract: `network(x, t) -> tensor` of x's shape. Guidance batching and output checks live
here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fastdiff.guidance import UNGUIDED, Guidance
from fastdiff.ops import admitted

Tree = Mapping[str, Any]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What a network's input may be."""


# Expected of conditioning, for the error where it cannot be stacked.
TENSORS = (
    "pass tensors whose first dimension is the batch, such as {'y': torch.tensor([1, 2])} rather than {'y': [1, 2]}"
)


def stated(model: Any, name: str) -> Any:
    """What a model says about itself: its attribute, or None (as for `sample_shape`, `schedule`, `prediction`).

    A wrapper such as DistributedDataParallel, which keeps the model as `module`, says what the model says.
    """
    value = getattr(model, name, None)
    inner = getattr(model, "module", None) if isinstance(model, torch.nn.Module) else None
    return stated(inner, name) if value is None and isinstance(inner, torch.nn.Module) else value


def _parameters(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """`module.parameters()`, of which the first is here at once. One that is shared may come twice."""
    kind = type(module)
    if any(getattr(kind, name) is not getattr(torch.nn.Module, name) for name in ("parameters", "named_parameters")):
        yield from module.parameters()
        return
    for p in module._parameters.values():
        if p is not None:
            yield p
    for child in module._modules.values():
        if child is not None:
            yield from _parameters(child)


def sample_shape(model: Any) -> tuple[int, ...] | None:
    """The shape of one sample (no batch dimension): `model.sample_shape`, or a diffusers model's config."""
    shape = stated(model, "sample_shape")
    if shape is not None:
        return tuple(int(n) for n in shape)
    config = stated(model, "config")
    channels, size = getattr(config, "in_channels", None), getattr(config, "sample_size", None)
    if channels is None or size is None:
        return None
    height, width = size if isinstance(size, tuple | list) else (size, size)
    frames = getattr(config, "sample_frames", None)
    return (
        (int(channels), int(height), int(width))
        if frames is None
        else (int(channels), int(frames), int(height), int(width))
    )


def placement(model: Any) -> tuple[torch.device | None, torch.dtype | None]:
    """Device and dtype of a module's parameters, as far as they are known; (None, None) for a plain function."""
    if isinstance(model, torch.nn.Module):
        for p in _parameters(model):
            # Quantised weights say nothing about the input, offloaded ones (on "meta") nothing about the device.
            if p.dtype in DTYPES:
                return None if p.device.type == "meta" else p.device, p.dtype
    device, dtype = stated(model, "device"), stated(model, "dtype")
    return device if isinstance(device, torch.device) else None, dtype if dtype in DTYPES else None


def time_by_name(model: Any) -> bool:
    """Whether the time goes to `timestep=`: diffusers' transformers have the text, not the time, as second argument."""
    if not isinstance(model, torch.nn.Module):
        return False
    try:
        # A compiled module has no signature of its own.
        names = list(inspect.signature(getattr(model, "_orig_mod", model).forward).parameters)
    except (TypeError, ValueError):
        return False  # written in C++
    return "timestep" in names and names.index("timestep") != 1


def _takes_two_times(model: Any) -> bool:
    """Whether model(x, t, s) is a call that it takes, as far as its signature says."""
    function = getattr(model, "_orig_mod", model).forward if isinstance(model, torch.nn.Module) else model
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True  # written in C++
    places = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    return places >= 3 or any(p.kind is p.VAR_POSITIONAL for p in parameters)


def misfit(model: Any, error: TypeError, places: tuple[str, ...], kwargs: Tree) -> TypeError:
    """`error` of a call of the model; where its signature cannot take such a call, with the call that it would take."""
    function = getattr(model, "_orig_mod", model).forward if isinstance(model, torch.nn.Module) else model
    try:
        inspect.signature(function).bind(*places, **kwargs)
    except TypeError as reason:
        what = str(reason)
    except ValueError:
        return error  # written in C++
    else:
        return error
    call = ", ".join([*places, *(f"{name}=..." for name in kwargs)])
    if "too many positional" in what:
        remedy = "wrap it, such as lambda x, t: model(x) for a network without a time"
    elif "missing a required" in what:
        remedy = "give what it is conditioned on in model_kwargs={...}, or in cond and uncond with guidance"
    else:
        remedy = "leave out of model_kwargs, cond and uncond what it does not take"
    return TypeError(f"{error} (the model is called as model({call}): {remedy})")


def _unwrap(out: Any) -> torch.Tensor:
    if isinstance(out, tuple | list) and out and isinstance(out[0], torch.Tensor):
        return out[0]
    sample = out.get("sample") if isinstance(out, Mapping) else getattr(out, "sample", None)
    if isinstance(sample, torch.Tensor):
        return sample
    raise TypeError(
        f"the model returned {type(out).__name__}; expected a tensor, a tuple whose first entry is one, or an object "
        "with a tensor .sample: wrap it as lambda x, t: model(x, t).your_field"
    )


def _tensor(out: Any) -> torch.Tensor:
    return admitted("the model's output", out if isinstance(out, torch.Tensor) else _unwrap(out))


def check_kwargs(model_kwargs: Any) -> None:
    """TypeError for what cannot be given to a model as keyword arguments."""
    if model_kwargs is None or (isinstance(model_kwargs, Mapping) and all(isinstance(k, str) for k in model_kwargs)):
        return
    got = f"keys {list(model_kwargs)[:3]}" if isinstance(model_kwargs, Mapping) else type(model_kwargs).__name__
    raise TypeError(
        f"model_kwargs must be a dict of keyword arguments, such as model_kwargs={{'y': labels}}; got {got}"
    )


def check_model(model: Any) -> None:
    """TypeError for what is no network: what cannot be called, and pipelines of diffusers."""
    if not callable(model):
        raise TypeError(f"model must be callable as model(x, t, **kwargs), got {type(model).__name__}")
    if isinstance(model, type):
        raise TypeError(f"model is the class {model.__name__}; expected one of it: {model.__name__}(...)")
    if not isinstance(model, torch.nn.Module) and all(hasattr(model, name) for name in ("plan", "begin", "step")):
        raise TypeError(
            f"model is a {type(model).__name__}; expected the network, with the sampler's arguments beside it: "
            "method=..., steps=..., or call the sampler, sampler(model, shape=...)"
        )
    part = next((p for p in ("unet", "transformer") if hasattr(model, p) and hasattr(model, "scheduler")), None)
    if part is not None:
        raise TypeError(
            f"model is a pipeline, {type(model).__name__}; expected its network: pass model.{part}, with "
            "schedule=pipe.scheduler, cond={'encoder_hidden_states': ...} and uncond=...; or keep the pipeline and its "
            "prompts, and put this sampler into it: fastdiff.integrations.diffusers.accelerate(pipe)"
        )


def _batch_tree(name: str, tree: Tree, batch: int) -> None:
    if not isinstance(tree, Mapping):
        raise TypeError(
            f"{name} must be a dict of keyword arguments, such as {name}={{'y': labels}}; got {type(tree).__name__}"
        )
    for key, value in tree.items():
        for leaf in tree_flatten(value)[0]:
            if isinstance(leaf, torch.Tensor) and (leaf.ndim == 0 or leaf.shape[0] != batch):
                raise ValueError(
                    f"{name}[{key!r}] has shape {tuple(leaf.shape)}; expected the batch, {batch}, as first dimension: "
                    f"expand it, value.expand({batch}, ...)"
                )


def _stack(trees: Mapping[str, Tree]) -> dict[str, Any]:
    """The conditions of all halves, by their names, in one batch."""
    names, first = list(trees), next(iter(trees.values()))
    flat = [tree_flatten(ordered(dict(tree), dict(first))) for tree in trees.values()]
    spec = flat[0][1]
    for name, (_, other) in zip(names, flat, strict=True):
        if other != spec:
            keys = set(first) != set(trees[name])
            raise ValueError(
                f"{names[0]} and {name} must have the same structure; got keys {sorted(first)} and "
                f"{sorted(trees[name])}: {'give each key in both' if keys else TENSORS}"
            )
    return tree_unflatten(
        [_joined(names, leaves) for leaves in zip(*(leaves for leaves, _ in flat), strict=True)], spec
    )


def ordered(tree: Any, like: Any) -> Any:
    """A tree whose dicts have the keys of `like`, where they are the same, in its order."""
    if type(tree) is not dict or type(like) is not dict or tree.keys() != like.keys():
        return tree
    return {key: ordered(tree[key], value) for key, value in like.items()}


def _joined(names: list[str], leaves: tuple[Any, ...]) -> Any:
    first = leaves[0]
    for name, leaf in zip(names, leaves, strict=True):
        if isinstance(first, torch.Tensor) and isinstance(leaf, torch.Tensor):
            if first.shape != leaf.shape:
                raise ValueError(
                    f"{names[0]} and {name} differ in shape: {tuple(first.shape)} and {tuple(leaf.shape)}; pad them to "
                    "one"
                )
        elif any(isinstance(v, torch.Tensor | np.ndarray) for v in (first, leaf)) or type(first) is not type(leaf):
            raise _unequal(names[0], name, first, leaf)
        elif first != leaf:
            raise _unequal(names[0], name, first, leaf)
    return torch.cat(leaves) if isinstance(first, torch.Tensor) else first


def _unequal(one: str, other: str, *leaves: Any) -> ValueError:
    got = " and ".join("a tensor" if isinstance(v, torch.Tensor) else repr(v) for v in leaves)
    return ValueError(f"{one} and {other} may differ in the values of tensors only; got {got}: {TENSORS}")


def _spread(tree: Tree, batch: int) -> Tree:
    """The conditions of a form, which may be one for all samples."""

    def spread(leaf: Any) -> Any:
        one = isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == 1
        return leaf.expand(batch, *leaf.shape[1:]) if one else leaf

    return {k: tree_map(spread, v) for k, v in tree.items()}


class Network:
    """The user's model behind one call. Built for one run; holds the batched conditioning.

    Args:
        model: callable (x, t, **kwargs) -> tensor | tuple | object with .sample.
        batch: number of samples B; under guidance the model sees 2·B rows, the conditional half first.
        model_kwargs: given with every call; tensors whose first dimension is B are repeated under guidance.
        cond, uncond: dicts of tensors (or nested dicts and lists) with first dimension B: classifier-free guidance.
        learned: whether the model gives (B, 2·C, ...), the prediction and the value that its variance is made from.
        two_times: whether the model is called as (x, t, s), with the time of the step's end.
        guidance: the form that asks for further outputs: of conditions of its own, from one call on three times B rows,
            or of another network. The input then has B rows.

    Attributes:
        guided: whether the input has 2·B rows.
        outputs: how many outputs for each row of the input lie in an output.

    Raises:
        TypeError, ValueError: conditioning of the wrong type, batch or structure.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        batch: int,
        model_kwargs: Tree | None = None,
        cond: Tree | None = None,
        uncond: Tree | None = None,
        learned: bool = False,
        two_times: bool = False,
        guidance: Guidance = UNGUIDED,
    ) -> None:
        check_model(model)
        check_kwargs(model_kwargs)
        self.model = model
        self.named = time_by_name(model)
        self.two_times = two_times
        if two_times and self.named:
            raise TypeError(
                f"{type(model).__name__} takes its time as timestep=..., and a flow map is called as model(x, t, s): "
                "name its second time, lambda x, t, s, **kw: model(x, timestep=t, r_timestep=s, **kw), or give "
                "two_times=False"
            )
        if two_times and not _takes_two_times(model):
            raise TypeError(
                "two_times=True calls the network as model(x, t, s), from time t to time s, and this one does not take "
                "three arguments: give a flow map, or leave two_times out"
            )
        self.batch = batch
        self.learned = learned
        further = None if guidance.further is None else _spread(guidance.further, batch)
        self.guided = cond is not None and further is None
        self.weak, self.weak_named = guidance.weak, guidance.weak is not None and time_by_name(guidance.weak)
        self.outputs = 2 if self.weak is not None else 1 if further is None else 3
        kwargs = dict(model_kwargs or {})
        if cond is not None and uncond is not None:
            trees = {"cond": cond, "uncond": uncond} | ({} if further is None else {"negative": further})
            for name, tree in trees.items():
                _batch_tree(name, tree, batch)
            twice = set(kwargs) & set(cond)
            if twice:
                raise ValueError(f"{sorted(twice)} given both in model_kwargs and in cond: give it once")

            def repeat(leaf: Any) -> Any:
                own = isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == batch
                return torch.cat([leaf] * len(trees)) if own else leaf

            kwargs = {**tree_map(repeat, kwargs), **_stack(trees)}
        self.kwargs = kwargs

    def of(self, model: Any, kwargs: dict[str, Any]) -> Network:
        """The same for a model of that kind, given these arguments, already batched."""
        other = self.with_kwargs(kwargs)
        other.model = model
        return other

    def with_kwargs(self, kwargs: dict[str, Any]) -> Network:
        """The same network, given other keyword arguments, already batched."""
        other: Network = Network.__new__(Network)
        other.__dict__.update(self.__dict__, kwargs=kwargs)
        return other

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.check(self.call(x, t), x)

    @property
    def raw(self) -> Callable[[torch.Tensor, torch.Tensor], Any]:
        """(x, t) -> what the model returns, which `check` looks at; by as few calls as can be."""
        return self.raw_of(self.model, self.kwargs)

    def raw_of(self, model: Any, kwargs: dict[str, Any]) -> Callable[[torch.Tensor, torch.Tensor], Any]:
        """`raw` of a model of that kind, given these arguments, already batched."""
        if self.two_times or self.named or self.outputs > 1:
            return self.of(model, kwargs).call
        return functools.partial(model, **kwargs) if kwargs else model

    def call(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The tensor in the model's output, not checked yet."""
        if self.outputs > 1:
            return self._several(x, t)
        return self._call(self.model, self.named, x, t)

    def _call(self, model: Callable[..., Any], named: bool, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        try:
            if self.two_times:
                out = model(x, t[0], t[1], **self.kwargs)
            elif named:
                out = model(x, timestep=t, **self.kwargs)
            else:
                out = model(x, t, **self.kwargs)
        except TypeError as error:
            raise self.explained(model, error) from error
        return out if type(out) is torch.Tensor else _tensor(out)

    def explained(self, model: Any, error: TypeError) -> TypeError:
        """`error` of a call of the model, with what is wrong with the call, if that is why."""
        if (model is self.model and self.named) or (model is self.weak and self.weak_named):
            return error
        return misfit(model, error, ("x", "t", "s") if self.two_times else ("x", "t"), self.kwargs)

    def _several(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """All outputs of B rows, one below the other."""
        if self.weak is None:
            x, t = torch.cat([x] * self.outputs), torch.cat([t] * self.outputs, dim=int(self.two_times))
            return self._checked(self._call(self.model, self.named, x, t), x, 1)
        # Either may scale its times in place.
        pairs = ((self.model, self.named), (self.weak, self.weak_named))
        return torch.cat([self._checked(self._call(model, named, x, t.clone()), x, 1) for model, named in pairs])

    def check(self, out: Any, x: torch.Tensor) -> torch.Tensor:
        """The tensor in a model's output, of x's device, and of its shape, with twice the channels if `learned`.

        Raises TypeError or ValueError for anything else.
        """
        return self._checked(out, x, self.outputs)

    def _checked(self, out: Any, x: torch.Tensor, outputs: int) -> torch.Tensor:
        if type(out) is not torch.Tensor:
            out = _tensor(out)
        want: tuple[int, ...] = x.shape
        if self.learned or outputs > 1:
            if self.learned and x.ndim < 2:
                raise ValueError(f"a learned variance needs channels, x of shape (B, C, ...); got {tuple(x.shape)}")
            channels = x.shape[1:2] if not self.learned else (2 * x.shape[1],)
            want = (outputs * x.shape[0], *channels, *x.shape[2:])
        if out.shape != want or out.device != x.device or not out.dtype.is_floating_point:
            self._reject(out, x, tuple(want))
        return out

    def _reject(self, out: torch.Tensor, x: torch.Tensor, want: tuple[int, ...]) -> None:
        got = tuple(out.shape)
        if got != want and want[0] != x.shape[0]:
            raise ValueError(
                f"the output has shape {got}, expected {want}: the guidance combines {self.outputs} outputs for each "
                "sample, one below the other"
            )
        if got != want and want != tuple(x.shape):
            raise ValueError(
                f"the model returned shape {got}, expected {want}: twice the channels of its input, the prediction and "
                "then its learned variance; for networks without one use variance='small' or 'large'"
            )
        if got != want:
            hint = ""
            if len(got) == len(want) and got[1:2] == (2 * want[1],) and got[2:] == want[2:]:
                hint = (
                    ": twice the channels, as networks with a learned variance give; method='ddpm', "
                    "variance='learned_range' takes them; for other methods return the mean alone, "
                    "lambda x, t, **kw: model(x, t, **kw).chunk(2, dim=1)[0]"
                )
            raise ValueError(f"the model returned shape {got}, expected {want}, the shape of its input{hint}")
        if out.device != x.device:
            raise ValueError(
                f"the model returned a tensor on {out.device}, its input is on {x.device}: move the model there"
            )
        hint = ": return its real part, out.real" if out.dtype.is_complex else ""
        raise TypeError(f"the model returned {out.dtype}; expected a floating-point tensor{hint}")
