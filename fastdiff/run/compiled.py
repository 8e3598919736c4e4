"""What `torch.compile` cannot record, arithmetic on NumPy's numbers above all, is done while it records
(`fastdiff.names.untraced`), so that a sampler's first call may be a compiled one. Here is what goes in and comes out of
such functions."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fastdiff.guidance import Guidance

Parts = Guidance | tuple[Any, ...]


class Shelf:
    """What compiled graphs hold, by names that are made as things come. These are attributes, since a compiler looks an
    attribute up when it gets there; of a dict it keeps what it saw first."""

    def put(self, made: Any) -> str:
        """The name of `made`."""
        for name, known in vars(self).items():
            if known is made:
                return name
        name = f"item_{len(vars(self))}"
        setattr(self, name, made)
        return name


def _absent(*args: Any) -> Any:
    raise RuntimeError(
        "the guidance's rows depend on an attribute that its key leaves out: let `key` be the object itself, or hold "
        "the attribute"
    )


def parts(form: Guidance) -> Parts:
    """A guidance as its class and fields, which a compiler knows to be constants.

    Of a form whose `key` is not itself, what is no plain value (a network, a gradient, conditions) has no influence on
    the rows, and is left out.
    """
    kind = type(form)
    if "__dataclass_fields__" not in vars(kind):
        return form
    whole = form.key is form
    return kind, tuple((f.name, _part(getattr(form, f.name), whole)) for f in fields(form))


def _part(value: Any, whole: bool) -> Any:
    if isinstance(value, Guidance):
        return parts(value)
    plain = value is None or isinstance(value, int | float | str | tuple)
    return (None, value if plain or whole else _absent)


def joined(made: Parts) -> Guidance:
    """The guidance of these parts, for its rows alone."""
    if isinstance(made, Guidance):
        return made
    kind, values = made
    form: Guidance = object.__new__(kind)
    for name, value in values:
        object.__setattr__(form, name, value[1] if value[0] is None else joined(value))
    return form
