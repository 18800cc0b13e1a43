// How the rows of each tensor lie in memory and in shared memory, and how wide the pieces are that are copied
// at once.

#include "layout.h"

namespace involution {

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
  stream->by_packs_of_stride = divisor(1);
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
    // Tensor cores read and write 16 bytes, a thread of an FMA kernel stores four channels one by one.
    *pitch = half_ ? ActivationPitch{size_, odd_pieces(round_up(columns, 8) * size_), 0}
                   : ActivationPitch{size_, odd_pieces(columns * size_, stream->piece_bytes), 0};
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
    // Those of 8 bytes are read in a way of their own, below.
    const bool stored = operation_ == Operation::kCorrelation;
    const bool narrow = stream->piece_bytes < (stored ? 16 : 8) && w.space[kWidth] == points;
    int of_segment = 1;
    for (const int several : {2, 4, 8}) {
      const bool whole = p_.output[kWidth] % several == 0 && origin % several == 0 && step % several == 0;
      const int bytes = widest({rows, several * of_position});
      if (narrow && whole && bytes > stream->piece_bytes) {
        of_segment = several;
        stream->piece_bytes = bytes;
      }
    }
    stream->segments = ceil_div(columns, of_segment);
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
  *segment_pitch = odd_pieces(static_cast<int64_t>(stream->pieces) * stream->piece_bytes,
                              half_ ? 16 : stream->piece_bytes);
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

}  // namespace involution
