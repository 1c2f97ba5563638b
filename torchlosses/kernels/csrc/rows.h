// What the losses of rows of classes share: how the kernels walk through the rows, what they are given, and what becomes of
// the rows' losses.
#pragma once

#include "host.h"

namespace torchlosses {

// Class indices as int64, from any integer dtype that is known here.
class Indices {
 public:
  // False where the kernels do not cover the dtype.
  bool read(const View& view);
  const int64_t* data() const {
    return data_;
  }
  const Layout& layout() const {
    return layout_;
  }
  // How many of the rows are not ignored.
  int64_t count_other_than(int64_t ignore_index) const;
  // Throws for the first class index outside the classes. An exception of its type is an IndexError in Python, also from an
  // operator that a compiled graph calls; an error that passes from the eager operators through the C interface is not.
  void check_bounds(int64_t classes, std::optional<int64_t> ignore_index) const;

 private:
  int64_t samples_ = 0;
  int64_t positions_ = 0;
  const int64_t* data_ = nullptr;
  Layout layout_;
  std::vector<int64_t> room_;
};

// The tensors of a call of a loss of rows, in the order of the schema as far as all of them are alike.
struct RowTensors {
  RowTensors(Call& call, Form form)
      : grad_output(form == Form::loss ? std::nullopt : OptionalView(call.tensor())),
        gradient(form == Form::backward_in_place ? OptionalView(call.tensor()) : std::nullopt),
        input(call.tensor()),
        target(call.tensor()) {}
  RowTensors(const View& input, const View& target) : input(input), target(target) {}

  bool has_indices() const {
    return target.dimensions < input.dimensions;
  }
  // The rows' shape, behind `first` where that is not 0.
  std::vector<int64_t> shape_of_rows(int64_t first = 0) const;

  OptionalView grad_output;
  OptionalView gradient;
  View input;
  View target;
};

// What the kernels of a loss of rows are given, and what it points to.
template <typename Arguments>
struct RowCall {
  Arguments arguments{};
  Indices indices;
  std::optional<Numbers> sample_weight;
  std::optional<Numbers> grad_rows;
  bool swapped = false;  // samples take the place of positions: a 2-D tensor whose samples are neighbours in memory
  bool suits = true;     // the walk suits how all tensors lie in memory
  std::atomic<bool> out_of_bounds{false};

  // Rows are brought into a buffer before they are worked on.
  void use_buffer() {
    if (!suits) {
      arguments.walk = Walk::across_positions;
    }
    arguments.copied = true;
    // A cache line's worth of rows together, if they are not too long.
    arguments.tile = arguments.sizes.classes > 16384 ? 4 : 16;
  }
};

// A call that the kernels do not cover; an index outside the classes is an IndexError there too.
void pass_on(Call& call, const char* name, const RowTensors& tensors, std::optional<int64_t> ignore_index);

// Fills in input, target and sample weights; false if the kernels do not cover them.
bool prepare_rows(
    RowLoss& arguments,
    const RowTensors& tensors,
    const OptionalView& sample_weight,
    Indices& indices,
    std::optional<Numbers>& weights,
    bool& swapped,
    bool& suits);

// Fills in the gradient's place, for an incoming gradient of 1 where `grad` is nothing; false if that is not covered.
bool prepare_gradient(
    RowLoss& arguments,
    const View& out,
    const OptionalView& grad,
    double denominator,
    bool swapped,
    bool& suits,
    std::optional<Numbers>& grad_rows);

template <typename Arguments>
bool prepare_rows(RowCall<Arguments>& call, const RowTensors& tensors, const OptionalView& sample_weight) {
  call.arguments.out_of_bounds = &call.out_of_bounds;
  return prepare_rows(call.arguments, tensors, sample_weight, call.indices, call.sample_weight, call.swapped, call.suits);
}

template <typename Arguments>
bool prepare_gradient(
    RowCall<Arguments>& call, const View& out, const OptionalView& grad, double denominator) {
  return prepare_gradient(call.arguments, out, grad, denominator, call.swapped, call.suits, call.grad_rows);
}

// The units that kernels divide the rows into.
int64_t units_of(const RowLoss& arguments);

template <typename Arguments>
void run(const Arguments& arguments, void (*kernel)(const Arguments&, int64_t, int64_t)) {
  const int64_t numbers = arguments.sizes.rows() * arguments.sizes.classes;
  const bool both = arguments.losses != nullptr && arguments.grad_input != nullptr;
  in_parallel(units_of(arguments), both ? 2 * numbers : numbers, [&](int64_t begin, int64_t end) {
    kernel(arguments, begin, end);
  });
}

// none: the rows' losses in the dtype asked for; mean and sum: one number.
class RowLosses {
 public:
  RowLosses(const RowTensors& tensors, const Options& options, Dtype compute);
  void* data() const {
    return data_;
  }
  // Mean and sum.
  double number(const Denominator& denominator) const {
    return denominator.mean_of(sum_of(data_, compute_, rows_), options_.empty);
  }
  Tensor reduced(const Denominator& denominator);

 private:
  const Options& options_;
  Dtype compute_;
  int64_t rows_;
  std::optional<Tensor> losses_;
  std::vector<double> room_;
  void* data_;
};

}  // namespace torchlosses
