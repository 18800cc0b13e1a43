#include "plan.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <sstream>

#include "../integer_math.h"
#include "measured_shapes.h"

namespace involution {

namespace {

constexpr int64_t kLargestSize = int64_t{1} << 29;  // of an axis, so that positions fit into 32 bits
constexpr int kMostSlices = 32;                     // of a kernel
constexpr int kMostTransposedRows = 7;              // whose sums a warp of the band kernels keeps

// Rows of 16 bytes that lie an odd number of them apart are in different banks, eight at a time.
int odd_pieces(int64_t bytes) { return static_cast<int>((ceil_div(bytes, 16) | 1) * 16); }

// The widest access, of 16 bytes at most, that divides all of these.
int widest(std::initializer_list<int64_t> bytes) {
  int64_t bits = 16;
  for (const int64_t value : bytes) bits |= value < 0 ? -value : value;
  return static_cast<int>(bits & -bits);
}

// A stride that is met, in bytes: that of an axis of one element is not.
int64_t met(int64_t stride, int64_t size, int element_size) { return size > 1 ? stride * element_size : 0; }

// A tensor that is laid over the frame of an activation.
struct Activation {
  ActivationStrides strides;
  const int64_t* frame;
  int alignment;
  bool channels_last;  // pixels can be copied by 16 bytes
};

// Lays out one problem in one shape.
class Layout {
 public:
  Layout(Operation operation, const Problem& p, int element_size, OperandAlignment alignment)
      : operation_(operation),
        p_(p),
        size_(element_size),
        half_(element_size == 2),
        transposed_(operation == Operation::kTranspose),
        stride_(static_cast<int>(p.stride[kWidth])),
        reach_(static_cast<int>((p.kernel[kWidth] - 1) / p.stride[kWidth])),
        x_(activation(p.x, p.input, alignment.x)),
        y_(activation(p.y, p.output, alignment.y)),
        weight_alignment_(alignment.w) {}

  // Why no fast kernel takes the problem; null if one may.
  const char* why_generic() const {
    if (size_ == 8) return "float64 has no other kernels";
    const int64_t kw = p_.kernel[kWidth];
    if (kw != 3 && kw != 5 && kw != 7 && (half_ || kw != 9)) {
      return half_ ? "the kernel's width is not 3, 5 or 7" : "the kernel's width is not 3, 5, 7 or 9";
    }
    if (p_.stride[kWidth] > 2) return "the stride along the width is above 2";
    if (p_.dilation[kHeight] > 1 || p_.dilation[kWidth] > 1) {
      return "the dilation comes with a stride, exceeds the map, or makes too many parts";
    }
    if (p_.channels_per_group % (half_ ? 8 : 4) != 0) {
      return half_ ? "the channels of a group are not a multiple of 8"
                   : "the channels of a group are not a multiple of 4";
    }
    if (p_.kernel[kDepth] > kMostSlices) return "the kernel has more than 32 slices";
    if (transposed_ && half_ && std::max(p_.kernel[kHeight], p_.stride[kHeight]) > kMostTransposedRows) {
      return "the transposed kernel or its stride is higher than 7 rows";
    }
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t most =
          std::max({p_.input[axis], p_.output[axis], p_.padding[axis], p_.kernel[axis] * p_.dilation[axis]});
      if (most > kLargestSize || p_.output[axis] * p_.stride[axis] > kLargestSize)
        return "an axis is too long";
    }
    const WeightStrides& w = p_.w;
    const bool points = follows(w.kernel[kHeight], p_.kernel[kHeight], p_.kernel[kWidth]) &&
                        follows(w.kernel[kDepth], p_.kernel[kDepth], p_.kernel[kHeight] * p_.kernel[kWidth]);
    if (!points) return "the points of the kernel tensor are not at one stride";
    return nullptr;
  }

  bool square() const {
    if (!half_ || p_.kernel[kHeight] != p_.kernel[kWidth] || p_.channels_per_group % 16 != 0) return false;
    if (transposed_) return p_.stride[kHeight] == stride_;
    return operation_ == Operation::kInvolution || p_.channels_per_group == 16;
  }

  bool source_channels_last() const { return source().channels_last; }

  // Columns of the result that a run covers.
  int run_columns() const { return (half_ ? 8 : 7) * (transposed_ ? stride_ : 1); }

  // False where `shape` does not exist or does not fit; `plan` is then unfinished.
  bool lay_out(const Shape& shape, const DeviceLimits& limits, Plan* plan) const;

 private:
  Activation activation(const ActivationStrides& s, const int64_t (&frame)[3], int alignment) const {
    const int widest_pixel = widest({met(s.batch, p_.batch, size_), met(s.space[0], frame[0], size_),
                                     met(s.space[1], frame[1], size_), met(s.space[2], frame[2], size_),
                                     alignment, p_.channels_per_group * size_});
    return {s, frame, alignment, s.channel == 1 && widest_pixel == 16};
  }

  const Activation& source() const { return transposed_ ? y_ : x_; }

  bool follows(int64_t stride, int64_t size, int64_t points) const {
    return size == 1 || stride == p_.w.kernel[kWidth] * points;
  }

  int pack_of(int wanted) const;
  void lay_out_activation(const Activation& tensor, bool as_pixels, int pack, int columns, int64_t origin,
                          int64_t step, Stream* stream, ActivationPitch* pitch) const;
  bool lay_out_weight(int groups, int columns, int64_t origin, int64_t step, Stream* stream,
                      WeightPitch* pitch) const;
  bool merge_rows(int rows, int64_t row, int64_t segment, int64_t others, int alignment, Stream* stream,
                  int* segment_pitch, int* row_pitch) const;
  int choose_phase(const Activation& tensor, int64_t origin, int64_t step, int most) const;
  int choose_chunks(const Plan& plan, const DeviceLimits& limits) const;

  Operation operation_;
  const Problem& p_;
  int size_;
  bool half_;
  bool transposed_;
  int stride_;
  int reach_;
  Activation x_;
  Activation y_;
  int weight_alignment_;
};

// The channels of a block: as many whole groups as divide their number, or a share of one group.
int Layout::pack_of(int wanted) const {
  const int64_t of_group = p_.channels_per_group;
  // The slices of a transposed kernel are taken from different depths, where those of a group do not follow
  // each other.
  const bool one_group = transposed_ && p_.kernel[kDepth] > 1;
  if (operation_ == Operation::kCorrelation || (wanted >= of_group && !one_group)) {
    int64_t groups = std::max<int64_t>(1, std::min(p_.groups, wanted / of_group));
    while (p_.groups % groups != 0) --groups;
    return static_cast<int>(groups * of_group);
  }
  const int64_t unit = half_ ? (square() ? 16 : 8) : 4;
  int64_t pack = std::min<int64_t>(wanted, of_group) / unit * unit;
  while (pack > unit && of_group % pack != 0) pack -= unit;
  return static_cast<int>(std::max(pack, unit));
}

// With `as_pixels` the channels of a pixel lie side by side in shared memory, whatever the format.
void Layout::lay_out_activation(const Activation& tensor, bool as_pixels, int pack, int columns,
                                int64_t origin, int64_t step, Stream* stream, ActivationPitch* pitch) const {
  const ActivationStrides& s = tensor.strides;
  stream->column_origin = static_cast<int>(origin);
  stream->column_step = static_cast<int>(step);
  stream->row_stride = s.space[kHeight] * size_;
  stream->depth_stride = s.space[kDepth] * size_;
  stream->batch_stride = s.batch * size_;
  stream->pack_stride = s.channel * pack * size_;
  stream->packs_of_stride = 1;
  stream->merged_rows = 1;
  if (tensor.channels_last) {
    stream->segments = columns;
    stream->pieces = pack * size_ / 16;
    stream->piece_bytes = stream->piece_stride = stream->piece_pitch = 16;
    stream->piece_columns = 0;
    stream->map_segments = static_cast<int>(tensor.frame[kWidth]);
    stream->segment_stride = s.space[kWidth] * size_;
    // A correlation of float32 reads the same channels of several pixels at once, from banks that it spreads
    // itself.
    const bool spread = as_pixels && operation_ == Operation::kCorrelation && pack * size_ % 128 == 0;
    *pitch = {spread ? pack * size_ : odd_pieces(pack * size_), size_, 0};
    stream->segment_pitch = pitch->column;
    stream->slice_pitch = columns * pitch->column;
    return;
  }
  stream->segments = pack;
  stream->segment_stride = s.channel * size_;
  stream->piece_bytes = size_;
  if (s.space[kWidth] == 1 && !as_pixels) {
    const int64_t* frame = tensor.frame;
    stream->piece_bytes = widest({met(s.batch, p_.batch, size_), met(s.space[0], frame[0], size_),
                                  met(s.space[1], frame[1], size_), s.channel * size_, frame[kWidth] * size_,
                                  origin * size_, step * size_, tensor.alignment});
  }
  stream->piece_columns = stream->piece_bytes / size_;
  stream->piece_stride = static_cast<int>(s.space[kWidth]) * stream->piece_bytes;
  stream->pieces = static_cast<int>(ceil_div(columns, stream->piece_columns));
  if (as_pixels) {
    *pitch = {odd_pieces(pack * size_), size_, 0};
    stream->segment_pitch = size_;
    stream->piece_pitch = pitch->column;
    stream->slice_pitch = columns * pitch->column;
  } else {
    *pitch = {size_, odd_pieces(round_up(columns, 8) * size_), 0};
    stream->segment_pitch = pitch->channel;
    stream->piece_pitch = stream->piece_bytes;
    stream->slice_pitch = pack * pitch->channel;
  }
}

// False where the groups of a block do not follow each other.
bool Layout::lay_out_weight(int groups, int columns, int64_t origin, int64_t step, Stream* stream,
                            WeightPitch* pitch) const {
  const WeightStrides& w = p_.w;
  const bool by_slice = transposed_ && p_.kernel[kDepth] > 1;
  const int64_t of_slice = p_.kernel[kHeight] * p_.kernel[kWidth];
  const int64_t of_group = by_slice ? of_slice : of_slice * p_.kernel[kDepth];
  const int64_t points = groups * of_group;
  if (groups > 1 && w.group != w.kernel[kWidth] * of_group) return false;

  stream->column_origin = static_cast<int>(origin);
  stream->column_step = static_cast<int>(step);
  stream->row_stride = w.space[kHeight] * size_;
  stream->depth_stride = w.space[kDepth] * size_;
  stream->batch_stride = w.batch * size_;
  stream->kernel_slice_stride = by_slice ? w.kernel[kDepth] * size_ : 0;
  int point_pitch, column_pitch;
  if (w.kernel[kWidth] == 1) {
    // What the beginning of a row of a block's kernel values is a multiple of.
    const int64_t rows =
        widest({met(w.batch, p_.batch, size_), met(w.space[0], p_.output[0], size_),
                met(w.space[1], p_.output[1], size_), met(groups * w.group, p_.groups / groups, size_),
                by_slice ? of_slice * size_ : 0, weight_alignment_});
    const int64_t of_position = points * size_;
    stream->piece_bytes = widest({rows, met(w.space[2], p_.output[2], size_), of_position});
    // Values of neighbouring positions that follow each other are one segment, where that makes wide pieces
    // of narrow ones: two groups of 3x3 float16 values are 36 bytes, four of them 144.
    const bool narrow = stream->piece_bytes < 8 && w.space[kWidth] == points;
    int of_segment = 1;
    for (const int several : {2, 4, 8}) {
      const bool whole = p_.output[kWidth] % several == 0 && origin % several == 0 && step % several == 0;
      const int bytes = widest({rows, several * of_position});
      if (narrow && whole && bytes > stream->piece_bytes) {
        of_segment = several;
        stream->piece_bytes = bytes;
      }
    }
    stream->segments = ceil_div_int(columns, of_segment);
    stream->map_segments = static_cast<int>(p_.output[kWidth]) / of_segment;
    stream->column_origin /= of_segment;
    stream->column_step /= of_segment;
    stream->pieces = static_cast<int>(of_segment * of_position / stream->piece_bytes);
    // By 16 bytes from 8 bytes in front of every second position, unless that passes the tensor's end.
    const int64_t end = (p_.batch - 1) * w.batch + (p_.output[0] - 1) * w.space[0] +
                        (p_.output[1] - 1) * w.space[1] + (p_.output[2] - 1) * w.space[2] +
                        (p_.groups - groups) * w.group + points;
    if (stream->piece_bytes == 8 && of_segment == 1 && half_ && operation_ != Operation::kCorrelation &&
        !by_slice && weight_alignment_ == 16 && end * size_ % 16 == 0) {
      stream->phased = 1;
      stream->piece_bytes = 16;
      stream->pieces = static_cast<int>(ceil_div(points * size_ + 8, 16));
    }
    stream->piece_columns = 0;
    stream->piece_stride = stream->piece_pitch = stream->piece_bytes;
    stream->segment_stride = of_segment * w.space[kWidth] * size_;
    point_pitch = size_;
    column_pitch = static_cast<int>(of_position);
    stream->segment_pitch = of_segment * column_pitch;
    if (of_segment == 1)
      stream->segment_pitch = column_pitch = odd_pieces(stream->pieces * stream->piece_bytes);
    stream->slice_pitch = stream->segments * stream->segment_pitch;
  } else {
    stream->segments = static_cast<int>(points);
    stream->segment_stride = w.kernel[kWidth] * size_;
    stream->piece_bytes = size_;
    if (w.space[kWidth] == 1) {
      stream->piece_bytes =
          widest({met(w.batch, p_.batch, size_), met(w.space[0], p_.output[0], size_),
                  met(w.space[1], p_.output[1], size_), w.kernel[kWidth] * size_,
                  met(groups * w.group, p_.groups / groups, size_), p_.output[kWidth] * size_, origin * size_,
                  step * size_, weight_alignment_});
    }
    stream->piece_columns = stream->piece_bytes / size_;
    stream->pieces = static_cast<int>(ceil_div(columns, stream->piece_columns));
    stream->piece_stride = static_cast<int>(w.space[kWidth]) * stream->piece_bytes;
    stream->piece_pitch = stream->piece_bytes;
    point_pitch = odd_pieces(static_cast<int64_t>(stream->pieces) * stream->piece_bytes);
    column_pitch = size_;
    stream->segment_pitch = point_pitch;
    stream->slice_pitch = static_cast<int>(points) * point_pitch;
  }
  const int row = static_cast<int>(p_.kernel[kWidth]) * point_pitch;
  const int slice = static_cast<int>(of_slice) * point_pitch;
  *pitch = {column_pitch, 0, point_pitch, row, slice, static_cast<int>(of_group) * point_pitch};
  stream->merged_rows = 1;
  return true;
}

// Makes one row of `rows` rows of a contiguous map as wide as the strip, which follow each other in memory,
// and one segment of all segments where these do so too. `row` and `segment` are strides, in elements;
// `others` has the bits of all strides between blocks, in bytes. False, and nothing is done, where rows do
// not follow each other.
bool Layout::merge_rows(int rows, int64_t row, int64_t segment, int64_t others, int alignment, Stream* stream,
                        int* segment_pitch, int* row_pitch) const {
  const int64_t width = p_.output[kWidth], height = p_.output[kHeight], map = width * height;
  if (rows < 2 || stream->piece_columns == 0 || row != width || stream->piece_stride != stream->piece_bytes) {
    return false;
  }
  *row_pitch = static_cast<int>(width) * size_;
  stream->merged_rows = rows;
  stream->column_origin = stream->column_step = 0;
  if (rows >= height && segment == map) {
    const int64_t bytes = map * stream->segments * size_;
    stream->piece_bytes = widest({bytes, others, alignment});
    stream->whole = 1;
    stream->pieces = stream->piece_columns = 1;
    stream->segments = static_cast<int>(bytes / stream->piece_bytes);
    stream->segment_stride = stream->segment_pitch = stream->piece_stride = stream->piece_pitch =
        stream->piece_bytes;
    *segment_pitch = static_cast<int>(map) * size_;
    stream->slice_pitch = static_cast<int>(bytes) + 64;  // what a run reads behind its columns
    return true;
  }
  // The transposed operation begins with any row.
  const int64_t start = (transposed_ ? 1 : rows) * width * size_;
  stream->piece_bytes = widest({start, segment * size_, others, alignment});
  stream->piece_columns = stream->piece_bytes / size_;
  stream->pieces = static_cast<int>(ceil_div(rows * width, stream->piece_columns));
  stream->piece_stride = stream->piece_pitch = stream->piece_bytes;
  *segment_pitch = odd_pieces(static_cast<int64_t>(stream->pieces) * stream->piece_bytes);
  stream->segment_pitch = *segment_pitch;
  stream->slice_pitch = stream->segments * *segment_pitch + 64;
  return true;
}

// How many columns in front of the first window are staged with it, so that pieces are as wide as can be.
int Layout::choose_phase(const Activation& tensor, int64_t origin, int64_t step, int most) const {
  if (tensor.channels_last || !half_) return 0;
  int best = 0, best_bytes = 0;
  for (int phase = 0; phase <= most; ++phase) {
    Stream stream{};
    ActivationPitch pitch{};
    lay_out_activation(tensor, false, 16, 16, origin - phase, step, &stream, &pitch);
    if (stream.piece_bytes > best_bytes) best = phase, best_bytes = stream.piece_bytes;
  }
  return best;
}

// As many chunks as end soonest: the blocks of a multiprocessor share its memory, none makes a step in no
// time, and each begins with rows that its neighbour has too.
int Layout::choose_chunks(const Plan& plan, const DeviceLimits& limits) const {
  const bool sums = plan.kind == PlanKind::kFma && operation_ == Operation::kCorrelation;
  const int registers = sums ? 128 : 96;
  int64_t resident = limits.shared_memory_per_multiprocessor / (plan.shared_bytes + 1024);
  resident = std::min<int64_t>({resident, 65536 / (registers * plan.threads), 2048 / plan.threads, 32});
  resident = std::max<int64_t>(resident, 1);
  const int64_t height = transposed_ ? p_.input[kHeight] : p_.output[kHeight];
  const March& m = plan.march;
  const int64_t rows = m.step_rows * (transposed_ ? p_.stride[kHeight] : 1);
  const int64_t steps = ceil_div(height, rows);
  const int64_t columns = p_.batch * m.packs * m.strips * m.slices;
  // In steps: what a chunk brings beyond its own, and what passes before the first results.
  const double halo = transposed_
                          ? static_cast<double>(p_.kernel[kHeight] - 1) / static_cast<double>(rows)
                          : 0.3 * static_cast<double>(p_.kernel[kHeight] - 1) / static_cast<double>(rows);
  const double prologue = 3;
  double best = 0;
  int64_t best_chunks = 1;
  for (int64_t chunks = 1; chunks <= steps; ++chunks) {
    const int64_t of_chunk = ceil_div(steps, chunks);
    if (ceil_div(steps, of_chunk) != chunks) continue;
    const int64_t blocks = columns * chunks;
    const int64_t of_processor = ceil_div(blocks, limits.multiprocessors);
    const double waves = static_cast<double>(ceil_div(of_processor, resident));
    const double work = static_cast<double>(of_chunk) + (chunks > 1 ? halo : 0);
    const double saturating = static_cast<double>(std::min<int64_t>(resident, 2));
    const double cost = std::max(static_cast<double>(of_processor) * (work + prologue / 2),
                                 waves * (work + prologue) * saturating);
    if (best == 0 || cost < best * 0.999) best = cost, best_chunks = chunks;
  }
  return static_cast<int>(best_chunks);
}

bool Layout::lay_out(const Shape& shape, const DeviceLimits& limits, Plan* plan) const {
  const bool correlation = operation_ == Operation::kCorrelation;
  March m{};
  for (int axis = 0; axis < 3; ++axis) {
    m.input[axis] = static_cast<int>(p_.input[axis]);
    m.output[axis] = static_cast<int>(p_.output[axis]);
    m.kernel[axis] = static_cast<int>(p_.kernel[axis]);
    m.stride[axis] = static_cast<int>(p_.stride[axis]);
    m.padding[axis] = static_cast<int>(p_.padding[axis]);
  }
  m.depth_dilation = static_cast<int>(p_.dilation[kDepth]);
  m.group_channels = static_cast<int>(p_.channels_per_group);
  const int pack = pack_of(shape.pack);
  const int groups = std::max(1, pack / m.group_channels);
  m.pack_channels = pack;
  m.packs = static_cast<int>(p_.groups * p_.channels_per_group / pack);
  const int width = transposed_ ? m.input[kWidth] : m.output[kWidth];
  const int height = transposed_ ? m.input[kHeight] : m.output[kHeight];
  m.slices = transposed_ ? m.input[kDepth] : m.output[kDepth];
  m.runs = static_cast<int>(std::min<int64_t>(shape.runs, ceil_div(width, run_columns())));
  m.step_rows = half_ || !transposed_ ? std::min(shape.rows, static_cast<int>(p_.output[kHeight])) : 1;
  m.stages = shape.stages;
  m.producers = shape.producers;
  m.parts = 1;

  const int run = half_ ? 8 : 7, kw = m.kernel[kWidth];
  const int strip = m.runs * run_columns();  // columns of the result
  m.residue = transposed_ ? m.padding[kWidth] % stride_ : 0;
  m.strips = static_cast<int>(ceil_div(width, strip));

  // The source, and what is staged beside its windows.
  const int64_t source_step = transposed_ ? strip / stride_ : static_cast<int64_t>(strip) * stride_;
  const int64_t first_position = floor_div(m.padding[kWidth], stride_) - reach_;
  const int64_t window = transposed_ ? first_position : -m.padding[kWidth];
  const int carry = transposed_ ? stride_ - 1 : 0;
  const int most_phase = transposed_ ? 8 - reach_ - carry : 8 * (stride_ + 1) - 7 * stride_ - kw;
  m.phase = choose_phase(source(), window, source_step, most_phase);
  const int source_columns = half_         ? (transposed_ ? m.runs * 8 + 8 : strip * stride_ + 8)
                             : transposed_ ? m.runs * run + reach_ + m.residue
                                           : (strip - 1) * stride_ + kw;
  // FMA kernels have pixels of channels in either format.
  lay_out_activation(source(), !half_, pack, source_columns, window - m.phase, source_step, &m.source,
                     &m.source_pitch);

  // The other operand and the result.
  int weight_columns = strip;
  int64_t weight_origin = 0, weight_step = strip;
  if (transposed_) {
    const int64_t pieces = 16 / size_;
    m.weight_phase = static_cast<int>(((first_position % pieces) + pieces) % pieces);
    weight_origin = first_position - m.weight_phase;
    weight_step = source_step;
    weight_columns = m.runs * run + reach_ + (half_ ? carry : m.residue) + m.weight_phase;
  }
  Stream& weight = correlation ? m.result : m.second;
  Stream& other = correlation ? m.second : m.result;
  if (!lay_out_weight(groups, weight_columns, weight_origin, weight_step, &weight, &m.weight_pitch))
    return false;
  weight.pack_stride = groups * p_.w.group * size_;
  weight.packs_of_stride = std::max(1, m.group_channels / pack);
  lay_out_activation(transposed_ ? x_ : y_, !half_ && correlation, pack, strip, 0, strip, &other,
                     &m.other_pitch);

  m.result_channels_last = correlation || other.piece_columns == 0;

  // A strip as wide as the map: rows that follow each other are brought as one.
  const bool one_strip = m.strips == 1 && (!transposed_ || half_);
  if (one_strip && m.kernel[kDepth] * (transposed_ ? 1 : 0) < 2) {
    const WeightStrides& w = p_.w;
    const int64_t others = met(w.batch, p_.batch, size_) | met(w.space[0], p_.output[0], size_) |
                           met(groups * w.group, p_.groups / groups, size_);
    int point = m.weight_pitch.point, row = 0;
    if (merge_rows(m.step_rows, w.space[kHeight], w.kernel[kWidth], others, weight_alignment_, &weight,
                   &point, &row)) {
      const int scale = point / size_;
      const int of_slice = m.kernel[kHeight] * m.kernel[kWidth], of_group = of_slice * m.kernel[kDepth];
      m.weight_pitch = {size_,
                        row,
                        point,
                        m.kernel[kWidth] * scale * size_,
                        of_slice * scale * size_,
                        of_group * scale * size_};
      if (transposed_) m.weight_phase = static_cast<int>(first_position);
    }
  }
  if (one_strip && operation_ == Operation::kInvolution && !m.result_channels_last) {
    const ActivationStrides& y = p_.y;
    const int64_t others =
        met(y.batch, p_.batch, size_) | met(y.space[0], p_.output[0], size_) | y.channel * pack * size_;
    int channel = m.other_pitch.channel, row = 0;
    if (merge_rows(m.step_rows, y.space[kHeight], y.channel, others, y_.alignment, &other, &channel, &row)) {
      m.other_pitch = {size_, channel, row};
    }
  }

  // Rows and rings. Of a block's only step there is one.
  const int stride_height = m.stride[1];
  const int rows_of_step = m.step_rows * (transposed_ ? stride_height : 1);
  const bool one_step = !transposed_ && m.step_rows >= height;
  const int ahead = one_step ? 0 : m.stages - 1;
  m.source.slices = m.kernel[kDepth];
  m.second.slices = transposed_ ? m.kernel[kDepth] : 1;
  m.result.slices = 1;
  m.source.first = transposed_ ? m.step_rows : (m.step_rows - 1) * stride_height + m.kernel[kHeight];
  m.source.next = m.step_rows * (transposed_ ? 1 : stride_height);
  m.source.rows = m.source.first + ahead * m.source.next;
  m.second.next = ceil_div(m.step_rows, m.second.merged_rows);
  m.second.first = m.second.next;
  m.second.rows = (ahead + 1) * m.second.next;
  m.result.next = ceil_div(rows_of_step, m.result.merged_rows);
  m.result.rows = (one_step ? 1 : 2) * m.result.next;
  int64_t shared = 0;
  for (Stream* stream : {&m.source, &m.second, &m.result}) {
    stream->slice_pitch = static_cast<int>(round_up(stream->slice_pitch, 16));
    stream->column_stride = stream->piece_columns == 0 ? static_cast<int>(stream->segment_stride)
                                                       : stream->piece_stride / stream->piece_columns;
    stream->step_bytes = stream->row_stride * stream->merged_rows;
    // Places in a row of global memory are 32 bits; a block of fewer channels may have shorter ones.
    const int64_t columns = std::max(p_.input[kWidth], p_.output[kWidth]) + 4096;
    const int64_t reach = std::abs(stream->segment_stride) *
                              std::max<int64_t>(stream->segments, stream->piece_columns == 0 ? columns : 0) +
                          std::abs(int64_t{stream->piece_stride}) *
                              std::max<int64_t>(stream->pieces, stream->piece_columns == 0 ? 0 : columns);
    if (reach >= int64_t{1} << 31) return false;
    const int64_t row = static_cast<int64_t>(stream->slice_pitch) * stream->slices;
    if (row > limits.shared_memory_per_block) return false;
    stream->row_pitch = static_cast<int>(row);
    stream->base = static_cast<int>(shared);
    shared += row * stream->rows;
    if (shared > limits.shared_memory_per_block) return false;
    stream->ring = stream->row_pitch * stream->rows;
  }
  if (m.weight_pitch.row == 0) m.weight_pitch.row = weight.row_pitch;
  if (m.other_pitch.row == 0) m.other_pitch.row = other.row_pitch;

  // Warps.
  int64_t consumers;
  if (half_) {
    const int unit = square() ? 16 : 8;
    const int of_warp = transposed_ ? 2 / stride_ : 2;
    const int64_t of_row = m.runs * ceil_div(correlation ? groups : pack / unit, of_warp);
    m.warp_rows = transposed_
                      ? 1
                      : static_cast<int>(std::min<int64_t>(
                            m.step_rows, std::max<int64_t>(1, (kBandThreads / 32 - m.producers) / of_row)));
    // As few rows more for some warps than for others as there can be.
    m.warp_rows = ceil_div(m.step_rows, ceil_div(m.step_rows, m.warp_rows));
    consumers = of_row * m.warp_rows;
    // A unit that does not exist is read behind the last one that does.
    if (!correlation && pack / unit % of_warp != 0) shared += int64_t{unit} * m.source_pitch.channel;
  } else {
    int64_t threads = static_cast<int64_t>(m.runs) * (correlation ? groups : pack / 4) * m.step_rows;
    if (transposed_) {
      threads *= std::max(m.kernel[kHeight], stride_height);
    } else if (correlation) {
      m.parts = std::min(m.kernel[kDepth] * m.kernel[kHeight], std::max(1, shape.parts));
      threads *= m.parts;
    } else {
      m.parts = std::min(m.kernel[kHeight], std::max(1, shape.parts));
      m.sums_base = static_cast<int>(shared);
      shared += (m.parts - 1) * threads * kFmaRunBytes;
      threads *= m.parts;
    }
    consumers = ceil_div(threads, 32);
  }
  const int most = half_ ? kBandThreads : correlation ? kFmaCorrelationThreads : kFmaThreads;
  if ((consumers + m.producers) * 32 > most || shared > limits.shared_memory_per_block) return false;
  m.consumers = static_cast<int>(consumers);
  const int pieces = std::max({m.source.pieces, m.second.pieces, m.result.pieces});
  if (pieces > m.producers * 32) return false;  // a thread copies the same piece of each of its segments

  const int warps = m.consumers + m.producers;
  const int team = std::max(static_cast<int>(ceil_div(m.source.pieces, 32)), warps / m.source.first);
  if (team > warps) return false;
  m.team = team * 32;
  m.teams = std::min(warps / team, m.source.first);

  plan->kind = half_ ? PlanKind::kBand : PlanKind::kFma;
  plan->shape = shape;
  plan->square = square();
  plan->source_channels_last = source().channels_last;
  plan->shared_bytes = shared;
  plan->threads = (m.consumers + m.producers) * 32;
  m.chunks = 1;
  plan->march = m;
  const int rows = rows_of_step;
  const int64_t steps = ceil_div(height, rows);
  const int64_t chunks = m.second.whole     ? 1
                         : shape.chunks > 0 ? std::min<int64_t>(shape.chunks, steps)
                                            : choose_chunks(*plan, limits);
  plan->march.chunk_rows = static_cast<int>(ceil_div(steps, chunks)) * rows;
  plan->march.chunks = static_cast<int>(ceil_div(height, plan->march.chunk_rows));
  plan->shape.chunks = plan->march.chunks;
  plan->blocks = p_.batch * m.packs * m.strips * m.slices * plan->march.chunks;
  plan->images = p_.batch;
  const int64_t rows_of_grid = int64_t{plan->march.chunks} * m.slices;
  return int64_t{m.packs} * m.strips < (int64_t{1} << 31) && rows_of_grid < 65536 && p_.batch < 65536;
}

// The shape that was measured for the most similar problem.
Shape measured_shape(Operation operation, const Problem& p, bool half, const Layout& layout) {
  const int64_t width = operation == Operation::kTranspose ? p.input[kWidth] : p.output[kWidth];
  const auto planes = static_cast<double>(std::max<int64_t>(1, p.batch * p.groups * p.channels_per_group));
  const MeasuredShape* nearest = nullptr;
  double least = 0;
  for (const MeasuredShape& row : kMeasuredShapes) {
    if (row.operation != operation || row.half != half ||
        row.channels_last != layout.source_channels_last()) {
      continue;
    }
    // A map half or twice as wide counts as much as another width of the kernel, another stride as much as
    // both. Of maps of the same width, many want other blocks than few.
    const double distance = std::abs(std::log2(static_cast<double>(width) / row.width)) +
                            ((row.kernel < 7) != (p.kernel[kWidth] < 7) ? 1 : 0) +
                            (row.stride != p.stride[kWidth] ? 2 : 0) +
                            0.15 * std::abs(std::log2(planes / static_cast<double>(row.planes)));
    if (nearest == nullptr || distance < least) nearest = &row, least = distance;
  }
  if (nearest == nullptr) return half ? Shape{64, 4, 1, 0, 3, 4, 1} : Shape{32, 4, 2, 0, 2, 4, 1};
  Shape shape = nearest->shape;
  // What is a whole map there may not be one here.
  if (shape.rows > 1 && p.output[kHeight] > 2 * nearest->width) shape.rows = std::min(shape.rows, 2);
  return shape;
}

// INVOLUTION_CUDA_PLAN="runs=4 stages=3 producers=6" overrides parts of a shape, for measuring.
void override_shape(Shape* shape, bool* generic) {
  const char* text = std::getenv("INVOLUTION_CUDA_PLAN");
  if (text == nullptr) return;
  std::istringstream words(text);
  std::string word;
  while (words >> word) {
    if (word == "generic") *generic = true;
    const size_t equals = word.find('=');
    if (equals == std::string::npos) continue;
    const std::string name = word.substr(0, equals);
    const int value = std::atoi(word.c_str() + equals + 1);
    if (value < 1) continue;
    if (name == "pack") shape->pack = value;
    if (name == "runs") shape->runs = value;
    if (name == "rows") shape->rows = value;
    if (name == "chunks") shape->chunks = value;
    if (name == "stages") shape->stages = std::min(std::max(value, 2), 4);
    if (name == "producers") shape->producers = value;
    if (name == "parts") shape->parts = value;
  }
}

// Less of a block, until it fits; false where nothing is left to take away.
bool shrink(Shape* shape) {
  if (shape->runs > 1) {
    shape->runs = (shape->runs + 1) / 2;
  } else if (shape->rows > 1) {
    shape->rows /= 2;
  } else if (shape->pack > 16) {
    shape->pack /= 2;
  } else if (shape->stages > 2) {
    shape->stages = 2;
  } else if (shape->producers < 8) {
    shape->producers = 8;  // long rows of small pieces
  } else if (shape->parts > 1) {
    shape->parts /= 2;
  } else if (shape->pack > 4) {
    shape->pack /= 2;
  } else {
    return false;
  }
  return true;
}

}  // namespace

Plan make_plan(Operation operation, const Problem& problem, int element_size, OperandAlignment alignment,
               const DeviceLimits& limits) {
  Plan plan{};
  const Layout layout(operation, problem, element_size, alignment);
  plan.reason = layout.why_generic();
  if (plan.reason != nullptr) return plan;
  Shape shape = measured_shape(operation, problem, element_size == 2, layout);
  bool generic = false;
  override_shape(&shape, &generic);
  if (generic) {
    plan.reason = "INVOLUTION_CUDA_PLAN asks for it";
    return plan;
  }
  const bool forced = std::getenv("INVOLUTION_CUDA_PLAN") != nullptr;
  do {
    if (layout.lay_out(shape, limits, &plan)) {
      // Fewer channels for each of more blocks, where half of the multiprocessors or more would have none.
      Plan more{};
      while (!forced && 2 * plan.blocks <= limits.multiprocessors && shape.pack > 16) {
        shape.pack /= 2;
        if (!layout.lay_out(shape, limits, &more) || more.blocks <= plan.blocks) break;
        plan = more;
      }
      plan.reason = element_size == 2 ? "band" : "fma";
      return plan;
    }
  } while (shrink(&shape));
  plan = Plan{};
  plan.reason = "no block fits into shared memory and the grid";
  return plan;
}

std::string describe(const Plan& plan) {
  std::ostringstream text;
  if (plan.kind == PlanKind::kGeneric) {
    text << "generic: " << plan.reason;
    return text.str();
  }
  const March& m = plan.march;
  text << (plan.kind == PlanKind::kBand ? "band" : "fma") << (plan.square ? " square" : "")
       << (plan.source_channels_last ? " channels_last" : " contiguous") << ": " << plan.blocks
       << " blocks of " << m.consumers << " + " << m.producers << " warps and " << plan.shared_bytes
       << " bytes; " << m.pack_channels << " channels, " << m.strips << " strips of " << m.runs << " runs, "
       << m.chunks << " chunks of " << m.chunk_rows << " rows, " << m.step_rows << " rows a step, "
       << m.stages << " stages, " << m.parts << " parts; pieces of " << m.source.piece_bytes << ", "
       << m.second.piece_bytes << " and " << m.result.piece_bytes << " bytes";
  return text.str();
}

}  // namespace involution
