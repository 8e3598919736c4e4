"""Floating-point instructions for `machine.Machine`; imported for what it registers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from integers import combined, compare, only, signed
from machine import (
    F32,
    F64,
    I32,
    I64,
    U32,
    U64,
    Array,
    Machine,
    Source,
    Unknown,
    long,
    operation,
    predicate,
    set_long,
    set_predicate,
    set_word,
    word,
)
from sass import Instruction

EXACT = np.longdouble
"""Products of two float32 numbers are exact in it, and a sum of one and a float32 almost always."""
NUMBERS = {"+INF": np.inf, "INF": np.inf, "-INF": -np.inf, "+QNAN": np.nan, "QNAN": np.nan, "-QNAN": np.nan}


def number(text: str, kind: Any = F32) -> Source:
    """A floating-point operand: a register or two, a constant, or a number; with its sign and absolute value."""
    if text in NUMBERS:
        special = kind(NUMBERS[text])
        return lambda m: special
    if re.fullmatch(r"-?\d*\.?\d+(e[+-]?\d+)?", text):
        value = kind(text)
        return lambda m: value
    if text.startswith("-"):
        inner = number(text[1:], kind)
        return lambda m: -inner(m)
    if text.startswith("|"):
        inside = number(text.strip("|"), kind)
        return lambda m: np.abs(inside(m))
    if text.endswith(("RZ", "URZ")):
        return lambda m: kind(0)
    get = (word if kind is F32 else long)(text)
    return lambda m: np.ascontiguousarray(get(m)).view(kind)


def put_number(text: str, kind: Any = F32) -> Any:
    write = (set_word if kind is F32 else set_long)(text)
    bits = U32 if kind is F32 else U64
    return lambda m, value, on: write(m, np.ascontiguousarray(value, kind).view(bits), on)


@operation("FFMA", "DFMA")
def fused(i: Instruction) -> Any:
    only(i)
    kind = F32 if i.name == "FFMA" else F64
    put = put_number(i.operands[0], kind)
    a, b, c = (number(o, kind) for o in i.operands[1:4])
    return lambda m, on: put(m, (EXACT(1) * a(m) * b(m) + c(m)).astype(kind), on)


@operation("FMUL", "DMUL")
def product(i: Instruction) -> Any:
    only(i, "FTZ")
    kind = F32 if i.name == "FMUL" else F64
    put, a, b = put_number(i.operands[0], kind), number(i.operands[1], kind), number(i.operands[2], kind)
    return lambda m, on: put(m, a(m) * b(m), on)


@operation("FADD", "DADD")
def total(i: Instruction) -> Any:
    only(i, "FTZ")
    kind = F32 if i.name == "FADD" else F64
    put, a, b = put_number(i.operands[0], kind), number(i.operands[1], kind), number(i.operands[2], kind)
    return lambda m, on: put(m, a(m) + b(m), on)


@operation("FMNMX")
def least_or_largest(i: Instruction) -> Any:
    only(i, "NAN")
    put, a, b = put_number(i.operands[0]), number(i.operands[1]), number(i.operands[2])
    p = predicate(i.operands[3])
    least, largest = (np.minimum, np.maximum) if "NAN" in i.parts else (np.fmin, np.fmax)
    return lambda m, on: put(m, np.where(p(m), least(a(m), b(m)), largest(a(m), b(m))), on)


@operation("FSEL")
def select(i: Instruction) -> Any:
    only(i)
    put, a, b, p = put_number(i.operands[0]), number(i.operands[1]), number(i.operands[2]), predicate(i.operands[3])
    return lambda m, on: put(m, np.where(p(m), a(m), b(m)), on)


@operation("FSETP", "DSETP")
def compare_numbers(i: Instruction) -> Any:
    orders = ("LT", "LE", "GT", "GE", "EQ", "NE")
    only(i, *orders, *(order + "U" for order in orders), "NAN", "NUM", "MIN", "MAX", "AND", "OR")
    kind, o, name = F32 if i.name == "FSETP" else F64, i.operands, i.parts[0]
    write, other = set_predicate(o[0]), set_predicate(o[1])
    a, b, p = number(o[2], kind), number(o[3], kind), predicate(o[4])

    def run(m: Machine, on: Array) -> None:
        x, y = np.broadcast_arrays(a(m), b(m))
        unordered = np.isnan(x) | np.isnan(y)
        if name in ("MIN", "MAX"):  # whether the first is the one, and whether both are NaN
            write(m, (x < y if name == "MIN" else x > y) | np.isnan(y), on)
            other(m, np.isnan(x) & np.isnan(y), on)
            return
        if name in ("NAN", "NUM"):
            result = unordered if name == "NAN" else ~unordered
        elif name.endswith("U"):
            result = compare(name[:-1], x, y) | unordered
        else:
            result = compare(name, x, y) & ~unordered
        p_now = p(m).copy()
        write(m, combined(i, result, p_now), on)
        other(m, combined(i, ~result, p_now), on)

    return run


@operation("MUFU")
def special_function(i: Instruction) -> Any:
    only(i, "RSQ", "RCP", "EX2", "LG2", "SQRT")
    functions = {
        "RSQ": lambda v: 1 / np.sqrt(v),
        "RCP": lambda v: 1 / v,
        "EX2": np.exp2,
        "LG2": np.log2,
        "SQRT": np.sqrt,
    }
    put, a, f = put_number(i.operands[0]), number(i.operands[1]), functions[i.parts[0]]
    return lambda m, on: put(m, f(np.asarray(a(m), F64)).astype(F32), on)


@operation("I2F", "I2FP")
def from_integer(i: Instruction) -> Any:
    only(i, "F32", "F64", "U32", "S32", "RP")
    kind = F64 if "F64" in i.parts else F32
    put, get = put_number(i.operands[0], kind), word(i.operands[1])

    def run(m: Machine, on: Array) -> None:
        exact = np.asarray(get(m) if "U32" in i.parts else signed(get(m))).astype(F64)
        value = exact.astype(kind)
        if "RP" in i.parts:
            value = np.where(value < exact, np.nextafter(value, F32(np.inf)), value)
        put(m, value, on)

    return run


@operation("F2I")
def to_integer(i: Instruction) -> Any:
    only(i, "FTZ", "U32", "TRUNC", "NTZ")
    put, get = set_word(i.operands[0]), number(i.operands[1])
    low, high = (0, 2**32 - 1) if "U32" in i.parts else (-(2**31), 2**31 - 1)

    def run(m: Machine, on: Array) -> None:
        value = np.clip(np.trunc(np.nan_to_num(np.asarray(get(m), F64))), low, high)
        put(m, value.astype(I64).astype(I32 if low else U32).view(U32), on)

    return run


def half_of(text: str) -> Source:
    """The 16 bits that an operand such as R3.H1_H1 names."""
    name, _, half = text.partition(".")
    get, shift = word(name), U32(16 if half.startswith("H1") else 0)
    return lambda m: np.asarray(np.asarray(get(m)) >> shift & U32(0xFFFF))


def to_bfloat16(value: Any) -> Any:
    bits = np.ascontiguousarray(value, F32).view(U32).astype(U64)
    rounded = bits + U64(0x7FFF) + (bits >> U64(16) & U64(1)) >> U64(16)
    return np.where(np.isnan(value), U32(0x7FFF), rounded.astype(U32))


def to_float16(value: Any) -> Any:
    return np.asarray(value, F32).astype(np.float16).view(np.uint16).astype(U32)


@operation("F2F")
def convert(i: Instruction) -> Any:
    kinds = i.parts
    if kinds == ("F32", "F64"):
        put, get = put_number(i.operands[0]), number(i.operands[1], F64)
        return lambda m, on: put(m, get(m).astype(F32), on)
    if kinds == ("F64", "F32"):
        put, get = put_number(i.operands[0], F64), number(i.operands[1])
        return lambda m, on: put(m, np.asarray(get(m)).astype(F64), on)
    if kinds in (("F64", "BF16"), ("F64", "F16")):
        put, bits = put_number(i.operands[0], F64), half_of(i.operands[1])
        if kinds[1] == "F16":
            return lambda m, on: put(m, bits(m).astype(np.uint16).view(np.float16).astype(F64), on)
        return lambda m, on: put(m, np.ascontiguousarray(bits(m) << U32(16)).view(F32).astype(F64), on)
    raise Unknown(i.text)


@operation("F2FP")
def pack_halves(i: Instruction) -> Any:
    only(i, "BF16", "F16", "F32", "PACK_AB")
    put, high, low = set_word(i.operands[0]), number(i.operands[1]), number(i.operands[2])
    rounded = to_bfloat16 if "BF16" in i.parts else to_float16
    return lambda m, on: put(m, np.asarray(rounded(high(m))) << U32(16) | rounded(low(m)), on)


@operation("HADD2")
def widen_half(i: Instruction) -> Any:
    """Only as float16 is widened to float32: 0 is added."""
    if i.parts != ("F32",) or i.operands[1] != "-RZ":
        raise Unknown(i.text)
    put, bits = put_number(i.operands[0]), half_of(i.operands[2])
    return lambda m, on: put(m, bits(m).astype(np.uint16).view(np.float16).astype(F32), on)


@operation("HFMA2")
def set_halves(i: Instruction) -> Any:
    """Only as a register is set to two numbers."""
    if i.parts not in ((), ("MMA",)) or i.operands[1] != "-RZ" or i.operands[2] != "RZ":
        raise Unknown(i.text)
    put = set_word(i.operands[0])
    high, low = (int(np.float16(text).view(np.uint16)) for text in i.operands[3:5])
    value = U32(high << 16 | low)
    return lambda m, on: put(m, value, on)
