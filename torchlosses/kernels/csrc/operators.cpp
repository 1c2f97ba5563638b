// The operators of torchlosses/kernels/__init__.py for the CPU: they look at what they are given, allocate, and share the
// work among threads; the kernels do the rest. What the kernels do not cover goes to the operators in PyTorch operations,
// `torchlosses::eager_...`.
//
// Everything passes LibTorch's stable ABI, so that one binary serves every torch from 2.10 on, and every Python.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "arguments.h"
#include "vector.h"

namespace torchlosses {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::headeronly::ScalarType;

// ---------------------------------------------------------------------------------------------------------------------
// Instruction set, threads, memory
// ---------------------------------------------------------------------------------------------------------------------

const Kernels& choose_kernels() {
#if defined(TORCHLOSSES_X86)
  const char* wanted = std::getenv("TORCHLOSSES_INSTRUCTION_SET");
  const std::string name = wanted == nullptr ? "" : wanted;
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && (name.empty() || name == "avx512")) {
    return avx512::kernels;
  }
  if (has_avx2 && name != "baseline") {
    return avx2::kernels;
  }
#endif
  return baseline::kernels;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

std::atomic<bool> enabled{true};
std::atomic<bool> forked{false};

// Work of about this many numbers is worth waking a thread for.
constexpr int64_t kGrain = 32768;

template <typename Function>
void in_parallel(int64_t units, int64_t numbers, const Function& function) {
  if (units == 0) {
    return;
  }
  const int64_t per_unit = numbers / units > 0 ? numbers / units : 1;
  const int64_t grain = kGrain / per_unit > 0 ? kGrain / per_unit : 1;
  // The threads of the parent do not exist in a forked process, and OpenMP would wait for them for ever.
  if (units <= grain || forked.load(std::memory_order_relaxed)) {
    function(0, units);
    return;
  }
  torch::stable::parallel_for(0, units, grain, function);
}

// A page of 4 KiB costs more to take from the system than its arithmetic does; huge pages cost a tenth of it.
void advise_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t(1) << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kHuge - 1) & ~(kHuge - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) & ~(kHuge - 1);
  if (begin < end) {
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#else
  (void)memory;
  (void)bytes;
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Tensors
// ---------------------------------------------------------------------------------------------------------------------

struct View {
  explicit View(const Tensor& tensor) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor.get(), &dimensions));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor.get(), &sizes));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor.get(), &strides));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor.get(), &data));
  }

  int64_t elements() const {
    int64_t result = 1;
    for (int64_t d = 0; d < dimensions; ++d) {
      result *= sizes[d];
    }
    return result;
  }

  bool has_shape_of(const View& other) const {
    if (dimensions != other.dimensions) {
      return false;
    }
    for (int64_t d = 0; d < dimensions; ++d) {
      if (sizes[d] != other.sizes[d]) {
        return false;
      }
    }
    return true;
  }

  bool has_strides_of(const View& other) const {
    for (int64_t d = 0; d < dimensions; ++d) {
      if (sizes[d] > 1 && strides[d] != other.strides[d]) {
        return false;
      }
    }
    return true;
  }

  // Every element once, without a gap, in any order of dimensions.
  bool is_dense() const {
    int64_t reached = 1;
    std::vector<bool> used(static_cast<size_t>(dimensions), false);
    for (int64_t step = 0; step < dimensions; ++step) {
      bool found = false;
      for (int64_t d = dimensions - 1; d >= 0 && !found; --d) {
        if (used[static_cast<size_t>(d)]) {
          continue;
        }
        if (sizes[d] == 1 || strides[d] == reached) {
          used[static_cast<size_t>(d)] = true;
          reached *= sizes[d];
          found = true;
        }
      }
      if (!found) {
        return false;
      }
    }
    return true;
  }

  int64_t dimensions = 0;
  int64_t* sizes = nullptr;
  int64_t* strides = nullptr;
  int32_t dtype = 0;
  void* data = nullptr;
};

struct Dtypes {
  int32_t float32 = aoti_torch_dtype_float32();
  int32_t float64 = aoti_torch_dtype_float64();
  int32_t bfloat16 = aoti_torch_dtype_bfloat16();
  int32_t float16 = aoti_torch_dtype_float16();
  int32_t int64 = aoti_torch_dtype_int64();
};

const Dtypes& dtypes() {
  static const Dtypes all;
  return all;
}

std::optional<Dtype> dtype_of(int32_t dtype) {
  const Dtypes& all = dtypes();
  if (dtype == all.float32) {
    return Dtype::float32;
  }
  if (dtype == all.float64) {
    return Dtype::float64;
  }
  if (dtype == all.bfloat16) {
    return Dtype::bfloat16;
  }
  if (dtype == all.float16) {
    return Dtype::float16;
  }
  return std::nullopt;
}

int32_t code_of(ScalarType dtype) {
  return torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
}

int64_t size_of(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
}

bool is_wide(Dtype dtype) {
  return dtype == Dtype::float64;
}

int32_t compute_code(Dtype dtype) {
  return is_wide(dtype) ? dtypes().float64 : dtypes().float32;
}

Tensor new_tensor(const int64_t* sizes, const int64_t* strides, int64_t dimensions, int32_t dtype) {
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dimensions, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Tensor new_contiguous(const std::vector<int64_t>& sizes, int32_t dtype) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  }
  return new_tensor(sizes.data(), strides.data(), static_cast<int64_t>(sizes.size()), dtype);
}

// Like torch.empty_like: a dense tensor keeps its strides.
Tensor new_gradient(const Tensor& input, const View& view, Dtype dtype) {
  Tensor gradient =
      view.is_dense() ? new_tensor(view.sizes, view.strides, view.dimensions, view.dtype) : torch::stable::empty_like(input);
  advise_huge_pages(View(gradient).data, view.elements() * size_of(dtype));
  return gradient;
}

// A number as a tensor without dimensions.
Tensor number(double value, int32_t dtype) {
  Tensor result = new_tensor(nullptr, nullptr, 0, dtype);
  void* data = View(result).data;
  switch (*dtype_of(dtype)) {
    case Dtype::float32:
      *static_cast<float*>(data) = static_cast<float>(value);
      break;
    case Dtype::float64:
      *static_cast<double*>(data) = value;
      break;
    case Dtype::bfloat16:
      *static_cast<BFloat16*>(data) = baseline::narrow<BFloat16>(static_cast<float>(value));
      break;
    case Dtype::float16:
      *static_cast<Half*>(data) = baseline::narrow<Half>(static_cast<float>(value));
      break;
  }
  return result;
}

template <typename Number>
Number read(const View& view, int64_t offset) {
  switch (*dtype_of(view.dtype)) {
    case Dtype::float32:
      return static_cast<Number>(static_cast<const float*>(view.data)[offset]);
    case Dtype::float64:
      return static_cast<Number>(static_cast<const double*>(view.data)[offset]);
    case Dtype::bfloat16:
      return static_cast<Number>(baseline::widen(static_cast<const BFloat16*>(view.data)[offset]));
    case Dtype::float16:
      return static_cast<Number>(baseline::widen(static_cast<const Half*>(view.data)[offset]));
  }
  return Number(0);
}

// Numbers of any floating-point dtype, as contiguous numbers of the compute dtype.
class Numbers {
 public:
  Numbers(const View& view, Dtype dtype) : wide_(is_wide(dtype)) {
    const int64_t count = view.elements();
    bool contiguous = view.dtype == compute_code(dtype);
    int64_t expected = 1;
    for (int64_t d = view.dimensions - 1; d >= 0; --d) {
      contiguous = contiguous && (view.sizes[d] == 1 || view.strides[d] == expected);
      expected *= view.sizes[d];
    }
    if (contiguous) {
      data_ = view.data;
      return;
    }
    wide_ ? copy(view, count, doubles_) : copy(view, count, floats_);
    data_ = wide_ ? static_cast<const void*>(doubles_.data()) : static_cast<const void*>(floats_.data());
  }

  const void* data() const {
    return data_;
  }

  double sum(int64_t count) const {
    double result = 0;
    for (int64_t i = 0; i < count; ++i) {
      result += wide_ ? static_cast<const double*>(data_)[i] : static_cast<const float*>(data_)[i];
    }
    return result;
  }

 private:
  template <typename Number>
  static void copy(const View& view, int64_t count, std::vector<Number>& to) {
    to.resize(static_cast<size_t>(count));
    std::vector<int64_t> index(static_cast<size_t>(view.dimensions), 0);
    int64_t offset = 0;
    for (int64_t i = 0; i < count; ++i) {
      to[static_cast<size_t>(i)] = read<Number>(view, offset);
      for (int64_t d = view.dimensions - 1; d >= 0; --d) {
        offset += view.strides[d];
        if (++index[static_cast<size_t>(d)] < view.sizes[d]) {
          break;
        }
        offset -= view.strides[d] * view.sizes[d];
        index[static_cast<size_t>(d)] = 0;
      }
    }
  }

  bool wide_;
  const void* data_ = nullptr;
  std::vector<float> floats_;
  std::vector<double> doubles_;
};

// ---------------------------------------------------------------------------------------------------------------------
// Rows of classes
// ---------------------------------------------------------------------------------------------------------------------

Sizes sizes_of(const View& input) {
  return {input.sizes[0], input.sizes[1], input.dimensions == 3 ? input.sizes[2] : 1};
}

Layout layout_of(const View& view) {
  return {view.strides[0], view.strides[1], view.dimensions == 3 ? view.strides[2] : 0};
}

// Class indices have no class dimension.
Layout index_layout_of(const View& view) {
  return {view.strides[0], 0, view.dimensions == 2 ? view.strides[1] : 0};
}

struct Plan {
  Walk walk;
  Sizes sizes;
  Layout input;
  Layout target;
  bool swapped;  // samples take the place of positions: a 2-D tensor whose samples are neighbours in memory
};

std::optional<Plan> plan_for(const View& input, const View& target, bool indices) {
  Plan plan{
      Walk::along_classes,
      sizes_of(input),
      layout_of(input),
      indices ? index_layout_of(target) : layout_of(target),
      false};
  const auto neighbours = [&](const Layout& layout) { return layout.classes == 1 || plan.sizes.classes == 1; };
  if (neighbours(plan.input) && (indices || neighbours(plan.target))) {
    return plan;
  }
  plan.walk = Walk::across_positions;
  if (input.dimensions == 2) {
    plan.swapped = true;
    plan.sizes = {1, plan.sizes.classes, plan.sizes.samples};
    plan.input = {0, plan.input.classes, plan.input.sample};
    plan.target = {0, plan.target.classes, plan.target.sample};
  }
  const auto together = [&](const Layout& layout) { return layout.position == 1 || plan.sizes.positions == 1; };
  if (together(plan.input) && (indices || together(plan.target))) {
    return plan;
  }
  return std::nullopt;
}

// How the gradient is laid out must suit the walk too.
std::optional<Layout> gradient_layout(const Plan& plan, const View& out) {
  Layout layout = layout_of(out);
  if (plan.swapped) {
    layout = {0, layout.classes, layout.sample};
  }
  const bool suits = plan.walk == Walk::along_classes ? layout.classes == 1 || plan.sizes.classes == 1
                                                      : layout.position == 1 || plan.sizes.positions == 1;
  return suits ? std::optional<Layout>(layout) : std::nullopt;
}

// Positions of a tile: its logits should stay in the second-level cache, and each class be a few cache lines at least.
int64_t tile_for(const Sizes& sizes) {
  int64_t tile = 256;
  while (tile > 64 && tile * sizes.classes * 4 > (int64_t(1) << 18)) {
    tile /= 2;
  }
  return tile;
}

int64_t units_of(const Plan& plan, int64_t tile) {
  return plan.walk == Walk::along_classes ? plan.sizes.rows()
                                          : plan.sizes.samples * ((plan.sizes.positions + tile - 1) / tile);
}

std::vector<int64_t> row_sizes(const View& input) {
  return input.dimensions == 3 ? std::vector<int64_t>{input.sizes[0], input.sizes[2]}
                               : std::vector<int64_t>{input.sizes[0]};
}

// Names the first class index outside the classes. An exception of this type is an IndexError in Python, also from an
// operator that a compiled graph calls; an error that passes from the eager operators through the stable ABI is not.
void check_indices(const View& input, const View& target, std::optional<int64_t> ignore_index) {
  if (target.dimensions >= input.dimensions || target.dtype != dtypes().int64) {
    return;
  }
  const int64_t classes = input.sizes[1];
  const Layout layout = index_layout_of(target);
  const int64_t positions = target.dimensions == 2 ? target.sizes[1] : 1;
  for (int64_t row = 0; row < target.elements(); ++row) {
    const int64_t value = static_cast<const int64_t*>(
        target.data)[row / positions * layout.sample + row % positions * layout.position];
    if ((value < 0 || value >= classes) && value != ignore_index) {
      throw std::out_of_range(
          "Target " + std::to_string(value) + " is out of bounds: there are " + std::to_string(classes) +
          " classes, so indices run from 0 to " + std::to_string(classes - 1) + ".");
    }
  }
}

// Always in the same order, in eight sums that do not wait for each other.
template <typename Number>
double sum_of(const Number* values, int64_t count) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int64_t j = 0; j < 8; ++j) {
      sums[j] += static_cast<double>(values[i + j]);
    }
  }
  for (; i < count; ++i) {
    sums[0] += static_cast<double>(values[i]);
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

double total_of(const void* losses, Dtype dtype, int64_t rows) {
  return is_wide(dtype) ? sum_of(static_cast<const double*>(losses), rows)
                        : sum_of(static_cast<const float*>(losses), rows);
}

// The incoming gradient of a loss that nothing is made of, as the kernels take it.
const void* one(Dtype dtype) {
  static constexpr float narrow = 1.0f;
  static constexpr double wide = 1.0;
  return is_wide(dtype) ? static_cast<const void*>(&wide) : &narrow;
}

// none: the losses themselves, in the dtype asked for; mean and sum: one number.
Tensor reduce(const Tensor& losses, Dtype dtype, int64_t rows, const std::string& reduction, double count, ScalarType dtype_asked) {
  const View view(losses);
  const int32_t code = code_of(dtype_asked);
  if (reduction == "none") {
    return view.dtype == code ? losses : torch::stable::to(losses, dtype_asked);
  }
  const double total = total_of(view.data, dtype, rows);
  return number(reduction == "mean" ? total / count : total, code);
}

// ---------------------------------------------------------------------------------------------------------------------
// The way to the operators in PyTorch operations
// ---------------------------------------------------------------------------------------------------------------------

template <size_t size>
void call_eager(const char* name, std::array<StableIValue, size>& stack) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
}

template <typename... Arguments>
std::array<StableIValue, sizeof...(Arguments)> stack_of(const Arguments&... arguments) {
  return {torch::stable::detail::from(arguments)...};
}

Tensor tensor_at(StableIValue value) {
  return torch::stable::detail::to<Tensor>(value);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Cross-entropy
// ---------------------------------------------------------------------------------------------------------------------

namespace {

struct CrossEntropyCall {
  Plan plan;
  CrossEntropy arguments{};
  std::optional<Numbers> weight;
  std::atomic<bool> out_of_bounds{false};
};

// Fills in what every loss of rows of classes is given; false if the kernels do not cover it.
template <typename Call>
bool prepare_rows(Call& call, const View& input, const View& target) {
  const std::optional<Dtype> dtype = dtype_of(input.dtype);
  const bool indices = target.dimensions < input.dimensions;
  if (!enabled.load(std::memory_order_relaxed) || !dtype || input.elements() == 0 ||
      target.dtype != (indices ? dtypes().int64 : input.dtype)) {
    return false;
  }
  const std::optional<Plan> plan = plan_for(input, target, indices);
  if (!plan) {
    return false;
  }
  call.plan = *plan;
  auto& arguments = call.arguments;
  arguments.dtype = *dtype;
  arguments.walk = plan->walk;
  arguments.tile = tile_for(plan->sizes);
  arguments.sizes = plan->sizes;
  arguments.input = input.data;
  arguments.input_layout = plan->input;
  arguments.indices = indices ? static_cast<const int64_t*>(target.data) : nullptr;
  arguments.shares = indices ? nullptr : target.data;
  arguments.target_layout = plan->target;
  arguments.out_of_bounds = &call.out_of_bounds;
  return true;
}

bool prepare(
    CrossEntropyCall& call,
    const View& input,
    const View& target,
    const OptionalTensor& weight,
    int64_t ignore_index,
    double label_smoothing) {
  if (!prepare_rows(call, input, target)) {
    return false;
  }
  CrossEntropy& arguments = call.arguments;
  arguments.ignore_index = ignore_index;
  arguments.label_smoothing = label_smoothing;
  arguments.weight_sum = static_cast<double>(arguments.sizes.classes);
  if (weight.has_value()) {
    const View view(*weight);
    if (!dtype_of(view.dtype) || (view.dtype == dtypes().float64 && !is_wide(arguments.dtype))) {
      return false;
    }
    call.weight.emplace(view, arguments.dtype);
    arguments.weight = call.weight->data();
    arguments.weight_sum = call.weight->sum(arguments.sizes.classes);
  }
  return true;
}

// What a mean divides by: the rows that are not ignored.
double rows_in_mean(const CrossEntropyCall& call, const View& target) {
  if (call.arguments.indices == nullptr) {
    return static_cast<double>(call.plan.sizes.rows());
  }
  const Layout layout = index_layout_of(target);
  const int64_t positions = target.dimensions == 2 ? target.sizes[1] : 1;
  const int64_t ignore_index = call.arguments.ignore_index;
  int64_t count = 0;
  for (int64_t sample = 0; sample < target.sizes[0]; ++sample) {
    const int64_t* row = static_cast<const int64_t*>(target.data) + sample * layout.sample;
    // A step that the compiler knows is one that it can take for several positions at once.
    if (layout.position == 1) {
      for (int64_t position = 0; position < positions; ++position) {
        count += row[position] != ignore_index;
      }
      continue;
    }
    for (int64_t position = 0; position < positions; ++position) {
      count += row[position * layout.position] != ignore_index;
    }
  }
  return static_cast<double>(count);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> cross_entropy_forward(
    const Tensor& input,
    const Tensor& target,
    const OptionalTensor& weight,
    const std::string& reduction,
    int64_t ignore_index,
    double label_smoothing,
    ScalarType dtype) {
  const View x(input), t(target);
  CrossEntropyCall call;
  if (!prepare(call, x, t, weight, ignore_index, label_smoothing)) {
    auto stack = stack_of(input, target, weight, reduction, ignore_index, label_smoothing, dtype);
    check_indices(x, t, ignore_index);
    call_eager("torchlosses::eager_cross_entropy_forward", stack);
    return {tensor_at(stack[0]), tensor_at(stack[1]), tensor_at(stack[2])};
  }
  CrossEntropy& arguments = call.arguments;
  const int32_t compute = compute_code(arguments.dtype);
  const std::vector<int64_t> shape = row_sizes(x);
  const Tensor losses = new_contiguous(shape, compute);
  Tensor maximum = new_contiguous(shape, compute);
  Tensor rest = new_contiguous(shape, compute);
  arguments.losses = View(losses).data;
  arguments.maximum = View(maximum).data;
  arguments.rest = View(rest).data;
  in_parallel(units_of(call.plan, arguments.tile), x.elements(), [&](int64_t begin, int64_t end) {
    kernels().cross_entropy_forward(arguments, begin, end);
  });
  if (call.out_of_bounds) {
    check_indices(x, t, ignore_index);
  }
  const double count = reduction == "mean" ? rows_in_mean(call, t) : 1.0;
  return {reduce(losses, arguments.dtype, call.plan.sizes.rows(), reduction, count, dtype), maximum, rest};
}

// A small batch's loss and its gradient in one call. Nothing else of it is kept, so the rows' numbers need no tensors.
std::tuple<Tensor, Tensor> cross_entropy_with_gradient(
    const Tensor& input,
    const Tensor& target,
    const std::string& reduction,
    int64_t ignore_index,
    double label_smoothing) {
  const View x(input), t(target);
  CrossEntropyCall call;
  std::optional<Tensor> gradient;
  std::optional<Layout> layout;
  // Losses that are rounded to fewer digits go to the other operators, which know how to sum them.
  if (prepare(call, x, t, std::nullopt, ignore_index, label_smoothing) && x.dtype == compute_code(call.arguments.dtype)) {
    gradient = new_gradient(input, x, call.arguments.dtype);
    layout = gradient_layout(call.plan, View(*gradient));
  }
  if (!layout) {
    auto stack = stack_of(input, target, reduction, ignore_index, label_smoothing);
    check_indices(x, t, ignore_index);
    call_eager("torchlosses::eager_cross_entropy_with_gradient", stack);
    return {tensor_at(stack[0]), tensor_at(stack[1])};
  }
  CrossEntropy& arguments = call.arguments;
  const int64_t rows = arguments.sizes.rows();
  std::vector<double> numbers(static_cast<size_t>(3 * rows));
  arguments.losses = numbers.data();
  arguments.maximum = numbers.data() + rows;
  arguments.rest = numbers.data() + 2 * rows;
  const double count = reduction == "mean" ? rows_in_mean(call, t) : 1.0;
  arguments.grad_rows = one(arguments.dtype);
  arguments.grad_stride = 0;
  arguments.scale = 1.0 / count;
  arguments.grad_input = View(*gradient).data;
  arguments.grad_layout = *layout;
  in_parallel(units_of(call.plan, arguments.tile), 2 * x.elements(), [&](int64_t begin, int64_t end) {
    kernels().cross_entropy_forward(arguments, begin, end);
    kernels().cross_entropy_backward(arguments, begin, end);
  });
  if (call.out_of_bounds) {
    check_indices(x, t, ignore_index);
  }
  return {number(total_of(arguments.losses, arguments.dtype, rows) / count, x.dtype), *gradient};
}

namespace {

// What a row's loss may have beside, as the kernels take it.
class Extras {
 public:
  Extras(const OptionalTensor& sample_weight, double z_loss, std::optional<double> logit_softcap)
      : sample_weight_(sample_weight), z_loss_(z_loss), logit_softcap_(logit_softcap.value_or(0.0)) {}

  bool put(CrossEntropyCall& call) {
    call.arguments.z_loss = z_loss_;
    call.arguments.logit_softcap = logit_softcap_;
    // Rows that are not along the classes are copied: a cache line's worth of them together, if they are not too long.
    call.arguments.tile = call.plan.sizes.classes > 16384 ? 4 : 16;
    if (!sample_weight_.has_value()) {
      return true;
    }
    const View view(*sample_weight_);
    if (!dtype_of(view.dtype) || (view.dtype == dtypes().float64 && !is_wide(call.arguments.dtype)) ||
        view.elements() != call.plan.sizes.rows()) {
      return false;
    }
    call.arguments.sample_weight = numbers_.emplace(view, call.arguments.dtype).data();
    return true;
  }

 private:
  const OptionalTensor& sample_weight_;
  double z_loss_;
  double logit_softcap_;
  std::optional<Numbers> numbers_;
};

// The gradient of each row's loss, or one of all.
struct RowGradients {
  RowGradients(const View& grad, Dtype dtype) : numbers(grad, dtype), stride(grad.dimensions == 0 ? 0 : 1) {}
  Numbers numbers;
  int64_t stride;
};

bool write_cross_entropy_gradient(
    const Tensor& grad_output,
    const View& x,
    const Tensor& target,
    const OptionalTensor& weight,
    const Tensor& maximum,
    const Tensor& rest,
    const std::string& reduction,
    int64_t ignore_index,
    double label_smoothing,
    const View& out,
    Extras* extras = nullptr) {
  const View t(target), g(grad_output);
  CrossEntropyCall call;
  if (!prepare(call, x, t, weight, ignore_index, label_smoothing) || (extras != nullptr && !extras->put(call))) {
    return false;
  }
  CrossEntropy& arguments = call.arguments;
  const int32_t compute = compute_code(arguments.dtype);
  const View m(maximum), r(rest);
  const std::optional<Layout> layout = gradient_layout(call.plan, out);
  if (!layout || !dtype_of(g.dtype) || (g.dtype == dtypes().float64 && compute != g.dtype) ||
      m.dtype != compute || r.dtype != compute || !m.is_dense() || !r.is_dense()) {
    return false;
  }
  const RowGradients gradients(g, arguments.dtype);
  const Numbers maxima(m, arguments.dtype), rests(r, arguments.dtype);
  arguments.maximum = const_cast<void*>(maxima.data());
  arguments.rest = const_cast<void*>(rests.data());
  arguments.grad_rows = gradients.numbers.data();
  arguments.grad_stride = gradients.stride;
  arguments.scale = reduction == "mean" ? 1.0 / rows_in_mean(call, t) : 1.0;
  arguments.grad_input = out.data;
  arguments.grad_layout = *layout;
  const auto run = extras == nullptr ? kernels().cross_entropy_backward : kernels().cross_entropy_extended_backward;
  in_parallel(
      units_of(call.plan, arguments.tile), x.elements(), [&](int64_t begin, int64_t end) { run(arguments, begin, end); });
  if (call.out_of_bounds) {
    check_indices(x, t, ignore_index);
  }
  return true;
}

}  // namespace

Tensor cross_entropy_backward(
    const Tensor& grad_output,
    const Tensor& input,
    const Tensor& target,
    const OptionalTensor& weight,
    const Tensor& maximum,
    const Tensor& rest,
    const std::string& reduction,
    int64_t ignore_index,
    double label_smoothing) {
  const View x(input);
  const std::optional<Dtype> dtype = dtype_of(x.dtype);
  if (dtype && enabled.load(std::memory_order_relaxed)) {
    Tensor gradient = new_gradient(input, x, *dtype);
    if (write_cross_entropy_gradient(
            grad_output, x, target, weight, maximum, rest, reduction, ignore_index, label_smoothing, View(gradient))) {
      return gradient;
    }
  }
  auto stack =
      stack_of(grad_output, input, target, weight, maximum, rest, reduction, ignore_index, label_smoothing);
  call_eager("torchlosses::eager_cross_entropy_backward", stack);
  return tensor_at(stack[0]);
}

void cross_entropy_backward_(
    const Tensor& grad_output,
    Tensor input,
    const Tensor& target,
    const OptionalTensor& weight,
    const Tensor& maximum,
    const Tensor& rest,
    const std::string& reduction,
    int64_t ignore_index,
    double label_smoothing) {
  const View x(input);
  if (!write_cross_entropy_gradient(
          grad_output, x, target, weight, maximum, rest, reduction, ignore_index, label_smoothing, x)) {
    auto stack =
        stack_of(grad_output, input, target, weight, maximum, rest, reduction, ignore_index, label_smoothing);
    call_eager("torchlosses::eager_cross_entropy_backward_", stack);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_extended_forward(
    const Tensor& input,
    const Tensor& target,
    const OptionalTensor& weight,
    const OptionalTensor& sample_weight,
    const std::string& reduction,
    int64_t ignore_index,
    double label_smoothing,
    double z_loss,
    std::optional<double> logit_softcap,
    bool statistics,
    ScalarType dtype) {
  const View x(input), t(target);
  CrossEntropyCall call;
  Extras extras(sample_weight, z_loss, logit_softcap);
  if (!prepare(call, x, t, weight, ignore_index, label_smoothing) || !extras.put(call)) {
    auto stack = stack_of(
        input,
        target,
        weight,
        sample_weight,
        reduction,
        ignore_index,
        label_smoothing,
        z_loss,
        logit_softcap,
        statistics,
        dtype);
    check_indices(x, t, ignore_index);
    call_eager("torchlosses::eager_cross_entropy_extended_forward", stack);
    return {tensor_at(stack[0]), tensor_at(stack[1]), tensor_at(stack[2]), tensor_at(stack[3])};
  }
  CrossEntropy& arguments = call.arguments;
  const int32_t compute = compute_code(arguments.dtype);
  std::vector<int64_t> shape = row_sizes(x);
  const Tensor losses = new_contiguous(shape, compute);
  Tensor maximum = new_contiguous(shape, compute);
  Tensor rest = new_contiguous(shape, compute);
  shape.insert(shape.begin(), kRowStatistics);
  Tensor found = new_contiguous(statistics ? shape : std::vector<int64_t>{0}, compute);
  arguments.losses = View(losses).data;
  arguments.maximum = View(maximum).data;
  arguments.rest = View(rest).data;
  arguments.statistics = statistics ? View(found).data : nullptr;
  in_parallel(units_of(call.plan, arguments.tile), x.elements(), [&](int64_t begin, int64_t end) {
    kernels().cross_entropy_extended_forward(arguments, begin, end);
  });
  if (call.out_of_bounds) {
    check_indices(x, t, ignore_index);
  }
  return {reduce(losses, arguments.dtype, call.plan.sizes.rows(), reduction, 1.0, dtype), maximum, rest, found};
}

Tensor cross_entropy_extended_backward(
    const Tensor& grad_output,
    const Tensor& input,
    const Tensor& target,
    const OptionalTensor& weight,
    const OptionalTensor& sample_weight,
    const Tensor& maximum,
    const Tensor& rest,
    int64_t ignore_index,
    double label_smoothing,
    double z_loss,
    std::optional<double> logit_softcap) {
  const View x(input);
  const std::optional<Dtype> dtype = dtype_of(x.dtype);
  if (dtype && enabled.load(std::memory_order_relaxed)) {
    Tensor gradient = new_gradient(input, x, *dtype);
    Extras extras(sample_weight, z_loss, logit_softcap);
    const View out(gradient);
    if (write_cross_entropy_gradient(
            grad_output, x, target, weight, maximum, rest, "sum", ignore_index, label_smoothing, out, &extras)) {
      return gradient;
    }
  }
  auto stack = stack_of(
      grad_output,
      input,
      target,
      weight,
      sample_weight,
      maximum,
      rest,
      ignore_index,
      label_smoothing,
      z_loss,
      logit_softcap);
  call_eager("torchlosses::eager_cross_entropy_extended_backward", stack);
  return tensor_at(stack[0]);
}

void cross_entropy_extended_backward_(
    const Tensor& grad_output,
    Tensor input,
    const Tensor& target,
    const OptionalTensor& weight,
    const OptionalTensor& sample_weight,
    const Tensor& maximum,
    const Tensor& rest,
    int64_t ignore_index,
    double label_smoothing,
    double z_loss,
    std::optional<double> logit_softcap) {
  const View x(input);
  Extras extras(sample_weight, z_loss, logit_softcap);
  if (!write_cross_entropy_gradient(
          grad_output, x, target, weight, maximum, rest, "sum", ignore_index, label_smoothing, x, &extras)) {
    auto stack = stack_of(
        grad_output,
        input,
        target,
        weight,
        sample_weight,
        maximum,
        rest,
        ignore_index,
        label_smoothing,
        z_loss,
        logit_softcap);
    call_eager("torchlosses::eager_cross_entropy_extended_backward_", stack);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Mean squared error
// ---------------------------------------------------------------------------------------------------------------------

namespace {

bool prepare(SquaredError& arguments, const View& x, const View& t, const OptionalTensor& weight) {
  const std::optional<Dtype> dtype = dtype_of(x.dtype);
  if (!enabled.load(std::memory_order_relaxed) || !dtype || t.dtype != x.dtype || !x.is_dense() ||
      !t.has_shape_of(x) || !t.has_strides_of(x)) {
    return false;
  }
  arguments.dtype = *dtype;
  arguments.elements = x.elements();
  arguments.input = x.data;
  arguments.target = t.data;
  if (weight.has_value()) {
    const View w(*weight);
    if (w.dtype != compute_code(*dtype) || !w.has_shape_of(x) || !w.has_strides_of(x)) {
      return false;
    }
    arguments.weight = w.data;
  }
  return arguments.elements > 0;
}

int64_t blocks_of(int64_t elements) {
  return (elements + kBlock - 1) / kBlock;
}

}  // namespace

Tensor mse_forward(
    const Tensor& input,
    const Tensor& target,
    const OptionalTensor& weight,
    const std::string& reduction,
    ScalarType dtype) {
  const View x(input);
  SquaredError arguments{};
  const int32_t code = code_of(dtype);
  const bool none = reduction == "none";
  bool covered = prepare(arguments, x, View(target), weight);
  covered = covered && (!none || code == x.dtype || code == compute_code(arguments.dtype));
  if (!covered) {
    auto stack = stack_of(input, target, weight, reduction, dtype);
    call_eager("torchlosses::eager_mse_forward", stack);
    return tensor_at(stack[0]);
  }
  const int64_t blocks = blocks_of(arguments.elements);
  const auto run = [&] {
    in_parallel(blocks, arguments.elements, [&](int64_t begin, int64_t end) {
      kernels().mse_forward(arguments, begin, end);
    });
  };
  if (none) {
    Tensor losses = new_tensor(x.sizes, x.strides, x.dimensions, code);
    arguments.losses = View(losses).data;
    arguments.losses_dtype = *dtype_of(code);
    advise_huge_pages(arguments.losses, arguments.elements * size_of(arguments.losses_dtype));
    run();
    return losses;
  }
  std::vector<double> partial_sums(static_cast<size_t>(blocks));
  arguments.partial_sums = partial_sums.data();
  run();
  const double total = sum_of(partial_sums.data(), blocks);
  return number(reduction == "mean" ? total / static_cast<double>(arguments.elements) : total, code);
}

Tensor mse_backward(
    const Tensor& grad_output,
    const Tensor& input,
    const Tensor& target,
    const OptionalTensor& weight,
    const std::string& reduction) {
  const View x(input), g(grad_output);
  SquaredError arguments{};
  bool covered = prepare(arguments, x, View(target), weight) && dtype_of(g.dtype).has_value();
  const int32_t compute = covered ? compute_code(arguments.dtype) : 0;
  covered = covered && (g.dimensions == 0 ? g.dtype != dtypes().float64 || compute == g.dtype
                                          : g.dtype == compute && g.has_shape_of(x) && g.has_strides_of(x));
  if (!covered) {
    auto stack = stack_of(grad_output, input, target, weight, reduction);
    call_eager("torchlosses::eager_mse_backward", stack);
    return tensor_at(stack[0]);
  }
  const Tensor gradient = new_gradient(input, x, arguments.dtype);
  std::optional<Numbers> scalar;
  arguments.grad_is_scalar = g.dimensions == 0;
  arguments.grad = g.data;
  if (arguments.grad_is_scalar) {
    arguments.grad = scalar.emplace(g, arguments.dtype).data();
  }
  arguments.scale = reduction == "mean" ? 2.0 / static_cast<double>(arguments.elements) : 2.0;
  arguments.grad_input = View(gradient).data;
  in_parallel(blocks_of(arguments.elements), arguments.elements, [&](int64_t begin, int64_t end) {
    kernels().mse_backward(arguments, begin, end);
  });
  return gradient;
}

std::tuple<Tensor, Tensor> mse_with_gradient(const Tensor& input, const Tensor& target, const std::string& reduction) {
  const View x(input);
  SquaredError arguments{};
  bool covered = prepare(arguments, x, View(target), std::nullopt);
  covered = covered && x.dtype == compute_code(arguments.dtype);
  if (!covered) {
    auto stack = stack_of(input, target, reduction);
    call_eager("torchlosses::eager_mse_with_gradient", stack);
    return {tensor_at(stack[0]), tensor_at(stack[1])};
  }
  Tensor gradient = new_gradient(input, x, arguments.dtype);
  const double count = reduction == "mean" ? static_cast<double>(arguments.elements) : 1.0;
  arguments.grad_is_scalar = true;
  arguments.grad = one(arguments.dtype);
  arguments.scale = 2.0 / count;
  arguments.grad_input = View(gradient).data;
  const int64_t blocks = blocks_of(arguments.elements);
  std::vector<double> partial_sums(static_cast<size_t>(blocks));
  arguments.partial_sums = partial_sums.data();
  in_parallel(blocks, arguments.elements, [&](int64_t begin, int64_t end) {
    kernels().mse_forward(arguments, begin, end);
    kernels().mse_backward(arguments, begin, end);
  });
  return {number(sum_of(partial_sums.data(), blocks) / count, x.dtype), gradient};
}

// ---------------------------------------------------------------------------------------------------------------------
// The textbook cross-entropy error
// ---------------------------------------------------------------------------------------------------------------------

namespace {

struct TextbookCall {
  Plan plan;
  TextbookCrossEntropy arguments{};
  std::atomic<bool> out_of_bounds{false};
  std::atomic<bool> not_probabilities{false};
};

bool prepare(TextbookCall& call, const View& p, const View& t, double delta) {
  if (!prepare_rows(call, p, t)) {
    return false;
  }
  call.arguments.delta = delta;
  call.arguments.not_probabilities = &call.not_probabilities;
  return true;
}

}  // namespace

Tensor cee_forward(
    const Tensor& input,
    const Tensor& target,
    const std::string& reduction,
    double delta,
    bool validate_args,
    ScalarType dtype) {
  const View p(input), t(target);
  TextbookCall call;
  if (!prepare(call, p, t, delta)) {
    check_indices(p, t, std::nullopt);
    auto stack = stack_of(input, target, reduction, delta, validate_args, dtype);
    try {
      call_eager("torchlosses::eager_cee_forward", stack);
    } catch (const std::runtime_error& error) {
      // What is left to object to is the values of input or target.
      throw std::invalid_argument(error.what());
    }
    return tensor_at(stack[0]);
  }
  TextbookCrossEntropy& arguments = call.arguments;
  arguments.validate = validate_args;
  const Tensor losses = new_contiguous(row_sizes(p), compute_code(arguments.dtype));
  arguments.losses = View(losses).data;
  const int64_t rows = arguments.sizes.rows();
  in_parallel(units_of(call.plan, arguments.tile), p.elements(), [&](int64_t begin, int64_t end) {
    kernels().cee_forward(arguments, begin, end);
  });
  if (call.out_of_bounds) {
    check_indices(p, t, std::nullopt);
  }
  if (call.not_probabilities) {
    throw std::invalid_argument(
        "cee_loss: expected probabilities in [0, 1]. Logits belong to cross_entropy; or apply softmax first.");
  }
  return reduce(losses, arguments.dtype, rows, reduction, static_cast<double>(rows), dtype);
}

Tensor cee_backward(
    const Tensor& grad_output,
    const Tensor& input,
    const Tensor& target,
    double delta,
    const std::string& reduction) {
  const View p(input), t(target), g(grad_output);
  TextbookCall call;
  if (!prepare(call, p, t, delta) || !dtype_of(g.dtype) ||
      (g.dtype == dtypes().float64 && !is_wide(call.arguments.dtype))) {
    auto stack = stack_of(grad_output, input, target, delta, reduction);
    call_eager("torchlosses::eager_cee_backward", stack);
    return tensor_at(stack[0]);
  }
  TextbookCrossEntropy& arguments = call.arguments;
  const int64_t rows = arguments.sizes.rows();
  const Tensor gradient = new_gradient(input, p, arguments.dtype);
  const View out(gradient);
  const std::optional<Layout> layout = gradient_layout(call.plan, out);
  if (!layout) {
    auto stack = stack_of(grad_output, input, target, delta, reduction);
    call_eager("torchlosses::eager_cee_backward", stack);
    return tensor_at(stack[0]);
  }
  const RowGradients gradients(g, arguments.dtype);
  arguments.grad_rows = gradients.numbers.data();
  arguments.grad_stride = gradients.stride;
  arguments.scale = reduction == "mean" ? 1.0 / static_cast<double>(rows) : 1.0;
  arguments.grad_input = out.data;
  arguments.grad_layout = *layout;
  in_parallel(units_of(call.plan, arguments.tile), p.elements(), [&](int64_t begin, int64_t end) {
    kernels().cee_backward(arguments, begin, end);
  });
  if (call.out_of_bounds) {
    check_indices(p, t, std::nullopt);
  }
  return gradient;
}

}  // namespace torchlosses

STABLE_TORCH_LIBRARY_IMPL(torchlosses, CPU, library) {
  library.impl("mse_forward", TORCH_BOX(&torchlosses::mse_forward));
  library.impl("mse_backward", TORCH_BOX(&torchlosses::mse_backward));
  library.impl("mse_with_gradient", TORCH_BOX(&torchlosses::mse_with_gradient));
  library.impl("cross_entropy_with_gradient", TORCH_BOX(&torchlosses::cross_entropy_with_gradient));
  library.impl("cross_entropy_forward", TORCH_BOX(&torchlosses::cross_entropy_forward));
  library.impl("cross_entropy_backward", TORCH_BOX(&torchlosses::cross_entropy_backward));
  library.impl("cross_entropy_backward_", TORCH_BOX(&torchlosses::cross_entropy_backward_));
  library.impl("cross_entropy_extended_forward", TORCH_BOX(&torchlosses::cross_entropy_extended_forward));
  library.impl("cross_entropy_extended_backward", TORCH_BOX(&torchlosses::cross_entropy_extended_backward));
  library.impl("cross_entropy_extended_backward_", TORCH_BOX(&torchlosses::cross_entropy_extended_backward_));
  library.impl("cee_forward", TORCH_BOX(&torchlosses::cee_forward));
  library.impl("cee_backward", TORCH_BOX(&torchlosses::cee_backward));
}

// What Python asks the library for by name.
extern "C" {

__attribute__((visibility("default"))) const char* torchlosses_instruction_set() {
  return torchlosses::kernels().instruction_set;
}

// Whether the kernels run, or everything goes to the operators in PyTorch operations.
__attribute__((visibility("default"))) void torchlosses_enable(int value) {
  torchlosses::enabled.store(value != 0);
}

}  // extern "C"

#if defined(__unix__) || defined(__APPLE__)
namespace {
const int registered_for_fork =
    pthread_atfork(nullptr, nullptr, [] { torchlosses::forked.store(true); });
}
#endif
