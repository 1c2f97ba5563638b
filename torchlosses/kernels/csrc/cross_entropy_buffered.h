// Cross-entropy of rows that have to be copied first: logits with a scale or a cap, a target of another dtype, row
// statistics across positions. With numbers of the compute dtype, the loops of plain rows serve every dtype and layout.
#pragma once

#include "cross_entropy_rows.h"

namespace torchlosses {
namespace INSTRUCTION_SET {

template <typename Stored, typename Share>
void cross_entropy_buffered(const CrossEntropy& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
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
    const Targets targets = targets_of(arguments, tile);
    for (int64_t i = 0; i < tile.width; ++i) {
      const int64_t start = i * classes;
      const Row<Number> row{
          y + start,
          t == nullptr ? nullptr : t + start,
          out == nullptr ? nullptr : out + start,
          tile.sample * arguments.sizes.positions + tile.position + i,
          targets.template at<Number>(i)};
      process_row(arguments, options, row, kept, arguments.logit_scale);
      if (!slopes.empty() && row.target.active) {
        times_slopes(row.out, slopes.data() + start, classes);
      }
    }
    if (gradient) {
      gradients.template write<Stored>(arguments.grad_input, arguments.grad_layout, tile);
    }
  }
}

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
