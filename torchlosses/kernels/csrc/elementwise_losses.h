// Losses of single elements and their slopes: squared error, Huber, smooth L1, binary cross-entropy on logits.
// torchlosses/mse.py, huber.py and binary_cross_entropy.py derive them.
#pragma once

#include "mathematics.h"

namespace torchlosses {
namespace INSTRUCTION_SET {

// Each has the loss and its slope by x for a vector of logits x and targets t. Where a loss takes few operations, sums are
// made of losses in double precision.
template <typename Number>
struct SquaredError {
  static constexpr bool kWide = true;
  explicit SquaredError(const Elementwise&) {}
  Vector<Number> loss(Vector<Number> x, Vector<Number> t, const Vector<Number>*) const {
    const Vector<Number> error = x - t;
    return error * error;
  }
  Vector<Number> slope(Vector<Number> x, Vector<Number> t, const Vector<Number>*) const {
    return (x - t) * Number(2);
  }
};

// A sum and one more loss of each lane.
template <typename Loss, typename Numbers>
inline Numbers with_loss(const Loss& loss, Numbers sum, Numbers x, Numbers t) {
  return sum + loss.loss(x, t, nullptr);
}
template <typename Number>
inline Vector<Number> with_loss(
    const SquaredError<Number>&, Vector<Number> sum, Vector<Number> x, Vector<Number> t) {
  const Vector<Number> error = x - t;
  return multiply_add(error, error, sum);
}

template <typename Number>
inline Vector<Number> magnitude(Vector<Number> x) {
  return x < Number(0) ? -x : x;
}

template <typename Number>
struct Huber {
  static constexpr bool kWide = true;
  explicit Huber(const Elementwise& arguments) : delta(static_cast<Number>(arguments.parameter)) {}
  Vector<Number> loss(Vector<Number> x, Vector<Number> t, const Vector<Number>*) const {
    const Vector<Number> e = magnitude<Number>(x - t);
    return e <= delta ? e * e * Number(0.5) : delta * (e - Number(0.5) * delta);
  }
  Vector<Number> slope(Vector<Number> x, Vector<Number> t, const Vector<Number>*) const {
    const Vector<Number> error = x - t;
    const Vector<Number> from_below = error < -delta ? all<Number>(-delta) : error;
    return from_below > delta ? all<Number>(delta) : from_below;
  }
  Number delta;
};

template <typename Number>
struct SmoothL1 {
  static constexpr bool kWide = true;
  explicit SmoothL1(const Elementwise& arguments) : beta(static_cast<Number>(arguments.parameter)) {}
  Vector<Number> loss(Vector<Number> x, Vector<Number> t, const Vector<Number>*) const {
    const Vector<Number> e = magnitude<Number>(x - t);
    return e < beta ? e * e * Number(0.5) / beta : e - Number(0.5) * beta;
  }
  Vector<Number> slope(Vector<Number> x, Vector<Number> t, const Vector<Number>*) const {
    const Vector<Number> error = x - t;
    const Vector<Number> sign = error > Number(0) ? all<Number>(1) : error < Number(0) ? all<Number>(-1) : error;
    return magnitude<Number>(error) < beta ? error / beta : sign;
  }
  Number beta;
};

// q t softplus(-x) + (1 - t) softplus(x), with q the weight of a positive answer.
template <typename Number>
struct BinaryCrossEntropy {
  static constexpr bool kWide = false;
  explicit BinaryCrossEntropy(const Elementwise& arguments)
      : kept(static_cast<Number>(1 - arguments.parameter)), spread(static_cast<Number>(arguments.parameter / 2)) {}
  struct Parts {
    Vector<Number> positive;
    Vector<Number> negative;
  };
  Parts parts(Vector<Number> t, const Vector<Number>* q) const {
    const Vector<Number> smooth = multiply_add(t, all<Number>(kept), all<Number>(spread));
    return {
        q == nullptr ? smooth : smooth * *q, multiply_add(Number(1) - t, all<Number>(kept), all<Number>(spread))};
  }
  // softplus(±x) = max(±x, 0) + log(1 + exp(-|x|)); a side without a part has no effect, also where it is infinite.
  Vector<Number> loss(Vector<Number> x, Vector<Number> t, const Vector<Number>* q) const {
    const Parts part = parts(t, q);
    const Vector<Number> distance = magnitude<Number>(x), tail = log1p(exp(-distance));
    const Vector<Number> far = x < Number(0) ? part.positive : part.negative;
    return multiply_add(
        far == Number(0) ? Vector<Number>{} : distance,
        far,
        q == nullptr ? tail : (part.positive + part.negative) * tail);
  }
  // (1 - t) σ(x) - q t σ(-x), with σ(-|x|) = exp(-|x|) σ(|x|).
  Vector<Number> slope(Vector<Number> x, Vector<Number> t, const Vector<Number>* q) const {
    const Parts part = parts(t, q);
    const Vector<Number> e = exp(-magnitude<Number>(x));
    const Vector<Number> of_both = x < Number(0) ? multiply_add(part.negative, e, -part.positive)
                                                 : multiply_add(-part.positive, e, part.negative);
    return of_both / (e + Number(1));
  }
  Number kept;
  Number spread;
};

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
