"""What the integer instructions of a warp do (see machine_code.py)."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine_registers import (
    LANES,
    WORD,
    Instruction,
    Lanes,
    Mask,
    Registers,
    following,
    of_float,
    signed,
    size_of,
)


def looked_up(table: str, x: NDArray, y: NDArray, z: NDArray) -> NDArray:
    """The logical function of three operands whose results are the bits of ``table``."""
    result = np.zeros_like(x)
    for bit in range(8):
        if int(table, 16) >> bit & 1:
            result |= (x if bit & 4 else ~x) & (y if bit & 2 else ~y) & (z if bit & 1 else ~z)
    return result


COMPARE: dict[str, Callable[[NDArray, NDArray], Mask]] = {
    "GE": np.greater_equal,
    "GT": np.greater,
    "LE": np.less_equal,
    "LT": np.less,
    "EQ": np.equal,
    "NE": np.not_equal,
}


class Arithmetic(Registers):
    """A method for each instruction, called like it."""

    def execute(self, i: Instruction) -> None:
        method = getattr(self, f"_{i.name.removeprefix('U').lower()}", None)
        if method is None:
            raise NotImplementedError(f"{'.'.join(i.opcode)} {', '.join(i.operands)} is not known.")
        method(i)

    def _mov(self, i: Instruction) -> None:
        self.put(i.operands[0], self.get(i.operands[1]))

    _s2r = _s2ur = _mov

    def _cs2r(self, i: Instruction) -> None:
        for further in range(1 if "32" in i.opcode else 2):
            self.put(i.operands[0], self.get("RZ"), further)

    def _ldc(self, i: Instruction) -> None:
        found = re.fullmatch(r"c\[0x(\d)\]\[(.*)\]", i.operands[1])
        assert found is not None
        bank, address = (self.jump_table if found[1] == "2" else self.bank), self.address(found[2])
        for further in range(2 if "64" in i.opcode else 1):
            value = self.constant(bank, address + 4 * further)
            self.put(i.operands[0], value & 0xFF if "U8" in i.opcode else value, further)

    def _load(self, i: Instruction) -> None:
        matrices = int(i.opcode[-1]) if i.name == "LDSM" and i.opcode[-1].isdigit() else 0
        for further in range(matrices or max(size_of(i) // 4, 1)):
            self.put(i.values[0], self.get("RZ"), further)

    _ld = _load

    def _ldl(self, i: Instruction) -> None:
        for further in range(size_of(i) // 4):
            self.put(i.operands[0], self.local.get(f"{i.operands[1]}{further}", self.get("RZ")), further)

    def _stl(self, i: Instruction) -> None:
        for further in range(size_of(i) // 4):
            place = f"{i.operands[0]}{further}"
            register = i.operands[1]
            if register != "RZ":
                register = following(register, further)
            old = self.local.get(place, self.get("RZ"))
            self.local[place] = np.where(self.active, self.get(register), old)

    def _shfl(self, i: Instruction) -> None:
        _, to, source, lane, _ = i.operands
        if i.opcode[1] != "IDX":
            raise NotImplementedError(f"SHFL.{i.opcode[1]} is not known.")
        self.put(to, self.get(source)[self.get(lane) % LANES])

    def _voteu(self, i: Instruction) -> None:
        said = self.test(i.operands[-1])[self.active]
        self.put_predicate(i.operands[-2], np.full(LANES, said.any() if "ANY" in i.opcode else said.all()))

    def _r2ur(self, i: Instruction) -> None:
        self.put(i.values[0], self.get(i.values[-1]))

    def _sum(self, i: Instruction, terms: list[Lanes], carries: list[str]) -> None:
        total = sum(terms, np.zeros(LANES, np.int64))
        for carry in carries:
            total = total + self.test(carry)
        to = i.operands.index(i.values[0])
        for carried, written in enumerate(i.operands[to + 1 : to + 3]):  # three terms may carry twice
            if not re.fullmatch(r"U?P[\dT]", written):
                break
            self.put_predicate(written, total >> 32 > carried)
        self.put(i.values[0], total)

    def _iadd3(self, i: Instruction) -> None:
        extended = "X" in i.opcode
        # A subtraction adds the complement, and one where no carry comes in.
        terms = [
            (~self.get(v[1:]) & WORD) + (not extended) if re.match(r"-U?R", v) else self.get(v)
            for v in i.values[1:4]
        ]
        last = max(place for place, operand in enumerate(i.operands) if operand in i.values)
        self._sum(i, terms, list(i.operands[last + 1 :]) if extended else [])

    def _viadd(self, i: Instruction) -> None:
        self.put(i.operands[0], self.get(i.operands[1]) + self.get(i.operands[2]))

    def _imad(self, i: Instruction) -> None:
        to, *sources = i.values
        if "MOV" in i.opcode:
            return self.put(to, self.get(sources[-1]))
        if "WIDE" in i.opcode or "HI" in i.opcode:
            unsigned = "U32" in i.opcode
            a, b = (self.get(s) if unsigned else signed(self.get(s)) for s in sources[:2])
            product = a.astype(object) * b.astype(object) + self.wide(sources[2])
            if "HI" in i.opcode:
                return self.put(to, np.array([int(p) >> 32 for p in product], object))
            return self.put_wide(to, product)
        total = signed(self.get(sources[0])) * signed(self.get(sources[1])) + self.get(sources[2])
        if "X" in i.opcode:
            for carry in i.operands[4:]:
                total = total + self.test(carry)
        return self.put(to, total)

    def _lea(self, i: Instruction) -> None:
        _, a, b, *rest = i.values
        shift = int(rest[-1], 16)
        if "HI" in i.opcode:
            upper = signed(self.get(a)) >> 31 if "SX32" in i.opcode else self.get(rest[0])
            both = (upper.astype(object) << 32) + self.get(a).astype(object)
            shifted = np.array([(int(v) << shift >> 32) & WORD for v in both], np.int64)
        else:
            shifted = (self.get(a) << shift) & WORD
        self._sum(i, [shifted, self.get(b)], [i.operands[-1]] if "X" in i.opcode else [])

    def _lop3(self, i: Instruction) -> None:
        to, a, b, c, table = i.values
        result = looked_up(table, self.get(a), self.get(b), self.get(c)) & WORD
        if i.operands[0] != to:
            self.put_predicate(i.operands[0], result != 0)
        self.put(to, result)

    def _plop3(self, i: Instruction) -> None:
        sources = [self.test(operand) for operand in i.operands[2:5]]
        results = [looked_up(table, *sources) for table in i.operands[5:7]]
        for name, result in zip(i.operands[:2], results, strict=True):
            self.put_predicate(name, result)

    def _p2r(self, i: Instruction) -> None:
        value = sum((self.test(f"P{k}").astype(np.int64) << k for k in range(7)), np.zeros(LANES, np.int64))
        self.put(i.operands[0], value & self.get(i.operands[-1]))

    def _shf(self, i: Instruction) -> None:
        to, low, shift, high = i.values
        kind = i.opcode[2]
        arithmetic, is_wide = kind[0] == "S", kind.endswith("64")
        values = []
        for lo, by, hi in zip(self.get(low), self.get(shift), self.get(high), strict=True):
            number = int(hi) << 32 | int(lo)
            if arithmetic and hi >> 31:
                number -= 1 << 64
            by = int(by) & 63 if is_wide else min(int(by), 32)
            number = number << by if i.opcode[1] == "L" else number >> by
            values.append((number >> 32 if "HI" in i.opcode else number) & WORD)
        self.put(to, np.array(values, np.int64))

    def _sel(self, i: Instruction) -> None:
        self.put(
            i.operands[0],
            np.where(self.test(i.operands[3]), self.get(i.operands[1]), self.get(i.operands[2])),
        )

    def _fsel(self, i: Instruction) -> None:
        a, b = (of_float(self.float_of(operand)) for operand in i.operands[1:3])
        self.put(i.operands[0], np.where(self.test(i.operands[3]), a, b))

    def _set(self, i: Instruction, result: Mask, complement: Mask) -> None:
        other = self.test(i.operands[4])
        join = np.logical_or if "OR" in i.opcode else np.logical_and
        values = join(result, other), join(complement, other)
        for name, value in zip(i.operands[:2], values, strict=True):
            self.put_predicate(name, value)

    def _isetp(self, i: Instruction) -> None:
        a, b = (self.get(operand) for operand in i.operands[2:4])
        if "U32" not in i.opcode:
            a, b = signed(a), signed(b)
        result = COMPARE[i.opcode[1]](a, b)
        if "EX" in i.opcode:  # what the lower halves said decides where the upper ones are equal
            lower = self.test(i.operands[5])
            result = np.where(
                a == b, lower, COMPARE[{"GE": "GT", "LE": "LT"}.get(i.opcode[1], i.opcode[1])](a, b)
            )
        self._set(i, result, ~result)

    def _fsetp(self, i: Instruction) -> None:
        a, b = (self.float_of(operand) for operand in i.operands[2:4])
        comparison = i.opcode[1]
        unordered = np.isnan(a) | np.isnan(b) if len(comparison) == 3 else np.zeros(LANES, bool)
        result = COMPARE[comparison[:2]](a, b) | unordered
        self._set(i, result, ~result)

    def _prmt(self, i: Instruction) -> None:
        a, selector, b = (self.get(operand) for operand in i.operands[1:4])
        parts = np.array([a >> 8 * k & 255 for k in range(4)] + [b >> 8 * k & 255 for k in range(4)])
        result = np.zeros(LANES, np.int64)
        for k in range(4):
            digit = selector >> 4 * k & 15
            value = parts[digit & 7, np.arange(LANES)]
            result |= np.where(digit & 8, np.where(value & 128, 255, 0), value) << 8 * k
        self.put(i.operands[0], result)

    def _iabs(self, i: Instruction) -> None:
        self.put(i.operands[0], np.abs(signed(self.get(i.operands[1]))))

    def _least(self, i: Instruction, a: Lanes, b: Lanes, choose: str) -> None:
        if "U32" not in i.opcode:
            a, b = signed(a & WORD), signed(b)
        result = np.where(self.test(choose), np.minimum(a, b), np.maximum(a, b))
        self.put(i.operands[0], np.maximum(result, 0) if "RELU" in i.opcode else result)

    def _vimnmx(self, i: Instruction) -> None:
        self._least(i, self.get(i.operands[1]), self.get(i.operands[2]), i.operands[3])

    _imnmx = _vimnmx

    def _viaddmnmx(self, i: Instruction) -> None:
        total = (self.get(i.operands[1]) + self.get(i.operands[2])) & WORD
        self._least(i, total, self.get(i.operands[3]), i.operands[4])

    def _i2fp(self, i: Instruction) -> None:
        value = self.get(i.operands[1])
        self.put(i.operands[0], of_float((signed(value) if "S32" in i.opcode else value).astype(np.float32)))

    _i2f = _i2fp

    def _f2i(self, i: Instruction) -> None:
        value = np.trunc(np.nan_to_num(self.float_of(i.operands[1]).astype(np.float64)))
        low, high = (0, WORD) if "U32" in i.opcode else (-(2**31), 2**31 - 1)
        self.put(i.operands[0], np.clip(value, low, high).astype(np.int64))

    def _mufu(self, i: Instruction) -> None:
        if i.opcode[1] != "RCP":
            raise NotImplementedError(f"MUFU.{i.opcode[1]} is not known.")
        with np.errstate(divide="ignore"):
            self.put(i.operands[0], of_float(np.float32(1) / self.float_of(i.operands[1])))

    def _float(self, i: Instruction) -> None:
        a, b, *c = (self.float_of(operand) for operand in i.operands[1:])
        with np.errstate(all="ignore"):
            self.put(
                i.operands[0], of_float({"FADD": a + b, "FMUL": a * b}.get(i.name, a * b + (c or [b])[0]))
            )

    _fadd = _fmul = _ffma = _float

    def _hfma2(self, i: Instruction) -> None:  # how the compiler makes a constant
        low, high = (int(np.float16(operand).view(np.uint16)) for operand in (i.operands[4], i.operands[3]))
        self.put(i.operands[0], np.full(LANES, high << 16 | low, np.int64))
