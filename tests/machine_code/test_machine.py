"""The machine itself: what it must refuse."""

from __future__ import annotations

import accesses
import floats
import numpy as np
import pytest
import sass
from machine import OPERATIONS, Machine, Memory, Unknown

assert accesses.operation is floats.operation  # both are imported for what they register


def machine(*lines: str, memory: Memory | None = None, shared: int = 0) -> Machine:
    """Of 64 threads in a block, with these instructions and an EXIT."""
    text = "".join(
        f"        /*{16 * k:04x}*/   {line} ;   /* 0x{0:016x} */\n   /* 0x{0:016x} */\n"
        for k, line in enumerate((*lines, "EXIT"))
    )
    return Machine(sass.parse(text), (1, 1), 64, b"\0" * 16, 0x210, memory or Memory(1 << 12), shared=shared)


def test_an_unknown_instruction_fails() -> None:
    with pytest.raises(Unknown, match="FROBNICATE R1, R2"):
        machine("FROBNICATE R1, R2").run()


@pytest.mark.parametrize("line", ["IMAD.SAT R1, R2, R3, R4", "LOP3.FOO R1, R2, R3, R4, 0x1, !PT", "F2F.F16.F64 R1, R2"])
def test_an_unknown_form_of_an_instruction_fails(line: str) -> None:
    with pytest.raises(Unknown):
        machine(line).run()


def with_pointer(offset: int) -> tuple[Memory, list[str]]:
    """64 floats, and the instructions that point R2 at them and `offset` bytes further."""
    memory = Memory(1 << 12)
    address = memory.place(np.zeros(256, np.uint8)) + offset
    return memory, [f"MOV R2, 0x{address & 0xFFFFFFFF:x}", f"MOV R3, 0x{address >> 32:x}"]


def test_accesses_are_checked() -> None:
    for offset, name in ((0, ""), (252, ""), (256, "load of 4 bytes outside"), (-4, "outside"), (2, "misaligned load")):
        memory, lines = with_pointer(offset)
        run = machine(*lines, "LDG.E R4, [R2.64]", memory=memory)
        if name:
            with pytest.raises(AssertionError, match=name):
                run.run()
        else:
            run.run()
            assert not run.registers[4].any()
    memory, lines = with_pointer(8)
    with pytest.raises(AssertionError, match="misaligned store of 16 bytes"):
        machine(*lines, "STG.E.128 [R2.64], R4", memory=memory).run()
    with pytest.raises(AssertionError, match="store of 4 bytes outside of shared memory"):
        machine("MOV R2, 0x100", "STS [R2], R3", shared=256).run()


def test_a_predicate_that_is_false_keeps_an_access_from_being_made() -> None:
    memory, lines = with_pointer(4096)
    machine(*lines, "ISETP.NE.AND P0, PT, RZ, RZ, PT", "@P0 LDG.E R4, [R2.64]", memory=memory).run()


def test_threads_that_wait_for_ever_fail() -> None:
    # The second warp waits for the first, which never ends.
    lines = (
        "S2R R0, SR_TID.X",
        "ISETP.GE.AND P0, PT, R0, 0x20, PT",
        "@P0 BAR.SYNC.DEFER_BLOCKING 0x0",
        "@!P0 BRA 0x30",
    )
    with pytest.raises(AssertionError, match="still running after 100 instructions"):
        machine(*lines).run(limit=100)


def test_a_missing_barrier_shows_in_another_order() -> None:
    """Each thread reads what the thread 32 further on wrote: right only where all have written before."""
    body = ["S2R R0, SR_TID.X", "IMAD.SHL.U32 R1, R0, 0x4, RZ", "STS [R1], R0"]
    read = ["LOP3.LUT R2, R1, 0x80, RZ, 0x3c, !PT", "LDS R3, [R2]"]
    for barrier in (True, False):
        right = []
        for seed in range(4):
            lines = (*body, *(["BAR.SYNC.DEFER_BLOCKING 0x0"] if barrier else []), *read)
            run = machine(*lines, shared=256)
            run.order = np.random.default_rng(seed)
            run.run()
            right.append(np.array_equal(run.registers[3], np.arange(64) ^ 32))
        assert all(right) == barrier


def test_carries_and_wide_products() -> None:
    run = machine(
        "MOV R0, 0xffffffff", "MOV R1, 0x2", "IADD3 R2, P0, R0, R1, RZ", "IADD3.X R3, RZ, RZ, RZ, P0, !PT",
        "IMAD.WIDE.U32 R4, R0, R0, RZ", "SHF.L.U64.HI R6, R0, 0x4, R1", "LEA.HI.X R7, R0, R1, R1, 0x4, P0",
        # Less 4 times 0: no borrow. Less 4 times 2: one.
        "LEA R8, P1, -RZ, R1, 0x2", "IADD3.X R9, RZ, RZ, RZ, P1, !PT",
        "LEA R10, P1, -R1, R1, 0x2", "IADD3.X R11, RZ, RZ, RZ, P1, !PT",
    )  # fmt: skip
    run.run()
    product = (2**32 - 1) ** 2
    expected = [1, 1, product & 0xFFFFFFFF, product >> 32, 0x2F, 0x2F + 2 + 1, 2, 1, 2**32 - 6, 0]
    assert run.registers[2:12, 0].tolist() == expected
    assert {"FFMA", "LDG", "SHFL"} <= set(OPERATIONS)
