// The operators of cross-entropy on logits for the CPU.
#include "rows.h"

namespace torchlosses {
namespace {

// A call's arguments in the order of the schema.
struct CrossEntropyOptions {
  CrossEntropyOptions(Call& call, Form form)
      : tensors(call, form),
        weight(call.optional_tensor()),
        sample_weight(call.optional_tensor()),
        normalizer(call.optional_tensor()),
        state(form == Form::loss ? std::nullopt : OptionalView(call.tensor())),
        common(call),
        ignore_index(call.integer()),
        label_smoothing(call.real()),
        z_loss(call.real()),
        logit_scale(call.real()),
        logit_softcap(call.optional_real()),
        statistics(call.boolean()),
        inplace_backward(call.boolean()) {}
  CrossEntropyOptions(const RowTensors& tensors, const Options& common) : tensors(tensors), common(common) {}

  RowTensors tensors;
  OptionalView weight;
  OptionalView sample_weight;
  OptionalView normalizer;
  OptionalView state;
  Options common;
  int64_t ignore_index = 0;
  double label_smoothing = 0;
  double z_loss = 0;
  double logit_scale = 1;
  std::optional<double> logit_softcap;
  bool statistics = false;
  bool inplace_backward = false;
};

struct CrossEntropyCall : RowCall<CrossEntropy> {
  // False if the kernels do not cover what is given.
  bool prepare(const CrossEntropyOptions& options) {
    if (!prepare_rows(*this, options.tensors, options.sample_weight)) {
      return false;
    }
    const Dtype compute = compute_dtype(arguments.dtype);
    weight.emplace(options.weight, compute);
    if (!weight->covered(arguments.sizes.classes)) {
      return false;
    }
    arguments.weight = weight->data();
    arguments.weight_sum =
        options.weight ? weight->sum() : static_cast<double>(arguments.sizes.classes);
    arguments.ignore_index = options.ignore_index;
    arguments.label_smoothing = options.label_smoothing;
    arguments.z_loss = options.z_loss;
    arguments.logit_scale = options.logit_scale;
    arguments.logit_softcap = options.logit_softcap.value_or(0);
    arguments.with_statistics = options.statistics;
    return true;
  }

  void run() {
    if (!suits || arguments.logit_scale != 1 || arguments.logit_softcap != 0 ||
        arguments.shares_dtype != arguments.dtype ||
        (arguments.with_statistics && arguments.walk == Walk::across_positions)) {
      use_buffer();
    }
    torchlosses::run(arguments, kernels().cross_entropy);
    if (out_of_bounds) {
      indices.check_bounds(arguments.sizes.classes, arguments.ignore_index);
    }
  }

  Denominator denominator(const CrossEntropyOptions& options) const {
    return Denominator(options.common, options.normalizer, [&] {
      return arguments.indices == nullptr ? arguments.sizes.rows()
                                          : indices.count_other_than(options.ignore_index);
    });
  }

  void put_state(void* state, bool statistics) {
    const Dtype compute = compute_dtype(arguments.dtype);
    const int64_t bytes = arguments.sizes.rows() * size_of(compute);
    arguments.maximum = state;
    arguments.rest = static_cast<char*>(state) + bytes;
    arguments.statistics = statistics ? static_cast<char*>(state) + 2 * bytes : nullptr;
  }

  std::optional<Numbers> weight;
};

void cross_entropy(StableIValue* stack, uint64_t count, uint64_t) {
  constexpr const char* kEager = "torchlosses::eager_cross_entropy";
  Call call(stack, count);
  const CrossEntropyOptions options(call, Form::loss);
  const RowTensors& tensors = options.tensors;
  CrossEntropyCall work;
  if (!dtype_of(options.common.dtype) || !work.prepare(options)) {
    return pass_on(call, kEager, tensors, options.ignore_index);
  }
  CrossEntropy& arguments = work.arguments;
  const Denominator denominator = work.denominator(options);
  if (!denominator.covered) {
    return pass_on(call, kEager, tensors, options.ignore_index);
  }
  Tensor gradient =
      options.common.gradient ? new_like(tensors.input, tensors.input.dtype) : no_elements(tensors.input.dtype);
  if (options.common.gradient && !prepare_gradient(work, gradient.view(), std::nullopt, denominator.value)) {
    return pass_on(call, kEager, tensors, options.ignore_index);
  }
  const Dtype compute = compute_dtype(arguments.dtype);
  Tensor state = new_contiguous(
      tensors.shape_of_rows(options.statistics ? 2 + kRowStatistics : 2), code_of(compute));
  work.put_state(state.view().data, options.statistics);
  RowLosses losses(tensors, options.common, compute);
  arguments.losses = losses.data();
  if (denominator.value == 0) {
    arguments.grad_input = nullptr;
  }
  work.run();
  if (options.common.gradient && denominator.value == 0) {
    fill_with_zeros(gradient.view());
  }
  call.answer(losses.reduced(denominator), std::move(gradient), std::move(state));
}

void few_rows(Call& call) {
  const FewRows few(call);
  CrossEntropyOptions options(RowTensors(few.input, few.target), few.options);
  options.ignore_index = call.integer();
  options.label_smoothing = call.real();
  FewGradients gradient(few);
  const OptionalView& place = gradient.place;
  CrossEntropyCall work;
  if (!gradient.fits || !work.prepare(options)) {
    return call.answer_few(std::nullopt, std::nullopt);
  }
  CrossEntropy& arguments = work.arguments;
  const Denominator denominator = work.denominator(options);
  if (place && denominator.value != 0) {
    prepare_gradient(work, *place, std::nullopt, denominator.value);
    arguments.scale = *few.grad_output / denominator.value;
  }
  const Dtype compute = compute_dtype(arguments.dtype);
  std::vector<double> state(static_cast<size_t>(2 * arguments.sizes.rows() * size_of(compute)) / sizeof(double));
  work.put_state(state.data(), false);
  const RowLosses losses(options.tensors, options.common, compute);
  arguments.losses = losses.data();
  work.run();
  if (place && denominator.value == 0) {
    fill_with_zeros(*place);
  }
  call.answer_few(new_number(losses.number(denominator), few.input.dtype), std::move(gradient.fresh));
}

// False if the kernels do not cover it.
bool write_gradient(const CrossEntropyOptions& options, const View& out) {
  CrossEntropyCall work;
  if (!work.prepare(options)) {
    return false;
  }
  CrossEntropy& arguments = work.arguments;
  const View& state = *options.state;
  const Denominator denominator = work.denominator(options);
  if (!denominator.covered || state.dtype != code_of(compute_dtype(arguments.dtype)) || !state.is_contiguous() ||
      !prepare_gradient(work, out, options.tensors.grad_output, denominator.value)) {
    return false;
  }
  if (denominator.value == 0) {
    fill_with_zeros(out);
    return true;
  }
  work.put_state(state.data, false);
  work.run();
  return true;
}

void cross_entropy_backward(StableIValue* stack, uint64_t count, uint64_t) {
  Call call(stack, count);
  const CrossEntropyOptions options(call, Form::backward);
  const View& input = options.tensors.input;
  if (is_enabled() && dtype_of(input.dtype)) {
    Tensor gradient = new_like(input, input.dtype);
    if (write_gradient(options, gradient.view())) {
      return call.answer(std::move(gradient));
    }
  }
  pass_on(call, "torchlosses::eager_cross_entropy_backward", options.tensors, options.ignore_index);
}

void cross_entropy_backward_in_place(StableIValue* stack, uint64_t count, uint64_t) {
  Call call(stack, count);
  const CrossEntropyOptions options(call, Form::backward_in_place);
  if (is_ready(*options.tensors.grad_output, options.common) || write_gradient(options, *options.tensors.gradient)) {
    return call.answer();
  }
  pass_on(call, "torchlosses::eager_cross_entropy_backward_", options.tensors, options.ignore_index);
}

const Registration kLoss("cross_entropy", cross_entropy);
const Registration kBackward("cross_entropy_backward", cross_entropy_backward);
const Registration kBackwardInPlace("cross_entropy_backward_", cross_entropy_backward_in_place);
const FewRegistration<few_rows> kFew("cross_entropy", ", int ignore_index, float label_smoothing");

}  // namespace
}  // namespace torchlosses
