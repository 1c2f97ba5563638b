// Cross-entropy with what a row's loss may have beside: y = c tanh(x / c) in place of the logits x, a weight s of the row,
// and λ l² with l = log Σ exp(y_j). torchlosses/cross_entropy.py derives the formulas. For a row:
//
//   loss     = s (A log1p(rest) - Σ_c a_c (y_c - m) + λ l²)
//   gradient = g s ((A + 2 λ l) e_c / (1 + rest) - a_c) dy_c/dx_c
//
// Row after row, as numbers of the compute dtype that are neighbours in memory: a row that is not is copied to a buffer
// first, and a capped one is computed there. So one text serves every dtype and layout, with the loops of the plain loss.
#pragma once

#include <vector>

#include "cross_entropy.h"

namespace torchlosses {
namespace INSTRUCTION_SET {

// The rows that are read together: one, or neighbouring positions of a sample.
inline Tile rows_at(const CrossEntropy& arguments, int64_t unit) {
  return tile_at(arguments.sizes, arguments.walk == Walk::along_classes ? 1 : arguments.tile, unit);
}

// The rows of a tile in a tensor, one after the other; a row's own memory where nothing has to be done to it.
template <typename Stored>
class RowBuffer {
 public:
  using Number = Compute<Stored>;

  explicit RowBuffer(const CrossEntropy& arguments)
      : classes_(arguments.sizes.classes), along_classes_(arguments.walk == Walk::along_classes) {}

  const Number* read(const void* base, const Layout& layout, const Tile& tile, bool copy) {
    const Stored* x = row_at<Stored>(base, layout, tile.sample, tile.position);
    if constexpr (std::is_same_v<Stored, Number>) {
      if (along_classes_ && !copy) {
        return x;
      }
    }
    Number* to = room(tile.width);
    if (along_classes_) {
      constexpr int64_t lanes = kLanes<Number>;
      for (int64_t c = 0; c < classes_; c += lanes) {
        store_part(to + c, classes_ - c, load_part(x + c, classes_ - c, Number(0)));
      }
      return to;
    }
    for (int64_t c = 0; c < classes_; ++c) {
      for (int64_t i = 0; i < tile.width; ++i) {
        to[i * classes_ + c] = widen(x[c * layout.classes + i * layout.position]);
      }
    }
    return to;
  }

  Number* room(int64_t width) {
    numbers_.resize(static_cast<size_t>(width * classes_));
    return numbers_.data();
  }

  void write(const Number* from, void* base, const Layout& layout, const Tile& tile) const {
    Stored* out = const_cast<Stored*>(row_at<Stored>(base, layout, tile.sample, tile.position));
    if (along_classes_) {
      constexpr int64_t lanes = kLanes<Number>;
      for (int64_t c = 0; c < classes_; c += lanes) {
        store_part(out + c, classes_ - c, load_part(from + c, classes_ - c, Number(0)));
      }
      return;
    }
    for (int64_t c = 0; c < classes_; ++c) {
      for (int64_t i = 0; i < tile.width; ++i) {
        out[c * layout.classes + i * layout.position] = narrow<Stored>(from[i * classes_ + c]);
      }
    }
  }

 private:
  int64_t classes_;
  bool along_classes_;
  std::vector<Number> numbers_;
};

// y = c tanh(x / c) over x, and dy/dx where it is asked for.
template <typename Number>
inline void cap_logits(Number* x, int64_t count, Number cap, Number* slopes) {
  constexpr int64_t lanes = kLanes<Number>;
  for (int64_t i = 0; i < count; i += lanes) {
    const Tanh<Number> result = tanh<Number>(load_part(x + i, count - i, Number(0)) / cap);
    store_part(x + i, count - i, result.value * cap);
    if (slopes != nullptr) {
      store_part(slopes + i, count - i, result.slope);
    }
  }
}

// Σ exp(y_j - m) (y_j - m), where a class without probability counts for nothing.
template <typename Number>
inline double sum_of_products(const Number* y, int64_t count, Number m) {
  constexpr int64_t lanes = kLanes<Number>, few = 32 * lanes;
  double result = 0;
  for (int64_t start = 0; start < count; start += few) {
    const int64_t end = count - start < few ? count : start + few;
    Vector<Number> part{};
    for (int64_t c = start; c < end; c += lanes) {
      const Vector<Number> shifted = load_part(y + c, end - c, m) - m;
      const Vector<Number> e = exp(shifted);
      part += e == Number(0) ? Vector<Number>{} : e * shifted;
    }
    result += sum<Number>(part);
  }
  return result;
}

// What is the same for all rows of a call.
template <typename Number>
struct RowOptions {
  explicit RowOptions(const CrossEntropy& arguments)
      : weight(static_cast<const Number*>(arguments.weight)),
        sample_weight(static_cast<const Number*>(arguments.sample_weight)),
        classes(arguments.sizes.classes),
        smoothing(arguments.label_smoothing),
        spread(arguments.label_smoothing / static_cast<double>(arguments.sizes.classes)),
        cap(static_cast<Number>(arguments.logit_softcap)),
        indices(arguments.indices != nullptr) {}

  Number sample_weight_of(int64_t row) const {
    return sample_weight == nullptr ? Number(1) : sample_weight[row];
  }
  Number weight_of(int64_t index) const {
    return weight == nullptr ? Number(1) : weight[index];
  }

  const Number* weight;
  const Number* sample_weight;
  int64_t classes;
  double smoothing;
  double spread;
  Number cap;  // 0: none
  bool indices;
};

template <typename Number>
inline void write_row_statistics(
    const CrossEntropy& arguments,
    const RowOptions<Number>& options,
    const Number* y,
    const Number* t,
    int64_t row,
    int64_t index,
    RowStatistics<Number> of_row,
    Number log_sum) {
  const int64_t rows = arguments.sizes.rows();
  Number* out = static_cast<Number*>(arguments.statistics) + row;
  double log_probability;
  int64_t expected = index;
  if (options.indices) {
    log_probability = static_cast<double>(y[index] - of_row.maximum) - static_cast<double>(log_sum);
  } else {
    double total = 0, weighted = 0;
    weigh(y, t, Shares<Number>{nullptr, Number(1), Number(0)}, options.classes, of_row.maximum, total, weighted);
    log_probability = weighted - total * static_cast<double>(log_sum);
    expected = find(t, options.classes, maximum_of(t, options.classes));
  }
  // Which of nan or infinite logits is the largest says nothing.
  const bool usable = of_row.rest - of_row.rest == 0;
  const double mean = sum_of_products(y, options.classes, of_row.maximum) / (1.0 + static_cast<double>(of_row.rest));
  out[0] = of_row.maximum + log_sum;
  out[rows] = static_cast<Number>(log_probability);
  out[2 * rows] = usable && find(y, options.classes, of_row.maximum) == expected ? Number(1) : Number(0);
  out[3 * rows] = static_cast<Number>(static_cast<double>(log_sum) - mean);
}

template <typename Number>
inline void forward_row(
    const CrossEntropy& arguments,
    const RowOptions<Number>& options,
    const Number* y,
    const Number* t,
    int64_t row,
    Target target) {
  const Number s = options.sample_weight_of(row);
  Number& loss = static_cast<Number*>(arguments.losses)[row];
  Number& maximum = static_cast<Number*>(arguments.maximum)[row];
  Number& rest = static_cast<Number*>(arguments.rest)[row];
  if (!target.active || s == 0) {
    loss = maximum = rest = 0;
    for (int64_t field = 0; arguments.statistics != nullptr && field < kRowStatistics; ++field) {
      static_cast<Number*>(arguments.statistics)[field * arguments.sizes.rows() + row] = 0;
    }
    return;
  }
  const RowStatistics<Number> of_row = statistics(y, options.classes);
  maximum = of_row.maximum;
  rest = of_row.rest;
  const Number log_sum = log1p_of(of_row.rest);
  double total = 0, weighted = 0;
  if (!options.indices || options.smoothing != 0) {
    const Shares<Number> shares =
        options.indices
            ? Shares<Number>{options.weight, Number(0), Number(1)}
            : Shares<Number>{
                  options.weight, Number(1 - options.smoothing), static_cast<Number>(options.spread)};
    weigh(y, t, shares, options.classes, maximum, total, weighted);
  }
  double result = total * log_sum - weighted;
  if (options.indices) {
    const Number w = options.weight_of(target.index);
    const double hard = static_cast<double>(log_sum - (y[target.index] - maximum)) * w;
    result = options.smoothing == 0 ? hard : (1 - options.smoothing) * hard + result * options.spread;
    total = (1 - options.smoothing) * w + options.spread * arguments.weight_sum;
  }
  if (arguments.z_loss != 0 && total != 0) {
    const double log_sum_exp = static_cast<double>(maximum) + static_cast<double>(log_sum);
    result += arguments.z_loss * log_sum_exp * log_sum_exp;
  }
  loss = static_cast<Number>(result * s);
  if (arguments.statistics != nullptr) {
    write_row_statistics(arguments, options, y, t, row, target.index, of_row, log_sum);
  }
}

template <typename Stored>
void extended_forward(const CrossEntropy& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  const RowOptions<Number> options(arguments);
  RowBuffer<Stored> logits(arguments), shares(arguments);
  for (int64_t unit = begin; unit < end; ++unit) {
    const Tile tile = rows_at(arguments, unit);
    const Number* y = logits.read(arguments.input, arguments.input_layout, tile, options.cap != 0);
    if (options.cap != 0) {
      cap_logits(const_cast<Number*>(y), tile.width * options.classes, options.cap, static_cast<Number*>(nullptr));
    }
    const Number* t =
        options.indices ? nullptr : shares.read(arguments.shares, arguments.target_layout, tile, false);
    for (int64_t i = 0; i < tile.width; ++i) {
      const int64_t position = tile.position + i, start = i * options.classes;
      const Target target =
          options.indices ? target_of<Number>(arguments, tile.sample, position) : Target{0, true};
      const int64_t row = tile.sample * arguments.sizes.positions + position;
      forward_row(arguments, options, y + start, t == nullptr ? nullptr : t + start, row, target);
    }
  }
}

// g ((A + k) p - a) for a row of probabilities, k = 2 λ l.
template <typename Number>
inline void write_probability_gradient(
    const RowOptions<Number>& options,
    const Number* y,
    const Number* t,
    Number* out,
    Number m,
    Number rest,
    Number g,
    double slope_of_log_sum) {
  constexpr int64_t lanes = kLanes<Number>;
  const Shares<Number> shares{
      options.weight, Number(1 - options.smoothing), static_cast<Number>(options.spread)};
  const int64_t place = find(y, options.classes, m);
  double total = 0, others = 0;
  add_shares(t, shares, options.classes, place, total, others);
  const double s = 1.0 + static_cast<double>(rest);
  const double added = total != 0 ? slope_of_log_sum : 0;
  const Number factor = static_cast<Number>((total + added) / s);
  for (int64_t c = 0; c < options.classes; c += lanes) {
    const int64_t count = options.classes - c < lanes ? options.classes - c : lanes;
    const Vector<Number> e = exp(load_part(y + c, count, m) - m);
    store_part(out + c, count, (e * factor - shares.at(t, c, count)) * g);
  }
  if (place < options.classes) {
    // A p - a = Σ_{j≠i} a_j - A Σ_{j≠i} p_j at the most probable class i, and p_i = 1 / s.
    out[place] = static_cast<Number>(others - total * (static_cast<double>(rest) / s) + added / s) * g;
  }
}

template <typename Number>
inline void backward_row(
    const CrossEntropy& arguments,
    const RowOptions<Number>& options,
    const Number* y,
    const Number* t,
    Number* out,
    int64_t row,
    Target target) {
  const Number weight_of_sample = options.sample_weight_of(row);
  if (!target.active || weight_of_sample == 0) {
    std::memset(out, 0, static_cast<size_t>(options.classes) * sizeof(Number));
    return;
  }
  const Number g = static_cast<Number>(
      static_cast<const Number*>(arguments.grad_rows)[row * arguments.grad_stride] * arguments.scale *
      static_cast<double>(weight_of_sample));
  const Number m = static_cast<const Number*>(arguments.maximum)[row];
  const Number rest = static_cast<const Number*>(arguments.rest)[row];
  const double slope = arguments.z_loss == 0 ? 0
                                             : 2 * arguments.z_loss *
                                                   (static_cast<double>(m) + static_cast<double>(log1p_of(rest)));
  if (!options.indices) {
    write_probability_gradient(options, y, t, out, m, rest, g, slope);
    return;
  }
  const Number w = options.weight_of(target.index);
  const Number hard = g * w * static_cast<Number>(1 - options.smoothing);
  const Number smooth = g * static_cast<Number>(options.spread);
  const double total = (1 - options.smoothing) * w + options.spread * arguments.weight_sum;
  Number scale = options.smoothing != 0 ? hard + smooth * static_cast<Number>(arguments.weight_sum) : hard;
  const Number shifted = y[target.index] - m;
  Number entry = target_entry(shifted, rest, hard, scale, smooth, w);
  if (total != 0 && slope != 0) {
    const Number added = static_cast<Number>(g * slope);
    scale += added;
    entry += added * (exp_of(shifted) / (1 + rest));
  }
  if (options.smoothing != 0) {
    write_gradient<true>(y, out, options.classes, m, scale / (1 + rest), smooth, options.weight);
  } else {
    write_gradient<false>(y, out, options.classes, m, scale / (1 + rest), smooth, static_cast<const Number*>(nullptr));
  }
  out[target.index] = entry;
}

template <typename Stored>
void extended_backward(const CrossEntropy& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const RowOptions<Number> options(arguments);
  RowBuffer<Stored> logits(arguments), shares(arguments), gradients(arguments);
  std::vector<Number> slopes;
  const bool direct = std::is_same_v<Stored, Number> && arguments.walk == Walk::along_classes;
  for (int64_t unit = begin; unit < end; ++unit) {
    const Tile tile = rows_at(arguments, unit);
    const int64_t numbers = tile.width * options.classes;
    const Number* y = logits.read(arguments.input, arguments.input_layout, tile, options.cap != 0);
    if (options.cap != 0) {
      slopes.resize(static_cast<size_t>(numbers));
      cap_logits(const_cast<Number*>(y), numbers, options.cap, slopes.data());
    }
    const Number* t =
        options.indices ? nullptr : shares.read(arguments.shares, arguments.target_layout, tile, false);
    Number* out = direct ? const_cast<Number*>(row_at<Number>(
                               arguments.grad_input, arguments.grad_layout, tile.sample, tile.position))
                         : gradients.room(tile.width);
    for (int64_t i = 0; i < tile.width; ++i) {
      const int64_t position = tile.position + i, start = i * options.classes;
      const Target target =
          options.indices ? target_of<Number>(arguments, tile.sample, position) : Target{0, true};
      const int64_t row = tile.sample * arguments.sizes.positions + position;
      backward_row(arguments, options, y + start, t == nullptr ? nullptr : t + start, out + start, row, target);
      if (options.cap == 0 || !target.active || options.sample_weight_of(row) == 0) {
        continue;
      }
      for (int64_t c = 0; c < options.classes; c += lanes) {
        const int64_t count = options.classes - c;
        const Vector<Number> slope = load_part(slopes.data() + start + c, count, Number(0));
        store_part(out + start + c, count, load_part(out + start + c, count, Number(0)) * slope);
      }
    }
    if (!direct) {
      gradients.write(out, arguments.grad_input, arguments.grad_layout, tile);
    }
  }
}

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
