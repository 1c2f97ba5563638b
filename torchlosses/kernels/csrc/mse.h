// Squared errors, elementwise: loss = w (x - t)², gradient = 2 g w (x - t). torchlosses/mse.py derives them.
#pragma once

#include "vector.h"

namespace torchlosses {
namespace INSTRUCTION_SET {

template <typename Stored>
inline Vector<Compute<Stored>> squared_error(const Stored* x, const Stored* t, const Compute<Stored>* w) {
  const auto error = load(x) - load(t);
  return w == nullptr ? error * error : error * error * load(w);
}

template <typename Stored>
inline double sum_of_squared_errors(
    const Stored* x, const Stored* t, const Compute<Stored>* weight, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const auto w = [&](int64_t i) { return weight == nullptr ? nullptr : weight + i; };
  Vector<Number> first{}, second{}, third{}, fourth{};
  int64_t i = begin;
  for (; i + 4 * lanes <= end; i += 4 * lanes) {
    first += squared_error(x + i, t + i, w(i));
    second += squared_error(x + i + lanes, t + i + lanes, w(i + lanes));
    third += squared_error(x + i + 2 * lanes, t + i + 2 * lanes, w(i + 2 * lanes));
    fourth += squared_error(x + i + 3 * lanes, t + i + 3 * lanes, w(i + 3 * lanes));
  }
  double result = sum<Number>((first + second) + (third + fourth));
  for (; i < end; ++i) {
    const Number error = widen(x[i]) - widen(t[i]);
    result += static_cast<double>(weight == nullptr ? error * error : error * error * weight[i]);
  }
  return result;
}

template <typename Stored, typename Loss>
inline void write_squared_errors(const SquaredError& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const Stored* x = static_cast<const Stored*>(arguments.input);
  const Stored* t = static_cast<const Stored*>(arguments.target);
  const Number* weight = static_cast<const Number*>(arguments.weight);
  Loss* out = static_cast<Loss*>(arguments.losses);
  int64_t i = begin;
  for (; i + lanes <= end; i += lanes) {
    store(out + i, squared_error(x + i, t + i, weight == nullptr ? nullptr : weight + i));
  }
  for (; i < end; ++i) {
    const Number error = widen(x[i]) - widen(t[i]);
    out[i] = narrow<Loss>(weight == nullptr ? error * error : error * error * weight[i]);
  }
}

inline int64_t end_of(int64_t block, int64_t elements) {
  return (block + 1) * kBlock < elements ? (block + 1) * kBlock : elements;
}

template <typename Stored>
void squared_error_forward(const SquaredError& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t start = block * kBlock, stop = end_of(block, arguments.elements);
    if (arguments.partial_sums != nullptr) {
      arguments.partial_sums[block] = sum_of_squared_errors(
          static_cast<const Stored*>(arguments.input),
          static_cast<const Stored*>(arguments.target),
          static_cast<const Number*>(arguments.weight),
          start,
          stop);
    } else if (arguments.losses_dtype == arguments.dtype) {
      write_squared_errors<Stored, Stored>(arguments, start, stop);
    } else {
      write_squared_errors<Stored, Number>(arguments, start, stop);
    }
  }
}

template <typename Stored>
void squared_error_backward(const SquaredError& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const Stored* x = static_cast<const Stored*>(arguments.input);
  const Stored* t = static_cast<const Stored*>(arguments.target);
  const Number* weight = static_cast<const Number*>(arguments.weight);
  const Number* grad = static_cast<const Number*>(arguments.grad);
  Stored* out = static_cast<Stored*>(arguments.grad_input);
  const Number scale = static_cast<Number>(arguments.scale) * (arguments.grad_is_scalar ? grad[0] : Number(1));
  const int64_t stop = end_of(end - 1, arguments.elements);
  int64_t i = begin * kBlock;
  for (; i + lanes <= stop; i += lanes) {
    Vector<Number> gradient = (load(x + i) - load(t + i)) * scale;
    if (!arguments.grad_is_scalar) {
      gradient *= load(grad + i);
    }
    if (weight != nullptr) {
      gradient *= load(weight + i);
    }
    store(out + i, gradient);
  }
  for (; i < stop; ++i) {
    Number gradient = (widen(x[i]) - widen(t[i])) * scale;
    gradient *= arguments.grad_is_scalar ? Number(1) : grad[i];
    gradient *= weight == nullptr ? Number(1) : weight[i];
    out[i] = narrow<Stored>(gradient);
  }
}

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
