// A thread's share of the rows that pass between global and shared memory, and how it copies it.
#pragma once

#include "place.cuh"

namespace involution {

// A thread's share of each row of a stream: the same piece of every step-th segment, as far as these are in
// the map. What is not is zeros in every row of a ring, put there once.
struct Share {
  int turns;   // segments of the thread
  int before;  // and those that lie in front of the map, or behind it
  int behind;
  int segment;      // the first in the map
  int step;         // segments from one to the next
  int shared_step;  // the same in bytes of shared memory,
  int step_bytes;   // and of global memory
  int offset;       // of the first, in a row in shared memory
  int from;         // and in a row in global memory, in which plans have no more than 2 GiB
  int piece;
  int column;  // of the piece, where columns are pieces

  __device__ __forceinline__ void make(const Stream& s, int strip, int width, int thread, int threads) {
    step = small_quotient(threads, s.pieces);
    segment = small_quotient(thread, s.pieces);
    piece = thread - segment * s.pieces;
    const int all = segment < step ? small_quotient(s.segments - segment + step - 1, step) : 0;
    const int first_column = s.column_origin + strip * s.column_step;
    int first = 0, end = all;
    column = 0;
    if (!s.whole && s.piece_columns == 0) {
      const int in_front = -(first_column + segment);
      const int left = s.map_segments + in_front;
      if (in_front > 0) first = small_quotient(smaller(in_front, s.segments) + step - 1, step);
      end = left > 0 ? smaller(all, small_quotient(smaller(left, s.segments) + step - 1, step)) : 0;
      first = smaller(first, end);
    } else if (!s.whole) {
      column = first_column + piece * s.piece_columns;
      if (s.merged_rows == 1 && (column < 0 || column >= width)) end = 0;
    }
    turns = end - first, before = first, behind = all - end;
    segment += first * step;
    shared_step = step * s.segment_pitch;
    step_bytes = step * static_cast<int>(s.segment_stride);
    offset = segment * s.segment_pitch + piece * s.piece_pitch;
    from = segment * static_cast<int>(s.segment_stride) + piece * s.piece_stride;
    if (!s.whole) from += first_column * s.column_stride;
  }
};

// Of a segment that begins at an odd multiple of 8 the piece begins in front of it.
template <int kBytes>
__device__ __forceinline__ Bytes beginning_of_piece(Bytes at) {
  return reinterpret_cast<Bytes>(reinterpret_cast<uintptr_t>(at) & ~static_cast<uintptr_t>(kBytes - 1));
}

template <int kBytes>
__device__ __forceinline__ void copy_pieces(Spot to, Bytes from, int shared_step, int step_bytes, int turns) {
  // Most threads have one to three turns: what an unrolled loop does first would cost more than it saves.
#pragma unroll 1
  for (; turns > 0; --turns) {
    copy_async<kBytes>(to, beginning_of_piece<kBytes>(from));
    to += shared_step;
    from += step_bytes;
  }
}

// Elements of two bytes have no asynchronous copy: several are loaded before the first is stored.
template <>
__device__ __forceinline__ void copy_pieces<2>(Spot to, Bytes from, int shared_step, int step_bytes,
                                               int turns) {
  constexpr int kAtOnce = 4;
#pragma unroll 1
  for (; turns > 0; turns -= kAtOnce) {
    uint16_t values[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i, from += step_bytes) {
      values[i] = i < turns ? *reinterpret_cast<const uint16_t*>(from) : uint16_t{0};
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i, to += shared_step) {
      if (i < turns) store_shared(to, values[i]);
    }
  }
}

// These are not inlined: a kernel's first pass over its code waits for that code, most blocks are short, and
// all of this is rare or has many turns.
__device__ INVOLUTION_OUT_OF_LINE void copy_narrow_pieces(int bytes, Spot to, Bytes from, int shared_step,
                                                          int step_bytes, int turns) {
  if (bytes == 8) {
    copy_pieces<8>(to, from, shared_step, step_bytes, turns);
  } else if (bytes == 4) {
    copy_pieces<4>(to, from, shared_step, step_bytes, turns);
  } else {
    copy_pieces<2>(to, from, shared_step, step_bytes, turns);
  }
}

__device__ INVOLUTION_OUT_OF_LINE void clear_pieces(int bytes, Spot to, int shared_step, int turns) {
#pragma unroll 1
  for (; turns > 0; --turns, to += shared_step) {
    if (bytes == 16) {
      store_shared(to, uint4{0, 0, 0, 0});
    } else if (bytes == 2) {
      store_shared(to, uint16_t{0});
    } else {
      store_shared(to, uint32_t{0});
      if (bytes == 8) store_shared(to + 4, uint32_t{0});
    }
  }
}

__device__ __forceinline__ void clear_ring(const Stream& s) {
  const Spot ring = shared_memory() + s.base;
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x) * 16; at < s.ring; at += static_cast<int>(blockDim.x) * 16) {
    store_shared(ring + at, uint4{0, 0, 0, 0});
  }
}

// From global to shared memory.
__device__ __forceinline__ void copy_row(const Stream& s, const Share& share, Spot to, Bytes from) {
  if (s.piece_bytes == 16) {
    copy_pieces<16>(to, from, share.shared_step, share.step_bytes, share.turns);
  } else {
    copy_narrow_pieces(s.piece_bytes, to, from, share.shared_step, share.step_bytes, share.turns);
  }
}

template <typename Word>
__device__ __forceinline__ void take_pieces(Spot from, unsigned char* to, int shared_step, int step_bytes,
                                            int turns) {
#pragma unroll 2
  for (; turns > 0; --turns) {
    *reinterpret_cast<Word*>(to) = load_shared<Word>(from);
    from += shared_step;
    to += step_bytes;
  }
}

__device__ INVOLUTION_OUT_OF_LINE void take_narrow_pieces(int bytes, Spot from, unsigned char* to,
                                                          int shared_step, int step_bytes, int turns) {
  if (bytes == 8) {
    take_pieces<uint2>(from, to, shared_step, step_bytes, turns);
  } else if (bytes == 4) {
    take_pieces<uint32_t>(from, to, shared_step, step_bytes, turns);
  } else {
    take_pieces<uint16_t>(from, to, shared_step, step_bytes, turns);
  }
}

// From shared memory to the result.
__device__ __forceinline__ void take_row(const Stream& s, const Share& share, Spot from, unsigned char* to) {
  if (s.piece_bytes == 16) {
    take_pieces<uint4>(from, to, share.shared_step, share.step_bytes, share.turns);
  } else {
    take_narrow_pieces(s.piece_bytes, from, to, share.shared_step, share.step_bytes, share.turns);
  }
}

}  // namespace involution
