"""`Gamma`: the mean square of a network's noise prediction, what Analytic-DPM's variance is made of. NumPy only."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastdiff.files import write_whole
from fastdiff.schedules import NoiseSchedule, Point
from fastdiff.values import floats, number

FORMAT = "fastdiff-gamma-1"
PURE_NOISE = -4.0
"""Below this lambda x0 given x has the data's own variance: for variance 1, to a part of e^(2 lambda) = 0.0003."""

PARTS = ("output", "noise", "part_output", "part_noise")
"""What an unfinished estimate has instead of values, beside its times."""

Arrays = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Gamma:
    """Gamma(t) = E |eps(x_t, t)|² / d over data and noise: eps the network's noise prediction, d a sample's size.

    In Analytic-DPM (Bao et al. 2022, arXiv 2201.06503, eq. 8) Gamma is of the score; eps = -sigma·score, so this one is
    sigma² times theirs. It is 1 minus the part of the noise's variance that the network cannot tell from x_t:
    E Var(x0 | x_t) / d = (sigma/alpha)²·(1 - Gamma). It is the same whatever the network predicts. Frozen, hashable.

    Attributes:
        times: schedule times, strictly increasing.
        values: Gamma at each, at least 0. Monte Carlo may put some above 1.
        schedule: fingerprint of the noise schedule; None: right for any (numbers of your own).
        count: samples per time; 0 where known without sampling.

    Raises:
        ValueError: lengths differ, times not strictly increasing, values that are negative or not finite.
    """

    times: tuple[float, ...]
    values: tuple[float, ...]
    schedule: str | None = None
    count: int = 0

    def __post_init__(self) -> None:
        times, values = floats("Gamma's times", self.times), floats("Gamma's values", self.values)
        if times.ndim != 1 or times.shape != values.shape or not times.size:
            raise ValueError(
                f"Gamma got times {times.shape} and values {values.shape}; expected one value for each of (n,) times"
            )
        if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
            raise ValueError("Gamma's times must be finite and strictly increasing")
        if not (np.isfinite(values).all() and (values >= 0).all()):
            bad = int(np.argmax(~(np.isfinite(values) & (values >= 0))))
            raise ValueError(
                f"Gamma at time {times[bad]:g} is {float(values[bad])!r}; expected a finite mean square, at least 0"
            )
        object.__setattr__(self, "times", tuple(times.tolist()))
        object.__setattr__(self, "values", tuple(values.tolist()))

    def __repr__(self) -> str:
        of = "any schedule" if self.schedule is None else f"schedule {self.schedule[:12]}"
        return (
            f"Gamma({len(self.times)} times {self.times[0]:g} to {self.times[-1]:g}, {self.count} samples each, {of})"
        )

    @staticmethod
    def of(values: Mapping[float, float], schedule: NoiseSchedule | None = None) -> Gamma:
        """From a mapping of schedule times to values."""
        pairs = sorted((number("Gamma's time", t, "999.0"), number("Gamma", v, "0.5")) for t, v in values.items())
        fingerprint = None if schedule is None else schedule.fingerprint()
        return Gamma(tuple(t for t, _ in pairs), tuple(v for _, v in pairs), fingerprint)

    def fingerprint(self) -> str:
        """SHA-256 of the content, in hexadecimal."""
        content = [self.times, self.values, self.schedule, self.count]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def check(self, schedule: NoiseSchedule) -> None:
        """Raise ValueError unless this was estimated with `schedule`."""
        if self.schedule not in (None, schedule.fingerprint()):
            raise ValueError(
                f"this Gamma was estimated with the schedule of fingerprint {self.schedule}, but the plan is of "
                f"{schedule!r}, fingerprint {schedule.fingerprint()}: call "
                "fastdiff.analytic.estimate_gamma(model, data, schedule=...) with it"
            )

    def x0_variance(self, schedule: NoiseSchedule, s: Point) -> float:
        """E Var(x0 | x_s) / d = (sigma/alpha)²·(1 - Gamma), from 0 up.

        Exact at the estimated times; between them Gamma is linear in lambda. Noisier than all, where the noisiest
        is pure noise in practice (lambda below -4), the variance there is kept: it tends to the data's own.

        Raises:
            ValueError: the time is outside the estimated ones otherwise.
        """
        times = np.array(self.times)
        i = int(np.searchsorted(times, s.t))
        if i < times.size and times[i] == s.t and math.isfinite(s.lam):
            return math.exp(-2.0 * s.lam) * max(0.0, 1.0 - self.values[i])
        lam = np.asarray(schedule.lam(times))
        # lambda falls with time: reversed, both are increasing. Times without any signal say nothing.
        known = np.flatnonzero(np.isfinite(lam))[::-1]
        low, high = (lam[known[0]], lam[known[-1]]) if known.size else (math.inf, -math.inf)
        slack = 1e-9 * (1.0 + abs(s.lam)) if math.isfinite(s.lam) else 0.0
        if s.lam < low - slack and low <= PURE_NOISE:
            return math.exp(-2.0 * low) * max(0.0, 1.0 - self.values[known[0]])
        if not low - slack <= s.lam <= high + slack:
            raise ValueError(
                f"the plan evaluates the network at t={s.t:g} (lambda={s.lam:.4g}), but Gamma is known from "
                f"t={self.times[0]:g} to t={self.times[-1]:g}: estimate it there too, "
                "estimate_gamma(..., times=...), or move t_start or t_end"
            )
        value = float(np.interp(s.lam, lam[known], np.array(self.values)[known]))
        return math.exp(-2.0 * s.lam) * max(0.0, 1.0 - value)

    def save(self, path: str | Path, notes: Mapping[str, str] | None = None) -> None:
        """Write to a file ending in .json or .safetensors, at once or not at all; `notes` are kept beside it."""
        meta = {"format": FORMAT, "schedule": self.schedule or "", "count": str(self.count), **(notes or {})}
        write(path, {"times": np.array(self.times), "values": np.array(self.values)}, meta)

    @staticmethod
    def load(path: str | Path) -> Gamma:
        """Read what `save` or `estimate_gamma(path=...)` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is something else, or an estimate that was interrupted.
        """
        arrays, meta = read(path)
        if "values" not in arrays:
            raise ValueError(
                f"{path} holds an unfinished estimate ({meta.get('first')} of {meta.get('samples')} samples): "
                "call estimate_gamma with the same arguments and this path to finish it"
            )
        count = whole_number(path, meta, "count")
        try:
            return Gamma(
                tuple(arrays["times"].tolist()), tuple(arrays["values"].tolist()), meta.get("schedule") or None, count
            )
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None


def whole_number(path: str | Path, meta: Mapping[str, str], name: str) -> int:
    """An entry of what `read` gave beside the arrays; ValueError for one that is missing or no whole number from 0."""
    text = meta.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ValueError(f"{path} is damaged: its {name!r} is {text!r:.40}; expected a whole number")
    return int(text)


def ending(path: str | Path) -> str:
    """ ".json" or ".safetensors", or ValueError."""
    suffix = Path(path).suffix
    if suffix not in (".json", ".safetensors"):
        raise ValueError(
            f"got the file {str(path)!r}; expected one ending in .json or .safetensors, such as 'gamma.json'"
        )
    return suffix


def write(path: str | Path, arrays: Arrays, meta: Mapping[str, str]) -> None:
    """Float64 vectors and strings, through a temporary file beside `path`: no half-written file is ever found there."""
    if ending(path) == ".json":
        content = (
            json.dumps({"meta": dict(meta), **{k: v.tolist() for k, v in arrays.items()}}, allow_nan=False).encode()
            + b"\n"
        )
    else:
        # The safetensors format: 64-bit length of a JSON header, the header padded to 8 bytes, little-endian data.
        header: dict[str, object] = {"__metadata__": dict(meta)}
        offset = 0
        for name, value in arrays.items():
            header[name] = {
                "dtype": "F64",
                "shape": list(value.shape),
                "data_offsets": [offset, offset + 8 * value.size],
            }
            offset += 8 * value.size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        content = len(text).to_bytes(8, "little") + text + b"".join(v.astype("<f8").tobytes() for v in arrays.values())
    write_whole(path, content)


def read(path: str | Path) -> tuple[Arrays, dict[str, str]]:
    """The inverse of `write`. ValueError where the content is of another kind."""
    kind = ending(path)
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no file {str(path)!r}; expected one that Gamma.save wrote, or "
            f"fastdiff.analytic.estimate_gamma(model, data, path={str(path)!r})"
        ) from None
    try:
        arrays, meta = _parsed_json(content) if kind == ".json" else _parsed_safetensors(content)
        if meta.get("format") != FORMAT:
            raise ValueError(f"its format is {meta.get('format')!r:.40}, expected {FORMAT!r}")
        if "times" not in arrays:
            raise ValueError("it has no 'times'")
        if set(arrays) - {"times"} not in ({"values"}, set(PARTS)):
            raise ValueError(f"it has {', '.join(sorted(arrays)):.80}")
        for name, values in arrays.items():
            if values.ndim != 1 or not np.isfinite(values).all():
                raise ValueError(f"{name!r} must be a list of finite numbers")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise ValueError(
            f"{path} is not a Gamma, or is damaged: expected a file that Gamma.save or estimate_gamma(path=...) wrote "
            f"({reason:.200})"
        ) from None
    return arrays, meta


def _parsed_json(content: bytes) -> tuple[Arrays, dict[str, str]]:
    data = json.loads(content.decode())
    meta = _strings(data.pop("meta"))
    arrays = {}
    for name, values in data.items():
        numbers = isinstance(values, list) and all(
            isinstance(v, int | float) and not isinstance(v, bool) for v in values
        )
        if not numbers:
            raise ValueError(f"{name!r} must be a list of numbers")
        arrays[name] = np.array(values, dtype=np.float64)
    return arrays, meta


def _parsed_safetensors(content: bytes) -> tuple[Arrays, dict[str, str]]:
    begin = 8 + int.from_bytes(content[:8], "little")
    if not 8 < begin <= len(content):
        raise ValueError(f"its header would have {begin - 8} bytes, and the file has {len(content)}")
    header = json.loads(content[8:begin].decode())
    meta = _strings(header.pop("__metadata__"))
    arrays, end = {}, 0
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        (size,) = entry["shape"]
        if entry["dtype"] != "F64" or first != end or last - first != 8 * size or begin + last > len(content):
            raise ValueError(f"{name!r} is not a vector of {size} float64 numbers in a file of {len(content)} bytes")
        arrays[name] = np.frombuffer(content[begin + first : begin + last], "<f8").astype(np.float64)
        end = last
    if begin + end != len(content):
        raise ValueError(f"it has {len(content) - begin - end} bytes too many")
    return arrays, meta


def _strings(meta: object) -> dict[str, str]:
    if not isinstance(meta, dict) or not all(isinstance(v, str) for v in meta.values()):
        raise ValueError("its metadata must be strings by name")
    return meta
