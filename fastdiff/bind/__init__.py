"""From a plan to numbers: prediction, guidance and clipping bound into table rows, and the rows on a device."""

from fastdiff.bind.frames import program_of_frames
from fastdiff.bind.program import Move, Program, Site, clock_dtype, echo_rows, in_range, program, rounded
from fastdiff.bind.table import (
    Binding,
    Table,
    bind,
    bind_stages,
    bind_stages_x0,
    blend_numbers,
    check_batch,
    join,
    without_late,
)

__all__ = [
    "Binding",
    "Move",
    "Program",
    "Site",
    "Table",
    "bind",
    "bind_stages",
    "bind_stages_x0",
    "blend_numbers",
    "check_batch",
    "clock_dtype",
    "echo_rows",
    "in_range",
    "join",
    "program",
    "program_of_frames",
    "rounded",
    "without_late",
]
