// Cross-entropy of rows whose positions are neighbours in memory, (N, C, M): the lanes of a vector are rows, and a tile of
// them is walked through class by class. Rows of few classes are turned to be walked through like that too.
#pragma once

#include <memory>

#include "cross_entropy.h"

namespace torchlosses {
namespace INSTRUCTION_SET {

// Few additions in the short format before the double one takes over.
constexpr int64_t kClassesAtATime = 32;

// to_i += x_i for the lanes of a vector.
inline void accumulate(double* to, Floats vector) {
  const Halves halves(vector);
  store(to, load(to) + halves.low);
  store(to + kLanes<double>, load(to + kLanes<double>) + halves.high);
}
inline void accumulate(double* to, Doubles vector) {
  store(to, load(to) + vector);
}

// Some rows of a tile, and what is known of them. Arrays are filled up to whole vectors.
template <typename Number>
struct RowsOfTile {
  static constexpr int64_t kRoom = kTile + 4 * kLanes<Number>;

  alignas(64) Number maximum[kRoom];
  alignas(64) Number rest[kRoom];
  alignas(64) Number log_sum[kRoom];
  alignas(64) double total[kRoom];
  alignas(64) double products[kRoom];
  alignas(64) double others[kRoom];
  int64_t place[kRoom];  // of the target, or of the maximum
  bool active[kRoom];
};

// Maximum and rest of neighbouring rows, a few vectors at a time, so that they stay in registers along the classes; of one
// vector, `width` rows or fewer.
template <int kVectors, bool kKeep, typename Stored>
inline void statistics_of_neighbours(
    const Stored* x,
    int64_t step,
    int64_t classes,
    int64_t width,
    Compute<Stored>* maximum,
    Compute<Stored>* rest,
    Compute<Stored>* kept,
    int64_t kept_step) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  constexpr Number kLowest = -std::numeric_limits<Number>::infinity();
  const auto logits_at = [&](int64_t c, int v) {
    const Stored* from = x + c * step + v * lanes;
    return kVectors > 1 ? load(from) : load_part(from, width, Number(0));
  };
  Vector<Number> m[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    m[v] = all<Number>(kLowest);
  }
  for (int64_t c = 0; c < classes; ++c) {
    for (int v = 0; v < kVectors; ++v) {
      m[v] = larger<Number>(logits_at(c, v), m[v]);
    }
  }
  // Logits equal to the maximum are counted, not added: all but one of them belong to the rest.
  Vector<Number> ties[kVectors]{};
  alignas(64) double sums[kVectors * lanes]{};
  for (int64_t start = 0; start < classes; start += kClassesAtATime) {
    const int64_t stop = classes - start < kClassesAtATime ? classes : start + kClassesAtATime;
    Vector<Number> part[kVectors]{};
    for (int64_t c = start; c < stop; ++c) {
      for (int v = 0; v < kVectors; ++v) {
        // The neighbours that follow: classes are too far apart for the processor to see what comes next.
        __builtin_prefetch(x + c * step + (kVectors + v) * lanes);
        const Vector<Number> logits = logits_at(c, v);
        const Integers<Number> is_maximum = logits == m[v];
        // Without a finite maximum a nan must still come out.
        const Vector<Number> e = exp(logits - (m[v] == kLowest ? Vector<Number>{} : m[v]));
        if constexpr (kKeep) {
          store(kept + c * kept_step + v * lanes, e);
        }
        part[v] += is_maximum ? Vector<Number>{} : e;
        ties[v] += is_maximum ? all<Number>(1) : Vector<Number>{};
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      accumulate(sums + v * lanes, part[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    store(maximum + v * lanes, m[v]);
    for (int lane = 0; lane < lanes; ++lane) {
      // An infinite maximum makes the row's probabilities 0/0 or inf/inf.
      const double others = sums[v * lanes + lane] + (static_cast<double>(ties[v][lane]) - 1);
      rest[v * lanes + lane] = static_cast<Number>(others) + (m[v][lane] - m[v][lane]);
    }
  }
}

// Σ a, Σ a (x - m) and Σ a without the class at the maximum, for the rows of a tile.
template <typename Stored>
inline void weigh_tile(
    const CrossEntropy& arguments,
    const RowOptions<Compute<Stored>>& options,
    const Stored* x,
    const Stored* t,
    int64_t width,
    RowsOfTile<Compute<Stored>>& rows) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const int64_t step = arguments.input_layout.classes, target_step = arguments.target_layout.classes;
  std::memset(rows.total, 0, sizeof(rows.total));
  std::memset(rows.products, 0, sizeof(rows.products));
  std::memset(rows.others, 0, sizeof(rows.others));
  for (int64_t i = 0; i < width && !options.indices; ++i) {
    rows.place[i] = -1;
  }
  // What all classes have of class indices is multiplied at the end.
  Shares<Number> shares(options);
  shares.weight = nullptr;
  shares.spread = options.indices ? Number(1) : shares.spread;
  for (int64_t c = 0; c < options.classes; ++c) {
    const Number w = options.weight_of(c);
    for (int64_t i = 0; i < width; i += lanes) {
      const Vector<Number> logits = load_part(x + c * step + i, width - i, Number(0));
      const Vector<Number> share =
          shares.at(options.indices ? nullptr : t + c * target_step + i, 0, width - i) * w;
      const Vector<Number> shifted = logits - load(rows.maximum + i);
      const Integers<Number> is_maximum = shifted == Number(0);
      accumulate(rows.total + i, share);
      accumulate(rows.products + i, share == Number(0) ? Vector<Number>{} : share * shifted);
      if (options.indices || !any(is_maximum)) {
        accumulate(rows.others + i, share);
        continue;
      }
      Vector<Number> others = share;
      for (int64_t lane = 0; lane < lanes && i + lane < width; ++lane) {
        if (is_maximum[lane] != 0 && rows.place[i + lane] < 0) {
          rows.place[i + lane] = c;
          others[lane] = 0;
        }
      }
      accumulate(rows.others + i, others);
    }
  }
}

template <typename Stored>
inline void losses_of_tile(
    const CrossEntropy& arguments,
    const RowOptions<Compute<Stored>>& options,
    const Stored* x,
    int64_t row,
    int64_t width,
    const RowsOfTile<Compute<Stored>>& rows) {
  using Number = Compute<Stored>;
  const int64_t step = arguments.input_layout.classes;
  Number* losses = static_cast<Number*>(arguments.losses) + row;
  Number* maxima = static_cast<Number*>(arguments.maximum) + row;
  Number* rests = static_cast<Number*>(arguments.rest) + row;
  const bool plain = options.indices && options.smoothing == 0 && options.weight == nullptr &&
                     options.sample_weight == nullptr && options.z_loss == 0;
  for (int64_t i = 0; i < width; ++i) {
    if (!rows.active[i]) {
      losses[i] = maxima[i] = rests[i] = 0;
      continue;
    }
    maxima[i] = rows.maximum[i];
    rests[i] = rows.rest[i];
    if (plain) {
      losses[i] = rows.log_sum[i] - (widen(x[rows.place[i] * step + i]) - rows.maximum[i]);
      continue;
    }
    double result = 0;
    if (options.shared()) {
      result = rows.total[i] * static_cast<double>(rows.log_sum[i]) - rows.products[i];
    }
    if (options.indices) {
      const double hard = (1 - options.smoothing) * static_cast<double>(options.weight_of(rows.place[i]));
      const Number shifted = widen(x[rows.place[i] * step + i]) - rows.maximum[i];
      // A class without a share has no effect, also if its logit is infinite.
      result = result * options.spread + (hard == 0 ? 0 : hard * static_cast<double>(rows.log_sum[i] - shifted));
    }
    if (options.z_loss != 0) {
      const double log_sum_exp = static_cast<double>(rows.maximum[i]) + static_cast<double>(rows.log_sum[i]);
      result += options.z_loss * log_sum_exp * log_sum_exp;
    }
    losses[i] = static_cast<Number>(result * static_cast<double>(options.sample_weight_of(row + i)));
  }
}

// (e / s - a) g for the rows of a tile, or without shares e g / s; and then the entry of each row's place.
template <bool kKept, typename Stored>
inline void gradient_of_tile(
    const CrossEntropy& arguments,
    const RowOptions<Compute<Stored>>& options,
    const Tile& tile,
    const Stored* x,
    const Stored* t,
    const Compute<Stored>* kept,
    int64_t kept_step,
    const RowsOfTile<Compute<Stored>>& rows) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const int64_t step = arguments.input_layout.classes, out_step = arguments.grad_layout.classes;
  const int64_t target_step = arguments.target_layout.classes;
  const int64_t width = tile.width, filled = (width + lanes - 1) / lanes * lanes;
  const int64_t row = tile.sample * arguments.sizes.positions + tile.position;
  const bool shared = options.shared();
  Stored* out =
      const_cast<Stored*>(row_at<Stored>(arguments.grad_input, arguments.grad_layout, tile.sample, tile.position));
  alignas(64) Number g[kTile];
  alignas(64) Number factor[kTile];
  alignas(64) Number entry[kTile];
  alignas(64) Number shifted[kTile];
  alignas(64) Number weights[kTile];
  const Number weight_sum = static_cast<Number>(options.weight_sum), spread = static_cast<Number>(options.spread);
  const Number kept_share = static_cast<Number>(1 - options.smoothing);
  const Number z_slope = static_cast<Number>(2 * options.z_loss);
  bool any_quiet = false;
  for (int64_t i = 0; i < filled; ++i) {
    const bool active = i < width && rows.active[i];
    any_quiet |= i < width && !active;
    g[i] = active ? options.gradient_of(row + i) : Number(0);
    shifted[i] = weights[i] = 0;
    if (active && options.indices) {
      shifted[i] = widen(x[rows.place[i] * step + i]) - rows.maximum[i];
      weights[i] = options.weight_of(rows.place[i]);
    }
    if (!options.indices) {
      const double s = 1 + static_cast<double>(rows.rest[i]), total = rows.total[i];
      const double added = options.z_loss == 0
                               ? 0
                               : 2 * options.z_loss *
                                     (static_cast<double>(rows.maximum[i]) + static_cast<double>(rows.log_sum[i]));
      factor[i] = static_cast<Number>((total + added) / s);
      // A p - a = Σ_{j≠i} a_j - A Σ_{j≠i} p_j, at the class i that has more than half: p_i = 1 / s.
      entry[i] = static_cast<Number>(
          (rows.others[i] - total * (static_cast<double>(rows.rest[i]) / s) + added / s) *
          static_cast<double>(g[i]));
    }
  }
  for (int64_t i = 0; options.indices && i < width; i += lanes) {
    const Vector<Number> w = load(weights + i), rest = load(rows.rest + i), hard = w * kept_share;
    const Vector<Number> s = rest + Number(1);
    const Vector<Number> e = exp(load(shifted + i));
    // p_t - 1 = -(s - e_t) / s
    const Vector<Number> others = load(shifted + i) == Number(0) ? rest : Number(1) + (rest - e);
    Vector<Number> added = all<Number>(spread * weight_sum);
    if (options.z_loss != 0) {
      const Vector<Number> log_sum_exp = load(rows.maximum + i) + load(rows.log_sum + i);
      added += log_sum_exp * z_slope;
    }
    const Vector<Number> unit = (hard + added) / s;
    store(factor + i, shared ? unit : unit * load(g + i));
    store(entry + i, ((added * e - hard * others) / s - w * spread) * load(g + i));
  }
  Shares<Number> shares(options);
  shares.weight = nullptr;
  for (int64_t c = 0; c < options.classes; ++c) {
    const Number w = options.weight_of(c);
    for (int64_t i = 0; i < width; i += lanes) {
      Vector<Number> e;
      if constexpr (kKept) {
        e = load(kept + c * kept_step + i);
      } else {
        __builtin_prefetch(x + c * step + width + i);
        const Vector<Number> m = load(rows.maximum + i);
        constexpr Number kLowest = -std::numeric_limits<Number>::infinity();
        e = exp(load_part(x + c * step + i, width - i, Number(0)) - (m == kLowest ? Vector<Number>{} : m));
      }
      Vector<Number> gradient;
      if (shared) {
        const Vector<Number> share =
            shares.at(options.indices ? nullptr : t + c * target_step + i, 0, width - i) * w;
        gradient = multiply_add(e, load(factor + i), -share) * load(g + i);
      } else {
        gradient = e * load(factor + i);
      }
      store_part(out + c * out_step + i, width - i, gradient);
    }
  }
  for (int64_t i = 0; i < width; ++i) {
    if (rows.active[i] && rows.place[i] >= 0 && (options.indices || rows.rest[i] < 1)) {
      out[rows.place[i] * out_step + i] = narrow<Stored>(entry[i]);
    }
    for (int64_t c = 0; any_quiet && !rows.active[i] && c < options.classes; ++c) {
      out[c * out_step + i] = narrow<Stored>(Number(0));
    }
  }
}

template <typename Stored>
void cross_entropy_across_positions(const CrossEntropy& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const Sizes& sizes = arguments.sizes;
  const RowOptions<Number> options(arguments);
  const int64_t step = arguments.input_layout.classes;
  const bool forward = arguments.losses != nullptr, gradient = arguments.grad_input != nullptr;
  const int64_t kept_step = (sizes.positions < arguments.tile ? sizes.positions : arguments.tile) + 4 * lanes;
  const std::unique_ptr<Number[]> kept(
      new Number[static_cast<size_t>(forward && gradient ? kept_step * sizes.classes : 0)]);
  RowsOfTile<Number> rows;
  for (int64_t unit = begin; unit < end; ++unit) {
    const Tile tile = tile_at(sizes, arguments.tile, unit);
    const int64_t width = tile.width, filled = (width + lanes - 1) / lanes * lanes;
    const int64_t row = tile.sample * sizes.positions + tile.position;
    const Stored* x = row_at<Stored>(arguments.input, arguments.input_layout, tile.sample, tile.position);
    const Stored* t = row_at<Stored>(arguments.shares, arguments.target_layout, tile.sample, tile.position);
    const Targets targets = targets_of(arguments, tile);
    for (int64_t i = 0; i < width; ++i) {
      const Target target = targets.template at<Number>(i);
      rows.active[i] = target.active;
      rows.place[i] = target.index;
    }
    for (int64_t i = 0; forward && i < width;) {
      constexpr int kMany = 4;
      const bool many = width - i >= kMany * lanes;
      const auto run = many ? (gradient ? statistics_of_neighbours<kMany, true, Stored>
                                        : statistics_of_neighbours<kMany, false, Stored>)
                            : (gradient ? statistics_of_neighbours<1, true, Stored>
                                        : statistics_of_neighbours<1, false, Stored>);
      run(x + i, step, sizes.classes, width - i, rows.maximum + i, rows.rest + i, kept.get() + i, kept_step);
      i += many ? kMany * lanes : lanes;
    }
    for (int64_t i = 0; !forward && i < filled; ++i) {
      rows.maximum[i] = i < width ? static_cast<const Number*>(arguments.maximum)[row + i] : Number(0);
      rows.rest[i] = i < width ? static_cast<const Number*>(arguments.rest)[row + i] : Number(0);
    }
    for (int64_t i = 0; (forward || options.z_loss != 0) && i < width; i += lanes) {
      store(rows.log_sum + i, log1p(load(rows.rest + i)));
    }
    if (options.shared() && (forward || !options.indices)) {
      weigh_tile(arguments, options, x, t, width, rows);
    }
    for (int64_t i = 0; options.shared() && i < width; ++i) {
      // A row without a share leaves no trace.
      rows.active[i] = rows.active[i] && options.total_of(rows.place[i], rows.total[i]) != 0;
    }
    if (forward) {
      losses_of_tile(arguments, options, x, row, width, rows);
    }
    if (gradient && forward) {
      gradient_of_tile<true>(arguments, options, tile, x, t, kept.get(), kept_step, rows);
    } else if (gradient) {
      gradient_of_tile<false>(arguments, options, tile, x, t, static_cast<const Number*>(nullptr), 0, rows);
    }
  }
}

// Rows of few classes would leave most of a vector empty, and cost more than their arithmetic.
constexpr int64_t kShortRow = 16;

inline bool is_short(const CrossEntropy& arguments) {
  return arguments.sizes.positions == 1 && arguments.sizes.classes <= kShortRow;
}

// Rows of few classes, turned: the lanes of a vector are rows.
template <typename Stored>
inline void cross_entropy_turned(const CrossEntropy& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  constexpr int64_t width = 64;
  alignas(64) Stored logits[kShortRow * width];
  alignas(64) Stored shares[kShortRow * width];
  const int64_t classes = arguments.sizes.classes;
  const auto behind = [](const void* numbers, int64_t count) {
    return numbers == nullptr ? nullptr : const_cast<Number*>(static_cast<const Number*>(numbers)) + count;
  };
  for (int64_t first = begin; first < end; first += width) {
    CrossEntropy few = arguments;
    few.walk = Walk::across_positions;
    few.tile = width;
    few.sizes = {1, classes, end - first < width ? end - first : width};
    few.input = logits;
    few.input_layout = few.grad_layout = {0, width, 1};
    few.grad_input = arguments.grad_input == nullptr ? nullptr : logits;
    if (arguments.indices != nullptr) {
      few.indices += first * arguments.target_layout.sample;
      few.target_layout = {0, 0, arguments.target_layout.sample};
    } else {
      few.shares = shares;
      few.target_layout = few.input_layout;
    }
    few.losses = behind(arguments.losses, first);
    few.maximum = behind(arguments.maximum, first);
    few.rest = behind(arguments.rest, first);
    few.grad_rows = behind(arguments.grad_rows, first);
    few.sample_weight = behind(arguments.sample_weight, first);
    for (int64_t row = 0; row < few.sizes.positions; ++row) {
      const Stored* x = row_at<Stored>(arguments.input, arguments.input_layout, first + row, 0);
      const Stored* t = row_at<Stored>(arguments.shares, arguments.target_layout, first + row, 0);
      for (int64_t c = 0; c < classes; ++c) {
        logits[c * width + row] = x[c];
        if (arguments.indices == nullptr) {
          shares[c * width + row] = t[c];
        }
      }
    }
    cross_entropy_across_positions<Stored>(few, 0, 1);
    for (int64_t row = 0; arguments.grad_input != nullptr && row < few.sizes.positions; ++row) {
      Stored* out =
          const_cast<Stored*>(row_at<Stored>(arguments.grad_input, arguments.grad_layout, first + row, 0));
      for (int64_t c = 0; c < classes; ++c) {
        out[c] = logits[c * width + row];
      }
    }
  }
}

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
