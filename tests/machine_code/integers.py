"""Integer instructions, predicates and moves, for `machine.Machine`; imported for what it registers."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
from machine import (
    I32,
    I64,
    U32,
    U64,
    Array,
    Machine,
    Source,
    Unknown,
    constant,
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

LOW = U64(0xFFFFFFFF)


def signed(value: Any) -> Any:
    return np.asarray(value, U32).view(I32)


def wide(value: Any) -> Any:
    return np.asarray(value).astype(U64)


def only(i: Instruction, *allowed: str) -> None:
    """Raises for a modifier that the decoder does not know."""
    if not set(i.parts) <= set(allowed):
        raise Unknown(i.text)


@operation("MOV", "UMOV", "R2UR")
def move(i: Instruction) -> Any:
    only(i, "64")
    # R2UR may have a predicate first, which says whether the lanes agree.
    operands = [o for o in i.operands if not is_predicate(o)]
    if "64" in i.parts:
        put64, get64 = set_long(operands[0]), long(operands[1])
        return lambda m, on: put64(m, get64(m), on)
    put, get = set_word(operands[0]), word(operands[1])
    return lambda m, on: put(m, get(m), on)


@operation("S2R", "S2UR")
def special(i: Instruction) -> Any:
    put, name = set_word(i.operands[0]), i.operands[1]
    return lambda m, on: put(m, m.special[name], on)


@operation("CS2R")
def clear(i: Instruction) -> Any:
    if i.operands[1] != "SRZ":
        raise Unknown(i.text)
    if "32" in i.parts:
        put = set_word(i.operands[0])
        return lambda m, on: put(m, U32(0), on)
    both = set_long(i.operands[0])
    return lambda m, on: both(m, U64(0), on)


@operation("LDC", "ULDC", "LDCU")
def load_constant(i: Instruction) -> Any:
    only(i, "64", "128", "U8")
    size = 1 if "U8" in i.parts else 4
    count = 4 if "128" in i.parts else 2 if "64" in i.parts else 1
    puts = [set_word(i.operands[0], k) for k in range(count)]
    text = i.operands[1]

    def run(m: Machine, on: Array) -> None:
        values = [constant(m, text, size, 4 * k) for k in range(count)]
        for put, value in zip(puts, values, strict=True):
            put(m, value.view(np.uint8 if size == 1 else U32)[:, 0].astype(U32), on)

    return run


@operation("SEL", "USEL")
def select(i: Instruction) -> Any:
    put, a, b, p = set_word(i.operands[0]), word(i.operands[1]), word(i.operands[2]), predicate(i.operands[3])
    return lambda m, on: put(m, np.where(p(m), a(m), b(m)), on)


@operation("IMAD", "UIMAD")
def multiply_add(i: Instruction) -> Any:
    only(i, "MOV", "SHL", "IADD", "X", "U32", "WIDE", "HI")
    o = [x for x in i.operands if not (is_predicate(x) and "X" not in i.parts)]
    put = (set_long if "WIDE" in i.parts else set_word)(o[0])
    a, b = word(o[1]), word(o[2])

    def product(m: Machine) -> Any:
        if "U32" in i.parts:
            return wide(a(m)) * wide(b(m))
        return (signed(a(m)).astype(I64) * signed(b(m)).astype(I64)).view(U64)

    if "WIDE" in i.parts:
        long_c = long(o[3])
        return lambda m, on: put(m, product(m) + long_c(m), on)
    if "HI" in i.parts:
        long_c = long(o[3])
        return lambda m, on: put(m, ((product(m) + long_c(m)) >> U64(32)).astype(U32), on)
    c = word(o[3])
    carry: Source = predicate(o[4]) if "X" in i.parts else lambda m: np.False_
    return lambda m, on: put(m, a(m) * b(m) + c(m) + np.asarray(carry(m)).astype(U32), on)


@operation("IADD3", "UIADD3")
def add3(i: Instruction) -> Any:
    only(i, "X", "64")
    if "64" in i.parts:
        raise Unknown(i.text)
    o = list(i.operands[1:])
    carries = []
    while is_predicate(o[0]):
        carries.append(set_predicate(o.pop(0)))
    sources, carry_in = o[:3], [predicate(p) for p in o[3:]]
    put = set_word(i.operands[0])
    # A negated term is its complement and 1, so that a carry means what it does on the device.
    terms = [(word("~" + s[1:]), 1) if re.fullmatch(r"-U?R.*|-c\[.*", s) else (word(s), 0) for s in sources]

    def run(m: Machine, on: Array) -> None:
        total: Any = np.zeros(m.threads, U64)
        for get, one in terms:
            total = total + wide(get(m)) + U64(one)
        if "X" in i.parts:
            for p in carry_in:
                total = total + wide(p(m))
        put(m, total.astype(U32), on)
        for least, write in enumerate(carries, start=1):
            write(m, total >> U64(32) >= U64(least), on)

    return run


@operation("VIADD", "UVIADD")
def add(i: Instruction) -> Any:
    only(i)
    put, a, b = set_word(i.operands[0]), word(i.operands[1]), word(i.operands[2])
    return lambda m, on: put(m, a(m) + b(m), on)


@operation("IMNMX", "VIMNMX", "UIMNMX", "VIMNMX3")
def least_or_largest(i: Instruction) -> Any:
    """Of two or three."""
    only(i, "U32")
    put, p = set_word(i.operands[0]), predicate(i.operands[-1])
    read = [word(x) for x in i.operands[1:] if not is_predicate(x)]
    kind = (lambda v: np.asarray(v, U32)) if "U32" in i.parts else signed

    def run(m: Machine, on: Array) -> None:
        values = [kind(get(m)) for get in read]
        least, largest = functools.reduce(np.minimum, values), functools.reduce(np.maximum, values)
        put(m, np.where(p(m), least, largest).view(U32), on)

    return run


@operation("VIADDMNMX")
def add_then_least_or_largest(i: Instruction) -> Any:
    only(i, "U32")
    put, a, b, c = set_word(i.operands[0]), word(i.operands[1]), word(i.operands[2]), word(i.operands[3])
    p = predicate(i.operands[-1])
    kind = (lambda v: np.asarray(v, U32)) if "U32" in i.parts else signed

    def run(m: Machine, on: Array) -> None:
        x, y = kind(a(m) + b(m)), kind(c(m))
        put(m, np.where(p(m), np.minimum(x, y), np.maximum(x, y)).view(U32), on)

    return run


def lookup(table: int, a: Any, b: Any, c: Any, zero: Any) -> Any:
    """The three-input function whose value for (a, b, c) is bit 4a + 2b + c of `table`."""
    result = zero
    for k in range(8):
        if table >> k & 1:
            result = result | (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    return result


@operation("LOP3", "ULOP3")
def logic(i: Instruction) -> Any:
    only(i, "LUT")
    o = list(i.operands)
    write = set_predicate(o.pop(0)) if is_predicate(o[0]) else None
    put, a, b, c, table, p = set_word(o[0]), word(o[1]), word(o[2]), word(o[3]), int(o[4], 16), predicate(o[5])

    def run(m: Machine, on: Array) -> None:
        value = lookup(table, np.asarray(a(m)), np.asarray(b(m)), np.asarray(c(m)), U32(0))
        put(m, value, on)
        if write is not None:
            write(m, (value != 0) | p(m), on)

    return run


@operation("PLOP3", "UPLOP3")
def predicate_logic(i: Instruction) -> Any:
    only(i, "LUT")
    o = i.operands
    first, second = set_predicate(o[0]), set_predicate(o[1])
    a, b, c = predicate(o[2]), predicate(o[3]), predicate(o[4])

    def run(m: Machine, on: Array) -> None:
        values = a(m).copy(), b(m).copy(), c(m).copy()
        first(m, lookup(int(o[5], 16), *values, False), on)
        second(m, lookup(int(o[6], 16), *values, False), on)

    return run


@operation("SHF", "USHF")
def shift(i: Instruction) -> Any:
    only(i, "L", "R", "U32", "S32", "U64", "HI")
    put, low, by, high = set_word(i.operands[0]), word(i.operands[1]), word(i.operands[2]), word(i.operands[3])
    form = " ".join(i.parts)

    def run(m: Machine, on: Array) -> None:
        lo, hi, n = wide(low(m)), wide(high(m)), wide(by(m))
        both = hi << U64(32) | lo
        if form == "L U32":
            value = np.where(n > 31, U64(0), lo << np.minimum(n, U64(31)))
        elif form == "L U64 HI":
            value = both << np.minimum(n, U64(32)) >> U64(32)
        elif form == "R U32 HI":
            value = np.where(n > 31, U64(0), hi >> np.minimum(n, U64(31)))
        elif form == "R S32 HI":
            value = (signed(high(m)) >> np.minimum(n, U64(31)).astype(I32)).astype(I64).view(U64)
        elif form == "R U64":
            value = np.where(n > 63, U64(0), both >> np.minimum(n, U64(63)))
        else:
            raise Unknown(i.text)
        put(m, (value & LOW).astype(U32), on)

    return run


@operation("LEA", "ULEA")
def scaled_add(i: Instruction) -> Any:
    only(i, "HI", "X", "SX32")
    o = list(i.operands)
    put, carry = set_word(o.pop(0)), None
    if is_predicate(o[0]):
        carry = set_predicate(o.pop(0))
    carry_in: Source = predicate(o.pop()) if "X" in i.parts else lambda m: np.False_
    by = U64(int(o.pop(), 16))
    # As in an addition, a negated term is its complement and 1, so that the carry of 0 is right.
    negated = o[0].startswith("-")
    if negated and len(i.parts) > ("X" in i.parts):
        raise Unknown(i.text)
    a, b = word(o[0].removeprefix("-")), word(o[1])
    c = word(o[2]) if len(o) > 2 else None

    def run(m: Machine, on: Array) -> None:
        if "SX32" in i.parts:
            scaled = (signed(a(m)).astype(I64) << by.astype(I64)).view(U64) >> U64(32)
        elif "HI" in i.parts:
            scaled = (wide(c(m) if c else 0) << U64(32) | wide(a(m))) << by >> U64(32)
        else:
            scaled = wide(a(m)) << by
        if negated:
            scaled = ~scaled
        value = (scaled & LOW) + wide(b(m)) + wide(carry_in(m)) + U64(negated)
        put(m, (value & LOW).astype(U32), on)
        if carry:
            carry(m, value > LOW, on)

    return run


@operation("PRMT", "UPRMT")
def permute(i: Instruction) -> Any:
    only(i)
    put, a, which, c = set_word(i.operands[0]), word(i.operands[1]), word(i.operands[2]), word(i.operands[3])

    def run(m: Machine, on: Array) -> None:
        both, chosen = wide(c(m)) << U64(32) | wide(a(m)), wide(which(m))
        value: Any = U64(0)
        for k in range(4):
            n = chosen >> U64(4 * k) & U64(15)
            byte = both >> (n & U64(7)) * U64(8) & U64(255)
            byte = np.where(n & U64(8), np.where(byte & U64(128), U64(255), U64(0)), byte)
            value = value | byte << U64(8 * k)
        put(m, np.asarray(value).astype(U32), on)

    return run


def compare(name: str, a: Any, b: Any) -> Any:
    if name == "NE":
        return a != b
    if name == "EQ":
        return a == b
    return {"LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal}[name](a, b)


def combined(i: Instruction, result: Any, p: Any) -> Any:
    if "AND" in i.parts:
        return result & p
    if "OR" in i.parts:
        return result | p
    raise Unknown(i.text)


@operation("ISETP", "UISETP")
def compare_words(i: Instruction) -> Any:
    only(i, "LT", "LE", "GT", "GE", "EQ", "NE", "U32", "AND", "OR", "EX")
    o, name = i.operands, i.parts[0]
    write, other = set_predicate(o[0]), set_predicate(o[1])
    a, b, p = word(o[2]), word(o[3]), predicate(o[4])
    low = predicate(o[5]) if "EX" in i.parts else None
    kind = (lambda v: np.asarray(v, U32)) if "U32" in i.parts else signed

    def run(m: Machine, on: Array) -> None:
        x, y = kind(a(m)), kind(b(m))
        if low is None:
            result = compare(name, x, y)
        elif name == "EQ":
            result = (x == y) & low(m)
        elif name == "NE":
            result = (x != y) | low(m)
        else:  # The upper halves decide, or the lower ones where these are equal.
            result = compare(name[0] + "T", x, y) | ((x == y) & low(m))
        p_now = p(m).copy()
        write(m, combined(i, result, p_now), on)
        other(m, combined(i, ~np.asarray(result), p_now), on)

    return run


@operation("P2R")
def predicates_to_register(i: Instruction) -> Any:
    only(i)
    put, keep, mask = set_word(i.operands[0]), word(i.operands[2]), int(i.operands[3], 16)

    def run(m: Machine, on: Array) -> None:
        value = np.asarray(keep(m)) & U32(~mask & 0xFFFFFFFF)
        for k in range(7):
            if mask >> k & 1:
                value = value | m.predicates[k].astype(U32) << U32(k)
        put(m, value, on)

    return run


@operation("UP2UR")
def uniform_predicates_to_register(i: Instruction) -> Any:
    only(i)
    put, mask = set_word(i.operands[0]), int(i.operands[3], 16)

    def run(m: Machine, on: Array) -> None:
        value = np.zeros(m.threads, U32)
        for k in range(7):
            if mask >> k & 1:
                value |= m.uniform_predicates[k].astype(U32) << U32(k)
        put(m, value, on)

    return run


@operation("R2P")
def register_to_predicates(i: Instruction) -> Any:
    only(i)
    get, mask = word(i.operands[1]), int(i.operands[2], 16)

    def run(m: Machine, on: Array) -> None:
        value = np.asarray(get(m))
        for k in range(7):
            if mask >> k & 1:
                np.copyto(m.predicates[k], (value >> U32(k) & U32(1)).astype(bool), where=on)

    return run


@operation("SGXT")
def extend_sign(i: Instruction) -> Any:
    only(i, "U32")
    put, get, bits = set_word(i.operands[0]), word(i.operands[1]), 32 - int(i.operands[2], 16)
    if "U32" in i.parts:
        return lambda m, on: put(m, np.asarray(get(m)) << U32(bits) >> U32(bits), on)
    return lambda m, on: put(m, (signed(np.asarray(get(m)) << U32(bits)) >> I32(bits)).view(U32), on)


@operation("IABS")
def absolute(i: Instruction) -> Any:
    only(i)
    put, get = set_word(i.operands[0]), word(i.operands[1])
    return lambda m, on: put(m, np.abs(signed(get(m))).view(U32), on)
