// What the losses of rows of logits share: which rows take part, the scale and the cap, and rows that are copied first. The
// rows of a tile are then brought one after the other into a buffer, as numbers of the compute dtype.
#pragma once

#include <vector>

#include "mathematics.h"

namespace torchlosses {
namespace INSTRUCTION_SET {

// A target class, and whether its row takes part. An index outside the classes is reported, and its row left alone.
struct Target {
  int64_t index;
  bool active;
};

struct Targets {
  Targets(const LogitsLoss& arguments, const void* weight, const Tile& tile)
      : indices(
            arguments.indices == nullptr ? nullptr
                                         : arguments.indices + tile.sample * arguments.target_layout.sample +
                                               tile.position * arguments.target_layout.position),
        step(arguments.target_layout.position),
        ignore_index(arguments.ignore_index),
        classes(arguments.sizes.classes),
        row(tile.sample * arguments.sizes.positions + tile.position),
        weight(weight),
        sample_weight(arguments.sample_weight),
        out_of_bounds(arguments.out_of_bounds) {}

  // Of the position that many places behind the first.
  template <typename Number>
  Target at(int64_t place) const {
    const bool counts =
        sample_weight == nullptr || static_cast<const Number*>(sample_weight)[row + place] != 0;
    if (indices == nullptr) {
      return {0, counts};
    }
    const int64_t index = indices[place * step];
    if (index == ignore_index) {
      return {0, false};
    }
    if (index < 0 || index >= classes) {
      out_of_bounds->store(true, std::memory_order_relaxed);
      return {0, false};
    }
    return {index, counts && (weight == nullptr || static_cast<const Number*>(weight)[index] != 0)};
  }

  const int64_t* indices;  // nullptr: probabilities
  const int64_t step;
  const int64_t ignore_index;
  const int64_t classes;
  const int64_t row;
  const void* weight;  // one a class, of which a class without takes no part; or nullptr
  const void* sample_weight;
  std::atomic<bool>* out_of_bounds;
};

// The rows that are read together: one, or neighbouring positions of a sample.
inline Tile rows_at(const RowLoss& arguments, int64_t unit) {
  return tile_at(arguments.sizes, arguments.walk == Walk::along_classes ? 1 : arguments.tile, unit);
}

// The rows of a tile in a tensor, one after the other.
template <typename Number>
class RowBuffer {
 public:
  explicit RowBuffer(const RowLoss& arguments)
      : classes_(arguments.sizes.classes), along_classes_(arguments.walk == Walk::along_classes) {}

  template <typename Stored>
  Number* read(const void* base, const Layout& layout, const Tile& tile) {
    const Stored* x = row_at<Stored>(base, layout, tile.sample, tile.position);
    Number* to = room(tile.width);
    if constexpr (std::is_same_v<Compute<Stored>, Number>) {
      if (along_classes_) {
        for (int64_t c = 0; c < classes_; c += kLanes<Number>) {
          store_part(to + c, classes_ - c, load_part(x + c, classes_ - c, Number(0)));
        }
        return to;
      }
    }
    for (int64_t c = 0; c < classes_; ++c) {
      for (int64_t i = 0; i < tile.width; ++i) {
        to[i * classes_ + c] = static_cast<Number>(widen(x[c * layout.classes + i * layout.position]));
      }
    }
    return to;
  }

  Number* room(int64_t width) {
    numbers_.resize(static_cast<size_t>(width * classes_));
    return numbers_.data();
  }

  template <typename Stored>
  void write(void* base, const Layout& layout, const Tile& tile) const {
    Stored* out = const_cast<Stored*>(row_at<Stored>(base, layout, tile.sample, tile.position));
    const Number* from = numbers_.data();
    if (along_classes_) {
      for (int64_t c = 0; c < classes_; c += kLanes<Number>) {
        store_part(out + c, classes_ - c, load_part(from + c, classes_ - c, Number(0)));
      }
      return;
    }
    for (int64_t c = 0; c < classes_; ++c) {
      for (int64_t i = 0; i < tile.width; ++i) {
        out[c * layout.classes + i * layout.position] = narrow<Stored>(from[i * classes_ + c]);
      }
    }
  }

 private:
  int64_t classes_;
  bool along_classes_;
  std::vector<Number> numbers_;
};

// y = c tanh(scale x / c) over x, or scale x without a cap (c = 0); and 1 - tanh² where it is asked for.
template <typename Number>
inline void transform(Number* x, int64_t count, Number scale, Number cap, Number* slopes) {
  constexpr int64_t lanes = kLanes<Number>;
  for (int64_t i = 0; i < count; i += lanes) {
    Vector<Number> y = load_part(x + i, count - i, Number(0)) * scale;
    if (cap != 0) {
      const Tanh<Number> result = tanh<Number>(y / cap);
      y = result.value * cap;
      if (slopes != nullptr) {
        store_part(slopes + i, count - i, result.slope);
      }
    }
    store_part(x + i, count - i, y);
  }
}

template <typename Number>
inline void times_slopes(Number* gradient, const Number* slopes, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<Number>) {
    const Vector<Number> slope = load_part(slopes + i, count - i, Number(0));
    store_part(gradient + i, count - i, load_part(gradient + i, count - i, Number(0)) * slope);
  }
}

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
