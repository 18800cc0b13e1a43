#include "layout.h"

#include <algorithm>
#include <cstdlib>

namespace involution {

namespace {

// Blocks that a multiprocessor holds; `registers` of a thread.
int64_t resident_blocks(const DeviceLimits& limits, int64_t shared_bytes, int threads, int registers) {
  const int64_t by_shared = limits.shared_memory_per_multiprocessor / (shared_bytes + 1024);
  return std::min<int64_t>({by_shared, 65536 / (registers * threads), 2048 / threads, 32});
}

}  // namespace

// As many chunks as end soonest: the blocks of a multiprocessor share its memory, none makes a step in no
// time, and each begins with rows that its neighbour has too.
int Layout::choose_chunks(const Plan& plan, const DeviceLimits& limits) const {
  const int64_t resident =
      std::max<int64_t>(1, resident_blocks(limits, plan.shared_bytes, plan.threads, registers()));
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
    // A block alone on a multiprocessor that has room for more does not use all of it: as a prototype was
    // measured on an H200, one chunk of 14 rows of the transposed operation took 0.87 of the time of two.
    const double alone = resident > 1 ? (transposed_ ? 1.5 : 2) : 1;
    const double cost = std::max(static_cast<double>(of_processor) * (work + prologue / 2),
                                 waves * (work + prologue) * alone);
    if (best == 0 || cost < best * 0.999) best = cost, best_chunks = chunks;
  }
  return static_cast<int>(best_chunks);
}

namespace {

// Instructions of a warp for a row of a stream that so many warps share; a thread copies the same piece of
// all its segments, four at a time.
int row_cost(const Stream& stream, int warps) {
  const int turns = ceil_div(stream.segments, std::max(1, warps * 32 / stream.pieces));
  return 20 + (stream.piece_bytes == 2 ? turns * 10 : ceil_div(turns, 4) * 22);
}

int64_t bytes_of_step(const Stream& stream) {
  return int64_t{stream.next} * stream.slices * stream.segments * stream.pieces * stream.piece_bytes;
}

}  // namespace

// Gives each of the warps that copy one stream, so that the slowest is done soonest. There are more of them
// than the shape says where these are too few, or slower than the memory, and no fewer blocks fit a
// multiprocessor. False where a block has no room for them.
bool Layout::share_out(const DeviceLimits& limits, int64_t shared_bytes, int most_warps, March* march) const {
  March& m = *march;
  // Those that take the result away bring rows of the source at first, so a team's warps are the least of
  // both.
  const int team = ceil_div(m.source.pieces, 32);
  m.source.warps = team;
  m.second.warps = ceil_div(m.second.pieces, 32);
  m.result.warps = std::max(ceil_div(m.result.pieces, 32), team);
  m.halo = std::max(0, m.source.first - m.source.next);
  const auto warps = [&] { return m.source.warps + m.second.warps + m.result.warps; };
  const auto resident = [&](int copying) {
    return resident_blocks(limits, shared_bytes, (m.consumers + copying) * 32, registers());
  };
  // Of a later step.
  const auto step_cost = [&](int stream) {
    if (stream == 0) return ceil_div(m.source.next, m.source.warps / team) * row_cost(m.source, team);
    if (stream == 1) return m.second.next * row_cost(m.second, m.second.warps);
    return m.result.next * row_cost(m.result, m.result.warps);
  };
  // And until the first can be computed.
  const auto cost = [&](int stream) {
    const int halo = ceil_div(m.halo, m.result.warps / team) * row_cost(m.source, team);
    return stream == 2 ? halo + 2 * step_cost(2) : (m.stages + 1) * step_cost(stream);
  };
  const auto slower_than_memory = [&] {
    constexpr double kClocks = 3.5, kBytesAClock = 16;  // of an instruction, of a multiprocessor
    const double bytes =
        static_cast<double>(bytes_of_step(m.source) + bytes_of_step(m.second) + bytes_of_step(m.result));
    return kClocks * std::max({step_cost(0), step_cost(1), step_cost(2)}) >
           bytes / kBytesAClock * static_cast<double>(std::max<int64_t>(1, resident(warps())));
  };
  const int64_t residents =
      std::min<int64_t>(2, resident(std::max(m.producers, warps())));  // as many suffice
  for (;;) {
    const bool wanted = warps() < m.producers;
    const bool worth = warps() < most_warps && resident(warps() + team) >= residents && slower_than_memory();
    if (!wanted && !worth) break;
    // A further team for the source, if that is the slowest and there is a row for it.
    if (cost(0) >= std::max(cost(1), cost(2))) {
      if (warps() + team <= most_warps && m.source.warps / team < m.source.next) {
        m.source.warps += team;
        continue;
      }
      if (!wanted) break;  // more of the others would not help
    }
    ++(cost(1) >= cost(2) ? m.second : m.result).warps;
  }
  m.producers = warps();
  if (m.producers > most_warps) return false;
  m.team = team * 32;
  m.source_teams = m.source.warps / team;
  m.halo_teams = std::min(m.result.warps / team, std::max(m.halo, 1));
  for (Stream* stream : {&m.source, &m.second, &m.result}) {
    stream->step = (stream == &m.source ? team : stream->warps) * 32 / stream->pieces;
    stream->step_pitch = stream->step * stream->segment_pitch;
    stream->step_stride = static_cast<uint32_t>(stream->step * stream->segment_stride);
    stream->by_pieces = divisor(stream->pieces);
    stream->by_step = divisor(stream->step);
  }
  return true;
}

// False where a number is too large to be divided so.
bool Layout::prepare_divisors(March* march) const {
  March& m = *march;
  const bool correlation = operation_ == Operation::kCorrelation;
  bool exact = true;
  const auto set = [&](Divisor* to, int64_t largest, int64_t value) {
    value = std::max<int64_t>(value, 1);
    *to = divisor(value);
    exact = exact && largest * value < int64_t{1} << 31;
  };
  const int64_t height = transposed_ ? int64_t{m.input[kHeight]} + m.padding[kHeight] : m.output[kHeight];
  const int64_t rows = int64_t{m.kernel[kDepth]} * m.kernel[kHeight], threads = 1024;
  set(&m.by_team, threads, m.team);
  set(&m.by_packs, int64_t{m.packs} * m.strips, m.packs);
  set(&m.by_chunks, int64_t{m.chunks} * m.slices, m.chunks);
  set(&m.by_step_rows, height + m.step_rows + threads, m.step_rows);
  set(&m.by_runs, threads, m.runs);
  set(&m.by_group_channels, 2 * m.pack_channels, m.group_channels);
  set(&m.by_warps_of_run, threads, m.warps_of_run);
  set(&m.by_quads, threads, correlation ? m.pack_channels / m.group_channels : m.pack_channels / 4);
  set(&m.by_parts, (m.parts + 1) * rows, m.parts);
  set(&m.by_kernel_rows, rows, m.kernel[kHeight]);
  if (!transposed_) return exact;
  m.row_bias_quotient = ceil_div(m.kernel[kHeight], m.stride[kHeight]);
  m.row_bias = m.row_bias_quotient * m.stride[kHeight];
  set(&m.by_row_stride, height + m.padding[kHeight] + m.row_bias + m.stride[kHeight], m.stride[kHeight]);
  set(&m.by_depth_stride, int64_t{m.slices} + m.padding[kDepth], m.stride[kDepth]);
  set(&m.by_sets, height + m.sets_bias, m.sets);
  if (m.second.piece_columns == 0) {  // a position's values are pieces
    const int64_t bytes = int64_t{m.second.pieces} * m.second.piece_bytes;
    set(&m.by_group_bytes, bytes, m.weight_pitch.group);
    set(&m.by_row_bytes, bytes, m.weight_pitch.kernel_row);
  }
  return exact;
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
  m.flat =
      p_.input[kDepth] == 1 && p_.output[kDepth] == 1 && p_.kernel[kDepth] == 1 && p_.padding[kDepth] == 0;
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
  weight.by_packs_of_stride = divisor(std::max(1, m.group_channels / pack));
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
  m.second.rows = (ahead + 1) * m.second.next;
  m.result.next = ceil_div(rows_of_step, m.result.merged_rows);
  m.result.rows = (one_step ? 1 : 2) * m.result.next;
  int64_t shared = 0;
  for (Stream* stream : {&m.source, &m.second, &m.result}) {
    stream->slice_pitch = static_cast<int>(round_up(stream->slice_pitch, 16));
    stream->column_stride = stream->piece_columns == 0 ? static_cast<int>(stream->segment_stride)
                                                       : stream->piece_stride / stream->piece_columns;
    stream->next_stride = stream->row_stride * stream->merged_rows;
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
    m.warps_of_run = ceil_div(correlation ? groups : pack / unit, of_warp);
    const int64_t of_row = int64_t{m.runs} * m.warps_of_run;
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
      m.sets = std::max(m.kernel[kHeight], stride_height);
      m.sets_bias = static_cast<int>(round_up(m.padding[kHeight], m.sets));
      threads *= m.sets;
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
  if (shared > limits.shared_memory_per_block) return false;
  m.consumers = static_cast<int>(consumers);
  if (!share_out(limits, shared, static_cast<int>(most / 32 - consumers), &m)) return false;
  m.cleared = m.source.piece_bytes < 16 || (transposed_ && m.second.piece_bytes < 16);

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
  if (!prepare_divisors(&plan->march)) return false;
  plan->shape.chunks = plan->march.chunks;
  plan->blocks = p_.batch * m.packs * m.strips * m.slices * plan->march.chunks;
  plan->images = p_.batch;
  const int64_t rows_of_grid = int64_t{plan->march.chunks} * m.slices;
  return int64_t{m.packs} * m.strips < (int64_t{1} << 31) && rows_of_grid < 65536 && p_.batch < 65536;
}

}  // namespace involution
