// The textbook cross-entropy error on probabilities: loss = -Σ t log(p + δ), gradient = -g t / (p + δ).
// torchlosses/cee.py derives them.
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

// -Σ t log(p + δ) over the shares and probabilities of a vector of rows, or of classes; without δ, 0 · log 0 is 0.
template <typename Number>
inline Vector<Number> products(Vector<Number> share, Vector<Number> p, Number delta) {
  const Integers<Number> counts = (share != Number(0)) | (Integers<Number>{} - (delta != 0));
  return counts ? share * log_plus(p, delta) : Vector<Number>{};
}

template <typename Number>
inline Vector<Number> quotients(Vector<Number> share, Vector<Number> p, Number delta) {
  const Integers<Number> counts = (share != Number(0)) | (Integers<Number>{} - (delta != 0));
  return counts ? share / (p + delta) : Vector<Number>{};
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
    const int64_t sample = sizes.sample_of(row), position = sizes.position_of(row);
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
      // Lanes beyond the classes have no share, and a probability of 1, whose logarithm is finite.
      total += sum<Number>(products<Number>(
          load_part(t + c, count, Number(0)), load_part(p + c, count, Number(1)), delta));
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
    const int64_t sample = sizes.sample_of(row), position = sizes.position_of(row);
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
      const Vector<Number> share = load_part(t + c, count, Number(0));
      store_part(out + c, count, quotients<Number>(share, load_part(p + c, count, Number(1)), delta) * g);
    }
  }
}

template <typename Stored>
void textbook_forward_across_positions(const TextbookCrossEntropy& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const Sizes& sizes = arguments.sizes;
  const Number delta = static_cast<Number>(arguments.delta);
  const Number tolerance = tolerance_of<Number>(arguments.dtype);
  const int64_t step = arguments.input_layout.classes, target_step = arguments.target_layout.classes;
  alignas(64) Number part[kTile];
  double total[kTile];
  for (int64_t unit = begin; unit < end; ++unit) {
    const Tile tile = tile_at(sizes, arguments.tile, unit);
    const int64_t width = tile.width;
    const Stored* p = row_at<Stored>(arguments.input, arguments.input_layout, tile.sample, tile.position);
    const Stored* t = row_at<Stored>(arguments.shares, arguments.target_layout, tile.sample, tile.position);
    Number* losses = static_cast<Number*>(arguments.losses) + tile.sample * sizes.positions + tile.position;
    for (int64_t c = 0; arguments.validate && c < sizes.classes; ++c) {
      if (!are_probabilities(p + c * step, width, tolerance)) {
        arguments.not_probabilities->store(true, std::memory_order_relaxed);
      }
    }
    if (arguments.indices != nullptr) {
      for (int64_t i = 0; i < width; ++i) {
        const int64_t index = index_of(arguments, tile.sample, tile.position + i);
        part[i] = index < 0 ? Number(1) : widen(p[index * step + i]);
      }
      for (int64_t i = 0; i < width; i += lanes) {
        store_part(losses + i, width - i, -log_plus(load_part(part + i, width - i, Number(1)), delta));
      }
      continue;
    }
    std::memset(total, 0, sizeof(total));
    for (int64_t start = 0; start < sizes.classes; start += kClassesAtATime) {
      const int64_t stop = sizes.classes - start < kClassesAtATime ? sizes.classes : start + kClassesAtATime;
      std::memset(part, 0, sizeof(part));
      for (int64_t c = start; c < stop; ++c) {
        for (int64_t i = 0; i < width; i += lanes) {
          const Vector<Number> share = load_part(t + c * target_step + i, width - i, Number(0));
          const Vector<Number> values = load_part(p + c * step + i, width - i, Number(1));
          store(part + i, load(part + i) + products<Number>(share, values, delta));
        }
      }
      for (int64_t i = 0; i < width; ++i) {
        total[i] += static_cast<double>(part[i]);
      }
    }
    for (int64_t i = 0; i < width; ++i) {
      losses[i] = static_cast<Number>(-total[i]);
    }
  }
}

template <typename Stored>
void textbook_backward_across_positions(const TextbookCrossEntropy& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const Sizes& sizes = arguments.sizes;
  const Number delta = static_cast<Number>(arguments.delta);
  const int64_t step = arguments.input_layout.classes, target_step = arguments.target_layout.classes;
  const int64_t grad_step = arguments.grad_layout.classes;
  alignas(64) Number g[kTile];
  for (int64_t unit = begin; unit < end; ++unit) {
    const Tile tile = tile_at(sizes, arguments.tile, unit);
    const int64_t width = tile.width, row = tile.sample * sizes.positions + tile.position;
    const Stored* p = row_at<Stored>(arguments.input, arguments.input_layout, tile.sample, tile.position);
    const Stored* t = row_at<Stored>(arguments.shares, arguments.target_layout, tile.sample, tile.position);
    Stored* out =
        const_cast<Stored*>(row_at<Stored>(arguments.grad_input, arguments.grad_layout, tile.sample, tile.position));
    for (int64_t i = 0; i < width; ++i) {
      g[i] = static_cast<Number>(
          -static_cast<const Number*>(arguments.grad_rows)[(row + i) * arguments.grad_stride] * arguments.scale);
    }
    for (int64_t c = 0; c < sizes.classes; ++c) {
      if (arguments.indices != nullptr) {
        std::memset(out + c * grad_step, 0, static_cast<size_t>(width) * sizeof(Stored));
        continue;
      }
      for (int64_t i = 0; i < width; i += lanes) {
        const Vector<Number> share = load_part(t + c * target_step + i, width - i, Number(0));
        const Vector<Number> values = load_part(p + c * step + i, width - i, Number(1));
        const Vector<Number> gradient =
            quotients<Number>(share, values, delta) * load_part(g + i, width - i, Number(0));
        store_part(out + c * grad_step + i, width - i, gradient);
      }
    }
    for (int64_t i = 0; arguments.indices != nullptr && i < width; ++i) {
      const int64_t index = index_of(arguments, tile.sample, tile.position + i);
      if (index >= 0) {
        out[index * grad_step + i] = narrow<Stored>(g[i] / (widen(p[index * step + i]) + delta));
      }
    }
  }
}

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
