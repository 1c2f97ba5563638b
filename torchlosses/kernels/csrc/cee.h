// The textbook cross-entropy error on probabilities: loss = -w Σ t log(p + δ), gradient = -g w t / (p + δ), with the weight w
// of a row. torchlosses/cee.py derives them.
#pragma once

#include "mathematics.h"
#include "sums.h"

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
    const Vector<Number> values = load_part(p + c, classes - c, Number(0));
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

// What is the same for all rows of a call.
template <typename Number>
struct TextbookOptions {
  explicit TextbookOptions(const TextbookCrossEntropy& arguments)
      : arguments(arguments),
        sample_weight(static_cast<const Number*>(arguments.sample_weight)),
        grad_rows(static_cast<const Number*>(arguments.grad_rows)),
        losses(static_cast<Number*>(arguments.losses)),
        delta(static_cast<Number>(arguments.delta)),
        tolerance(tolerance_of<Number>(arguments.dtype)) {}

  Number sample_weight_of(int64_t row) const {
    return sample_weight == nullptr ? Number(1) : sample_weight[row];
  }
  // What a row's gradient is multiplied by, rounded once.
  Number gradient_of(int64_t row) const {
    const double grad =
        grad_rows == nullptr ? arguments.scale : arguments.scale * static_cast<double>(grad_rows[row]);
    return static_cast<Number>(-grad * static_cast<double>(sample_weight_of(row)));
  }
  // The class of a row's index target; one outside the classes is reported.
  int64_t index_of(int64_t sample, int64_t position) const {
    const Layout& layout = arguments.target_layout;
    const int64_t index = arguments.indices[sample * layout.sample + position * layout.position];
    if (index < 0 || index >= arguments.sizes.classes) {
      arguments.out_of_bounds->store(true, std::memory_order_relaxed);
      return -1;
    }
    return index;
  }

  const TextbookCrossEntropy& arguments;
  const Number* sample_weight;
  const Number* grad_rows;
  Number* losses;
  Number delta;
  Number tolerance;
};

template <typename Stored>
void textbook_along_classes(const TextbookCrossEntropy& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const TextbookOptions<Number> options(arguments);
  const Sizes& sizes = arguments.sizes;
  const Number delta = options.delta;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t sample = sizes.sample_of(row), position = sizes.position_of(row);
    const Stored* p = row_at<Stored>(arguments.input, arguments.input_layout, sample, position);
    Stored* out =
        arguments.grad_input == nullptr
            ? nullptr
            : const_cast<Stored*>(row_at<Stored>(arguments.grad_input, arguments.grad_layout, sample, position));
    const Number weight = options.sample_weight_of(row), g = options.gradient_of(row);
    if (options.losses != nullptr && arguments.validate && weight != 0 &&
        !are_probabilities(p, sizes.classes, options.tolerance)) {
      arguments.not_probabilities->store(true, std::memory_order_relaxed);
    }
    const int64_t index = arguments.indices == nullptr ? -1 : options.index_of(sample, position);
    if (weight == 0 || arguments.indices != nullptr) {
      const bool counts = weight != 0 && index >= 0;
      const Number at_target = counts ? widen(p[index]) : Number(1);
      if (options.losses != nullptr) {
        options.losses[row] = counts ? -log_plus(all<Number>(at_target), delta)[0] * weight : Number(0);
      }
      if (out != nullptr) {
        std::memset(out, 0, static_cast<size_t>(sizes.classes) * sizeof(Stored));
        if (counts) {
          out[index] = narrow<Stored>(g / (at_target + delta));
        }
      }
      continue;
    }
    const Stored* t = row_at<Stored>(arguments.shares, arguments.target_layout, sample, position);
    Total<Number> total;
    for (int64_t c = 0; c < sizes.classes; c += lanes) {
      const int64_t count = sizes.classes - c;
      // Lanes beyond the classes have no share, and a probability of 1, whose logarithm is finite.
      const Vector<Number> share = load_part(t + c, count, Number(0)), values = load_part(p + c, count, Number(1));
      if (options.losses != nullptr) {
        total.add(products<Number>(share, values, delta));
      }
      if (out != nullptr) {
        store_part(out + c, count, quotients<Number>(share, values, delta) * g);
      }
    }
    if (options.losses != nullptr) {
      options.losses[row] = static_cast<Number>(-total.value() * static_cast<double>(weight));
    }
  }
}

template <typename Stored>
void textbook_across_positions(const TextbookCrossEntropy& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const TextbookOptions<Number> options(arguments);
  const Sizes& sizes = arguments.sizes;
  const Number delta = options.delta;
  const int64_t step = arguments.input_layout.classes, target_step = arguments.target_layout.classes;
  const int64_t out_step = arguments.grad_layout.classes;
  Total<Number> totals[kTile / lanes];
  alignas(64) Number weights[kTile];
  alignas(64) Number g[kTile];
  alignas(64) Number at_target[kTile];
  int64_t index[kTile];
  for (int64_t unit = begin; unit < end; ++unit) {
    const Tile tile = tile_at(sizes, arguments.tile, unit);
    const int64_t width = tile.width, row = tile.sample * sizes.positions + tile.position;
    const Stored* p = row_at<Stored>(arguments.input, arguments.input_layout, tile.sample, tile.position);
    const Stored* t = row_at<Stored>(arguments.shares, arguments.target_layout, tile.sample, tile.position);
    Stored* out = const_cast<Stored*>(
        row_at<Stored>(arguments.grad_input, arguments.grad_layout, tile.sample, tile.position));
    for (int64_t i = 0; i < kTile; ++i) {
      weights[i] = i < width ? options.sample_weight_of(row + i) : Number(0);
      if (arguments.indices != nullptr) {
        index[i] = i < width ? options.index_of(tile.sample, tile.position + i) : -1;
        weights[i] = index[i] < 0 ? Number(0) : weights[i];
        at_target[i] = weights[i] == 0 ? Number(1) : widen(p[index[i] * step + i]);
      }
      g[i] = weights[i] == 0 ? Number(0) : options.gradient_of(row + i);
    }
    for (int64_t v = 0; v < kTile / lanes; ++v) {
      totals[v] = Total<Number>{};
    }
    for (int64_t c = 0; c < sizes.classes; ++c) {
      if (options.losses != nullptr && arguments.validate &&
          !are_probabilities(p + c * step, width, options.tolerance)) {
        // A row without weight may hold anything.
        for (int64_t i = 0; i < width; ++i) {
          if (options.sample_weight_of(row + i) != 0 && !are_probabilities(p + c * step + i, 1, options.tolerance)) {
            arguments.not_probabilities->store(true, std::memory_order_relaxed);
          }
        }
      }
      for (int64_t i = 0; i < width; i += lanes) {
        Vector<Number> gradient{};
        if (arguments.indices == nullptr) {
          const Integers<Number> counts = load(weights + i) != Number(0);
          // A row without weight leaves no trace, nan and all.
          const Vector<Number> given = load_part(t + c * target_step + i, width - i, Number(0));
          const Vector<Number> probabilities = load_part(p + c * step + i, width - i, Number(1));
          const Vector<Number> share = counts ? given : Vector<Number>{};
          const Vector<Number> values = counts ? probabilities : all<Number>(1);
          if (options.losses != nullptr) {
            totals[i / lanes].add(products<Number>(share, values, delta));
          }
          gradient = quotients<Number>(share, values, delta) * load(g + i);
        }
        if (arguments.grad_input != nullptr) {
          store_part(out + c * out_step + i, width - i, gradient);
        }
      }
    }
    for (int64_t i = 0; arguments.indices != nullptr && arguments.grad_input != nullptr && i < width; ++i) {
      if (weights[i] != 0) {
        out[index[i] * out_step + i] = narrow<Stored>(g[i] / (at_target[i] + delta));
      }
    }
    for (int64_t i = 0; options.losses != nullptr && i < width; i += lanes) {
      const Vector<Number> w = load(weights + i);
      Vector<Number> loss;
      if (arguments.indices != nullptr) {
        loss = -log_plus(load(at_target + i), delta);
      } else {
        loss = -totals[i / lanes].by_lane();
      }
      store_part(options.losses + row + i, width - i, w == Number(0) ? Vector<Number>{} : loss * w);
    }
  }
}

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
