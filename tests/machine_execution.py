"""Executes a kernel's machine code whole, without a GPU: memory, asynchronous copies, tensor cores and barriers.

The warps of a block run in a random order, each from barrier to barrier. Shared memory begins as NaN, and asynchronous
copies arrive when they are waited for and no sooner. Accesses out of bounds, misaligned ones, and those between which
another warp's or a copy's may come are errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine_code import BUFFER_APART, BUFFERS, RESERVED, Kernel, Warp, constants
from benchmarks.machine_registers import LANES, Instruction, Lanes, as_float, following, of_float, size_of

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]

POISON = 0xFF  # a NaN in every type
WARPS = 64  # of a block, at most
ROW, PAIR = np.arange(LANES) // 4, np.arange(LANES) % 4 * 2  # a lane's two elements of an 8x8 matrix


class ExecutionError(RuntimeError):
    """The kernel did what it must not."""


class SharedMemory:
    """Of one block; it knows who touched each byte since the last barrier."""

    def __init__(self, size: int, reserved: int) -> None:
        self.reserved = reserved
        self.bytes = np.full(reserved + size, POISON, np.uint8)
        self.barriers = 1
        # Of each byte the last warp, counted on from barrier to barrier.
        self.writer, self.reader = np.zeros(len(self.bytes), int), np.zeros(len(self.bytes), int)
        self.read_by_several = np.zeros(len(self.bytes), int)  # since this barrier
        self.under_way = np.zeros(len(self.bytes), bool)  # an asynchronous copy is

    def each(self, places: Places, size: int) -> Places:
        """The bytes of an access."""
        if (places % size != 0).any():
            raise ExecutionError(f"Shared memory at {places[0]:#x} is not aligned to {size} bytes.")
        if (places < self.reserved).any() or (places + size > len(self.bytes)).any():
            raise ExecutionError(f"There is no shared memory at {places.min():#x} to {places.max():#x}.")
        return (places[:, None] + np.arange(size)).ravel()

    def others(self, last: Places, warp: int) -> NDArray[np.bool_]:
        """Where it is another warp since the last barrier."""
        return (last >= WARPS * self.barriers) & (last != WARPS * self.barriers + warp)

    def read(self, places: Places, size: int, warp: int) -> Bytes:
        at = self.each(places, size)
        if self.others(self.writer[at], warp).any() or self.under_way[at].any():
            raise ExecutionError(f"Warp {warp} reads at {at[0]:#x} what is being written.")
        self.read_by_several[at[self.others(self.reader[at], warp)]] = self.barriers
        self.reader[at] = WARPS * self.barriers + warp
        return self.bytes[at].reshape(-1, size)

    def claim(self, at: Places, warp: int) -> None:
        """For writing."""
        used = self.others(self.writer[at], warp) | self.others(self.reader[at], warp)
        if (used | (self.read_by_several[at] == self.barriers) | self.under_way[at]).any():
            raise ExecutionError(f"Warp {warp} writes at {at[0]:#x} what is in use.")
        self.writer[at] = WARPS * self.barriers + warp

    def write(self, places: Places, values: Bytes, warp: int) -> None:
        at = self.each(places, values.shape[1])
        self.claim(at, warp)
        self.bytes[at] = values.ravel()


class GlobalMemory:
    """Tensors at the addresses that machine_code.constants gives them; None is not there."""

    def __init__(self, tensors: Sequence[Bytes | None]) -> None:
        self.tensors = tensors

    def parts(self, places: Places, size: int) -> Iterator[tuple[Bytes, Places, Places]]:
        """Of each tensor of an access: the lanes, and their bytes."""
        number = (places - BUFFERS) // BUFFER_APART
        for which in np.unique(number):
            lanes = np.nonzero(number == which)[0]
            begin = places[lanes] - BUFFERS - which * BUFFER_APART
            tensor = self.tensors[which] if 0 <= which < len(self.tensors) else None
            if tensor is None or (begin + size > len(tensor)).any() or (begin % size != 0).any():
                raise ExecutionError(f"No tensor has {size} bytes, aligned, at {places[lanes[0]]:#x}.")
            yield tensor, lanes, begin[:, None] + np.arange(size)

    def read(self, places: Places, size: int) -> Bytes:
        values = np.empty((len(places), size), np.uint8)
        for tensor, lanes, at in self.parts(places, size):
            values[lanes] = tensor[at]
        return values

    def write(self, places: Places, values: Bytes) -> None:
        for tensor, lanes, at in self.parts(places, values.shape[1]):
            tensor[at] = values[lanes]


def widened(pairs: Lanes, bfloat16: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The numbers in the lower and upper halves."""

    def one(half: Lanes) -> NDArray[np.float64]:
        return (as_float(half << 16) if bfloat16 else half.astype(np.uint16).view(np.float16)).astype(float)

    return one(pairs & 0xFFFF), one(pairs >> 16)


def narrowed(value: NDArray[np.float32], bfloat16: bool) -> Lanes:
    """Rounded to the nearest, in the lower halves."""
    bits = of_float(value)
    with np.errstate(all="ignore"):
        half = value.astype(np.float16).view(np.uint16).astype(np.int64)
    half = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 if bfloat16 else half
    return np.where(np.isnan(value), 0x7FFF, half)


class Execution(Warp):
    """A warp with all that it works on."""

    nothing = frozenset({"NOP", "BAR"})

    def __init__(
        self,
        kernel: Kernel,
        bank: bytes,
        first_thread: int,
        block: tuple[int, int, int],
        shared: SharedMemory,
        memory: GlobalMemory,
    ) -> None:
        super().__init__(kernel, bank, first_thread, block)
        self.number = first_thread // LANES
        self.shared, self.memory = shared, memory
        # Groups of copies of each lane, the last of which is open.
        self.copies: list[list[list[tuple[Places, Bytes]]]] = [[[]] for _ in range(LANES)]
        self.stack = np.full((LANES, 4096), POISON, np.uint8)

    def words_of(self, register: str, count: int) -> NDArray[np.int64]:
        """(lanes, count), of neighbouring registers."""
        register = register.replace(".reuse", "")
        if register == "RZ":
            return np.zeros((LANES, count), np.int64)
        return np.stack([self.get(following(register, k)) for k in range(count)], 1)

    def bytes_of(self, register: str, size: int) -> Bytes:
        return self.words_of(register, max(1, size // 4)).astype(np.uint32).view(np.uint8)[self.lanes, :size]

    def put_bytes(self, register: str, values: Bytes) -> None:
        words = np.zeros((LANES, max(1, values.shape[1] // 4)), np.int64)
        words[self.lanes] = np.ascontiguousarray(values).view(
            np.uint16 if values.shape[1] == 2 else np.uint32
        )
        for k in range(words.shape[1]):
            self.put(register, words[:, k], k)

    def _lds(self, i: Instruction) -> None:
        places = self.places(i.operands[1])[self.lanes]
        self.put_bytes(i.operands[0], self.shared.read(places, size_of(i), self.number))

    def _sts(self, i: Instruction) -> None:
        places = self.places(i.operands[0])[self.lanes]
        self.shared.write(places, self.bytes_of(i.operands[1], size_of(i)), self.number)

    def _ldg(self, i: Instruction) -> None:
        self.put_bytes(i.operands[0], self.memory.read(self.places(i.operands[1])[self.lanes], size_of(i)))

    def _stg(self, i: Instruction) -> None:
        self.memory.write(self.places(i.operands[0])[self.lanes], self.bytes_of(i.operands[1], size_of(i)))

    def on_stack(self, operand: str, size: int) -> tuple[Places, Places]:
        places = self.places(operand)[self.lanes] % self.stack.shape[1]
        return self.lanes[:, None], places[:, None] + np.arange(size)

    def _ldl(self, i: Instruction) -> None:
        self.put_bytes(i.operands[0], self.stack[self.on_stack(i.operands[1], size_of(i))])

    def _stl(self, i: Instruction) -> None:
        self.stack[self.on_stack(i.operands[0], size_of(i))] = self.bytes_of(i.operands[1], size_of(i))

    def _ldgsts(self, i: Instruction) -> None:
        size, copied, to = size_of(i), self.copied(i), self.places(i.operands[0])
        values = np.zeros((LANES, size), np.uint8)
        values[copied] = self.memory.read(self.places(i.operands[1])[copied], size)
        at = self.shared.each(to[self.lanes], size)
        self.shared.claim(at, self.number)
        self.shared.bytes[at], self.shared.under_way[at] = POISON, True
        for lane in self.lanes:
            self.copies[lane][-1].append((to[lane] + np.arange(size), values[lane]))

    def _ldgdepbar(self, i: Instruction) -> None:
        for lane in self.lanes:
            self.copies[lane].append([])

    def _depbar(self, i: Instruction) -> None:
        for lane in self.lanes:
            while len(self.copies[lane]) - 1 > int(i.operands[1], 16):
                for at, values in self.copies[lane].pop(0):
                    self.shared.under_way[at] = False
                    self.shared.claim(at, self.number)
                    self.shared.bytes[at] = values

    def together(self, i: Instruction) -> None:
        if not self.active.all():
            raise ExecutionError(f"Not all lanes execute {'.'.join(i.opcode)}.")

    def matrices_of(self, register: str, count: int) -> NDArray[np.uint16]:
        words = self.words_of(register, count)
        found = np.empty((count, 8, 8), np.uint16)
        for k in range(count):
            found[k, ROW, PAIR], found[k, ROW, PAIR + 1] = words[:, k] & 0xFFFF, words[:, k] >> 16
        return found

    def put_matrices(self, register: str, matrices: NDArray[np.uint16]) -> None:
        for k, matrix in enumerate(matrices.astype(np.int64)):
            self.put(register, matrix[ROW, PAIR] | matrix[ROW, PAIR + 1] << 16, k)

    def _ldsm(self, i: Instruction) -> None:
        self.together(i)
        count = int(i.opcode[-1])
        rows = self.shared.read(self.places(i.operands[1])[: 8 * count], 16, self.number)
        matrices = np.ascontiguousarray(rows).view(np.uint16).reshape(count, 8, 8)
        self.put_matrices(i.operands[0], matrices.swapaxes(1, 2) if "MT88" in i.opcode else matrices)

    def _stsm(self, i: Instruction) -> None:
        self.together(i)
        count = int(i.opcode[-1])
        matrices = self.matrices_of(i.operands[1], count)
        matrices = matrices.swapaxes(1, 2) if "MT88" in i.opcode else matrices
        rows = np.ascontiguousarray(matrices).view(np.uint8).reshape(8 * count, 16)
        self.shared.write(self.places(i.operands[0])[: 8 * count], rows, self.number)

    def _movm(self, i: Instruction) -> None:
        self.together(i)
        self.put_matrices(i.operands[0], self.matrices_of(i.operands[1], 1).swapaxes(1, 2))

    def _hmma(self, i: Instruction) -> None:
        """D = A (16 x depth) * B (depth x 8) + C, with the fragments of csrc/cuda/machine.cuh."""
        self.together(i)
        sparse, bfloat16 = "SP" in i.opcode, "BF16" in i.opcode
        depth = {"1688": 8, "16816": 16, "16832": 32}[i.opcode[2 if sparse else 1]]
        of_a, of_b = (
            self.words_of(i.operands[1], 4 if depth > 8 else 2),
            self.words_of(i.operands[2], depth // 8),
        )
        a, b = np.zeros((16, depth)), np.empty((depth, 8))
        for k in range(depth // 8):
            b[8 * k + PAIR, ROW], b[8 * k + PAIR + 1, ROW] = widened(of_b[:, k], bfloat16)
        there = np.full(a.shape, not sparse)
        for k in range(of_a.shape[1]):
            row, column = ROW + 8 * (k % 2), PAIR + 8 * (k // 2)
            columns = column, column + 1
            if sparse:  # lanes 0 and 1 of a quad say where the two of each four columns are
                if i.operands[5] != "0x0":
                    raise NotImplementedError(f"Sparse product with selector {i.operands[5]}.")
                places = self.get(i.operands[4])[4 * ROW + k // 2] >> 16 * (k % 2) >> 2 * PAIR & 15
                columns = 2 * column + (places & 3), 2 * column + (places >> 2)
                if (columns[0] >= columns[1]).any():
                    raise ExecutionError("The places in a sparse matrix are not in their order.")
            a[row, columns[0]], a[row, columns[1]] = widened(of_a[:, k], bfloat16)
            there[row, columns[0]] = there[row, columns[1]] = True
        with np.errstate(all="ignore"):  # of NaN and infinity
            products = np.where(there[:, :, None], a[:, :, None] * b, 0).sum(1)
            c = self.words_of(i.operands[3], 4)
            for k in range(4):
                total = products[ROW + 8 * (k // 2), PAIR + k % 2] + as_float(c[:, k])
                self.put(i.operands[0], of_float(total.astype(np.float32)), k)

    def _f2fp(self, i: Instruction) -> None:
        high, low = (narrowed(self.float_of(operand), "BF16" in i.opcode) for operand in i.operands[1:3])
        self.put(i.operands[0], high << 16 | low)

    def _hmnmx2(self, i: Instruction) -> None:
        if i.operands[3] != "!PT" or "NAN" not in i.opcode:
            raise NotImplementedError(f"{'.'.join(i.opcode)} {', '.join(i.operands)} is not known.")
        bfloat16 = "BF16_V2" in i.opcode
        a, b = (widened(self.get(operand), bfloat16) for operand in i.operands[1:3])
        low, high = (
            narrowed(np.maximum(*pair).astype(np.float32), bfloat16) for pair in zip(a, b, strict=True)
        )
        self.put(i.operands[0], high << 16 | low)


def execute(
    kernel: Kernel,
    parameters: bytes,
    tensors: Sequence[Bytes | None],
    threads: int,
    shared_bytes: int,
    grid: tuple[int, int, int],
    seed: int,
) -> None:
    """Runs all blocks of a launch, which writes into the tensors' bytes."""
    random, memory = np.random.default_rng(seed), GlobalMemory(tensors)
    bank = constants(kernel, parameters, threads, grid, [tensor is not None for tensor in tensors])
    for block in np.ndindex(*grid):
        shared = SharedMemory(shared_bytes, RESERVED[kernel.capability])
        warps = [Execution(kernel, bank, first, block, shared, memory) for first in range(0, threads, LANES)]
        running = {warp.number: warp.steps() for warp in warps}
        while running:
            for number in map(int, random.permutation(list(running))):
                if not any(name == "BAR" for name in running[number]):  # it came to its end
                    del running[number]
            shared.barriers += 1
