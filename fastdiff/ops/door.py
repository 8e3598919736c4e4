"""The door that every tensor from outside comes through: kernels read by address, so it must have plain memory."""

from __future__ import annotations

import torch
from torch import Tensor

_REMEDIES = {
    "AsyncCollectiveTensor": "call .wait() on it first",
    "DTensor": "pass its .to_local() part, or .full_tensor()",
    "FakeTensor": "run the whole call inside its mode, `with FakeTensorMode():`",
    "FunctionalTensor": "run the whole call inside its mode",
    "MaskedTensor": "pass .to_tensor(value), with a value for what is masked",
    "NestedTensor": "pass .to_padded_tensor(0.0)",
}
_OWN_DISPATCH = torch.Tensor.__torch_dispatch__


def tracing() -> bool:
    """Whether operations are now recorded or watched (FakeTensor, torch.export, torch.compile, torch.jit.trace, any
    dispatch mode), so that the stage must be an operation that PyTorch knows: `fastdiff.ops.library`."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or torch.jit.is_tracing()


def symbolic(t: Tensor) -> bool:
    """Whether `t` has no values that a branch may look at: a fake tensor, or any while a graph is recorded."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    proxies = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY)
    return proxies is not None or not (type(t) is Tensor or _plain(type(t)))


def admitted(what: str, t: Tensor) -> Tensor:
    """`t` as a tensor whose memory a kernel may read: of no subclass, strided, with its values as they are written.

    Parameters and subclasses with memory of their own are unwrapped, a negative bit is resolved. While a graph is
    recorded, tensors without memory pass. Not made contiguous.

    Raises:
        TypeError: a tensor without a memory of its own (sparse, nested, DTensor, MaskedTensor, a fake tensor outside
            its mode, inside torch.vmap and the like).
        ValueError: its memory was freed.
    """
    if type(t) is not Tensor:
        if not _plain(type(t)):
            if tracing() and type(t).__name__ in ("FakeTensor", "FunctionalTensor"):
                return t
            name = type(t).__name__
            remedy = _REMEDIES.get(name, "pass a plain torch.Tensor with the same values")
            raise TypeError(f"{what} is a {name}, which has no memory of its own that a kernel could read: {remedy}")
        with torch._C.DisableTorchFunctionSubclass():
            t = t.as_subclass(Tensor)
    if torch.compiler.is_compiling() or (torch._is_functional_tensor(t) and tracing()):
        return t
    if t.is_nested:
        raise TypeError(f"{what} is a nested tensor: pass torch.nested.to_padded_tensor({what}, 0.0)")
    address(what, t)
    return t.resolve_neg() if t.is_neg() else t


def returned(name: str, t: Tensor) -> Tensor:
    """What a function of the caller's gave, `admitted`; TypeError for a complex one too."""
    t = admitted(f"what {name} returned", t)
    if t.dtype.is_complex:
        raise TypeError(f"{name} returned {t.dtype}; expected a floating-point tensor: return its real part, .real")
    return t


def address(what: str, t: Tensor, contiguous: bool = False) -> int:
    """Where the storage of a tensor of no subclass begins; raises as `admitted` for one without memory enough.
    `contiguous`: whether it is known to be."""
    try:
        storage = t.untyped_storage()
        begin = storage.data_ptr()
    except RuntimeError:
        if t.layout is not torch.strided:
            raise TypeError(
                f"{what} is a sparse tensor or of another special layout, {t.layout}: give its .to_dense()"
            ) from None
        raise TypeError(
            f"{what} has no memory of its own, as inside torch.vmap and the transforms of torch.func: call the sampler "
            "outside them, on a batch"
        ) from None
    # A tensor that fills its storage, as nearly all do.
    if begin and contiguous and storage.nbytes() == t.nbytes:
        return begin
    needed = _extent(t)
    if (not begin or storage.nbytes() < needed) and needed and t.device.type != "meta":
        raise ValueError(
            f"{what} of shape {tuple(t.shape)} needs {needed} bytes, and its storage holds {storage.nbytes()}: it was "
            "freed or resized"
        )
    return begin


def _plain(kind: type) -> bool:
    """Whether the tensors of a class hold memory of their own, as those of `torch.nn.Parameter` do."""
    return kind.__torch_dispatch__ is _OWN_DISPATCH  # type: ignore[attr-defined]


def _extent(t: Tensor) -> int:
    """Bytes from the storage's beginning to the last element."""
    if not t.numel():
        return 0
    if t.is_contiguous():
        return int(t.storage_offset() + t.numel()) * t.itemsize
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return int(t.storage_offset() + last + 1) * t.itemsize
