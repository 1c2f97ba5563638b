// The maximum of a row and the sums of its exponentials, in one look at memory.
#pragma once

#include <memory>
#include <vector>

#include "mathematics.h"
#include "sums.h"

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

// Σ exp(x - m) and Σ exp(x - m) (x - m), and how many logits are the maximum.
struct Sums {
  double exponentials = 0;
  double products = 0;
  double ties = 0;
};

// They are added to, over few additions in the short format. Logits equal to a maximum that is new are counted, not added: all
// but one of them belong to the rest. The next chunk is fetched meanwhile: this loop computes, and the memory has nothing else
// to do.
template <bool kKeep, bool kNew, bool kProducts, typename Stored>
inline void add_few_exp(const Stored* x, int64_t count, Compute<Stored> m, Compute<Stored>* kept, Sums& to) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  Vector<Number> sums[4]{}, products[4]{};
  Integers<Number> equal{};
  const auto add = [&](int i, Vector<Number> logits, int64_t place) __attribute__((always_inline)) {
    const Vector<Number> shifted = logits - m, e = exp(shifted);
    if constexpr (kKeep) {
      store(kept + place, e);
    }
    if constexpr (kProducts) {
      products[i] = multiply_add(e, finite_exponent(shifted), products[i]);
    }
    if constexpr (kNew) {
      const Integers<Number> is_maximum = logits == m;
      equal -= is_maximum;
      sums[i] += is_maximum ? Vector<Number>{} : e;
    } else {
      sums[i] += e;
    }
  };
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    for (int64_t line = 0; line < 4 * lanes; line += 64 / static_cast<int64_t>(sizeof(Stored))) {
      __builtin_prefetch(x + i + line + kChunk);
    }
    const Pair<Number> one = load_pair(x + i), two = load_pair(x + i + 2 * lanes);
    add(0, one.first, i);
    add(1, one.second, i + lanes);
    add(2, two.first, i + 2 * lanes);
    add(3, two.second, i + 3 * lanes);
  }
  if (i + 2 * lanes <= count) {
    const Pair<Number> pair = load_pair(x + i);
    add(0, pair.first, i);
    add(1, pair.second, i + lanes);
    i += 2 * lanes;
  }
  if (i + lanes <= count) {
    add(2, load(x + i), i);
    i += lanes;
  }
  if (i < count) {
    // What is kept behind the row's end has room, and nobody looks at it.
    add(3, load_some(x + i, count - i, -std::numeric_limits<Number>::infinity()), i);
  }
  if constexpr (kNew) {
    to.ties += sum<Number>(__builtin_convertvector(equal, Vector<Number>));
  }
  to.exponentials += sum<Number>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  if constexpr (kProducts) {
    to.products += sum<Number>((products[0] + products[1]) + (products[2] + products[3]));
  }
}

// Without the 1 of a maximum that is new.
template <bool kKeep, bool kNew, bool kProducts, typename Stored>
inline Sums sums_of_exp(const Stored* x, int64_t count, Compute<Stored> m, Compute<Stored>* kept) {
  constexpr int64_t few = 32 * 4 * kLanes<Compute<Stored>>;
  Sums result;
  for (int64_t start = 0; start < count; start += few) {
    const int64_t end = count - start < few ? count - start : few;
    add_few_exp<kKeep, kNew, kProducts>(x + start, end, m, kKeep ? kept + start : nullptr, result);
  }
  if constexpr (kNew) {
    result.exponentials += result.ties - 1;
  }
  return result;
}

// What a thread keeps of a row: its exponentials, and the maximum that those of each chunk are taken from.
template <typename Number>
struct Kept {
  explicit Kept(int64_t classes)
      : exponentials(new Number[static_cast<size_t>(classes + kLanes<Number>)]),
        maxima(static_cast<size_t>((classes + kChunk - 1) / kChunk)) {}
  std::unique_ptr<Number[]> exponentials;
  std::vector<Number> maxima;
};

template <typename Number>
struct RowStatistics {
  Number maximum;
  Number rest;
  double products = 0;  // Σ exp(x - m) (x - m), where it is asked for
  int64_t chunk = 0;    // where that begins which has the first of the maxima
};

// One look at memory: each chunk is searched for a larger maximum, and its exponentials are added while it is in cache.
template <bool kKeep, bool kProducts = false, typename Stored>
inline RowStatistics<Compute<Stored>> statistics(const Stored* x, int64_t classes, Kept<Compute<Stored>>* kept) {
  using Number = Compute<Stored>;
  constexpr Number kLowest = -std::numeric_limits<Number>::infinity();
  Number m = kLowest;
  double rest = 0, products = 0;
  int64_t place = 0;
  for (int64_t start = 0; start < classes; start += kChunk) {
    const int64_t count = classes - start < kChunk ? classes - start : kChunk;
    const Stored* chunk = x + start;
    Number* to = kKeep ? kept->exponentials.get() + start : nullptr;
    const Number candidate = maximum_of(chunk, count);
    Sums found;
    if (candidate > m) {
      if (m != kLowest) {
        // What had been the maximum is now one of the others.
        const double step = static_cast<double>(m) - static_cast<double>(candidate), factor = exp_of(step);
        rest += 1.0;
        if constexpr (kProducts) {
          products = factor == 0 ? 0 : factor * (products + step * rest);
        }
        rest *= factor;
      }
      m = candidate;
      place = start;
      found = sums_of_exp<kKeep, true, kProducts>(chunk, count, m, to);
    } else {
      // A row that has shown nothing but -inf and nan so far has no finite maximum to subtract.
      found = sums_of_exp<kKeep, false, kProducts>(chunk, count, m == kLowest ? Number(0) : m, to);
    }
    rest += found.exponentials;
    products += found.products;
    if constexpr (kKeep) {
      kept->maxima[static_cast<size_t>(start / kChunk)] = m;
    }
  }
  // An infinite maximum makes the row's probabilities 0/0 or inf/inf.
  return {m, static_cast<Number>(rest) + (m - m), products, place};
}

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
