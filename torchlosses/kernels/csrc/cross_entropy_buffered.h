// Cross-entropy of rows that have to be copied first: logits with a scale or a cap, a target of another dtype, row
// statistics across positions. The rows of a tile are brought one after the other into a buffer, as numbers of the compute
// dtype, so that the loops of plain rows serve every dtype and layout.
#pragma once

#include "cross_entropy_rows.h"

namespace torchlosses {
namespace INSTRUCTION_SET {

// The rows that are read together: one, or neighbouring positions of a sample.
inline Tile rows_at(const CrossEntropy& arguments, int64_t unit) {
  return tile_at(arguments.sizes, arguments.walk == Walk::along_classes ? 1 : arguments.tile, unit);
}

// The rows of a tile in a tensor, one after the other.
template <typename Number>
class RowBuffer {
 public:
  explicit RowBuffer(const CrossEntropy& arguments)
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

template <typename Stored, typename Share>
void cross_entropy_buffered(const CrossEntropy& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  constexpr int64_t lanes = kLanes<Number>;
  const RowOptions<Number> options(arguments);
  const int64_t classes = options.classes;
  const Number scale = static_cast<Number>(arguments.logit_scale), cap = static_cast<Number>(arguments.logit_softcap);
  const bool gradient = arguments.grad_input != nullptr;
  RowBuffer<Number> logits(arguments), shares(arguments), gradients(arguments);
  Kept<Number> kept(arguments.losses != nullptr && gradient ? classes : 0);
  std::vector<Number> slopes;
  for (int64_t unit = begin; unit < end; ++unit) {
    const Tile tile = rows_at(arguments, unit);
    Number* y = logits.template read<Stored>(arguments.input, arguments.input_layout, tile);
    slopes.resize(static_cast<size_t>(gradient && cap != 0 ? tile.width * classes : 0));
    transform(y, tile.width * classes, scale, cap, slopes.empty() ? nullptr : slopes.data());
    const Number* t =
        options.indices ? nullptr
                        : shares.template read<Share>(arguments.shares, arguments.target_layout, tile);
    Number* out = gradient ? gradients.room(tile.width) : nullptr;
    const Targets targets(arguments, tile);
    for (int64_t i = 0; i < tile.width; ++i) {
      const int64_t start = i * classes;
      const Row<Number> row{
          y + start,
          t == nullptr ? nullptr : t + start,
          out == nullptr ? nullptr : out + start,
          tile.sample * arguments.sizes.positions + tile.position + i,
          targets.template at<Number>(i)};
      process_row(arguments, options, row, kept, arguments.logit_scale);
      for (int64_t c = 0; !slopes.empty() && row.target.active && c < classes; c += lanes) {
        const Vector<Number> slope = load_part(slopes.data() + start + c, classes - c, Number(0));
        store_part(row.out + c, classes - c, load_part(row.out + c, classes - c, Number(0)) * slope);
      }
    }
    if (gradient) {
      gradients.template write<Stored>(arguments.grad_input, arguments.grad_layout, tile);
    }
  }
}

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
