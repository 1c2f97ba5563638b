// The operators of the losses of single elements for the CPU: mse_loss, huber_loss, smooth_l1_loss and
// binary_cross_entropy_with_logits.
#include <algorithm>
#include <array>

#include "host.h"

namespace torchlosses {
namespace {

// What is a loss's own: its name, and what stands beside the options that all have.
struct SquaredLoss {
  static constexpr ElementwiseLoss kLoss = ElementwiseLoss::squared;
  static constexpr bool kPosWeight = false;
  static void read(Call&, Elementwise&) {}
  static constexpr const char* kName = "mse_loss";
  static constexpr const char* kOptions = "";
  static constexpr const char* kEager[] = {
      "torchlosses::eager_mse_loss", "torchlosses::eager_mse_loss_backward", "torchlosses::eager_mse_loss_backward_"};
};

struct HuberLoss {
  static constexpr ElementwiseLoss kLoss = ElementwiseLoss::huber;
  static constexpr bool kPosWeight = false;
  static void read(Call& call, Elementwise& arguments) {
    arguments.parameter = call.real();
  }
  static constexpr const char* kName = "huber_loss";
  static constexpr const char* kOptions = ", float delta";
  static constexpr const char* kEager[] = {
      "torchlosses::eager_huber_loss",
      "torchlosses::eager_huber_loss_backward",
      "torchlosses::eager_huber_loss_backward_"};
};

struct SmoothL1Loss {
  static constexpr ElementwiseLoss kLoss = ElementwiseLoss::smooth_l1;
  static constexpr bool kPosWeight = false;
  static void read(Call& call, Elementwise& arguments) {
    arguments.parameter = call.real();
  }
  static constexpr const char* kName = "smooth_l1_loss";
  static constexpr const char* kOptions = ", float beta";
  static constexpr const char* kEager[] = {
      "torchlosses::eager_smooth_l1_loss",
      "torchlosses::eager_smooth_l1_loss_backward",
      "torchlosses::eager_smooth_l1_loss_backward_"};
};

struct BinaryCrossEntropyLoss {
  static constexpr ElementwiseLoss kLoss = ElementwiseLoss::binary_cross_entropy;
  static constexpr bool kPosWeight = true;
  static void read(Call& call, Elementwise& arguments) {
    const std::optional<int64_t> ignore_index = call.optional_integer();
    arguments.has_ignore_index = ignore_index.has_value();
    arguments.ignore_index = static_cast<double>(ignore_index.value_or(0));
    arguments.parameter = call.real();
  }
  static constexpr const char* kName = "binary_cross_entropy_with_logits";
  static constexpr const char* kOptions = ", int? ignore_index, float label_smoothing";
  static constexpr const char* kEager[] = {
      "torchlosses::eager_binary_cross_entropy_with_logits",
      "torchlosses::eager_binary_cross_entropy_with_logits_backward",
      "torchlosses::eager_binary_cross_entropy_with_logits_backward_"};
};

// A call's tensors in the order of the schema.
struct ElementTensors {
  ElementTensors(Call& call, Form form, bool has_pos_weight)
      : grad_output(form == Form::loss ? std::nullopt : OptionalView(call.tensor())),
        gradient(form == Form::backward_in_place ? OptionalView(call.tensor()) : std::nullopt),
        input(call.tensor()),
        target(call.tensor()),
        weight(call.optional_tensor()),
        sample_weight(call.optional_tensor()),
        pos_weight(has_pos_weight ? call.optional_tensor() : std::nullopt),
        normalizer(call.optional_tensor()) {}
  ElementTensors(const View& input, const View& target) : input(input), target(target) {}

  OptionalView grad_output;
  OptionalView gradient;
  View input;
  View target;
  OptionalView weight;
  OptionalView sample_weight;
  OptionalView pos_weight;
  OptionalView normalizer;
};

int64_t blocks_of(const Elementwise& arguments) {
  return (arguments.elements + kBlock - 1) / kBlock;
}

void run(const Elementwise& arguments, void (*kernel)(const Elementwise&, int64_t, int64_t)) {
  in_parallel(blocks_of(arguments), arguments.elements, [&](int64_t begin, int64_t end) {
    kernel(arguments, begin, end);
  });
}

// How the elements are walked through: in the order in which the output has them as neighbours.
class ElementWalk {
 public:
  // False if there are more dimensions than the kernels take, or the output has gaps. Where nothing is written, any order
  // does.
  bool choose(Elementwise& arguments, const View& output, const std::array<const View*, 6>& operands, bool writes) {
    if (output.is_contiguous()) {
      const auto flat = [&](const View* view) { return view == nullptr || view->is_contiguous(); };
      if (std::all_of(operands.begin(), operands.end(), flat)) {
        arguments.dimensions = 1;
        arguments.sizes[0] = arguments.elements;
        return true;
      }
    }
    for (int64_t d = 0; d < output.dimensions; ++d) {
      if (output.sizes[d] > 1) {
        order_.push_back(d);
      }
    }
    std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) {
      return output.strides[a] > output.strides[b];
    });
    // Neighbouring dimensions that every operand walks through as one become one.
    std::vector<std::vector<int64_t>> groups;
    for (const int64_t d : order_) {
      if (!groups.empty()) {
        const int64_t outer = groups.back().back();
        const auto as_one = [&](const View* view) {
          return view == nullptr || view->strides[outer] == view->strides[d] * view->sizes[d];
        };
        if (std::all_of(operands.begin(), operands.end(), as_one)) {
          groups.back().push_back(d);
          continue;
        }
      }
      groups.push_back({d});
    }
    int64_t expected = 1;
    for (size_t i = order_.size(); i-- > 0;) {
      if (writes && output.strides[order_[i]] != expected) {
        return false;
      }
      expected *= output.sizes[order_[i]];
    }
    if (groups.size() > static_cast<size_t>(kDimensions)) {
      return false;
    }
    arguments.dimensions = groups.empty() ? 1 : static_cast<int>(groups.size());
    arguments.sizes[0] = 1;
    last_of_group_.clear();
    for (size_t i = 0; i < groups.size(); ++i) {
      arguments.sizes[i] = 1;
      for (const int64_t d : groups[i]) {
        arguments.sizes[i] *= output.sizes[d];
      }
      last_of_group_.push_back(groups[i].back());
    }
    return true;
  }

  void put(const Elementwise& arguments, Operand& operand, const View* view) const {
    operand.data = view == nullptr ? nullptr : view->data;
    if (view == nullptr) {
      return;
    }
    operand.dtype = *dtype_of(view->dtype);
    operand.flat = true;
    operand.strides[0] = 1;
    int64_t expected = arguments.elements;
    for (size_t i = 0; i < last_of_group_.size(); ++i) {
      operand.strides[i] = view->strides[last_of_group_[i]];
      expected /= arguments.sizes[i];
      operand.flat = operand.flat && operand.strides[i] == expected;
    }
  }

 private:
  std::vector<int64_t> order_;
  std::vector<int64_t> last_of_group_;  // of each dimension of the walk; none where all is flat
};

// Fills in what the kernels are given; false if they do not cover it.
bool prepare(
    Elementwise& arguments, const ElementTensors& tensors, const View& output, const View* grad, bool writes = true) {
  const View* const input = &tensors.input;
  const std::optional<Dtype> dtype = dtype_of(input->dtype);
  const auto pointer = [](const OptionalView& view) { return view ? &*view : nullptr; };
  const std::array<const View*, 6> operands{
      input,
      &tensors.target,
      pointer(tensors.weight),
      pointer(tensors.sample_weight),
      pointer(tensors.pos_weight),
      grad};
  if (!is_enabled() || !dtype || tensors.target.dtype != input->dtype || input->elements() == 0) {
    return false;
  }
  for (const View* view : operands) {
    const std::optional<Dtype> of_view = view == nullptr ? dtype : dtype_of(view->dtype);
    if (view != nullptr && (!view->has_shape_of(*input) || !of_view ||
                            (view != grad && *of_view == Dtype::float64 && *dtype != Dtype::float64))) {
      return false;
    }
  }
  arguments.dtype = *dtype;
  arguments.elements = input->elements();
  ElementWalk walk;
  if (!walk.choose(arguments, output, operands, writes)) {
    return false;
  }
  Operand* const places[] = {
      &arguments.input,
      &arguments.target,
      &arguments.weight,
      &arguments.sample_weight,
      &arguments.pos_weight,
      &arguments.grad};
  for (size_t i = 0; i < operands.size(); ++i) {
    walk.put(arguments, *places[i], operands[i]);
  }
  return true;
}

double counted(Elementwise arguments) {
  if (!arguments.has_ignore_index) {
    return static_cast<double>(arguments.elements);
  }
  std::vector<double> counts(static_cast<size_t>(blocks_of(arguments)));
  arguments.partial_sums = counts.data();
  run(arguments, kernels().count_elements);
  return sum_of(counts.data(), Dtype::float64, static_cast<int64_t>(counts.size()));
}

// Mean or sum, and the gradient if `arguments` has a place for it.
double reduced(Elementwise arguments, const Options& options, const Denominator& denominator) {
  if (denominator.value == 0) {
    arguments.grad_input = nullptr;
  }
  std::vector<double> partial_sums(static_cast<size_t>(blocks_of(arguments)));
  arguments.partial_sums = partial_sums.data();
  run(arguments, kernels().elementwise);
  const double total = sum_of(partial_sums.data(), Dtype::float64, static_cast<int64_t>(partial_sums.size()));
  return denominator.mean_of(total, options.empty);
}

template <typename Loss>
void elementwise_loss(StableIValue* stack, uint64_t count, uint64_t) {
  Call call(stack, count);
  const ElementTensors tensors(call, Form::loss, Loss::kPosWeight);
  const Options options(call);
  Elementwise arguments{};
  arguments.loss = Loss::kLoss;
  Loss::read(call, arguments);
  const View& input = tensors.input;
  const bool none = options.reduction == Reduction::none;
  const std::optional<Dtype> dtype = dtype_of(input.dtype), asked = dtype_of(options.dtype);
  if (!is_enabled() || !dtype || !asked || (none && *asked != *dtype && *asked != compute_dtype(*dtype))) {
    return call.pass_on(Loss::kEager[0]);
  }
  std::optional<Tensor> losses;
  if (none) {
    losses.emplace(new_like(input, options.dtype));
  }
  Tensor gradient = options.gradient ? new_like(input, input.dtype) : no_elements(input.dtype);
  const View output = none ? losses->view() : options.gradient ? gradient.view() : input;
  if (!prepare(arguments, tensors, output, nullptr, none || options.gradient)) {
    return call.pass_on(Loss::kEager[0]);
  }
  const Denominator denominator(options, tensors.normalizer, [&] { return counted(arguments); });
  if (!denominator.covered) {
    return call.pass_on(Loss::kEager[0]);
  }
  arguments.scale = 1 / denominator.value;
  arguments.grad_input = options.gradient ? gradient.data() : nullptr;
  if (none) {
    arguments.losses = losses->data();
    arguments.losses_dtype = *asked;
    run(arguments, kernels().elementwise);
    return call.answer(std::move(*losses), std::move(gradient));
  }
  const double loss = reduced(arguments, options, denominator);
  if (options.gradient && denominator.value == 0) {
    fill_with_zeros(gradient.view());
  }
  call.answer(new_number(loss, options.dtype), std::move(gradient));
}

template <typename Loss>
void few_elements(Call& call) {
  const FewRows few(call);
  const ElementTensors tensors(few.input, few.target);
  Elementwise arguments{};
  arguments.loss = Loss::kLoss;
  Loss::read(call, arguments);
  FewGradients gradient(few);
  const OptionalView& place = gradient.place;
  if (!gradient.fits || !prepare(arguments, tensors, place.value_or(few.input), nullptr, place.has_value())) {
    return call.answer_few(std::nullopt, std::nullopt);
  }
  const Denominator denominator(few.options, std::nullopt, [&] { return counted(arguments); });
  arguments.scale = few.grad_output.value_or(1) / denominator.value;
  arguments.grad_input = place ? place->data : nullptr;
  const double loss = reduced(arguments, few.options, denominator);
  if (place && denominator.value == 0) {
    fill_with_zeros(*place);
  }
  call.answer_few(new_number(loss, few.input.dtype), std::move(gradient.fresh));
}

// False if the kernels do not cover it.
bool write_gradient(Elementwise arguments, const ElementTensors& tensors, const Options& options, const View& out) {
  const View& grad = *tensors.grad_output;
  const std::optional<double> number = number_in(grad);
  if (dtype_of(out.dtype) != dtype_of(tensors.input.dtype) || (grad.dimensions == 0 && !number) ||
      !prepare(arguments, tensors, out, number ? nullptr : &grad)) {
    return false;
  }
  const Denominator denominator(options, tensors.normalizer, [&] { return counted(arguments); });
  if (!denominator.covered) {
    return false;
  }
  if (denominator.value == 0) {
    fill_with_zeros(out);
    return true;
  }
  arguments.scale = number.value_or(1) / denominator.value;
  arguments.grad_input = out.data;
  run(arguments, kernels().elementwise);
  return true;
}

template <typename Loss>
void elementwise_backward(StableIValue* stack, uint64_t count, uint64_t) {
  Call call(stack, count);
  const ElementTensors tensors(call, Form::backward, Loss::kPosWeight);
  const Options options(call);
  Elementwise arguments{};
  arguments.loss = Loss::kLoss;
  Loss::read(call, arguments);
  if (is_enabled() && dtype_of(tensors.input.dtype)) {
    Tensor gradient = new_like(tensors.input, tensors.input.dtype);
    if (write_gradient(arguments, tensors, options, gradient.view())) {
      return call.answer(std::move(gradient));
    }
  }
  call.pass_on(Loss::kEager[1]);
}

template <typename Loss>
void elementwise_backward_in_place(StableIValue* stack, uint64_t count, uint64_t) {
  Call call(stack, count);
  const ElementTensors tensors(call, Form::backward_in_place, Loss::kPosWeight);
  const Options options(call);
  Elementwise arguments{};
  arguments.loss = Loss::kLoss;
  Loss::read(call, arguments);
  if (is_ready(*tensors.grad_output, options) || write_gradient(arguments, tensors, options, *tensors.gradient)) {
    return call.answer();
  }
  call.pass_on(Loss::kEager[2]);
}

template <typename Loss>
struct Operators {
  Operators()
      : loss(Loss::kName, elementwise_loss<Loss>),
        backward((std::string(Loss::kName) + "_backward").c_str(), elementwise_backward<Loss>),
        backward_in_place((std::string(Loss::kName) + "_backward_").c_str(), elementwise_backward_in_place<Loss>),
        few(Loss::kName, Loss::kOptions) {}
  Registration loss;
  Registration backward;
  Registration backward_in_place;
  FewRegistration<few_elements<Loss>> few;
};

const Operators<SquaredLoss> kSquared;
const Operators<HuberLoss> kHuber;
const Operators<SmoothL1Loss> kSmoothL1;
const Operators<BinaryCrossEntropyLoss> kBinaryCrossEntropy;

}  // namespace
}  // namespace torchlosses
