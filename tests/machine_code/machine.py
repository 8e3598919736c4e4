"""A GPU on NumPy: executes a kernel's instructions for all threads of a grid, checking every access to memory.

Registers are arrays over the threads, so that one instruction is one array operation. An instruction or a form of one
that is not known raises: silence would be a wrong answer. Threads wait for each other where the code says so; warps run
together, or one at a time in random order, which shows a missing barrier.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from sass import Instruction

Array = np.ndarray
Source = Callable[["Machine"], Any]
U32, U64, I32, I64, F32, F64 = np.uint32, np.uint64, np.int32, np.int64, np.float32, np.float64
BASE = 0x7F00_0000_0000
"""Address of the first byte of memory."""

OPERATIONS: dict[str, Callable[[Instruction], Callable[[Machine, Array], None]]] = {}
"""By name: what decodes an instruction into a function of the machine and the threads that it runs for."""


def operation(*names: str) -> Callable[[Any], Any]:
    """Registers a decoder for these instructions."""

    def register(decode: Any) -> Any:
        OPERATIONS.update(dict.fromkeys(names, decode))
        return decode

    return register


class Unknown(NotImplementedError):
    """An instruction, or a form of one, that the machine cannot execute."""


class Memory:
    """Global memory: buffers with gaps, which no access may touch."""

    def __init__(self, size: int = 1 << 22) -> None:
        self.bytes = np.full(size, 0xFF, np.uint8)  # NaN in every dtype
        self.end = 256
        self.starts: list[int] = []
        self.ends: list[int] = []

    def place(self, content: Array, skew: int = 0) -> int:
        """The address of a copy of `content` (uint8), `skew` bytes past a multiple of 256."""
        start = -(-self.end // 256) * 256 + skew
        self.end = start + len(content) + 64
        assert self.end < len(self.bytes), "the machine's memory is too small"
        self.bytes[start : start + len(content)] = content
        self.starts.append(start)
        self.ends.append(start + len(content))
        return BASE + start

    def offsets(self, address: Array, size: int, active: Array, what: str) -> Array:
        """Offsets of accesses of `size` bytes, of which those of active threads are aligned and inside one buffer."""
        offset = (address - U64(BASE)).astype(I64)
        used = offset[active]
        assert not (used % size).any(), f"misaligned {what} of {size} bytes"
        i = np.searchsorted(self.starts, used, side="right") - 1
        inside = (i >= 0) & (used + size <= np.asarray(self.ends)[np.maximum(i, 0)])
        assert inside.all(), f"{what} of {size} bytes outside all buffers, at offset {used[~inside][0]}"
        return np.where(active, offset, 0)


class Machine:
    """One run of a kernel.

    Args:
        code: its instructions.
        grid, block: (x, y) blocks, and threads in each.
        arguments: the bytes of the kernel's arguments, which begin at `arguments_at` of constant bank 0.
        memory: global memory.
        banks: the other constant banks.
        shared: bytes of shared memory of a block.
        order: None runs all warps together; else a random generator, and one warp runs at a time.
        first_block: added to every block's number along x.
    """

    def __init__(
        self, code: list[Instruction], grid: tuple[int, int], block: int, arguments: bytes, arguments_at: int,
        memory: Memory, banks: dict[int, Array] | None = None, shared: int = 0,
        order: np.random.Generator | None = None, first_block: int = 0,
    ) -> None:  # fmt: skip
        self.code, self.memory, self.order = code, memory, order
        self.at = {instruction.address: i for i, instruction in enumerate(code)}
        self.threads = n = grid[0] * grid[1] * block
        ids = np.arange(n)
        self.lane, self.warp, self.block = ids % 32, ids // 32, ids // block
        self.special = {
            "SR_TID.X": (ids % block).astype(U32),
            "SR_CTAID.X": (self.block % grid[0] + first_block).astype(U32),
            "SR_CTAID.Y": (self.block // grid[0]).astype(U32),
            "SR_LANEID": self.lane.astype(U32),
            "SR_CgaCtaId": np.zeros(n, U32),
            "SRZ": np.zeros(n, U32),
        }
        bank = np.zeros(0x1000, np.uint8)
        sizes = (block, 1, 1, grid[0] + first_block, grid[1], 1)
        bank[:24] = np.array(sizes, U32).view(np.uint8)
        if arguments_at >= 0x380:  # From sm_100 on, the sizes lie elsewhere too.
            bank[0x360:0x36C], bank[0x370:0x37C] = bank[:12], bank[12:24]
        bank[arguments_at : arguments_at + len(arguments)] = np.frombuffer(arguments, np.uint8)
        self.banks = {0: bank, **(banks or {})}
        self.registers = np.full((256, n), 0xFFFFFFFF, U32)
        self.uniform = np.full((96, n), 0xFFFFFFFF, U32)
        self.predicates = np.zeros((8, n), bool)
        self.uniform_predicates = np.zeros((8, n), bool)
        self.predicates[7] = self.uniform_predicates[7] = True
        self.shared = np.full((grid[0] * grid[1], -(-shared // 16) * 16), 0xFF, np.uint8)
        self.counter = np.zeros(n, I64)
        self.alive = np.ones(n, bool)
        self.at_barrier = np.zeros(n, bool)  # of the block
        self.joins = np.full(n, -1)  # which convergence barrier a thread waits at
        self.expected = np.zeros((16, n), bool)  # threads that it waits for
        self.trace: list[tuple[Instruction, bool, Array | None]] = []
        self.traced: int | None = None
        self.last_address: Array | None = None
        self.first_of_warp = ids - self.lane

    def run(self, limit: int = 10**6) -> None:
        """To the end of all threads.

        Raises:
            Unknown: an instruction that is not known.
            AssertionError: an access out of bounds or misaligned, threads that wait for ever, or more than `limit`
                instructions.
        """
        warps = int(self.warp[-1]) + 1
        order = self.order.permutation(warps) if self.order is not None else None
        for _ in range(limit):
            if not self.alive.any():
                return
            ready = self._ready()
            if order is not None:
                waiting = np.bincount(self.warp[ready], minlength=warps) > 0
                ready &= self.warp == order[np.argmax(waiting[order])]
                if self.order is not None and self.order.random() < 0.05:
                    order = self.order.permutation(warps)
            address = int(self.counter[ready].min())
            self._step(self.code[self.at[address]], ready & (self.counter == address))
        raise AssertionError(f"still running after {limit} instructions")

    def _ready(self) -> Array:
        if (self.joins >= 0).any():
            self._join()
        ready = self.alive & ~self.at_barrier & (self.joins < 0)
        if self.at_barrier.any():
            blocks = len(self.shared)
            living = np.bincount(self.block[self.alive], minlength=blocks)
            arrived = np.bincount(self.block[self.at_barrier], minlength=blocks)
            self.at_barrier &= (living != arrived)[self.block]
            ready = self.alive & ~self.at_barrier & (self.joins < 0)
        assert ready.any(), "all threads wait"
        return ready

    def _join(self) -> None:
        """Releases the threads of warps that are whole at their convergence barrier."""
        warps = int(self.warp[-1]) + 1
        for barrier in set(self.joins[self.joins >= 0].tolist()):
            here = (self.joins == barrier) & self.alive
            wanted = (self.expected[barrier] & self.alive) | here
            whole = np.bincount(self.warp[here], minlength=warps) == np.bincount(self.warp[wanted], minlength=warps)
            free = here & whole[self.warp]
            self.joins[free] = -1
            self.expected[barrier][free] = False

    def _step(self, instruction: Instruction, active: Array) -> None:
        if instruction.run is None:
            if instruction.name not in OPERATIONS:
                raise Unknown(instruction.text)
            guard = predicate(instruction.guard) if instruction.guard else None
            instruction.run = guard, OPERATIONS[instruction.name](instruction)
        guard, execute = instruction.run
        running = active if guard is None else active & guard(self)
        self.counter[active] = instruction.following
        self.last_address = None
        execute(self, running)
        if self.traced is not None and active[self.traced]:
            self.trace.append((instruction, bool(running[self.traced]), self.last_address))


def predicate(text: str) -> Source:
    """A predicate as an operand, such as "!UP0" or "PT"."""
    negated, name = text.startswith("!"), text.lstrip("!")
    uniform = name.startswith("U")
    index = 7 if name.endswith("T") else int(name.lstrip("UP"))

    def read(m: Machine) -> Any:
        value = (m.uniform_predicates if uniform else m.predicates)[index]
        return ~value if negated else value

    return read


def is_predicate(text: str) -> bool:
    return re.fullmatch(r"!?U?P[\dT]", text) is not None


def set_predicate(text: str) -> Callable[[Machine, Any, Array], None]:
    uniform, name = text.startswith("U"), text.lstrip("U")
    if name == "PT":
        return lambda m, value, active: None
    index = int(name[1:])

    def write(m: Machine, value: Any, active: Array) -> None:
        np.copyto((m.uniform_predicates if uniform else m.predicates)[index], value, where=active)

    return write


def _register(text: str) -> tuple[bool, int | None]:
    """(whether it is uniform, its number; None: the one that is always 0)."""
    found = re.fullmatch(r"(U?)R(Z|\d+)", text)
    if found is None:
        raise Unknown(f"operand {text}")
    return bool(found[1]), None if found[2] == "Z" else int(found[2])


def word(text: str, offset: int = 0) -> Source:
    """A 32-bit integer operand, as uint32: a register (the `offset`th after the one named), constant or number."""
    if text.startswith("~"):
        inner = word(text[1:], offset)
        return lambda m: ~inner(m)
    number = re.fullmatch(r"(-?)(0x[0-9a-f]+|\d+)", text)
    if number:
        value = U32((int(number[2], 0) * (-1 if number[1] else 1)) & 0xFFFFFFFF)
        return lambda m: value
    if text.startswith("-"):
        inner = word(text[1:], offset)
        return lambda m: U32(0) - inner(m)
    if text.startswith("c["):
        return lambda m: constant(m, text, 4, 4 * offset).view(U32)[:, 0]
    if text == "SRZ":
        return lambda m: U32(0)
    uniform, index = _register(text)
    if index is None:
        return lambda m: U32(0)
    place = index + offset
    return lambda m: (m.uniform if uniform else m.registers)[place]


def long(text: str) -> Source:
    """A 64-bit integer operand, as uint64."""
    text = text.removesuffix(".64")
    low, high = word(text), word(text, 0 if re.fullmatch(r"-?0x[0-9a-f]+", text) else 1)
    if re.fullmatch(r"-?(0x[0-9a-f]+|\d+)", text):
        value = U64(int(text, 0) & 0xFFFFFFFFFFFFFFFF)
        return lambda m: value
    return lambda m: np.asarray(low(m)).astype(U64) | np.asarray(high(m)).astype(U64) << U64(32)


def set_word(text: str, offset: int = 0) -> Callable[[Machine, Any, Array], None]:
    uniform, index = _register(text)
    if index is None:
        return lambda m, value, active: None
    place = index + offset

    def write(m: Machine, value: Any, active: Array) -> None:
        np.copyto((m.uniform if uniform else m.registers)[place], value, where=active)

    return write


def set_long(text: str) -> Callable[[Machine, Any, Array], None]:
    low, high = set_word(text), set_word(text, 1) if not text.endswith("Z") else set_word(text)

    def write(m: Machine, value: Any, active: Array) -> None:
        value = np.asarray(value)
        low(m, value.astype(U32), active)
        high(m, (value >> U64(32)).astype(U32), active)

    return write


def constant(m: Machine, text: str, size: int, skip: int = 0) -> Array:
    """(threads, size) bytes of a constant bank, such as c[0x0][UR4+0x210]."""
    found = re.fullmatch(r"c\[(0x[0-9a-f]+)\]\[(U?R(?:Z|\d+))?\+?(-?0x[0-9a-f]+)?\]", text)
    if found is None:
        raise Unknown(f"operand {text}")
    bank = m.banks[int(found[1], 16)]
    at = np.full(m.threads, skip + int(found[3] or "0", 16), I64)
    if found[2]:
        at += np.asarray(word(found[2])(m)).astype(I32)
    at = np.where((at >= 0) & (at + size <= len(bank)), at, 0)
    return np.ascontiguousarray(bank[at[:, None] + np.arange(size)])
