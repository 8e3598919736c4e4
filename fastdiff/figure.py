"""Figures of matplotlib, which an extra installs: `pip install "fastdiff-sampler[plot]"`."""

from __future__ import annotations

from typing import Any


def new_figure(**options: Any) -> Any:
    """A `matplotlib.figure.Figure`, without a window; ImportError with the remedy where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('pictures need matplotlib: pip install "fastdiff-sampler[plot]"') from None
    return Figure(**options)
