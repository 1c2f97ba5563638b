// The textbook cross-entropy error on probabilities: loss = -Σ t log(p + δ), gradient = -g t / (p + δ).
// torchlosses/cee.py derives them. Classes are neighbours in memory.
#pragma once

#include "vector.h"

namespace torchlosses {
namespace INSTRUCTION_SET {

// log(p + δ); next to p = 1, where p + δ would round δ away, as log1p((p - 1) + δ).
template <typename Number>
inline Vector<Number> log_plus(Vector<Number> p, Number delta) {
  const Integers<Number> is_small = p < Number(0.5);
  return is_small ? log(p + delta) : log1p((is_small ? Vector<Number>{} : p - Number(1)) + delta);
}

template <typename Number>
inline Number tolerance_of(Dtype dtype) {
  // Four units in the last place of 1, as the check in PyTorch operations has it.
  switch (dtype) {
    case Dtype::float64:
      return Number(4 * 0x1p-52);
    case Dtype::bfloat16:
      return Number(4 * 0x1p-7);
    case Dtype::float16:
      return Number(4 * 0x1p-10);
    default:
      return Number(4 * 0x1p-23);
  }
}

template <typename Stored>
inline bool are_probabilities(const Stored* p, int64_t classes, Compute<Stored> tolerance) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  Integers<Number> outside{};
  for (int64_t c = 0; c < classes; c += lanes) {
    const Vector<Number> values = classes - c < lanes ? load_some(p + c, classes - c, Number(0)) : load(p + c);
    outside |= (values < -tolerance) | (values > Number(1) + tolerance);
  }
  return !any(outside);
}

// The class of a row's index target; one outside the classes is reported.
inline int64_t index_of(const TextbookCrossEntropy& arguments, int64_t sample, int64_t position) {
  const Layout& layout = arguments.target_layout;
  const int64_t index = arguments.indices[sample * layout.sample + position * layout.position];
  if (index < 0 || index >= arguments.sizes.classes) {
    arguments.out_of_bounds->store(true, std::memory_order_relaxed);
    return -1;
  }
  return index;
}

template <typename Stored>
void textbook_forward(const TextbookCrossEntropy& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const Sizes& sizes = arguments.sizes;
  const Number delta = static_cast<Number>(arguments.delta);
  const Number tolerance = tolerance_of<Number>(arguments.dtype);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t sample = row / sizes.positions, position = row % sizes.positions;
    const Stored* p = row_at<Stored>(arguments.input, arguments.input_layout, sample, position);
    Number& loss = static_cast<Number*>(arguments.losses)[row];
    loss = 0;
    if (arguments.validate && !are_probabilities(p, sizes.classes, tolerance)) {
      arguments.not_probabilities->store(true, std::memory_order_relaxed);
      continue;
    }
    if (arguments.indices != nullptr) {
      const int64_t index = index_of(arguments, sample, position);
      if (index >= 0) {
        loss = -log_plus(all<Number>(widen(p[index])), delta)[0];
      }
      continue;
    }
    const Stored* t = row_at<Stored>(arguments.shares, arguments.target_layout, sample, position);
    double total = 0;
    for (int64_t c = 0; c < sizes.classes; c += lanes) {
      const int64_t count = sizes.classes - c < lanes ? sizes.classes - c : lanes;
      const bool whole = count == lanes;
      const Vector<Number> share = whole ? load(t + c) : load_some(t + c, count, Number(0));
      const Vector<Number> log = log_plus(whole ? load(p + c) : load_some(p + c, count, Number(1)), delta);
      // Without δ, 0 · log 0 is 0. Lanes beyond the classes have no share.
      const Integers<Number> counts = (share != Number(0)) | (Integers<Number>{} - (whole && delta != 0));
      total += sum<Number>(counts ? share * log : Vector<Number>{});
    }
    loss = static_cast<Number>(-total);
  }
}

template <typename Stored>
void textbook_backward(const TextbookCrossEntropy& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const Sizes& sizes = arguments.sizes;
  const Number delta = static_cast<Number>(arguments.delta);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t sample = row / sizes.positions, position = row % sizes.positions;
    const Stored* p = row_at<Stored>(arguments.input, arguments.input_layout, sample, position);
    Stored* out = const_cast<Stored*>(row_at<Stored>(arguments.grad_input, arguments.grad_layout, sample, position));
    const Number g = static_cast<Number>(
        -static_cast<const Number*>(arguments.grad_rows)[row * arguments.grad_stride] * arguments.scale);
    if (arguments.indices != nullptr) {
      const int64_t index = index_of(arguments, sample, position);
      std::memset(out, 0, static_cast<size_t>(sizes.classes) * sizeof(Stored));
      if (index >= 0) {
        out[index] = narrow<Stored>(g / (widen(p[index]) + delta));
      }
      continue;
    }
    const Stored* t = row_at<Stored>(arguments.shares, arguments.target_layout, sample, position);
    for (int64_t c = 0; c < sizes.classes; c += lanes) {
      const int64_t count = sizes.classes - c < lanes ? sizes.classes - c : lanes;
      const bool whole = count == lanes;
      const Vector<Number> share = whole ? load(t + c) : load_some(t + c, count, Number(0));
      const Vector<Number> shifted = (whole ? load(p + c) : load_some(p + c, count, Number(1))) + delta;
      const Integers<Number> counts = (share != Number(0)) | (Integers<Number>{} - (delta != 0));
      const Vector<Number> gradient = (counts ? share / shifted : Vector<Number>{}) * g;
      if (whole) {
        store(out + c, gradient);
      } else {
        store_some(out + c, count, gradient);
      }
    }
  }
}

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
