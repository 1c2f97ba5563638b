// Log-probability of the target and entropy of rows of logits, and their gradient. torchlosses/log_probs.py derives the
// formulas. For a row of logits y with its maximum m, rest = Σ exp(y_j - m) over all j but one at the maximum,
// s = 1 + rest, and the mean distance D = Σ p_j (m - y_j):
//
//   log p_t  = (y_t - m) - log1p(rest)      H = log1p(rest) + D
//   gradient = exp(y_c - m) (-g / s - h / s (y_c - m + D))      and beside it g at the target
//
// Forward and backward look at a row in memory once each.
#pragma once

#include "exponentials.h"
#include "logits.h"

namespace torchlosses {
namespace INSTRUCTION_SET {

// It may write over the logits. The entry of the target is put right by the caller.
template <typename Stored>
inline void write_gradient_of_values(
    const Stored* y,
    Stored* out,
    int64_t classes,
    Compute<Stored> m,
    Compute<Stored> distance,
    Compute<Stored> g,
    Compute<Stored> h) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const auto entry = [&](Vector<Number> logits) __attribute__((always_inline)) {
    const Vector<Number> shifted = logits - m;
    return exp(shifted) * multiply_add(finite_exponent(shifted) + distance, h, all<Number>(g));
  };
  int64_t c = 0;
  for (; c + 2 * lanes <= classes; c += 2 * lanes) {
    const Pair<Number> logits = load_pair(y + c);
    store_pair(out + c, {entry(logits.first), entry(logits.second)});
  }
  for (; c < classes; c += lanes) {
    store_part(out + c, classes - c, entry(load_part(y + c, classes - c, m)));
  }
}

// A row of logits in memory or in a buffer, and its place among the values and in the state.
template <typename Stored>
struct RowOfValues {
  const Stored* y;
  Stored* out;  // nullptr: no gradient
  Target target;
  int64_t value;
  int64_t number;
};

// `steepness` is dy/dx where that is the same for all classes.
template <typename Stored>
inline void process_values(const LogProbabilities& arguments, const RowOfValues<Stored>& row, double steepness) {
  using Number = Compute<Stored>;
  const int64_t classes = arguments.sizes.classes, rows = arguments.sizes.rows(), t = row.target.index;
  const int64_t of_entropy = row.value + arguments.values_layout.classes;
  Number* state = static_cast<Number*>(arguments.state) + row.number;
  Number* values = static_cast<Number*>(arguments.losses);
  if (!row.target.active) {
    for (int64_t field = 0; values != nullptr && field < kLogProbabilitiesState; ++field) {
      state[field * rows] = 0;
    }
    if (values != nullptr) {
      values[row.value] = values[of_entropy] = 0;
    }
    if (row.out != nullptr) {
      std::memset(row.out, 0, static_cast<size_t>(classes) * sizeof(Stored));
    }
    return;
  }
  const Number at_target = widen(row.y[t]);
  if (values != nullptr) {
    const RowStatistics<Number> found = statistics<false, true>(row.y, classes, static_cast<Kept<Number>*>(nullptr));
    const double log_sum = log1p_of_rest(found.rest), distance = -found.products / (1 + static_cast<double>(found.rest));
    values[row.value] =
        static_cast<Number>(static_cast<double>(at_target) - static_cast<double>(found.maximum) - log_sum);
    values[of_entropy] = static_cast<Number>(log_sum + distance);
    // Which of nan or infinite logits is the largest says nothing.
    const bool correct = found.rest - found.rest == 0 && at_target == found.maximum &&
                         find(row.y + found.chunk, t - found.chunk, at_target) == t - found.chunk;
    state[0] = found.maximum;
    state[rows] = found.rest;
    state[2 * rows] = static_cast<Number>(distance);
    state[3 * rows] = correct ? Number(1) : Number(0);
  }
  if (row.out == nullptr) {
    return;
  }
  const Number m = state[0], distance = state[2 * rows], *grad = static_cast<const Number*>(arguments.grad_rows);
  const double rest = static_cast<double>(state[rows]), s = 1 + rest;
  const double g = steepness * static_cast<double>(grad[row.value]) / s;
  const double h = steepness * static_cast<double>(grad[of_entropy]) / s;
  const Number shifted = at_target - m;
  write_gradient_of_values(
      row.y, row.out, classes, m, distance, static_cast<Number>(-g), static_cast<Number>(-h));
  const double e = shifted == 0 ? 1.0 : static_cast<double>(exp_of(shifted));
  // 1 - p_t = (s - e_t) / s
  const double others = shifted == 0 ? rest : 1 + (rest - e);
  const double of_h = e == 0 ? 0 : e * (static_cast<double>(shifted) + static_cast<double>(distance));
  row.out[t] = narrow<Stored>(static_cast<Number>(g * others - h * of_h));
}

inline int64_t place_of_value(const LogProbabilities& arguments, int64_t sample, int64_t position) {
  return sample * arguments.values_layout.sample + position * arguments.values_layout.position;
}

template <typename Stored>
void log_probabilities_along_classes(const LogProbabilities& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  const Sizes& sizes = arguments.sizes;
  for (int64_t number = begin; number < end; ++number) {
    const int64_t sample = sizes.sample_of(number), position = sizes.position_of(number);
    const RowOfValues<Stored> row{
        row_at<Stored>(arguments.input, arguments.input_layout, sample, position),
        const_cast<Stored*>(row_at<Stored>(arguments.grad_input, arguments.grad_layout, sample, position)),
        Targets(arguments, nullptr, {sample, position, 0}).template at<Number>(0),
        place_of_value(arguments, sample, position),
        number};
    process_values(arguments, row, 1.0);
  }
}

template <typename Stored>
void log_probabilities_buffered(const LogProbabilities& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  const int64_t classes = arguments.sizes.classes;
  const Number scale = static_cast<Number>(arguments.logit_scale), cap = static_cast<Number>(arguments.logit_softcap);
  const bool gradient = arguments.grad_input != nullptr;
  RowBuffer<Number> buffer(arguments);
  std::vector<Number> slopes;
  for (int64_t unit = begin; unit < end; ++unit) {
    const Tile tile = rows_at(arguments, unit);
    Number* y = buffer.template read<Stored>(arguments.input, arguments.input_layout, tile);
    slopes.resize(static_cast<size_t>(gradient && cap != 0 ? tile.width * classes : 0));
    transform(y, tile.width * classes, scale, cap, slopes.empty() ? nullptr : slopes.data());
    const Targets targets(arguments, nullptr, tile);
    for (int64_t i = 0; i < tile.width; ++i) {
      Number* logits = y + i * classes;
      const RowOfValues<Number> row{
          logits,
          gradient ? logits : nullptr,
          targets.template at<Number>(i),
          place_of_value(arguments, tile.sample, tile.position + i),
          tile.sample * arguments.sizes.positions + tile.position + i};
      process_values(arguments, row, arguments.logit_scale);
      if (!slopes.empty() && row.target.active) {
        times_slopes(logits, slopes.data() + i * classes, classes);
      }
    }
    if (gradient) {
      buffer.template write<Stored>(arguments.grad_input, arguments.grad_layout, tile);
    }
  }
}

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
