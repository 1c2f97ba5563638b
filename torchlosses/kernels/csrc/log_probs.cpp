// The operators of log-probability and entropy of rows of logits for the CPU.
#include "rows.h"

namespace torchlosses {
namespace {

// A call's arguments in the order of the schema.
struct LogProbabilitiesOptions {
  LogProbabilitiesOptions(Call& call, Form form)
      : tensors(call, form),
        normalizer(call.optional_tensor()),
        state(form == Form::loss ? std::nullopt : OptionalView(call.tensor())),
        common(call),
        ignore_index(call.integer()),
        logit_scale(call.real()),
        logit_softcap(call.optional_real()) {}

  RowTensors tensors;
  OptionalView normalizer;
  OptionalView state;
  Options common;
  int64_t ignore_index;
  double logit_scale;
  std::optional<double> logit_softcap;
};

struct LogProbabilitiesCall : RowCall<LogProbabilities> {
  // False if the kernels do not cover what is given. Nothing is reduced.
  bool prepare(const LogProbabilitiesOptions& options) {
    if (options.common.reduction != Reduction::none || !options.tensors.has_indices() ||
        !prepare_rows(*this, options.tensors, std::nullopt)) {
      return false;
    }
    const int64_t positions = arguments.sizes.positions;
    // Samples take the place of positions.
    arguments.values_layout = swapped ? Layout{0, 1, 2} : Layout{2 * positions, positions, 1};
    arguments.ignore_index = options.ignore_index;
    arguments.logit_scale = options.logit_scale;
    arguments.logit_softcap = options.logit_softcap.value_or(0);
    return true;
  }

  void run() {
    if (!suits || arguments.walk == Walk::across_positions || arguments.logit_scale != 1 ||
        arguments.logit_softcap != 0) {
      use_buffer();
    }
    torchlosses::run(arguments, kernels().log_probabilities);
    if (out_of_bounds) {
      indices.check_bounds(arguments.sizes.classes, arguments.ignore_index);
    }
  }
};

void log_probs(StableIValue* stack, uint64_t count, uint64_t) {
  Call call(stack, count);
  const LogProbabilitiesOptions options(call, Form::loss);
  const View& input = options.tensors.input;
  LogProbabilitiesCall work;
  if (!work.prepare(options) || options.common.gradient || !dtype_of(options.common.dtype)) {
    return pass_on(call, "torchlosses::eager_log_probs", options.tensors, options.ignore_index);
  }
  std::vector<int64_t> sizes(input.sizes, input.sizes + input.dimensions);
  sizes[1] = 2;
  const int32_t dtype = code_of(compute_dtype(work.arguments.dtype));
  Tensor values = new_contiguous(sizes, dtype);
  Tensor state = new_contiguous(options.tensors.shape_of_rows(kLogProbabilitiesState), dtype);
  work.arguments.losses = values.view().data;
  work.arguments.state = state.view().data;
  work.run();
  call.answer(rounded(std::move(values), options.common.dtype), no_elements(input.dtype), std::move(state));
}

// False if the kernels do not cover it.
bool write_gradient(const LogProbabilitiesOptions& options, const View& out) {
  LogProbabilitiesCall work;
  if (!work.prepare(options) || !prepare_gradient(work, out, std::nullopt, 1)) {
    return false;
  }
  LogProbabilities& arguments = work.arguments;
  const Dtype compute = compute_dtype(arguments.dtype);
  const View& state = *options.state;
  work.grad_rows.emplace(options.tensors.grad_output, compute, Numbers::Rounded::yes);
  if (!work.grad_rows->covered(2 * arguments.sizes.rows()) || state.dtype != code_of(compute) ||
      !state.is_contiguous()) {
    return false;
  }
  arguments.grad_rows = work.grad_rows->data();
  arguments.state = state.data;
  work.run();
  return true;
}

void log_probs_backward(StableIValue* stack, uint64_t count, uint64_t) {
  Call call(stack, count);
  const LogProbabilitiesOptions options(call, Form::backward);
  const View& input = options.tensors.input;
  if (is_enabled() && dtype_of(input.dtype)) {
    Tensor gradient = new_like(input, input.dtype);
    if (write_gradient(options, gradient.view())) {
      return call.answer(std::move(gradient));
    }
  }
  pass_on(call, "torchlosses::eager_log_probs_backward", options.tensors, options.ignore_index);
}

void log_probs_backward_in_place(StableIValue* stack, uint64_t count, uint64_t) {
  Call call(stack, count);
  const LogProbabilitiesOptions options(call, Form::backward_in_place);
  if (!write_gradient(options, *options.tensors.gradient)) {
    pass_on(call, "torchlosses::eager_log_probs_backward_", options.tensors, options.ignore_index);
    return;
  }
  call.answer();
}

const Registration kLoss("log_probs", log_probs);
const Registration kBackward("log_probs_backward", log_probs_backward);
const Registration kBackwardInPlace("log_probs_backward_", log_probs_backward_in_place);

}  // namespace
}  // namespace torchlosses
