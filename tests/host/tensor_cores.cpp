// The tensor-core instructions as the host executes them: what each lane gets, for Python to judge.
//
//   tensor_cores ldmatrix    N TRANSPOSED   a line a lane: the elements of its N registers, low half first,
//                                           where element (r, c) of matrix m is 64 * m + 8 * r + c
//   tensor_cores movmatrix   - -            the same, of the matrix with elements 8 * r + c after it
//   tensor_cores mma         K TYPE         32 lines of 4 sums: fragments filled and read as PTX documents
//                                           them, A[i][k] = (5*i + 3*k) % 13 - 6, B[k][j] = (7*k + j) % 11 -
//                                           5
//   tensor_cores loaded_mma  K TYPE         the same, with fragments that ldmatrix fetched

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda/scalar.cuh"

namespace {

using namespace involution;

int a_value(int i, int k) { return (5 * i + 3 * k) % 13 - 6; }
int b_value(int k, int j) { return (7 * k + j) % 11 - 5; }

uint16_t* tile() { return reinterpret_cast<uint16_t*>(shared_memory()); }
Spot spot(const uint16_t* element) { return shared_memory() + 2 * (element - tile()); }

template <int N, bool kTransposed>
__global__ void print_matrices(uint32_t* out) {
  const int lane = threadIdx.x;
  for (int i = lane; i < 64 * N; i += 32) tile()[i] = static_cast<uint16_t>(i);
  __syncwarp();
  uint32_t registers[N];
  load_matrices<N, kTransposed>(registers, spot(tile() + 8 * (lane % (8 * N))));
  for (int i = 0; i < N; ++i) out[lane * N + i] = registers[i];
}

// Of the matrix whose element (r, c) is 8 * r + c.
__global__ void print_transposed(uint32_t* out) {
  const int row = threadIdx.x / 4, column = threadIdx.x % 4 * 2;
  const auto first = static_cast<uint32_t>(8 * row + column);
  out[threadIdx.x] = transpose_matrix(first | (first + 1) << 16);
}

template <typename T>
uint32_t pair(int low, int high) {
  return narrowed<T>(static_cast<float>(low)).bits |
         static_cast<uint32_t>(narrowed<T>(static_cast<float>(high)).bits) << 16;
}

template <typename T, int K>
__global__ void multiply_documented(float* out) {
  const int group = threadIdx.x / 4;
  const int in_group = threadIdx.x % 4;
  uint32_t a[K / 4];
  uint32_t b[2];
  for (int i = 0; i < K / 4; ++i) {
    const int row = group + i % 2 * 8;
    const int column = in_group * 2 + i / 2 * 8;
    a[i] = pair<T>(a_value(row, column), a_value(row, column + 1));
  }
  for (int i = 0; i < K / 8; ++i) {
    const int row = in_group * 2 + i * 8;
    b[i] = pair<T>(b_value(row, group), b_value(row + 1, group));
  }
  float c[4] = {};
  if constexpr (K == 16) {
    multiply_add(c, a, b[0], b[1], T{});
  } else {
    multiply_add(c, a, b[0], T{});
  }
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = c[i];
}

// A is stored by rows; B by rows too, so that its matrices come transposed.
template <typename T, int K>
__global__ void multiply_loaded(float* out) {
  const int lane = threadIdx.x;
  uint16_t* a_tile = tile();
  uint16_t* b_tile = tile() + 16 * K;
  for (int i = lane; i < 16 * K; i += 32) {
    a_tile[i] = narrowed<T>(static_cast<float>(a_value(i / K, i % K))).bits;
  }
  for (int i = lane; i < 8 * K; i += 32) {
    b_tile[i] = narrowed<T>(static_cast<float>(b_value(i / 8, i % 8))).bits;
  }
  __syncwarp();
  uint32_t a[K / 4];
  uint32_t b[2];
  load_matrices<K / 4, false>(a, spot(a_tile + lane % 16 * K + lane / 16 % (K / 8) * 8));
  load_matrices<2, true>(b, spot(b_tile + lane % K * 8));  // of K = 8, twice the same
  float c[4] = {};
  if constexpr (K == 16) {
    multiply_add(c, a, b[0], b[1], T{});
  } else {
    multiply_add(c, a, b[0], T{});
  }
  for (int i = 0; i < 4; ++i) out[lane * 4 + i] = c[i];
}

int print_matrices(void (*kernel)(uint32_t*), int registers) {
  std::vector<uint32_t> out(32 * registers);
  if (host::launch(kernel, 1, 32, 1024, out.data()) != cudaSuccess) return 1;
  for (const uint32_t both : out) std::printf("%u\n%u\n", both & 0xffff, both >> 16);
  return 0;
}

int print_sums(void (*kernel)(float*)) {
  std::vector<float> out(32 * 4);
  if (host::launch(kernel, 1, 32, 1024, out.data()) != cudaSuccess) return 1;
  for (const float sum : out) std::printf("%g\n", sum);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const bool sixteen = std::strcmp(argv[2], "16") == 0;
  const bool half = std::strcmp(argv[3], "float16") == 0;
  if (std::strcmp(argv[1], "ldmatrix") == 0) {
    const bool four = std::strcmp(argv[2], "4") == 0;
    const bool transposed = std::strcmp(argv[3], "1") == 0;
    if (four) return print_matrices(transposed ? print_matrices<4, true> : print_matrices<4, false>, 4);
    return print_matrices(transposed ? print_matrices<2, true> : print_matrices<2, false>, 2);
  }
  if (std::strcmp(argv[1], "movmatrix") == 0) return print_matrices(print_transposed, 1);
  if (std::strcmp(argv[1], "mma") == 0) {
    if (sixteen)
      return print_sums(half ? multiply_documented<Float16, 16> : multiply_documented<BFloat16, 16>);
    return print_sums(half ? multiply_documented<Float16, 8> : multiply_documented<BFloat16, 8>);
  }
  if (std::strcmp(argv[1], "loaded_mma") == 0) {
    if (sixteen) return print_sums(half ? multiply_loaded<Float16, 16> : multiply_loaded<BFloat16, 16>);
    return print_sums(half ? multiply_loaded<Float16, 8> : multiply_loaded<BFloat16, 8>);
  }
  return 2;
}
