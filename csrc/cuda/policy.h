// Compile-time sizes of the tiled kernels, apart from the kernels that use them.
#pragma once

namespace involution {

// Neighbouring positions of a row that a thread owns. Four float32 are one 16-byte access, and the window
// of KW + 3 inputs that they share is then a whole number of such accesses at every lane.
constexpr int kRun = 4;

// Points of a kernel row that a thread holds at a time, where the row has another width than 3, 5 and 7.
// Eight keep every piece of a window aligned for the widest access.
constexpr int kPiece = 8;

// Whether a kernel with this many points at a time takes rows of any width, piece by piece.
template <int KW>
constexpr bool kInPieces = KW == kPiece;

// The most channels that a thread accumulates at a time: 8 channels x 4 positions are 32 accumulators beside
// the KW x 4 kernel values, within the register budget below.
constexpr int kLaneChannels = 8;

// A small map on a large machine has few warps to hide what each of them waits for. There a thread takes
// fewer channels, down to these, until every multiprocessor has its share of kWarpsWanted warps. A kernel
// value then comes from shared memory for fewer multiply-adds, 13 accesses to 56 instead of 31 to 224 at a
// width of 7.
constexpr int kFewestLaneChannels = 2;
constexpr int kWarpsWanted = 16;

// Threads that share a run and split the channels of a group between them.
constexpr int kMostChannelLanes = 8;

// The register budget of a block: 65536 registers are 128 for each of 512 threads, which float32 needs,
// and 255, the most a thread can have, for each of 256, which float64 needs.
constexpr int most_threads(int element_size) { return element_size == 8 ? 256 : 512; }

// Channels that local correlation stages at a time; it keeps its sums in registers across stages.
constexpr int kCorrelationChannels = 16;

// Loads that a thread has in flight while it stages a tile.
constexpr int kStagedAtOnce = 8;

// ---- the banded kernels ------------------------------------------------------------------------------

// Neighbouring positions of a row that one product of matrices takes: the 16 rows of A.
constexpr int kBandRun = 16;

// Two runs to a warp: each lane then brings the kernel values of one position.
constexpr int kBandRunsOfWarp = 2;

// Channels of a stage: two matrices of 8 columns, or one of 16 rows in local correlation.
constexpr int kBandChannels = 16;

// Positions of the source that a run meets: 16 + 6 for a width of 7. They are the columns of its patch. From
// planes they start at a multiple of 8, up to 7 positions early, so that rows are staged 16 bytes at a time.
constexpr int kBandColumnsOfPixels = 24;
constexpr int kBandColumnsOfPlanes = 32;

constexpr int kVectorBytes = 16;

// Elements from a row of a patch to the next: an odd number of 16 bytes, so that no two of eight rows share
// banks.
constexpr int band_pitch(int columns) { return columns == 24 ? 24 : 40; }

constexpr int kBandMostThreads = 256;

// Blocks for whose registers a multiprocessor has room: each warp has one row of kernel values on its way,
// and the more warps there are, the more of them. Before compute capability 9.0, 80 registers are not enough
// for some of these kernels, and nowhere for the transposed operation, with its masks.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int band_blocks(bool) { return 2; }
#else
constexpr int band_blocks(bool mirrored) { return mirrored ? 2 : 3; }
#endif

}  // namespace involution
