// The operators of the textbook cross-entropy error on probabilities for the CPU.
#include <stdexcept>

#include "rows.h"

namespace torchlosses {
namespace {

// A call's arguments in the order of the schema.
struct TextbookOptions {
  TextbookOptions(Call& call, Form form)
      : tensors(call, form),
        sample_weight(call.optional_tensor()),
        normalizer(call.optional_tensor()),
        common(call),
        delta(call.real()),
        validate_args(call.boolean()) {}

  RowTensors tensors;
  OptionalView sample_weight;
  OptionalView normalizer;
  Options common;
  double delta;
  bool validate_args;
};

struct TextbookCall : RowCall<TextbookCrossEntropy> {
  // False if the kernels do not cover what is given.
  bool prepare(const TextbookOptions& options) {
    arguments.delta = options.delta;
    arguments.not_probabilities = &not_probabilities;
    return prepare_rows(*this, options.tensors, options.sample_weight) && suits &&
           arguments.shares_dtype == arguments.dtype;
  }

  Denominator denominator(const TextbookOptions& options) const {
    return Denominator(options.common, options.normalizer, [&] { return arguments.sizes.rows(); });
  }

  std::atomic<bool> not_probabilities{false};
};

void cee_loss(StableIValue* stack, uint64_t count, uint64_t) {
  Call call(stack, count);
  const TextbookOptions options(call, Form::loss);
  const RowTensors& tensors = options.tensors;
  const int32_t dtype = tensors.input.dtype;
  const auto leave = [&] {
    try {
      pass_on(call, "torchlosses::eager_cee_loss", tensors, std::nullopt);
    } catch (const std::runtime_error& error) {
      // What is left to object to is the values of input or target.
      throw std::invalid_argument(error.what());
    }
  };
  TextbookCall work;
  if (!dtype_of(options.common.dtype) || !work.prepare(options)) {
    return leave();
  }
  TextbookCrossEntropy& arguments = work.arguments;
  const Denominator denominator = work.denominator(options);
  Tensor gradient = options.common.gradient ? new_like(tensors.input, dtype) : no_elements(dtype);
  if (!denominator.covered ||
      (options.common.gradient && !prepare_gradient(work, gradient.view(), std::nullopt, denominator.value)) ||
      !work.suits) {
    return leave();
  }
  RowLosses losses(tensors, options.common, compute_dtype(arguments.dtype));
  arguments.losses = losses.data();
  arguments.validate = options.validate_args;
  if (denominator.value == 0) {
    arguments.grad_input = nullptr;
  }
  run(arguments, kernels().textbook);
  if (work.out_of_bounds) {
    work.indices.check_bounds(arguments.sizes.classes, std::nullopt);
  }
  if (work.not_probabilities) {
    throw std::invalid_argument(
        "cee_loss: expected probabilities in [0, 1]. Logits belong to cross_entropy; or apply softmax first.");
  }
  if (options.common.gradient && denominator.value == 0) {
    fill_with_zeros(gradient.view());
  }
  call.answer(losses.reduced(denominator), std::move(gradient));
}

// False if the kernels do not cover it.
bool write_gradient(const TextbookOptions& options, const View& out) {
  TextbookCall work;
  if (!work.prepare(options)) {
    return false;
  }
  const Denominator denominator = work.denominator(options);
  if (!denominator.covered || !prepare_gradient(work, out, options.tensors.grad_output, denominator.value) ||
      !work.suits) {
    return false;
  }
  if (denominator.value == 0) {
    fill_with_zeros(out);
    return true;
  }
  run(work.arguments, kernels().textbook);
  if (work.out_of_bounds) {
    work.indices.check_bounds(work.arguments.sizes.classes, std::nullopt);
  }
  return true;
}

void cee_loss_backward(StableIValue* stack, uint64_t count, uint64_t) {
  Call call(stack, count);
  const TextbookOptions options(call, Form::backward);
  const View& input = options.tensors.input;
  if (is_enabled() && dtype_of(input.dtype)) {
    Tensor gradient = new_like(input, input.dtype);
    if (write_gradient(options, gradient.view())) {
      return call.answer(std::move(gradient));
    }
  }
  pass_on(call, "torchlosses::eager_cee_loss_backward", options.tensors, std::nullopt);
}

void cee_loss_backward_in_place(StableIValue* stack, uint64_t count, uint64_t) {
  Call call(stack, count);
  const TextbookOptions options(call, Form::backward_in_place);
  if (is_ready(*options.tensors.grad_output, options.common) || write_gradient(options, *options.tensors.gradient)) {
    return call.answer();
  }
  pass_on(call, "torchlosses::eager_cee_loss_backward_", options.tensors, std::nullopt);
}

const Registration kLoss("cee_loss", cee_loss);
const Registration kBackward("cee_loss_backward", cee_loss_backward);
const Registration kBackwardInPlace("cee_loss_backward_", cee_loss_backward_in_place);

}  // namespace
}  // namespace torchlosses
