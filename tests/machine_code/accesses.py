"""Branches, barriers, memory and what warps do together, for `machine.Machine`; imported for what it registers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from integers import only, signed
from machine import (
    I32,
    I64,
    U32,
    U64,
    Array,
    Machine,
    Source,
    Unknown,
    is_predicate,
    long,
    operation,
    predicate,
    set_long,
    set_predicate,
    set_word,
    word,
)
from sass import Instruction

SIZES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "32": 4}
HINTS = ("E", "CONSTANT", "STRONG", "GPU", "SYS", "EF", "EL", "NA", "LU", "DEFER_BLOCKING", "SYNC", "SC", "IVALL")


@operation("NOP", "MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL", "DEPBAR", "YIELD", "WARPSYNC", "FENCE", "ACQBULK")
def nothing(i: Instruction) -> Any:
    """Order, which the machine keeps by itself: it runs one instruction after another."""
    return lambda m, on: None


@operation("EXIT")
def leave(i: Instruction) -> Any:
    def run(m: Machine, on: Array) -> None:
        m.alive[on] = False

    return run


def _all(i: Instruction) -> Source:
    """The conditions of a branch, beside its guard."""
    conditions = [predicate(o) for o in i.operands[:-1]]

    def read(m: Machine) -> Any:
        value: Any = np.True_
        for c in conditions:
            value = value & c(m)
        return value

    return read


@operation("BRA", "CALL")
def branch(i: Instruction) -> Any:
    only(i, "U", "REL", "NOINC")
    target, condition = int(i.operands[-1], 16), _all(i)

    def run(m: Machine, on: Array) -> None:
        m.counter[on & condition(m)] = target

    return run


@operation("BRX", "BRXU")
def indirect_branch(i: Instruction) -> Any:
    only(i)
    found = re.fullmatch(r"(U?R\d+)\s+(-?0x[0-9a-f]+)", i.operands[0])
    if found is None:
        raise Unknown(i.text)
    get, offset = word(found[1]), int(found[2], 16)

    def run(m: Machine, on: Array) -> None:
        # Relative to the next instruction; what the table holds, and its linker, are relative to the kernel.
        m.counter[on] = (signed(get(m)).astype(I64) + offset + i.following)[on]

    return run


def _barrier(text: str) -> int:
    return int(text.removeprefix("B"))


@operation("BSSY")
def expect(i: Instruction) -> Any:
    only(i, "RECONVERGENT", "RELIABLE")
    barrier = _barrier(i.operands[0])

    def run(m: Machine, on: Array) -> None:
        m.expected[barrier][on] = True

    return run


@operation("BSYNC")
def join(i: Instruction) -> Any:
    only(i, "RECONVERGENT", "RELIABLE")
    barrier = _barrier(i.operands[0])

    def run(m: Machine, on: Array) -> None:
        m.joins[on] = barrier

    return run


@operation("BREAK")
def abandon(i: Instruction) -> Any:
    only(i, "RELIABLE")
    barrier = _barrier(i.operands[-1])

    def run(m: Machine, on: Array) -> None:
        m.expected[barrier][on] = False

    return run


@operation("BAR")
def block_barrier(i: Instruction) -> Any:
    if i.parts[0] != "SYNC":
        raise Unknown(i.text)
    only(i, *HINTS)

    def run(m: Machine, on: Array) -> None:
        m.at_barrier[on] = True

    return run


def size_of(i: Instruction) -> int:
    return next((SIZES[part] for part in i.parts if part in SIZES), 4)


def global_address(text: str) -> Source:
    """Of an operand such as desc[UR4][R2.64+0x10] or [R2.64+UR4]."""
    inside = re.fullmatch(r"(?:desc\[UR\d+\](?:\.64)?)?\[(.*)\]", text)
    if inside is None:
        raise Unknown(f"operand {text}")
    terms: list[Source] = []
    for part in inside[1].split("+"):
        if re.fullmatch(r"-?0x[0-9a-f]+", part):
            terms.append(_number(int(part, 16)))
        elif part.endswith(".64") or part.startswith("UR"):
            terms.append(long(part))
        elif part != "RZ":
            raise Unknown(f"operand {text}")

    def read(m: Machine) -> Array:
        address = np.zeros(m.threads, U64)
        for term in terms:
            address = address + term(m)
        return address

    return read


def _number(value: int) -> Source:
    bits = U64(value & 0xFFFFFFFFFFFFFFFF)
    return lambda m: bits


def values(text: str, size: int) -> Callable[[Machine], Array]:
    """(threads, size) bytes of the registers from the one named."""
    sources = [word(text, k) if text != "RZ" else word(text) for k in range(max(1, size // 4))]

    def read(m: Machine) -> Array:
        columns = [np.broadcast_to(np.asarray(get(m), U32), (m.threads,)) for get in sources]
        return np.ascontiguousarray(np.stack(columns, axis=1)).view(np.uint8)[:, :size]

    return read


def put_values(text: str, i: Instruction) -> Callable[[Machine, Array, Array], None]:
    """Sets the registers from the one named to (threads, size) bytes; narrow values are extended."""
    size = size_of(i)
    puts = [set_word(text, k) if text != "RZ" else set_word(text) for k in range(max(1, size // 4))]

    def write(m: Machine, data: Array, on: Array) -> None:
        data = np.ascontiguousarray(data)
        if size < 4:
            kind = np.dtype(("i" if "S16" in i.parts else "u") + str(size))
            data = data.view(kind).astype(I32).view(np.uint8)
        for k, put in enumerate(puts):
            put(m, np.ascontiguousarray(data.view(U32)[:, k]), on)

    return write


@operation("LDG")
def load(i: Instruction) -> Any:
    only(i, *SIZES, *HINTS)
    size, address, put = size_of(i), global_address(i.operands[1]), put_values(i.operands[0], i)

    def run(m: Machine, on: Array) -> None:
        m.last_address = address(m)
        at = m.memory.offsets(m.last_address, size, on, "load")
        put(m, m.memory.bytes[at[:, None] + np.arange(size)], on)

    return run


@operation("STG")
def store(i: Instruction) -> Any:
    only(i, *SIZES, *HINTS)
    size, address, get = size_of(i), global_address(i.operands[0]), values(i.operands[1], size_of(i))

    def run(m: Machine, on: Array) -> None:
        m.last_address = address(m)
        at = m.memory.offsets(m.last_address, size, on, "store")
        m.memory.bytes[at[on][:, None] + np.arange(size)] = get(m)[on]

    return run


def shared_address(text: str) -> Source:
    """Of an operand such as [R2.X4+UR4+0x10]."""
    terms: list[tuple[Source, int]] = []
    for part in text.strip("[]").split("+"):
        if re.fullmatch(r"-?0x[0-9a-f]+", part):
            terms.append((word(part), 1))
        else:
            name, _, scale = part.partition(".X")
            terms.append((word(name), int(scale or 1)))

    def read(m: Machine) -> Array:
        at = np.zeros(m.threads, I64)
        for get, scale in terms:
            at = at + signed(get(m)).astype(I64) * scale
        # The window of shared memory begins at a multiple of 16 MB.
        return at & 0xFFFFFF

    return read


def _inside(m: Machine, at: Array, size: int, on: Array, what: str) -> Array:
    used = at[on]
    assert not (used % size).any(), f"misaligned {what} of {size} bytes in shared memory"
    assert (used + size <= m.shared.shape[1]).all(), f"{what} of {size} bytes outside of shared memory"
    return np.where(on, at, 0)


@operation("LDS")
def load_shared(i: Instruction) -> Any:
    only(i, *SIZES)
    size, address, put = size_of(i), shared_address(i.operands[1]), put_values(i.operands[0], i)

    def run(m: Machine, on: Array) -> None:
        at = _inside(m, address(m), size, on, "load")
        put(m, m.shared[m.block[:, None], at[:, None] + np.arange(size)], on)

    return run


@operation("STS")
def store_shared(i: Instruction) -> Any:
    only(i, *SIZES)
    size, address, get = size_of(i), shared_address(i.operands[0]), values(i.operands[1], size_of(i))

    def run(m: Machine, on: Array) -> None:
        at = _inside(m, address(m), size, on, "store")
        m.shared[m.block[on][:, None], at[on][:, None] + np.arange(size)] = get(m)[on]

    return run


UPDATES: dict[str, Callable[[Any, Any], Any]] = {
    "ADD": lambda old, v: old + v,
    "MIN": min,
    "MAX": max,
    "OR": lambda old, v: old | v,
}


@operation("ATOMS")
def atomic_shared(i: Instruction) -> Any:
    """In the order of the threads; what was there before is given back."""
    counts = i.parts[:2] == ("POPC", "INC")
    only(i, "POPC", "INC", "32", "U32", "S32", *UPDATES)
    o = [x for x in i.operands if not is_predicate(x)]
    put, address = set_word(o[0]), shared_address(o[1])
    get = word(o[2]) if len(o) > 2 else None
    kind = I32 if "S32" in i.parts else U32
    update = UPDATES["ADD" if counts else next(p for p in i.parts if p in UPDATES)]

    def run(m: Machine, on: Array) -> None:
        at = _inside(m, address(m), 4, on, "atomic access")
        operand = np.broadcast_to(np.asarray(U32(1) if get is None else get(m), U32), (m.threads,)).view(kind)
        before = np.zeros(m.threads, U32)
        whole = m.shared.view(kind)
        for t in np.nonzero(on)[0]:
            place = m.block[t], at[t] // 4
            before[t] = whole[place].view(U32)
            value = int(update(int(whole[place]), int(operand[t])))
            whole[place] = value if kind is I32 else value & 0xFFFFFFFF
        put(m, before, on)

    return run


@operation("ATOMG", "RED")
def atomic_global(i: Instruction) -> Any:
    only(i, "64", *HINTS, *UPDATES)
    size = size_of(i)
    kind, mask = (U64, 2**64 - 1) if size == 8 else (U32, 2**32 - 1)
    o = [x for x in i.operands if not is_predicate(x)]
    put: Any = None
    if i.name == "ATOMG":
        put = (set_long if size == 8 else set_word)(o.pop(0))
    address, get = global_address(o[0]), (long if size == 8 else word)(o[1])
    update = UPDATES[next(p for p in i.parts if p in UPDATES)]

    def run(m: Machine, on: Array) -> None:
        at = m.memory.offsets(address(m), size, on, "atomic access")
        operand = np.broadcast_to(get(m), (m.threads,))
        before = np.zeros(m.threads, kind)
        for t in np.nonzero(on)[0]:
            place = m.memory.bytes[at[t] : at[t] + size].view(kind)
            before[t] = place[0]
            place[0] = kind(update(int(place[0]), int(operand[t])) & mask)
        if put is not None:
            put(m, before, on)

    return run


def _by_warp(m: Machine, on: Array) -> list[Array]:
    """Indices of the running threads, for each warp that has any."""
    return [np.nonzero(on & (m.warp == w))[0] for w in np.unique(m.warp[on])]


@operation("VOTEU", "VOTE")
def vote(i: Instruction) -> Any:
    """The mask of lanes whose predicate holds, and whether any of them or all of them do."""
    only(i, "ANY", "ALL")
    o = list(i.operands)
    put = None if is_predicate(o[0]) else set_word(o.pop(0))
    write, p = set_predicate(o[0]), predicate(o[1])

    def run(m: Machine, on: Array) -> None:
        mask, result = np.zeros(m.threads, U32), np.zeros(m.threads, bool)
        for warp in _by_warp(m, on):
            holds = p(m)[warp]
            mask[warp] = U32(sum(1 << int(lane) for lane in m.lane[warp][holds]))
            result[warp] = holds.all() if "ALL" in i.parts else holds.any()
        if put is not None:
            put(m, mask, on)
        write(m, result, on)

    return run


@operation("UFLO", "FLO")
def leading_one(i: Instruction) -> Any:
    only(i, "U32", "SH")
    put, get = set_word(i.operands[0]), word(i.operands[-1])

    def run(m: Machine, on: Array) -> None:
        found = [int(v).bit_length() - 1 & 0xFFFFFFFF for v in np.broadcast_to(get(m), (m.threads,))]
        put(m, np.array(found, U32), on)

    return run


@operation("REDUX", "CREDUX")
def reduce_warp(i: Instruction) -> Any:
    only(i, "MIN", "MAX", "SUM", "OR", "S32", "U32")
    reduced = {"MIN": np.min, "MAX": np.max, "SUM": np.sum, "OR": np.bitwise_or.reduce}[i.parts[0]]
    put, get = set_word(i.operands[0]), word(i.operands[1])
    kind = I32 if "S32" in i.parts else U32

    def run(m: Machine, on: Array) -> None:
        value = np.broadcast_to(np.asarray(get(m)), (m.threads,)).view(kind)
        result = np.zeros(m.threads, kind)
        for warp in _by_warp(m, on):
            result[warp] = reduced(value[warp])
        put(m, result.view(U32), on)

    return run


@operation("SHFL")
def shuffle(i: Instruction) -> Any:
    only(i, "BFLY", "IDX", "DOWN")
    put, get, by = set_word(i.operands[1]), word(i.operands[2]), word(i.operands[3])

    def run(m: Machine, on: Array) -> None:
        n = np.asarray(by(m)).astype(I64)
        lane = {"BFLY": m.lane ^ n, "IDX": n & 31, "DOWN": np.minimum(m.lane + n, 31)}[i.parts[0]]
        source = m.first_of_warp + lane
        assert on[source[on]].all(), "a lane that does not take part is read"
        put(m, np.asarray(get(m))[source], on)

    return run


def _matrix(m: Machine, address: Array, k: int, transposed: bool) -> list[Array]:
    """Addresses that each thread's part of 8 x 8 matrix number `k` has: of its 4 bytes, or of its two 2-byte halves."""
    row = m.first_of_warp + 8 * k
    if transposed:
        return [address[row + 2 * (m.lane % 4) + j] + 2 * (m.lane // 4) for j in (0, 1)]
    return [address[row + m.lane // 4] + 4 * (m.lane % 4)]


@operation("LDSM", "STSM")
def matrix_access(i: Instruction) -> Any:
    """8 x 8 matrices of 16-bit numbers, spread over a warp: Triton exchanges elements with them."""
    only(i, "16", "M88", "MT88", "1", "2", "4")
    loads = i.name == "LDSM"
    count, transposed = int(i.parts[-1]) if i.parts[-1] in ("2", "4") else 1, "MT88" in i.parts
    address = shared_address(i.operands[1 if loads else 0])
    name = i.operands[0 if loads else 1]
    width = 2 if transposed else 4
    gets, puts = [word(name, k) for k in range(count)], [set_word(name, k) for k in range(count)]

    def run(m: Machine, on: Array) -> None:
        base = np.asarray(address(m))
        data = [np.ascontiguousarray(np.asarray(get(m))[:, None]).view(np.uint8) for get in gets]
        for k in range(count):
            for j, at in enumerate(_matrix(m, base, k, transposed)):
                at = _inside(m, at, width, on, "matrix access")
                place = m.block[:, None], at[:, None] + np.arange(width)
                half = slice(width * j, width * (j + 1))
                if loads:
                    data[k][:, half] = m.shared[place]
                else:
                    m.shared[place[0][on], place[1][on]] = data[k][on, half]
            if loads:
                puts[k](m, data[k].view(U32)[:, 0], on)

    return run
