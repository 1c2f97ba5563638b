#include "rows.h"

#include <stdexcept>

#include "vector.h"

namespace torchlosses {

// ---------------------------------------------------------------------------------------------------------------------
// Class indices
// ---------------------------------------------------------------------------------------------------------------------

namespace {

// Class indices have no class dimension.
Layout index_layout_of(const View& view) {
  return {view.strides[0], 0, view.dimensions == 2 ? view.strides[1] : 0};
}

template <typename Integer>
void widen_indices(const View& view, const Layout& layout, int64_t positions, std::vector<int64_t>& to) {
  const Integer* from = static_cast<const Integer*>(view.data);
  to.resize(static_cast<size_t>(view.elements()));
  size_t place = 0;
  for (int64_t sample = 0; sample < view.sizes[0]; ++sample) {
    for (int64_t position = 0; position < positions; ++position) {
      to[place++] = static_cast<int64_t>(from[sample * layout.sample + position * layout.position]);
    }
  }
}

}  // namespace

bool Indices::read(const View& view) {
  const Dtypes& all = dtypes();
  samples_ = view.sizes[0];
  positions_ = view.dimensions == 2 ? view.sizes[1] : 1;
  layout_ = index_layout_of(view);
  if (view.dtype == all.int64) {
    data_ = static_cast<const int64_t*>(view.data);
    return true;
  }
  if (view.dtype == all.int32) {
    widen_indices<int32_t>(view, layout_, positions_, room_);
  } else if (view.dtype == all.uint8) {
    widen_indices<uint8_t>(view, layout_, positions_, room_);
  } else if (view.dtype == all.int16) {
    widen_indices<int16_t>(view, layout_, positions_, room_);
  } else if (view.dtype == all.int8) {
    widen_indices<int8_t>(view, layout_, positions_, room_);
  } else {
    return false;
  }
  data_ = room_.data();
  layout_ = {positions_, 0, view.dimensions == 2 ? 1 : 0};
  return true;
}

int64_t Indices::count_other_than(int64_t ignore_index) const {
  int64_t count = 0;
  for (int64_t sample = 0; sample < samples_; ++sample) {
    const int64_t* row = data_ + sample * layout_.sample;
    // A step that the compiler knows is one that it can take for several positions at once.
    if (layout_.position == 1) {
      for (int64_t position = 0; position < positions_; ++position) {
        count += row[position] != ignore_index;
      }
      continue;
    }
    for (int64_t position = 0; position < positions_; ++position) {
      count += row[position * layout_.position] != ignore_index;
    }
  }
  return count;
}

void Indices::check_bounds(int64_t classes, std::optional<int64_t> ignore_index) const {
  for (int64_t row = 0; data_ != nullptr && row < samples_ * positions_; ++row) {
    const int64_t value = data_[row / positions_ * layout_.sample + row % positions_ * layout_.position];
    if ((value < 0 || value >= classes) && value != ignore_index) {
      throw std::out_of_range(
          "Target " + std::to_string(value) + " is out of bounds: there are " + std::to_string(classes) +
          " classes, so indices run from 0 to " + std::to_string(classes - 1) + ".");
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Rows
// ---------------------------------------------------------------------------------------------------------------------

namespace {

Layout layout_of(const View& view) {
  return {view.strides[0], view.strides[1], view.dimensions == 3 ? view.strides[2] : 0};
}

// Chooses the walk that suits input and target; false if there is none.
bool choose_walk(RowLoss& arguments, bool& swapped, bool two_dimensional) {
  const bool indices = arguments.indices != nullptr;
  Sizes& sizes = arguments.sizes;
  Layout &input = arguments.input_layout, &target = arguments.target_layout;
  const auto neighbours = [&](const Layout& layout) { return layout.classes == 1 || sizes.classes == 1; };
  arguments.walk = Walk::along_classes;
  if (neighbours(input) && (indices || neighbours(target))) {
    return true;
  }
  arguments.walk = Walk::across_positions;
  if (two_dimensional) {
    swapped = true;
    sizes = {1, sizes.classes, sizes.samples};
    input = {0, input.classes, input.sample};
    target = {0, target.classes, target.sample};
  }
  const auto together = [&](const Layout& layout) { return layout.position == 1 || sizes.positions == 1; };
  return together(input) && (indices || together(target));
}

// Positions of a tile: its logits should stay in the second-level cache, and each class be a few cache lines at least.
int64_t tile_for(const Sizes& sizes) {
  int64_t tile = kTile;
  while (tile > 64 && tile * sizes.classes * 4 > (int64_t(1) << 18)) {
    tile /= 2;
  }
  return tile;
}

}  // namespace

std::vector<int64_t> RowTensors::shape_of_rows(int64_t first) const {
  std::vector<int64_t> shape;
  if (first != 0) {
    shape.push_back(first);
  }
  shape.push_back(input.sizes[0]);
  if (input.dimensions == 3) {
    shape.push_back(input.sizes[2]);
  }
  return shape;
}

void pass_on(Call& call, const char* name, const RowTensors& tensors, std::optional<int64_t> ignore_index) {
  Indices indices;
  if (tensors.has_indices() && tensors.target.dimensions > 0 && indices.read(tensors.target)) {
    indices.check_bounds(tensors.input.sizes[1], ignore_index);
  }
  call.pass_on(name);
}

bool prepare_rows(
    RowLoss& arguments,
    const RowTensors& tensors,
    const OptionalView& sample_weight,
    Indices& indices,
    std::optional<Numbers>& weights,
    bool& swapped,
    bool& suits) {
  const View &input = tensors.input, &target = tensors.target;
  const std::optional<Dtype> dtype = dtype_of(input.dtype);
  if (!is_enabled() || !dtype || (input.dimensions != 2 && input.dimensions != 3) || input.elements() == 0) {
    return false;
  }
  arguments.dtype = arguments.shares_dtype = *dtype;
  arguments.sizes = {input.sizes[0], input.sizes[1], input.dimensions == 3 ? input.sizes[2] : 1};
  arguments.input = input.data;
  arguments.input_layout = layout_of(input);
  if (tensors.has_indices()) {
    if (target.dimensions != input.dimensions - 1 || target.elements() != arguments.sizes.rows() ||
        !indices.read(target)) {
      return false;
    }
    arguments.indices = indices.data();
    arguments.target_layout = indices.layout();
  } else {
    const std::optional<Dtype> shares = dtype_of(target.dtype);
    if (!shares || !target.has_shape_of(input) || (*shares == Dtype::float64 && *dtype != Dtype::float64)) {
      return false;
    }
    arguments.shares = target.data;
    arguments.shares_dtype = *shares;
    arguments.target_layout = layout_of(target);
  }
  suits = choose_walk(arguments, swapped, input.dimensions == 2);
  arguments.tile = tile_for(arguments.sizes);
  weights.emplace(sample_weight, compute_dtype(*dtype));
  arguments.sample_weight = weights->data();
  return weights->covered(arguments.sizes.rows());
}

bool prepare_gradient(
    RowLoss& arguments,
    const View& out,
    const OptionalView& grad,
    double denominator,
    bool swapped,
    bool& suits,
    std::optional<Numbers>& grad_rows) {
  Layout layout = layout_of(out);
  if (swapped) {
    layout = {0, layout.classes, layout.sample};
  }
  suits = suits && (arguments.walk == Walk::along_classes ? layout.classes == 1 || arguments.sizes.classes == 1
                                                           : layout.position == 1 || arguments.sizes.positions == 1);
  if (dtype_of(out.dtype) != arguments.dtype) {
    return false;
  }
  arguments.grad_input = out.data;
  arguments.grad_layout = layout;
  arguments.scale = 1 / denominator;
  if (!grad) {
    return true;
  }
  if (grad->dimensions == 0) {
    const std::optional<double> number = number_in(*grad);
    arguments.scale = number.value_or(0) / denominator;
    return number.has_value();
  }
  const Dtype compute = compute_dtype(arguments.dtype);
  grad_rows.emplace(grad, compute, Numbers::Rounded::yes);
  arguments.grad_rows = grad_rows->data();
  return grad_rows->covered(arguments.sizes.rows());
}

int64_t units_of(const RowLoss& arguments) {
  const Sizes& sizes = arguments.sizes;
  return arguments.walk == Walk::along_classes
             ? sizes.rows()
             : sizes.samples * ((sizes.positions + arguments.tile - 1) / arguments.tile);
}

RowLosses::RowLosses(const RowTensors& tensors, const Options& options, Dtype compute)
    : options_(options), compute_(compute), rows_(tensors.input.elements() / tensors.input.sizes[1]) {
  if (options.reduction == Reduction::none) {
    losses_.emplace(new_contiguous(tensors.shape_of_rows(), code_of(compute)));
    data_ = losses_->view().data;
  } else {
    room_.resize(static_cast<size_t>(rows_));
    data_ = room_.data();
  }
}

Tensor RowLosses::reduced(const Denominator& denominator) {
  if (options_.reduction != Reduction::none) {
    return new_number(number(denominator), options_.dtype);
  }
  return rounded(std::move(*losses_), options_.dtype);
}

}  // namespace torchlosses
