// Cross-entropy on logits, on the CPU: what rows along the classes and across positions have in common.
// torchlosses/cross_entropy.py derives the formulas. For a row of logits x, with a scale and a cap y = c tanh(scale x / c):
//
//   m = max y, e_j = exp(y_j - m), rest = Σ e_j over all j but one at the maximum, s = 1 + rest = Σ e_j
//   l = log Σ exp(y_j) = m + log1p(rest), -log p_c = log1p(rest) - (y_c - m)
//   loss     = w (A log1p(rest) - Σ_c a_c (y_c - m) + λ l²)    (a the target's share of each class, A its sum, w the row's
//   gradient = g w ((A + 2 λ l) e_c / s - a_c) dy_c/dx_c        weight)
//
// The 1 of s is never added before it has to be: a row that is sure of its target keeps all digits of its small loss, and
// in the gradient p_t - 1 is -rest / s. What the incoming gradient multiplies is finite by itself, so that g = inf is no
// inf - inf.
#pragma once

#include "logits.h"
#include "sums.h"

namespace torchlosses {
namespace INSTRUCTION_SET {

// What is the same for all rows of a call.
template <typename Number>
struct RowOptions {
  explicit RowOptions(const CrossEntropy& arguments)
      : weight(static_cast<const Number*>(arguments.weight)),
        sample_weight(static_cast<const Number*>(arguments.sample_weight)),
        grad_rows(static_cast<const Number*>(arguments.grad_rows)),
        scale(arguments.scale),
        classes(arguments.sizes.classes),
        smoothing(arguments.label_smoothing),
        spread(arguments.label_smoothing / static_cast<double>(arguments.sizes.classes)),
        weight_sum(arguments.weight_sum),
        z_loss(arguments.z_loss),
        indices(arguments.indices != nullptr) {}

  Number sample_weight_of(int64_t row) const {
    return sample_weight == nullptr ? Number(1) : sample_weight[row];
  }
  Number weight_of(int64_t index) const {
    return weight == nullptr ? Number(1) : weight[index];
  }
  // What a row's gradient is multiplied by, rounded once.
  Number gradient_of(int64_t row) const {
    const double grad = grad_rows == nullptr ? scale : scale * static_cast<double>(grad_rows[row]);
    return static_cast<Number>(grad * static_cast<double>(sample_weight_of(row)));
  }
  // Σ a of a row, from the place of its target or the sum of its probabilities' shares.
  double total_of(int64_t index, double shares) const {
    return indices ? (1 - smoothing) * static_cast<double>(weight_of(index)) + spread * weight_sum : shares;
  }
  // Whether classes beside a row's target have a share.
  bool shared() const {
    return !indices || smoothing != 0;
  }

  const Number* weight;
  const Number* sample_weight;
  const Number* grad_rows;
  double scale;
  int64_t classes;
  double smoothing;
  double spread;
  double weight_sum;
  double z_loss;
  bool indices;
};

// a_c = w_c ((1 - ε) t_c + ε / C) for the classes from `start` on; of class indices, without t, the part w_c ε / C.
template <typename Number>
struct Shares {
  explicit Shares(const RowOptions<Number>& options)
      : weight(options.weight),
        kept(static_cast<Number>(1 - options.smoothing)),
        spread(static_cast<Number>(options.spread)) {}

  template <typename Stored>
  Vector<Number> at(const Stored* t, int64_t start, int64_t count) const {
    Vector<Number> share = all<Number>(spread);
    if (t != nullptr) {
      share = multiply_add(load_part(t + start, count, Number(0)), kept, share);
    }
    if (weight != nullptr) {
      share *= load_part(weight + start, count, Number(0));
    }
    return share;
  }

  template <typename Stored>
  Pair<Number> pair_at(const Stored* t, int64_t start) const {
    Pair<Number> share{all<Number>(spread), all<Number>(spread)};
    if (t != nullptr) {
      const Pair<Number> given = load_pair(t + start);
      share.first = multiply_add(given.first, kept, share.first);
      share.second = multiply_add(given.second, kept, share.second);
    }
    if (weight != nullptr) {
      const Pair<Number> weights = load_pair_as<Stored>(weight + start);
      share.first *= weights.first;
      share.second *= weights.second;
    }
    return share;
  }

  const Number* weight;
  Number kept;
  Number spread;
};

// Σ a, Σ a (y - m) and Σ a without the class at one place.
struct Weighed {
  double total = 0;
  double products = 0;
  double others = 0;
};

// A class without weight takes no part, unless all classes have a share.
inline Targets targets_of(const CrossEntropy& arguments, const Tile& tile) {
  const bool counts = arguments.indices != nullptr && arguments.label_smoothing == 0;
  return Targets(arguments, counts ? arguments.weight : nullptr, tile);
}

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
