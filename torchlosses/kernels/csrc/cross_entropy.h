// Cross-entropy on logits, on the CPU. torchlosses/cross_entropy.py derives the formulas. For a row x:
//
//   m = max x, e_j = exp(x_j - m), rest = Σ e_j over all j but one at the maximum, s = 1 + rest = Σ e_j
//   -log p_c = log1p(rest) - (x_c - m)
//   loss     = A log1p(rest) - Σ_c a_c (x_c - m)         (a the target's share of each class, A its sum)
//   gradient = g (A e_c / s - a_c)
//
// The 1 of s is never added before it has to be: a row that is sure of its target keeps all digits of its small loss, and
// in the gradient p_t - 1 is -rest / s.
#pragma once

#include "vector.h"

namespace torchlosses {
namespace INSTRUCTION_SET {

// Numbers that are taken from memory once and stay in the first-level cache for the second look.
constexpr int64_t kChunk = 4096;

template <typename Stored>
inline Compute<Stored> maximum_of(const Stored* x, int64_t count) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  constexpr Number kLowest = -std::numeric_limits<Number>::infinity();
  Vector<Number> first = all<Number>(kLowest), second = first, third = first, fourth = first;
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    const Pair<Number> one = load_pair(x + i), two = load_pair(x + i + 2 * lanes);
    first = larger<Number>(one.first, first);
    second = larger<Number>(one.second, second);
    third = larger<Number>(two.first, third);
    fourth = larger<Number>(two.second, fourth);
  }
  for (; i + lanes <= count; i += lanes) {
    first = larger<Number>(load(x + i), first);
  }
  if (i < count) {
    second = larger<Number>(load_some(x + i, count - i, kLowest), second);
  }
  return largest<Number>(larger<Number>(larger<Number>(first, second), larger<Number>(third, fourth)));
}

template <typename Stored>
inline int64_t find(const Stored* x, int64_t count, Compute<Stored> value) {
  constexpr int64_t lanes = kLanes<Compute<Stored>>;
  int64_t i = 0;
  while (i + lanes <= count && !any(load(x + i) == value)) {
    i += lanes;
  }
  while (i < count && widen(x[i]) != value) {
    ++i;
  }
  return i;
}

// The next chunk is fetched meanwhile: this loop computes, and the memory has nothing else to do.
template <typename Stored>
inline double sum_of_few_exp(const Stored* x, int64_t count, Compute<Stored> m) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  Vector<Number> first{}, second{}, third{}, fourth{};
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    for (int64_t line = 0; line < 4 * lanes; line += 64 / static_cast<int64_t>(sizeof(Stored))) {
      __builtin_prefetch(x + i + line + kChunk);
    }
    const Pair<Number> one = load_pair(x + i), two = load_pair(x + i + 2 * lanes);
    first += exp(one.first - m);
    second += exp(one.second - m);
    third += exp(two.first - m);
    fourth += exp(two.second - m);
  }
  for (; i + lanes <= count; i += lanes) {
    first += exp(load(x + i) - m);
  }
  if (i < count) {
    second += exp(load_some(x + i, count - i, -std::numeric_limits<Number>::infinity()) - m);
  }
  return sum<Number>((first + second) + (third + fourth));
}

// Few additions in the short format before the double one takes over.
template <typename Stored>
inline double sum_of_exp(const Stored* x, int64_t count, Compute<Stored> m) {
  constexpr int64_t few = 32 * 4 * kLanes<Compute<Stored>>;
  double result = 0;
  for (int64_t start = 0; start < count; start += few) {
    result += sum_of_few_exp(x + start, count - start < few ? count - start : few, m);
  }
  return result;
}

template <typename Number>
struct RowStatistics {
  Number maximum;
  Number rest;
};

// A row that fits one vector.
template <typename Stored>
inline RowStatistics<Compute<Stored>> statistics_of_few(const Stored* x, int64_t classes) {
  using Number = Compute<Stored>;
  constexpr Number kLowest = -std::numeric_limits<Number>::infinity();
  const Vector<Number> logits = load_part(x, classes, kLowest);
  const Number m = largest<Number>(logits);
  Vector<Number> e = exp(logits - (m == kLowest ? Number(0) : m));
  const int64_t place = first_lane<Number>(logits == m);
  if (m != kLowest && place < classes) {
    e[place] = 0;
  }
  return {m, static_cast<Number>(sum<Number>(e)) + (m - m)};
}

// One look at memory: each chunk is searched for a larger maximum, and its exponentials are added while it is in cache.
template <typename Stored>
inline RowStatistics<Compute<Stored>> statistics(const Stored* x, int64_t classes) {
  using Number = Compute<Stored>;
  constexpr Number kLowest = -std::numeric_limits<Number>::infinity();
  if (classes <= kLanes<Number>) {
    return statistics_of_few(x, classes);
  }
  Number m = kLowest;
  double rest = 0;
  for (int64_t start = 0; start < classes; start += kChunk) {
    const int64_t count = classes - start < kChunk ? classes - start : kChunk;
    const Stored* chunk = x + start;
    const Number candidate = maximum_of(chunk, count);
    if (candidate > m) {
      if (m != kLowest) {
        // What had been the maximum is now one of the others.
        rest = (rest + 1.0) * std::exp(static_cast<double>(m) - static_cast<double>(candidate));
      }
      m = candidate;
      const int64_t place = find(chunk, count, m);
      rest += sum_of_exp(chunk, place, m) + sum_of_exp(chunk + place + 1, count - place - 1, m);
    } else {
      // A row that has shown nothing but -inf and nan so far has no finite maximum to subtract.
      rest += sum_of_exp(chunk, count, m == kLowest ? Number(0) : m);
    }
  }
  // An infinite maximum makes the row's probabilities 0/0 or inf/inf.
  return {m, static_cast<Number>(rest) + (m - m)};
}

// a_c = w_c ((1 - ε) t_c + ε / C), for `count` classes from `start` on; without t, w_c alone or a part of it.
template <typename Number>
struct Shares {
  const Number* weight;
  Number kept;
  Number spread;

  template <typename Stored>
  Vector<Number> at(const Stored* t, int64_t start, int64_t count) const {
    constexpr int64_t lanes = kLanes<Number>;
    Vector<Number> share = all<Number>(spread);
    if (t != nullptr) {
      share += (count < lanes ? load_some(t + start, count, Number(0)) : load(t + start)) * kept;
    }
    if (weight != nullptr) {
      share *= count < lanes ? load_some(weight + start, count, Number(0)) : load(weight + start);
    }
    return share;
  }
};

// Σ a and Σ a (x - m), where a class without a share counts for nothing, also if its logit is infinite.
template <typename Stored>
inline void weigh(
    const Stored* x,
    const Stored* t,
    const Shares<Compute<Stored>>& shares,
    int64_t classes,
    Compute<Stored> m,
    double& total,
    double& weighted) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  // Few additions in the short format before the double one takes over.
  constexpr int64_t few = 32 * lanes;
  for (int64_t start = 0; start < classes; start += few) {
    const int64_t end = classes - start < few ? classes : start + few;
    Vector<Number> sum_of_shares{}, sum_of_products{};
    for (int64_t c = start; c < end; c += lanes) {
      const int64_t count = end - c < lanes ? end - c : lanes;
      Vector<Number> share = shares.at(t, c, count);
      Vector<Number> shifted;
      if (count < lanes) {
        shifted = load_some(x + c, count, m) - m;
        for (int64_t lane = count; lane < lanes; ++lane) {
          share[lane] = 0;
        }
      } else {
        shifted = load(x + c) - m;
      }
      sum_of_shares += share;
      sum_of_products += share == Number(0) ? Vector<Number>{} : share * shifted;
    }
    total += sum<Number>(sum_of_shares);
    weighted += sum<Number>(sum_of_products);
  }
}

// Σ a, and the same without the class at `place`.
template <typename Stored>
inline void add_shares(
    const Stored* t,
    const Shares<Compute<Stored>>& shares,
    int64_t classes,
    int64_t place,
    double& total,
    double& others) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  for (int64_t c = 0; c < classes; c += lanes) {
    const int64_t count = classes - c < lanes ? classes - c : lanes;
    Vector<Number> share = shares.at(t, c, count);
    for (int64_t lane = count; lane < lanes; ++lane) {
      share[lane] = 0;
    }
    total += sum<Number>(share);
    if (place >= c && place < c + count) {
      share[place - c] = 0;
    }
    others += sum<Number>(share);
  }
}

// A target class, and whether its row takes part. An index outside the classes is reported, and its row left alone.
struct Target {
  int64_t index;
  bool active;
};

struct Targets {
  Targets(const CrossEntropy& arguments, const Tile& tile)
      : indices(
            arguments.indices == nullptr ? nullptr
                                         : arguments.indices + tile.sample * arguments.target_layout.sample +
                                               tile.position * arguments.target_layout.position),
        step(arguments.target_layout.position),
        ignore_index(arguments.ignore_index),
        classes(arguments.sizes.classes),
        weight(arguments.label_smoothing == 0 ? arguments.weight : nullptr),
        out_of_bounds(arguments.out_of_bounds) {}

  // Of the position that many places behind the first.
  template <typename Number>
  Target at(int64_t place) const {
    const int64_t index = indices[place * step];
    if (index == ignore_index) {
      return {0, false};
    }
    if (index < 0 || index >= classes) {
      out_of_bounds->store(true, std::memory_order_relaxed);
      return {0, false};
    }
    return {index, weight == nullptr || static_cast<const Number*>(weight)[index] != 0};
  }

  const int64_t* indices;
  const int64_t step;
  const int64_t ignore_index;
  const int64_t classes;
  const void* weight;  // a class without weight takes no part, unless all classes have a share
  std::atomic<bool>* out_of_bounds;
};

template <typename Number>
inline Target target_of(const CrossEntropy& arguments, int64_t sample, int64_t position) {
  return Targets(arguments, {sample, position, 0}).template at<Number>(0);
}

// As many rows at a time as a vector has lanes: their logarithms are taken together.
template <typename Stored>
void forward_along_classes(const CrossEntropy& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const Sizes& sizes = arguments.sizes;
  const int64_t classes = sizes.classes;
  const Number* weight = static_cast<const Number*>(arguments.weight);
  const bool indices = arguments.indices != nullptr;
  const double smoothing = arguments.label_smoothing;
  const double spread = smoothing / static_cast<double>(classes);
  const Shares<Number> shares = indices ? Shares<Number>{weight, Number(0), Number(1)}
                                        : Shares<Number>{weight, Number(1 - smoothing), static_cast<Number>(spread)};
  Number* losses = static_cast<Number*>(arguments.losses);
  Number* maxima = static_cast<Number*>(arguments.maximum);
  Number* rests = static_cast<Number*>(arguments.rest);
  for (int64_t first = begin; first < end; first += lanes) {
    const int64_t count = end - first < lanes ? end - first : lanes;
    Target targets[lanes];
    Number at_target[lanes];
    double total[lanes], weighted[lanes];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = first + i, sample = sizes.sample_of(row), position = sizes.position_of(row);
      targets[i] = indices ? target_of<Number>(arguments, sample, position) : Target{0, true};
      if (!targets[i].active) {
        maxima[row] = rests[row] = 0;
        continue;
      }
      const Stored* x = row_at<Stored>(arguments.input, arguments.input_layout, sample, position);
      const RowStatistics<Number> of_row = statistics(x, classes);
      maxima[row] = of_row.maximum;
      rests[row] = of_row.rest;
      at_target[i] = widen(x[targets[i].index]) - of_row.maximum;
      if (!indices || smoothing != 0) {
        const Stored* t = indices ? nullptr : row_at<Stored>(arguments.shares, arguments.target_layout, sample, position);
        total[i] = weighted[i] = 0;
        weigh(x, t, shares, classes, of_row.maximum, total[i], weighted[i]);
      }
    }
    const Vector<Number> log_sums = log1p(load_part(rests + first, count, Number(0)));
    for (int64_t i = 0; i < count; ++i) {
      const Number log_sum = log_sums[i];
      Number loss = 0;
      if (!indices) {
        loss = static_cast<Number>(total[i] * log_sum - weighted[i]);
      } else if (targets[i].active) {
        loss = (log_sum - at_target[i]) * (weight == nullptr ? Number(1) : weight[targets[i].index]);
        if (smoothing != 0) {
          loss = static_cast<Number>((1 - smoothing) * loss + (total[i] * log_sum - weighted[i]) * spread);
        }
      }
      losses[first + i] = loss;
    }
  }
}

// scale · e / s - smooth · w for a row; the target's entry is put right by the caller.
template <bool kSmooth, typename Stored>
inline void write_gradient(
    const Stored* x,
    Stored* out,
    int64_t classes,
    Compute<Stored> m,
    Compute<Stored> factor,
    Compute<Stored> smooth,
    const Compute<Stored>* weight) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const auto entry = [&](Vector<Number> logits, int64_t c, int64_t count) {
    Vector<Number> gradient = exp(logits - m) * factor;
    if (kSmooth) {
      const Vector<Number> w = weight == nullptr ? all<Number>(1)
                               : count < lanes   ? load_some(weight + c, count, Number(0))
                                                 : load(weight + c);
      gradient -= w * smooth;
    }
    return gradient;
  };
  int64_t c = 0;
  // The weights of a pair would have to be loaded in its order.
  for (; weight == nullptr && c + 2 * lanes <= classes; c += 2 * lanes) {
    const Pair<Number> logits = load_pair(x + c);
    store_pair(out + c, {entry(logits.first, c, lanes), entry(logits.second, c, lanes)});
  }
  for (; c < classes; c += lanes) {
    const int64_t count = classes - c < lanes ? classes - c : lanes;
    if (count == lanes) {
      store(out + c, entry(load(x + c), c, lanes));
    } else {
      store_some(out + c, count, entry(load_some(x + c, count, m), c, count));
    }
  }
}

// The entry of the target class t, whose probability is close to 1 in a good row: p_t - 1 = -(s - e_t) / s.
template <typename Number>
inline Number target_entry(
    Number shifted, Number rest, Number hard, Number scale, Number smooth, Number weight) {
  const Number s = 1 + rest;
  const bool is_largest = shifted == 0;
  const Number e = is_largest ? Number(1) : exp_of(shifted);
  const Number others = is_largest ? rest : 1 + (rest - e);
  return (scale - hard) * (e / s) - hard * (others / s) - smooth * weight;
}

template <typename Stored>
void backward_along_classes(const CrossEntropy& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const Sizes& sizes = arguments.sizes;
  const Number* weight = static_cast<const Number*>(arguments.weight);
  const Number smoothing = static_cast<Number>(arguments.label_smoothing);
  const Number spread = static_cast<Number>(arguments.label_smoothing / static_cast<double>(sizes.classes));
  const Shares<Number> shares{weight, 1 - smoothing, spread};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t sample = sizes.sample_of(row), position = sizes.position_of(row);
    const Stored* x = row_at<Stored>(arguments.input, arguments.input_layout, sample, position);
    Stored* out = const_cast<Stored*>(row_at<Stored>(arguments.grad_input, arguments.grad_layout, sample, position));
    Target target{0, true};
    if (arguments.indices != nullptr) {
      target = target_of<Number>(arguments, sample, position);
    }
    if (!target.active) {
      std::memset(out, 0, static_cast<size_t>(sizes.classes) * sizeof(Stored));
      continue;
    }
    const Number g = static_cast<Number>(
        static_cast<const Number*>(arguments.grad_rows)[row * arguments.grad_stride] * arguments.scale);
    const Number m = static_cast<const Number*>(arguments.maximum)[row];
    const Number rest = static_cast<const Number*>(arguments.rest)[row];
    const Number s = 1 + rest;
    if (arguments.indices != nullptr) {
      const Number w = weight == nullptr ? Number(1) : weight[target.index];
      const Number hard = g * w * (1 - smoothing);
      const Number smooth = g * spread;
      const Number scale = smoothing != 0 ? hard + smooth * static_cast<Number>(arguments.weight_sum) : hard;
      const Number shifted = widen(x[target.index]) - m;
      if (smoothing != 0) {
        write_gradient<true>(x, out, sizes.classes, m, scale / s, smooth, weight);
      } else {
        write_gradient<false>(x, out, sizes.classes, m, scale / s, smooth, nullptr);
      }
      out[target.index] = narrow<Stored>(target_entry(shifted, rest, hard, scale, smooth, w));
      continue;
    }
    const Stored* t = row_at<Stored>(arguments.shares, arguments.target_layout, sample, position);
    const int64_t place = find(x, sizes.classes, m);
    double total = 0, others = 0;
    add_shares(t, shares, sizes.classes, place, total, others);
    const Number factor = static_cast<Number>(total / static_cast<double>(s));
    for (int64_t c = 0; c < sizes.classes; c += lanes) {
      const int64_t count = sizes.classes - c < lanes ? sizes.classes - c : lanes;
      const Vector<Number> e = exp(load_part(x + c, count, m) - m);
      store_part(out + c, count, (e * factor - shares.at(t, c, count)) * g);
    }
    if (place < sizes.classes) {
      // A p - a = Σ_{j≠i} a_j - A Σ_{j≠i} p_j at the most probable class i.
      const double entry = others - total * (static_cast<double>(rest) / static_cast<double>(s));
      out[place] = narrow<Stored>(static_cast<Number>(entry) * g);
    }
  }
}

// The statistics of `width` neighbouring rows, a few vectors at a time, so that they stay in registers along the classes.
template <int kVectors, typename Stored>
inline void statistics_of_neighbours(
    const Stored* x,
    int64_t step,
    int64_t classes,
    int64_t width,
    Compute<Stored>* maximum,
    Compute<Stored>* rest) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  constexpr Number kLowest = -std::numeric_limits<Number>::infinity();
  const auto logits_at = [&](int64_t c, int v, Number filling) {
    return load_part(x + c * step + v * lanes, width - v * lanes, filling);
  };
  Vector<Number> m[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    m[v] = all<Number>(kLowest);
  }
  for (int64_t c = 0; c < classes; ++c) {
    for (int v = 0; v < kVectors; ++v) {
      m[v] = larger<Number>(logits_at(c, v, Number(0)), m[v]);
    }
  }
  // Logits equal to the maximum are counted, not added: all but one of them belong to the rest.
  Vector<Number> ties[kVectors]{};
  double sums[kVectors * lanes]{};
  for (int64_t start = 0; start < classes; start += kClassesAtATime) {
    const int64_t stop = classes - start < kClassesAtATime ? classes : start + kClassesAtATime;
    Vector<Number> part[kVectors]{};
    for (int64_t c = start; c < stop; ++c) {
      for (int v = 0; v < kVectors; ++v) {
        // The neighbours that follow: classes are too far apart for the processor to see what comes next.
        __builtin_prefetch(x + c * step + (kVectors + v) * lanes);
        const Vector<Number> logits = logits_at(c, v, Number(0));
        const Integers<Number> is_maximum = logits == m[v];
        // Without a finite maximum a nan must still come out.
        const Vector<Number> e = exp(logits - (m[v] == kLowest ? Vector<Number>{} : m[v]));
        part[v] += is_maximum ? Vector<Number>{} : e;
        ties[v] += is_maximum ? all<Number>(1) : Vector<Number>{};
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      for (int lane = 0; lane < lanes; ++lane) {
        sums[v * lanes + lane] += static_cast<double>(part[v][lane]);
      }
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

template <typename Stored>
void forward_across_positions(const CrossEntropy& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const Sizes& sizes = arguments.sizes;
  const Number* weight = static_cast<const Number*>(arguments.weight);
  const Number smoothing = static_cast<Number>(arguments.label_smoothing);
  const Number spread = static_cast<Number>(arguments.label_smoothing / static_cast<double>(sizes.classes));
  const int64_t step = arguments.input_layout.classes;
  const bool probabilities = arguments.indices == nullptr;
  constexpr int64_t kRoom = kTile + 4 * lanes;
  alignas(64) Number maximum[kRoom];
  alignas(64) Number rest[kRoom];
  alignas(64) Number log_sum[kRoom];
  alignas(64) Number part[kTile];
  alignas(64) Number total_part[kTile];
  alignas(64) double total[kTile];
  alignas(64) double weighted[kTile];
  for (int64_t unit = begin; unit < end; ++unit) {
    const Tile tile = tile_at(sizes, arguments.tile, unit);
    const int64_t width = tile.width;
    const int64_t row = tile.sample * sizes.positions + tile.position;
    const Stored* x = row_at<Stored>(arguments.input, arguments.input_layout, tile.sample, tile.position);
    const Stored* t = row_at<Stored>(arguments.shares, arguments.target_layout, tile.sample, tile.position);
    for (int64_t i = 0; i < width;) {
      if (width - i >= 4 * lanes) {
        statistics_of_neighbours<4>(x + i, step, sizes.classes, 4 * lanes, maximum + i, rest + i);
        i += 4 * lanes;
      } else {
        statistics_of_neighbours<1>(x + i, step, sizes.classes, width - i, maximum + i, rest + i);
        i += lanes;
      }
    }
    for (int64_t i = 0; i < width; i += lanes) {
      store(log_sum + i, log1p(load(rest + i)));
    }
    const bool weigh = probabilities || smoothing != 0;
    if (weigh) {
      std::memset(total, 0, sizeof(total));
      std::memset(weighted, 0, sizeof(weighted));
    }
    for (int64_t start = 0; weigh && start < sizes.classes; start += kClassesAtATime) {
      const int64_t stop = sizes.classes - start < kClassesAtATime ? sizes.classes : start + kClassesAtATime;
      std::memset(part, 0, sizeof(part));
      std::memset(total_part, 0, sizeof(total_part));
      for (int64_t c = start; c < stop; ++c) {
        const Number w = weight == nullptr ? Number(1) : weight[c];
        for (int64_t i = 0; i < width; i += lanes) {
          const Vector<Number> shifted = load_part(x + c * step + i, width - i, Number(0)) - load(maximum + i);
          Vector<Number> share = all<Number>(probabilities ? spread : Number(1));
          if (probabilities) {
            share += load_part(t + c * arguments.target_layout.classes + i, width - i, Number(0)) * (1 - smoothing);
          }
          share *= w;
          const Vector<Number> product = share == Number(0) ? Vector<Number>{} : share * shifted;
          store(total_part + i, load(total_part + i) + share);
          store(part + i, load(part + i) + product);
        }
      }
      for (int64_t i = 0; i < width; ++i) {
        total[i] += static_cast<double>(total_part[i]);
        weighted[i] += static_cast<double>(part[i]);
      }
    }
    Number* losses = static_cast<Number*>(arguments.losses) + row;
    Number* maxima = static_cast<Number*>(arguments.maximum) + row;
    Number* rests = static_cast<Number*>(arguments.rest) + row;
    std::memcpy(maxima, maximum, static_cast<size_t>(width) * sizeof(Number));
    std::memcpy(rests, rest, static_cast<size_t>(width) * sizeof(Number));
    if (probabilities) {
      for (int64_t i = 0; i < width; ++i) {
        losses[i] = static_cast<Number>(total[i] * log_sum[i] - weighted[i]);
      }
      continue;
    }
    const Targets targets(arguments, tile);
    for (int64_t i = 0; i < width; ++i) {
      const Target target = targets.template at<Number>(i);
      if (!target.active) {
        losses[i] = maxima[i] = rests[i] = 0;
        continue;
      }
      Number loss = log_sum[i] - (widen(x[target.index * step + i]) - maximum[i]);
      loss *= weight == nullptr ? Number(1) : weight[target.index];
      if (smoothing != 0) {
        loss = (1 - smoothing) * loss + static_cast<Number>((total[i] * log_sum[i] - weighted[i]) * spread);
      }
      losses[i] = loss;
    }
  }
}

template <typename Stored>
void backward_across_positions(const CrossEntropy& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  using Integer = typename VectorOf<Number>::Integer;
  constexpr int64_t lanes = kLanes<Number>;
  const Sizes& sizes = arguments.sizes;
  const Number* weight = static_cast<const Number*>(arguments.weight);
  const Number smoothing = static_cast<Number>(arguments.label_smoothing);
  const Number spread = static_cast<Number>(arguments.label_smoothing / static_cast<double>(sizes.classes));
  const Number weight_sum = static_cast<Number>(arguments.weight_sum);
  const int64_t step = arguments.input_layout.classes, grad_step = arguments.grad_layout.classes;
  const bool probabilities = arguments.indices == nullptr;
  alignas(64) Number maximum[kTile];
  alignas(64) Number rest[kTile];
  alignas(64) Number shifted[kTile];
  alignas(64) Number weights[kTile];
  alignas(64) Number hard[kTile];
  alignas(64) Number smooth[kTile];
  alignas(64) Number factor[kTile];
  alignas(64) Number entry[kTile];
  alignas(64) Integer place[kTile];
  alignas(64) Number part[kTile];
  alignas(64) Number total_part[kTile];
  alignas(64) double total[kTile];
  alignas(64) double others[kTile];
  for (int64_t unit = begin; unit < end; ++unit) {
    const Tile tile = tile_at(sizes, arguments.tile, unit);
    const int64_t width = tile.width;
    const int64_t row = tile.sample * sizes.positions + tile.position;
    const Stored* x = row_at<Stored>(arguments.input, arguments.input_layout, tile.sample, tile.position);
    const Stored* t = row_at<Stored>(arguments.shares, arguments.target_layout, tile.sample, tile.position);
    Stored* out = const_cast<Stored*>(
        row_at<Stored>(arguments.grad_input, arguments.grad_layout, tile.sample, tile.position));
    // Whole vectors: what the rows do not fill must not be what was there.
    const int64_t filled = (width + lanes - 1) / lanes * lanes;
    for (Number* numbers : {maximum, rest, shifted, weights, hard, smooth, factor, entry}) {
      std::memset(numbers, 0, static_cast<size_t>(filled) * sizeof(Number));
    }
    for (int64_t i = 0; i < filled; ++i) {
      place[i] = -1;
    }
    const auto share_at = [&](int64_t c, int64_t i) {
      const Vector<Number> share =
          load_part(t + c * arguments.target_layout.classes + i, width - i, Number(0)) * (1 - smoothing) + spread;
      return weight == nullptr ? share : share * weight[c];
    };
    if (probabilities) {
      for (int64_t i = 0; i < width; ++i) {
        maximum[i] = static_cast<const Number*>(arguments.maximum)[row + i];
      }
      std::memset(total, 0, sizeof(total));
      std::memset(others, 0, sizeof(others));
      for (int64_t start = 0; start < sizes.classes; start += kClassesAtATime) {
        const int64_t stop = sizes.classes - start < kClassesAtATime ? sizes.classes : start + kClassesAtATime;
        std::memset(part, 0, sizeof(part));
        std::memset(total_part, 0, sizeof(total_part));
        for (int64_t c = start; c < stop; ++c) {
          for (int64_t i = 0; i < width; i += lanes) {
            const Vector<Number> logits = load_part(x + c * step + i, width - i, Number(1));
            const Vector<Number> share = share_at(c, i);
            const Integers<Number> seen = load_integers<Number>(place + i);
            const Integers<Number> is_maximum = (logits == load(maximum + i)) & (seen < 0);
            store_integers(place + i, is_maximum ? Integers<Number>{} + static_cast<Integer>(c) : seen);
            store(total_part + i, load(total_part + i) + share);
            store(part + i, load(part + i) + (is_maximum ? Vector<Number>{} : share));
          }
        }
        for (int64_t i = 0; i < width; ++i) {
          total[i] += static_cast<double>(total_part[i]);
          others[i] += static_cast<double>(part[i]);
        }
      }
    }
    bool quiet[kTile];
    bool any_quiet = false;
    const Targets targets(arguments, tile);
    for (int64_t i = 0; i < width; ++i) {
      const Number g = static_cast<Number>(
          static_cast<const Number*>(arguments.grad_rows)[(row + i) * arguments.grad_stride] * arguments.scale);
      const Number row_rest = static_cast<const Number*>(arguments.rest)[row + i];
      quiet[i] = false;
      if (probabilities) {
        const double s = 1 + static_cast<double>(row_rest);
        factor[i] = static_cast<Number>(total[i] / s);
        smooth[i] = g;
        entry[i] = static_cast<Number>(others[i] - total[i] * (static_cast<double>(row_rest) / s)) * g;
        continue;
      }
      const Target target = targets.template at<Number>(i);
      if (!target.active) {
        quiet[i] = any_quiet = true;
        place[i] = -1;
        continue;
      }
      place[i] = static_cast<Integer>(target.index);
      maximum[i] = static_cast<const Number*>(arguments.maximum)[row + i];
      shifted[i] = widen(x[target.index * step + i]) - maximum[i];
      rest[i] = row_rest;
      weights[i] = weight == nullptr ? Number(1) : weight[target.index];
      hard[i] = g * weights[i] * (1 - smoothing);
      smooth[i] = smoothing != 0 ? g * spread : Number(0);
    }
    for (int64_t i = 0; !probabilities && i < width; i += lanes) {
      // As `target_entry`, for all lanes at once.
      const Vector<Number> smooth_sum = load(smooth + i) * weight_sum;
      const Vector<Number> s = load(rest + i) + Number(1);
      const Vector<Number> e = exp(load(shifted + i));
      const Vector<Number> others_of_target = load(shifted + i) == Number(0) ? load(rest + i) : s - e;
      store(factor + i, (load(hard + i) + smooth_sum) / s);
      store(
          entry + i,
          smooth_sum * (e / s) - load(hard + i) * (others_of_target / s) -
              load(smooth + i) * load(weights + i));
    }
    for (int64_t c = 0; c < sizes.classes; ++c) {
      const Number w = weight == nullptr ? Number(1) : weight[c];
      for (int64_t i = 0; i < width; i += lanes) {
        const Vector<Number> logits = load_part(x + c * step + i, width - i, Number(0));
        __builtin_prefetch(x + c * step + width + i);
        const Vector<Number> e = exp(logits - load(maximum + i));
        Vector<Number> gradient = e * load(factor + i);
        if (probabilities) {
          gradient = (gradient - share_at(c, i)) * load(smooth + i);
        } else if (smoothing != 0) {
          gradient -= load(smooth + i) * w;
        }
        const Integers<Number> is_place = load_integers<Number>(place + i) == static_cast<Integer>(c);
        store_part(out + c * grad_step + i, width - i, is_place ? load(entry + i) : gradient);
      }
    }
    for (int64_t i = 0; any_quiet && i < width; ++i) {
      for (int64_t c = 0; quiet[i] && c < sizes.classes; ++c) {
        out[c * grad_step + i] = narrow<Stored>(Number(0));
      }
    }
  }
}

// Rows of few classes would leave most of a vector empty, and cost more than their arithmetic.
constexpr int64_t kShortRow = 16;

inline bool is_short(const CrossEntropy& arguments) {
  return arguments.indices != nullptr && arguments.sizes.positions == 1 && arguments.sizes.classes <= kShortRow;
}

// Rows of few classes, turned: the lanes of a vector are rows, and `run` walks across them.
template <bool kBackward, typename Stored, typename Run>
inline void turned(const CrossEntropy& arguments, int64_t begin, int64_t end, const Run& run) {
  using Number = Compute<Stored>;
  constexpr int64_t width = 64;
  alignas(64) Stored tile[kShortRow * width];
  const int64_t classes = arguments.sizes.classes;
  for (int64_t first = begin; first < end; first += width) {
    CrossEntropy few = arguments;
    few.walk = Walk::across_positions;
    few.tile = width;
    few.sizes = {1, classes, end - first < width ? end - first : width};
    few.input = few.grad_input = tile;
    few.input_layout = few.grad_layout = {0, width, 1};
    few.indices += first * arguments.target_layout.sample;
    few.target_layout = {0, 0, arguments.target_layout.sample};
    few.maximum = static_cast<Number*>(few.maximum) + first;
    few.rest = static_cast<Number*>(few.rest) + first;
    if (kBackward) {
      few.grad_rows = static_cast<const Number*>(few.grad_rows) + first * few.grad_stride;
    } else {
      few.losses = static_cast<Number*>(few.losses) + first;
    }
    for (int64_t row = 0; row < few.sizes.positions; ++row) {
      const Stored* x = row_at<Stored>(arguments.input, arguments.input_layout, first + row, 0);
      for (int64_t c = 0; c < classes; ++c) {
        tile[c * width + row] = x[c];
      }
    }
    run(few, 0, 1);
    for (int64_t row = 0; kBackward && row < few.sizes.positions; ++row) {
      Stored* out =
          const_cast<Stored*>(row_at<Stored>(arguments.grad_input, arguments.grad_layout, first + row, 0));
      for (int64_t c = 0; c < classes; ++c) {
        out[c] = tile[c * width + row];
      }
    }
  }
}

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
