"""What a shard of samples looks like on disk. The same samples give the same bytes."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

Files = Iterator[tuple[str, bytes]]
"""Names below the folder, and contents."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time of a zip archive."""


class Format(NamedTuple):
    """How shards are written.

    Attributes:
        images: whether it holds images, uint8 (B, H, W, C), or the samples as they are.
        files: (shard, first sample's number, samples, seed) -> the shard's files.
        whole: the name of the one file that holds all samples in the end, "" where the shards are all.
    """

    images: bool
    files: Callable[[int, int, torch.Tensor, int], Files]
    whole: str = ""


def _safetensors(shard: int, first: int, samples: torch.Tensor, seed: int) -> Files:
    from safetensors.torch import save

    # One key: several would be written in any order.
    described = json.dumps({"first": first, "seed": seed})
    yield f"samples-{shard:05d}.safetensors", save({"samples": samples.contiguous()}, {"fastdiff": described})


def _npz(shard: int, first: int, samples: torch.Tensor, seed: int) -> Files:
    content = io.BytesIO()
    np.lib.format.write_array(content, samples.numpy(), version=(1, 0))
    yield f"parts/samples-{shard:05d}.npy", content.getvalue()


def _png(shard: int, first: int, samples: torch.Tensor, seed: int) -> Files:
    for i, image in enumerate(samples.numpy(), start=first):
        yield f"images/{i:07d}.png", _encoded(image)


def _webdataset(shard: int, first: int, samples: torch.Tensor, seed: int) -> Files:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for i, image in enumerate(samples.numpy(), start=first):
            described = json.dumps({"index": i, "seed": seed}).encode()
            for name, member in ((f"{i:07d}.png", _encoded(image)), (f"{i:07d}.json", described)):
                entry = tarfile.TarInfo(name)
                entry.size = len(member)
                archive.addfile(entry, io.BytesIO(member))
    yield f"samples-{shard:05d}.tar", content.getvalue()


FORMATS = {
    "safetensors": Format(False, _safetensors),
    "npz": Format(True, _npz, "samples.npz"),
    "png": Format(True, _png),
    "webdataset": Format(True, _webdataset),
}


def _encoded(image: np.ndarray) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(content, format="PNG")
    return content.getvalue()


def to_images(x: torch.Tensor) -> torch.Tensor:
    """Samples in [-1, 1], (B, C, H, W) with 1, 3 or 4 channels, as uint8 (B, H, W, C): 127.5·(x + 1), cut off to whole
    numbers, as the programs do whose FID figures are published (guided-diffusion's image_sample).

    Raises:
        ValueError: another shape: a latent, which needs its decoder.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3, 4):
        raise ValueError(
            f"samples of shape {tuple(x.shape)} are no images (B, 1, 3 or 4, H, W): give decode=, a function of the "
            "samples that returns uint8 images (B, H, W, C), such as the latents' decoder"
        )
    return ((x.float() + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def check_images(decoded: Any, batch: int) -> torch.Tensor:
    """What `decode` returned, as uint8 (B, H, W, C) on the CPU.

    Raises:
        TypeError, ValueError: another dtype or shape.
    """
    images = torch.as_tensor(decoded) if isinstance(decoded, np.ndarray) else decoded
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8:
        kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        raise TypeError(f"decode returned {kind}: expected a uint8 tensor or array (B, H, W, C)")
    if images.ndim != 4 or len(images) != batch or images.shape[-1] not in (1, 3, 4):
        raise ValueError(f"decode returned shape {tuple(images.shape)}: expected ({batch}, H, W, C) with C 1, 3 or 4")
    return images.cpu().contiguous()


def check_samples(decoded: Any, batch: int) -> torch.Tensor:
    """What is written as it is, (B, ...), on the CPU.

    Raises:
        TypeError, ValueError: `decode` returned no tensor or array, or another batch.
    """
    samples = torch.as_tensor(decoded) if isinstance(decoded, np.ndarray) else decoded
    if not isinstance(samples, torch.Tensor):
        raise TypeError(f"decode returned {type(samples).__name__}: expected a tensor or array ({batch}, ...)")
    if samples.ndim == 0 or len(samples) != batch:
        raise ValueError(f"decode returned shape {tuple(samples.shape)}: expected ({batch}, ...), one for each sample")
    return samples.cpu()


def whole_npz(file: IO[bytes], parts: Sequence[Path], n: int) -> None:
    """Write one archive with arr_0, uint8 (n, H, W, C), as FID tools read it, made of the shards' arrays.

    Raises:
        ValueError: images of several sizes, or another number than n.
    """
    shapes = [np.load(part, mmap_mode="r").shape for part in parts]
    if len({shape[1:] for shape in shapes}) > 1 or sum(shape[0] for shape in shapes) != n:
        told = ", ".join(sorted({f"{part.name} {shape}" for part, shape in zip(parts, shapes, strict=True)})[:8])
        raise ValueError(f"the shards hold {told}: expected {n} images of one size; delete the folder, and run again")
    arrays = (np.load(part, mmap_mode="r") for part in parts)
    first = next(arrays)
    header = {
        "descr": np.lib.format.dtype_to_descr(first.dtype),
        "fortran_order": False,
        "shape": (n, *first.shape[1:]),
    }
    with zipfile.ZipFile(file, "w") as archive:
        # With a fixed time, since the usual one is that of writing.
        with archive.open(zipfile.ZipInfo("arr_0.npy", _EPOCH), "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for array in itertools.chain([first], arrays):
                member.write(array.tobytes())
