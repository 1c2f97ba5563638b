// Cross-entropy of rows whose classes are neighbours in memory, one row after the other. A row is read from memory once:
// its exponentials are kept, and the gradient is made of them.
#pragma once

#include "cross_entropy.h"
#include "exponentials.h"

namespace torchlosses {
namespace INSTRUCTION_SET {

// Σ a, Σ a (x - m) where `products` are asked for, and Σ a without the class at `place`. A class without a share counts for
// nothing, also if its logit is infinite.
template <typename Stored>
inline Weighed weigh(
    const Stored* x,
    const Stored* t,
    const Shares<Compute<Stored>>& shares,
    int64_t classes,
    Compute<Stored> m,
    int64_t place,
    bool products) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  Total<Number> total, weighted, others;
  for (int64_t c = 0; c < classes; c += lanes) {
    const int64_t count = classes - c < lanes ? classes - c : lanes;
    Vector<Number> share = shares.at(t, c, count);
    for (int64_t lane = count; lane < lanes; ++lane) {
      share[lane] = 0;
    }
    total.add(share);
    if (products) {
      const Vector<Number> shifted = load_part(x + c, count, m) - m;
      weighted.add(share == Number(0) ? Vector<Number>{} : share * shifted);
    }
    if (place >= c && place < c + count) {
      share[place - c] = 0;
    }
    others.add(share);
  }
  return {total.value(), weighted.value(), others.value()};
}

// (e / s - a) g for a chunk of a row, or without shares e g / s, with 1 / s or g / s in `factor`; the exponentials are those
// that were kept, or are made again. The entry of one class is put right by the caller.
template <bool kKept, bool kShares, typename Stored>
inline void write_chunk(
    const Stored* x,
    const Compute<Stored>* kept,
    const Stored* t,
    const Shares<Compute<Stored>>& shares,
    Stored* out,
    int64_t start,
    int64_t end,
    Compute<Stored> m,
    Compute<Stored> factor,
    Compute<Stored> g) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const auto entry = [&](Vector<Number> e, Vector<Number> share) {
    return kShares ? multiply_add(e, factor, -share) * g : e * factor;
  };
  int64_t c = start;
  for (; c + 2 * lanes <= end; c += 2 * lanes) {
    Pair<Number> e;
    if constexpr (kKept) {
      e = {load(kept + c), load(kept + c + lanes)};
    } else {
      const Pair<Number> logits = load_pair(x + c);
      e = {exp(logits.first - m), exp(logits.second - m)};
    }
    const Pair<Number> share = kShares ? shares.pair_at(t, c) : Pair<Number>{};
    store_pair(out + c, {entry(e.first, share.first), entry(e.second, share.second)});
  }
  for (; c < end; c += lanes) {
    const int64_t count = end - c < lanes ? end - c : lanes;
    const Vector<Number> e = kKept ? load(kept + c) : exp(load_part(x + c, count, m) - m);
    store_part(out + c, count, entry(e, kShares ? shares.at(t, c, count) : Vector<Number>{}));
  }
}

// A row's gradient from its maximum and rest. Chunk by chunk the exponentials are taken from the maximum of what had been
// seen by then, so that kept ones and new ones are the same to the bit.
template <bool kKept, bool kShares, typename Stored>
inline void write_row(
    const Stored* x,
    const Kept<Compute<Stored>>* kept,
    const Stored* t,
    const Shares<Compute<Stored>>& shares,
    Stored* out,
    int64_t classes,
    Compute<Stored> m,
    double factor,
    Compute<Stored> g) {
  using Number = Compute<Stored>;
  constexpr Number kLowest = -std::numeric_limits<Number>::infinity();
  Number seen = kLowest;
  for (int64_t start = 0; start < classes; start += kChunk) {
    const int64_t end = classes - start < kChunk ? classes : start + kChunk;
    if constexpr (kKept) {
      seen = kept->maxima[static_cast<size_t>(start / kChunk)];
    } else if (classes <= kChunk) {
      seen = m;
    } else {
      const Number candidate = maximum_of(x + start, end - start);
      seen = candidate > seen ? candidate : seen;
    }
    // Nothing but -inf and nan so far: 0 was subtracted, and the exponentials are 0 or nan.
    const bool has_maximum = seen != kLowest;
    const double step =
        seen == m || !has_maximum ? 1.0 : exp_of(static_cast<double>(seen) - static_cast<double>(m));
    write_chunk<kKept, kShares>(
        x, kKept ? kept->exponentials.get() : nullptr, t, shares, out, start, end, has_maximum ? seen : Number(0),
        static_cast<Number>(factor * step), g);
  }
}

// What a row is made of in memory, or in a buffer.
template <typename Stored>
struct Row {
  const Stored* y;
  const Stored* t;  // nullptr: class indices
  Stored* out;      // nullptr: no gradient
  int64_t number;
  Target target;
};

// `steepness` is dy/dx where that is the same for all classes.
template <bool kKept, typename Stored>
inline void gradient_of_row(
    const RowOptions<Compute<Stored>>& options,
    const Row<Stored>& row,
    const Kept<Compute<Stored>>* kept,
    RowStatistics<Compute<Stored>> of_row,
    const Weighed& weighed,
    double log_sum_exp,
    int64_t place,
    double steepness) {
  using Number = Compute<Stored>;
  const Shares<Number> shares(options);
  const Number m = of_row.maximum;
  const double rest = static_cast<double>(of_row.rest), s = 1 + rest;
  const double g = static_cast<double>(options.gradient_of(row.number)) * steepness;
  const Number rounded = static_cast<Number>(g);
  const double slope = 2 * options.z_loss * log_sum_exp;
  double entry;
  if (options.indices) {
    const double w = options.weight_of(row.target.index), hard = (1 - options.smoothing) * w;
    const double smooth = options.spread * options.weight_sum;
    const double added = smooth + slope;
    const double shifted = static_cast<double>(widen(row.y[row.target.index])) - static_cast<double>(m);
    const double e = shifted == 0 ? 1.0 : static_cast<double>(exp_of(static_cast<Number>(shifted)));
    // p_t - 1 = -(s - e_t) / s
    const double others = shifted == 0 ? rest : 1 + (rest - e);
    entry = (added * e - hard * others) / s - options.spread * w;
    const double factor = (hard + added) / s;
    place = row.target.index;
    if (options.smoothing != 0) {
      write_row<kKept, true>(
          row.y, kept, static_cast<const Stored*>(nullptr), shares, row.out, options.classes, m, factor, rounded);
    } else {
      write_row<kKept, false>(row.y, kept, row.t, shares, row.out, options.classes, m, factor * g, rounded);
    }
  } else {
    // A p - a = Σ_{j≠i} a_j - A Σ_{j≠i} p_j, at the class i that has more than half: p_i = 1 / s.
    entry = weighed.others - weighed.total * (rest / s) + slope / s;
    write_row<kKept, true>(
        row.y, kept, row.t, shares, row.out, options.classes, m, (weighed.total + slope) / s, rounded);
  }
  if (place < options.classes) {
    row.out[place] = narrow<Stored>(static_cast<Number>(entry * g));
  }
}

// Σ exp(y_j - m) (y_j - m), where a class without probability counts for nothing.
template <typename Number, typename Stored>
inline double sum_of_products(const Stored* y, int64_t count, Number m) {
  constexpr int64_t lanes = kLanes<Number>;
  Total<Number> total;
  for (int64_t c = 0; c < count; c += lanes) {
    const Vector<Number> shifted = load_part(y + c, count - c, m) - m;
    const Vector<Number> e = exp(shifted);
    total.add(e == Number(0) ? Vector<Number>{} : e * shifted);
  }
  return total.value();
}

template <typename Stored>
inline void write_statistics(
    const CrossEntropy& arguments,
    const RowOptions<Compute<Stored>>& options,
    const Row<Stored>& row,
    RowStatistics<Compute<Stored>> of_row,
    double log_sum) {
  using Number = Compute<Stored>;
  const int64_t rows = arguments.sizes.rows();
  Number* out = static_cast<Number*>(arguments.statistics) + row.number;
  double log_probability;
  int64_t expected = row.target.index;
  if (options.indices) {
    log_probability =
        static_cast<double>(widen(row.y[row.target.index])) - static_cast<double>(of_row.maximum) - log_sum;
  } else {
    RowOptions<Number> plain = options;
    plain.weight = nullptr;
    plain.smoothing = plain.spread = 0;
    const Weighed of_target =
        weigh(row.y, row.t, Shares<Number>(plain), options.classes, of_row.maximum, options.classes, true);
    log_probability = of_target.products - of_target.total * log_sum;
    expected = find(row.t, options.classes, maximum_of(row.t, options.classes));
  }
  // Which of nan or infinite logits is the largest says nothing.
  const bool usable = of_row.rest - of_row.rest == 0;
  const double mean =
      sum_of_products(row.y, options.classes, of_row.maximum) / (1.0 + static_cast<double>(of_row.rest));
  out[0] = static_cast<Number>(static_cast<double>(of_row.maximum) + log_sum);
  out[rows] = static_cast<Number>(log_probability);
  out[2 * rows] = usable && find(row.y, options.classes, of_row.maximum) == expected ? Number(1) : Number(0);
  out[3 * rows] = static_cast<Number>(log_sum - mean);
}

// Of a row that leaves no trace.
template <typename Stored>
inline void clear_row(const CrossEntropy& arguments, const Row<Stored>& row) {
  using Number = Compute<Stored>;
  const int64_t rows = arguments.sizes.rows();
  if (arguments.losses != nullptr) {
    Number* const numbers[] = {
        static_cast<Number*>(arguments.losses),
        static_cast<Number*>(arguments.maximum),
        static_cast<Number*>(arguments.rest)};
    for (Number* of_rows : numbers) {
      of_rows[row.number] = 0;
    }
    for (int64_t field = 0; arguments.statistics != nullptr && field < kRowStatistics; ++field) {
      static_cast<Number*>(arguments.statistics)[field * rows + row.number] = 0;
    }
  }
  if (row.out != nullptr) {
    std::memset(row.out, 0, static_cast<size_t>(arguments.sizes.classes) * sizeof(Stored));
  }
}

template <typename Stored>
inline void process_row(
    const CrossEntropy& arguments,
    const RowOptions<Compute<Stored>>& options,
    const Row<Stored>& row,
    Kept<Compute<Stored>>& kept,
    double steepness) {
  using Number = Compute<Stored>;
  if (!row.target.active) {
    return clear_row(arguments, row);
  }
  Number* losses = static_cast<Number*>(arguments.losses);
  Number& maximum = static_cast<Number*>(arguments.maximum)[row.number];
  Number& rest = static_cast<Number*>(arguments.rest)[row.number];
  RowStatistics<Number> of_row{maximum, rest};
  if (losses != nullptr) {
    of_row = row.out != nullptr ? statistics<true>(row.y, options.classes, &kept)
                                : statistics<false>(row.y, options.classes, &kept);
  }
  const bool needs_log = losses != nullptr || options.z_loss != 0;
  const double log_sum = needs_log ? log1p_of_rest(of_row.rest) : 0;
  const double log_sum_exp = static_cast<double>(of_row.maximum) + log_sum;
  int64_t place = options.classes;
  Weighed weighed;
  if (options.shared() && (losses != nullptr || !options.indices)) {
    if (!options.indices && row.out != nullptr && of_row.rest < 1) {
      place = find(row.y, options.classes, of_row.maximum);
    }
    Shares<Number> shares(options);
    // What all classes have of class indices is multiplied at the end.
    shares.spread = options.indices ? Number(1) : shares.spread;
    weighed = weigh(row.y, row.t, shares, options.classes, of_row.maximum, place, losses != nullptr);
  }
  if (options.total_of(row.target.index, weighed.total) == 0) {
    // No class has a share.
    return clear_row(arguments, row);
  }
  if (losses != nullptr) {
    double result = weighed.total * log_sum - weighed.products;
    if (options.indices) {
      const double hard = (1 - options.smoothing) * static_cast<double>(options.weight_of(row.target.index));
      const double shifted =
          static_cast<double>(widen(row.y[row.target.index])) - static_cast<double>(of_row.maximum);
      // A class without a share has no effect, also if its logit is infinite.
      result = (options.smoothing == 0 ? 0 : result * options.spread) + (hard == 0 ? 0 : hard * (log_sum - shifted));
    }
    if (options.z_loss != 0) {
      result += options.z_loss * log_sum_exp * log_sum_exp;
    }
    losses[row.number] = static_cast<Number>(result * static_cast<double>(options.sample_weight_of(row.number)));
    maximum = of_row.maximum;
    rest = of_row.rest;
    if (arguments.statistics != nullptr) {
      write_statistics(arguments, options, row, of_row, log_sum);
    }
  }
  if (row.out == nullptr) {
    return;
  }
  if (losses != nullptr) {
    gradient_of_row<true>(options, row, &kept, of_row, weighed, log_sum_exp, place, steepness);
  } else {
    gradient_of_row<false>(options, row, &kept, of_row, weighed, log_sum_exp, place, steepness);
  }
}

template <typename Stored>
void cross_entropy_along_classes(const CrossEntropy& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  const Sizes& sizes = arguments.sizes;
  const RowOptions<Number> options(arguments);
  Kept<Number> kept(arguments.losses != nullptr && arguments.grad_input != nullptr ? sizes.classes : 0);
  for (int64_t number = begin; number < end; ++number) {
    const int64_t sample = sizes.sample_of(number), position = sizes.position_of(number);
    const Row<Stored> row{
        row_at<Stored>(arguments.input, arguments.input_layout, sample, position),
        options.indices ? nullptr : row_at<Stored>(arguments.shares, arguments.target_layout, sample, position),
        arguments.grad_input == nullptr
            ? nullptr
            : const_cast<Stored*>(row_at<Stored>(arguments.grad_input, arguments.grad_layout, sample, position)),
        number,
        targets_of(arguments, {sample, position, 0}).template at<Number>(0)};
    process_row(arguments, options, row, kept, 1.0);
  }
}

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
