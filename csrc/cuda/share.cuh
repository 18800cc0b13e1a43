// A thread's share of the rows that pass between global and shared memory, and how it copies it.
#pragma once

#include "place.cuh"

namespace involution {

// A thread's share of each row of a stream: the same piece of every s.step-th segment, as far as these are in
// the map. What is not is zeros in every row of a ring, put there once.
struct Share {
  int turns;   // segments of the thread
  int before;  // and those that lie in front of the map, or behind it
  int behind;
  int segment;  // the first in the map
  int offset;   // of that, in a row in shared memory
  int from;     // and in a row in global memory, in which plans have no more than 2 GiB
  int piece;
  int column;  // of the piece, where columns are pieces

  __device__ __forceinline__ Share(const Stream& s, int strip, int width, int thread) {
    segment = quotient(thread, s.by_pieces);
    piece = thread - segment * s.pieces;
    const int all = segment < s.step ? quotient(s.segments - segment + s.step - 1, s.by_step) : 0;
    const int first_column = s.column_origin + strip * s.column_step;
    int first = 0, end = all;
    column = 0;
    if (!s.whole && s.piece_columns == 0) {
      const int in_front = -(first_column + segment);
      const int left = smaller(s.map_segments + in_front, s.segments);
      if (in_front > 0) first = quotient(smaller(in_front, s.segments) + s.step - 1, s.by_step);
      end = left > 0 ? smaller(all, quotient(left + s.step - 1, s.by_step)) : 0;
      first = smaller(first, end);
    } else if (!s.whole) {
      column = first_column + piece * s.piece_columns;
      if (s.merged_rows == 1 && (column < 0 || column >= width)) end = 0;
    }
    turns = end - first, before = first, behind = all - end;
    segment += first * s.step;
    offset = segment * s.segment_pitch + piece * s.piece_pitch;
    from = segment * static_cast<int>(s.segment_stride) + piece * s.piece_stride;
    if (!s.whole) from += first_column * s.column_stride;
  }
};

// Of a segment that begins at an odd multiple of 8 the piece begins in front of it.
template <bool kPhased, int kBytes>
__device__ __forceinline__ void copy_piece(Spot to, Bytes from) {
  if (kPhased) {
    constexpr uintptr_t kMask = kBytes - 1;
    from = reinterpret_cast<Bytes>(reinterpret_cast<uintptr_t>(from) & ~kMask);
  }
  copy_async<kBytes>(to, from);
}

// Four turns are written out: of a loop over single ones each copy would be a third.
constexpr int kTurnsAtOnce = 4;

template <bool kPhased, int kBytes>
__device__ __forceinline__ void copy_pieces(Spot to, Bytes from, int pitch, unsigned stride, int turns) {
#pragma unroll 1
  for (; turns >= kTurnsAtOnce; turns -= kTurnsAtOnce) {
#pragma unroll
    for (int i = 0; i < kTurnsAtOnce; ++i, to += pitch, from += stride) copy_piece<kPhased, kBytes>(to, from);
  }
  if (turns >= 2) {
    copy_piece<kPhased, kBytes>(to, from);
    copy_piece<kPhased, kBytes>(to + pitch, from + stride);
    to += 2 * pitch, from += 2 * stride;
  }
  if (turns % 2 != 0) copy_piece<kPhased, kBytes>(to, from);
}

// Elements of two bytes have no asynchronous copy: many are loaded before the first is stored.
__device__ __forceinline__ void copy_elements(Spot to, Bytes from, int pitch, unsigned stride, int turns) {
  constexpr int kAtOnce = 16;
#pragma unroll 1
  for (; turns > 0; turns -= kAtOnce) {
    uint16_t values[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i, from += stride) {
      values[i] = i < turns ? *reinterpret_cast<const uint16_t*>(from) : uint16_t{0};
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i, to += pitch) {
      if (i < turns) store_shared(to, values[i]);
    }
  }
}

// These are not inlined: a kernel's first pass over its code waits for that code, most blocks are short, and
// all of this is rare or has many turns.
__device__ INVOLUTION_OUT_OF_LINE void copy_narrow_pieces(int bytes, Spot to, Bytes from, int pitch,
                                                          unsigned stride, int turns) {
  if (bytes == 8) {
    copy_pieces<false, 8>(to, from, pitch, stride, turns);
  } else if (bytes == 4) {
    copy_pieces<false, 4>(to, from, pitch, stride, turns);
  } else {
    copy_elements(to, from, pitch, stride, turns);
  }
}

__device__ INVOLUTION_OUT_OF_LINE void clear_narrow_pieces(int bytes, Spot to, int pitch, int turns) {
#pragma unroll 1
  for (; turns > 0; --turns, to += pitch) {
    if (bytes == 2) {
      store_shared(to, uint16_t{0});
    } else {
      store_shared(to, uint32_t{0});
      if (bytes == 8) store_shared(to + 4, uint32_t{0});
    }
  }
}

// Zeros in place of a row's pieces.
__device__ __forceinline__ void clear_pieces(const Stream& s, Spot to, int turns) {
  if (s.piece_bytes != 16) return clear_narrow_pieces(s.piece_bytes, to, s.step_pitch, turns);
#pragma unroll 2
  for (; turns > 0; --turns, to += s.step_pitch) store_shared(to, uint4{0, 0, 0, 0});
}

__device__ __forceinline__ void clear_ring(const Stream& s) {
  const Spot ring = shared_memory() + s.base;
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x) * 16; at < s.ring; at += static_cast<int>(blockDim.x) * 16) {
    store_shared(ring + at, uint4{0, 0, 0, 0});
  }
}

// From global to shared memory.
template <bool kPhased>
__device__ __forceinline__ void copy_row(const Stream& s, Spot to, Bytes from, int turns) {
  if (s.piece_bytes == 16) {
    copy_pieces<kPhased, 16>(to, from, s.step_pitch, s.step_stride, turns);
  } else {
    copy_narrow_pieces(s.piece_bytes, to, from, s.step_pitch, s.step_stride, turns);
  }
}

template <typename Word>
__device__ __forceinline__ void take_pieces(Spot from, unsigned char* to, int pitch, unsigned stride,
                                            int turns) {
#pragma unroll 1
  for (; turns >= kTurnsAtOnce; turns -= kTurnsAtOnce) {
    Word words[kTurnsAtOnce];
#pragma unroll
    for (int i = 0; i < kTurnsAtOnce; ++i, from += pitch) words[i] = load_shared<Word>(from);
#pragma unroll
    for (int i = 0; i < kTurnsAtOnce; ++i, to += stride) *reinterpret_cast<Word*>(to) = words[i];
  }
#pragma unroll 1
  for (; turns > 0; --turns, from += pitch, to += stride)
    *reinterpret_cast<Word*>(to) = load_shared<Word>(from);
}

__device__ INVOLUTION_OUT_OF_LINE void take_narrow_pieces(int bytes, Spot from, unsigned char* to, int pitch,
                                                          unsigned stride, int turns) {
  if (bytes == 8) {
    take_pieces<uint2>(from, to, pitch, stride, turns);
  } else if (bytes == 4) {
    take_pieces<uint32_t>(from, to, pitch, stride, turns);
  } else {
    take_pieces<uint16_t>(from, to, pitch, stride, turns);
  }
}

// From shared memory to the result.
__device__ __forceinline__ void take_row(const Stream& s, Spot from, unsigned char* to, int turns) {
  if (s.piece_bytes == 16) {
    take_pieces<uint4>(from, to, s.step_pitch, s.step_stride, turns);
  } else {
    take_narrow_pieces(s.piece_bytes, from, to, s.step_pitch, s.step_stride, turns);
  }
}

}  // namespace involution
