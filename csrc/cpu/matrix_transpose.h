// Tables whose elements lie a stride apart, to tables of rows and back: how storage with the channels (or the
// kernel points) innermost becomes vectors along the width.
#pragma once

#include "simd.h"

namespace involution::cpu::INVOLUTION_CPU_NAMESPACE {

template <int... kLane>
struct LaneList {};
template <int kCount, int... kLane>
struct MakeLaneList : MakeLaneList<kCount - 1, kCount - 1, kLane...> {};
template <int... kLane>
struct MakeLaneList<0, kLane...> {
  using type = LaneList<kLane...>;
};

template <typename V, int... kFrom>
INVOLUTION_INLINE V shuffle(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kFrom...);
#else
  typedef decltype(a < b) Lanes;
  return __builtin_shuffle(a, b, Lanes{kFrom...});
#endif
}

// Exchanges elements (i, j + kHalf) and (i + kHalf, j) within every square of 2*kHalf by 2*kHalf elements.
template <int kHalf, typename V, int kSize, int... kLane>
INVOLUTION_INLINE void exchange(V (&rows)[kSize], LaneList<kLane...>) {
#pragma GCC unroll 16
  for (int i = 0; i < kSize; ++i) {
    if (i & kHalf) continue;
    constexpr int kLast = sizeof...(kLane);
    const V a = rows[i], b = rows[i + kHalf];
    rows[i] = shuffle<V, ((kLane & kHalf) == 0 ? kLane : kLast + kLane - kHalf)...>(a, b);
    rows[i + kHalf] = shuffle<V, ((kLane & kHalf) == 0 ? kLane + kHalf : kLast + kLane)...>(a, b);
  }
}

template <typename V, int kSize>
INVOLUTION_INLINE void transpose_square(V (&rows)[kSize]) {
  using Lanes = typename MakeLaneList<kSize>::type;
  if constexpr (kSize >= 8) exchange<4>(rows, Lanes{});
  if constexpr (kSize >= 4) exchange<2>(rows, Lanes{});
  exchange<1>(rows, Lanes{});
}

template <typename T>
INVOLUTION_INLINE Vector<T> load_some(const T* from, int64_t count) {
  return count >= kLanes<T> ? load(from) : load_lanes(from, count);
}
template <typename T>
INVOLUTION_INLINE void store_some(T* to, Vector<T> value, int64_t count) {
  count >= kLanes<T> ? store(to, value) : store_lanes(to, value, count);
}

// Squares of this many elements: eight at most. To take sixteen by sixteen at once needs a third more
// shuffles, of vectors that some processors take apart; and narrow maps would fill it less.
template <typename S>
constexpr int kEdge = kLanes<S> < 8 ? kLanes<S> : 8;
template <typename S>
struct Edge {
  typedef S Vector __attribute__((vector_size(kEdge<S> * sizeof(S))));
};
template <typename S>
using EdgeVector = typename Edge<S>::Vector;

// The first `count` elements of an edge, widened; the others are zero, and not touched in memory.
template <typename T>
INVOLUTION_INLINE EdgeVector<Sum<T>> load_edge(const T* from, int64_t count) {
  constexpr int E = kEdge<Sum<T>>;
  if constexpr (kLanes<T> == E) {
    return load_some(from, count);
  } else if constexpr (sizeof(T) == sizeof(Sum<T>)) {
    return count >= E ? load_as<EdgeVector<T>>(from) : lower_half(load_lanes(from, count));
  } else {
    return lower_half(load_lanes(from, count));
  }
}

template <typename T>
INVOLUTION_INLINE EdgeVector<Sum<T>> broadcast_edge(const T* from) {
  if constexpr (kLanes<T> == kEdge<Sum<T>>) {
    return broadcast(from);
  } else if constexpr (sizeof(T) == sizeof(Sum<T>)) {
    return *from - EdgeVector<T>{};
  } else {
    return lower_half(broadcast(from));
  }
}

// The first `count` elements of a vector or a half, narrowed.
template <typename T, typename V>
INVOLUTION_INLINE void store_narrowed(T* to, const V& value, int64_t count) {
  if constexpr (sizeof(T) == sizeof(Sum<T>)) {
    store_as(to, value, count);
  } else if constexpr (sizeof(V) == kVectorBytes) {
    store_some(to, value, count);
  } else {
    store_lanes(to, whole_of(value), count);
  }
}

// A square of `count` edges that lie `pitch` apart, of `length` elements each, or of all if kWhole,
// transposed.
template <bool kWhole, typename T>
INVOLUTION_INLINE void load_transposed(EdgeVector<Sum<T>> (&square)[kEdge<Sum<T>>], const T* from,
                                       int64_t pitch, int64_t count, int64_t length) {
  constexpr int E = kEdge<Sum<T>>;
#pragma GCC unroll 8
  for (int l = 0; l < E; ++l) {
    square[l] = EdgeVector<Sum<T>>{};
    if (kWhole || l < count) square[l] = load_edge(from + l * pitch, kWhole ? E : length);
  }
  transpose_square(square);
}

// One square of copy_transposed: `rows` and `columns` of it, or all if kWhole.
template <bool kWhole, typename From, typename To>
INVOLUTION_INLINE void copy_square(const From* from, int64_t from_pitch, To* to, int64_t to_pitch,
                                   int64_t rows, int64_t columns) {
  constexpr int E = kEdge<Sum<From>>;
  EdgeVector<Sum<From>> square[E];
  load_transposed<kWhole>(square, from, from_pitch, columns, rows);
#pragma GCC unroll 8
  for (int l = 0; l < E; ++l) {
    if (kWhole || l < rows) store_narrowed(to + l * to_pitch, square[l], kWhole ? E : columns);
  }
}

// to[i*to_pitch + j] = from[j*from_pitch + i] for i < rows and j < columns.
template <typename From, typename To>
void copy_transposed(const From* from, int64_t from_pitch, To* to, int64_t to_pitch, int64_t rows,
                     int64_t columns) {
  constexpr int E = kEdge<Sum<From>>;
  // What lies together in `to` is written together.
  for (int64_t i = 0; i < rows; i += E) {
    const int64_t square_rows = rows - i < E ? rows - i : E;
    for (int64_t j = 0; j < columns; j += E) {
      const int64_t square_columns = columns - j < E ? columns - j : E;
      const From* first = from + j * from_pitch + i;
      To* out = to + i * to_pitch + j;
      if (square_rows == E && square_columns == E) {
        copy_square<true>(first, from_pitch, out, to_pitch, E, E);
      } else {
        copy_square<false>(first, from_pitch, out, to_pitch, square_rows, square_columns);
      }
    }
  }
}

// to[i*to_pitch + j] = from[i*row_stride + j*stride], widened.
template <typename T>
void copy_in(const T* from, int64_t row_stride, int64_t stride, Sum<T>* to, int64_t to_pitch, int64_t rows,
             int64_t columns) {
  if (stride == 1) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; j += kLanes<T>) {
        const T* first = from + i * row_stride + j;
        store_some(to + i * to_pitch + j, load_some(first, columns - j), columns - j);
      }
    }
  } else if (row_stride == 1 && rows > 1) {
    copy_transposed(from, stride, to, to_pitch, rows, columns);
  } else {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j)
        to[i * to_pitch + j] = load_one(from + i * row_stride + j * stride);
    }
  }
}

// to[i*row_stride + j*stride] = from[i*from_pitch + j], narrowed.
template <typename T>
void copy_out(const Sum<T>* from, int64_t from_pitch, T* to, int64_t row_stride, int64_t stride, int64_t rows,
              int64_t columns) {
  if (stride == 1) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; j += kLanes<T>) {
        T* first = to + i * row_stride + j;
        store_some(first, load_some(from + i * from_pitch + j, columns - j), columns - j);
      }
    }
  } else if (row_stride == 1 && rows > 1) {
    copy_transposed(from, from_pitch, to, stride, columns, rows);
  } else {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        const Sum<T>* value = from + i * from_pitch + j;
        store_lanes(to + i * row_stride + j * stride, load_lanes(value, 1), 1);
      }
    }
  }
}

// At least `count` zeros, of which there is room for `room`, at least a vector if there are any.
template <typename S>
INVOLUTION_INLINE void zero(S* to, int64_t count, int64_t room) {
  constexpr int64_t L = kLanes<S>;
  for (int64_t i = 0; i < count; i += L) store(to + (i < room - L ? i : room - L), Vector<S>{});
}

}  // namespace involution::cpu::INVOLUTION_CPU_NAMESPACE
