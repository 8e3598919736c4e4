"""A plan as JSON, without loss, and what makes a file no plan."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from fastdiff.names import unknown
from fastdiff.plan.stage import Stage

FORMAT = 2
_OLD_NAMES = {"push": "keep", "norms": "langevin_norm", "spread": "learned_variance"}
"""Of the fields of a stage in format 1."""
_RARE = ("spans", "model_time_to")
"""Fields of a stage that are written only where they say something."""
_OLD_FIELDS = ("variance", "unclipped")
"""Fields of format 1 that follow from the rows and the options."""


def dump(plan: Any) -> str:
    """JSON with every float in its shortest exact form."""
    data = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}
    rows = [dataclasses.asdict(stage) for stage in plan.stages]
    # Only where there are any: plans without them stay as every version reads them.
    data["stages"] = [
        {name: value for name, value in row.items() if name not in _RARE or value not in ((), None)} for row in rows
    ]
    return json.dumps({"format": FORMAT, **data}, indent=1, allow_nan=False, default=dict)


def parse(text: str, cls: type) -> dict[str, Any]:
    """The fields of the plan class `cls` from what `dump` wrote, now or in format 1.

    Raises:
        ValueError: anything else, with the reason.
    """
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not a fastdiff plan: not JSON ({error})") from None
    if not isinstance(data, dict) or "format" not in data:
        raise ValueError("not a fastdiff plan: expected a JSON object with the key 'format', as plan.save(path) writes")
    found = data.pop("format")
    if found not in (1, FORMAT) or isinstance(found, bool):
        raise ValueError(f"plan format {found!r} is not supported; this version reads formats 1 and {FORMAT}")
    _check_fields("a plan", "", data, cls)
    rows = data.pop("stages")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("not a fastdiff plan: 'stages' must be a list of objects")
    stages = []
    for k, row in enumerate(rows):
        current = _from_format_1(row) if found == 1 else row
        _check_fields("a stage", f"stage {k} ", current, Stage)
        stages.append(Stage(**{name: _typed(f"stage {k} ", name, value) for name, value in current.items()}))
    for name, kind in (("method", str), ("space", str), ("schedule", dict), ("options", dict), ("origin", dict)):
        if name in data and not isinstance(data[name], kind):
            raise ValueError(f"not a fastdiff plan: {name!r} must be {_KINDS[kind]}, got {data[name]!r}")
    if not isinstance(data["order"], int) or isinstance(data["order"], bool):
        raise ValueError(f"not a fastdiff plan: 'order' must be a whole number, got {data['order']!r}")
    data["times"] = _numbers("", "times", data["times"])
    if "prior_std" in data:
        data["prior_std"] = _number("", "prior_std", data["prior_std"])
    return {**data, "stages": tuple(stages)}


_KINDS: dict[type, str] = {str: "a string", dict: "an object", bool: "true or false"}


def _from_format_1(row: Mapping[str, Any]) -> dict[str, Any]:
    return {_OLD_NAMES.get(name, name): value for name, value in row.items() if name not in _OLD_FIELDS}


def _typed(where: str, name: str, value: Any) -> Any:
    """One field of a stage, as the type that it is declared with."""
    if name in ("next_u", "next_x", "learned_variance"):
        return _numbers(where, name, value)
    if name == "draws":
        numbers = _numbers(where, name, value)
        if len(numbers) != 3 or any(n != int(n) or n >= 2**31 for n in numbers):
            raise ValueError(f"not a fastdiff plan: {where}'draws' must be three whole numbers, got {value!r}")
        return tuple(int(n) for n in numbers)
    if name == "spans":
        if not isinstance(value, list):
            raise ValueError(f"not a fastdiff plan: {where}'spans' must be a list of lists of numbers, got {value!r}")
        return tuple(_numbers(where, name, span) for span in value)
    kind = {"evaluate": bool, "keep": bool, "langevin_norm": str}.get(name)
    if kind is not None:
        if not isinstance(value, kind):
            raise ValueError(f"not a fastdiff plan: {where}{name!r} must be {_KINDS[kind]}, got {value!r}")
        return value
    number = _number(where, name, value)
    if name != "step":
        return number
    if number != int(number):
        raise ValueError(f"not a fastdiff plan: {where}'step' must be a whole number, got {value!r}")
    return int(number)


def _number(where: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"not a fastdiff plan: {where}{name!r} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if not abs(number) < float("inf"):
        raise ValueError(f"not a fastdiff plan: {where}{name!r} must be a finite number, got {value!r:.40}")
    return number


def _numbers(where: str, name: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise ValueError(f"not a fastdiff plan: {where}{name!r} must be a list of numbers, got {value!r}")
    return tuple(_number(where, name, v) for v in value)


def _check_fields(kind: str, where: str, data: Mapping[str, Any], cls: type) -> None:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in data:
        if name not in fields:
            raise ValueError(unknown(f"field of {kind}", name, fields))
    for name, f in fields.items():
        if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"not a fastdiff plan: {where}lacks {name!r}")
