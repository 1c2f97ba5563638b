// What the operators for the CPU share: the arguments of a call, tensors, threads, memory, and the way to the operators in
// PyTorch operations.
//
// Everything passes LibTorch's C interface, so that one binary serves every torch from 2.10 on, and every Python.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstring>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"

namespace torchlosses {

// ---------------------------------------------------------------------------------------------------------------------
// Tensors
// ---------------------------------------------------------------------------------------------------------------------

// Throws what LibTorch reports.
void check(AOTITorchError code);

struct Dtypes {
  int32_t float32 = aoti_torch_dtype_float32();
  int32_t float64 = aoti_torch_dtype_float64();
  int32_t bfloat16 = aoti_torch_dtype_bfloat16();
  int32_t float16 = aoti_torch_dtype_float16();
  int32_t int64 = aoti_torch_dtype_int64();
  int32_t int32 = aoti_torch_dtype_int32();
  int32_t int16 = aoti_torch_dtype_int16();
  int32_t int8 = aoti_torch_dtype_int8();
  int32_t uint8 = aoti_torch_dtype_uint8();
};

// LibTorch's numbers for the dtypes.
const Dtypes& dtypes();
std::optional<Dtype> dtype_of(int32_t code);
int32_t code_of(Dtype dtype);
int64_t size_of(Dtype dtype);

inline Dtype compute_dtype(Dtype dtype) {
  return dtype == Dtype::float64 ? Dtype::float64 : Dtype::float32;
}

// A tensor's shape and memory; it does not own the tensor.
struct View {
  explicit View(AtenTensorHandle tensor);
  // Of memory that no tensor of LibTorch's describes.
  View(const void* memory, int64_t dimensions, int64_t* sizes, int64_t* strides, int32_t dtype)
      : dimensions(dimensions), sizes(sizes), strides(strides), dtype(dtype), data(const_cast<void*>(memory)) {}

  int64_t elements() const;
  bool has_shape_of(const View& other) const;
  // Every element once, without a gap, in any order of dimensions.
  bool is_dense() const;
  bool is_contiguous() const;

  AtenTensorHandle handle = nullptr;
  int64_t dimensions = 0;
  int64_t* sizes = nullptr;
  int64_t* strides = nullptr;
  int32_t dtype = 0;
  void* data = nullptr;
};

using OptionalView = std::optional<View>;

// A tensor that is on its way out.
class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Tensor(const Tensor&) = delete;
  ~Tensor();
  View view() const {
    return View(handle_);
  }
  void* data() const {
    void* result = nullptr;
    check(aoti_torch_get_data_ptr(handle_, &result));
    return result;
  }
  AtenTensorHandle release() {
    return std::exchange(handle_, nullptr);
  }

 private:
  AtenTensorHandle handle_;
};

Tensor new_contiguous(const std::vector<int64_t>& sizes, int32_t dtype);
// As torch.empty_like: a dense tensor keeps its strides. Large ones come in huge pages.
Tensor new_like(const View& view, int32_t dtype);
Tensor no_elements(int32_t dtype);
Tensor new_number(double value, int32_t dtype);
// Contiguous numbers of float32 or float64 in another dtype, which is one of Dtype.
Tensor rounded(Tensor numbers, int32_t dtype);
// Rounded to `dtype`, which is one of Dtype.
void put_number(void* to, double value, int32_t dtype);

// The value of a tensor without dimensions, of any floating-point or integer dtype that is known here.
std::optional<double> number_in(const View& view);

// Numbers of any floating-point dtype, as contiguous numbers of `compute`; data() is nullptr without a view.
class Numbers {
 public:
  enum class Rounded { no, yes };  // whether float64 may become float32
  Numbers(const OptionalView& view, Dtype compute, Rounded rounded = Rounded::no);
  // False where the dtype or the count is not one that the kernels cover.
  bool covered(int64_t count) const {
    return covered_ && (data_ == nullptr || count_ == count);
  }
  const void* data() const {
    return data_;
  }
  double sum() const;

 private:
  Dtype compute_;
  bool covered_ = true;
  int64_t count_ = 0;
  const void* data_ = nullptr;
  std::vector<double> room_;
};

// Σ of `count` numbers of a compute dtype, always in the same order.
double sum_of(const void* numbers, Dtype dtype, int64_t count);

// ---------------------------------------------------------------------------------------------------------------------
// Calls
// ---------------------------------------------------------------------------------------------------------------------

// The three operators of a loss: the loss, the gradient, and the gradient into memory that is given.
enum class Form { loss, backward, backward_in_place };

// How LibTorch passes a value.
template <typename Value>
StableIValue value_of(Value value) {
  StableIValue result = 0;
  std::memcpy(&result, &value, sizeof(value));
  return result;
}

template <typename Value>
Value value_in(StableIValue value) {
  Value result;
  std::memcpy(&result, &value, sizeof(result));
  return result;
}

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "values on LibTorch's stack are read as a little-endian machine keeps them"
#endif

// The arguments of one call, read in the order of the schema. They are LibTorch's until the call is answered, or passed on
// as they came.
class Call {
 public:
  Call(StableIValue* stack, uint64_t arguments) : stack_(stack), kinds_(arguments, Kind::plain) {}
  Call(const Call&) = delete;
  ~Call();

  View tensor();
  OptionalView optional_tensor();
  std::string string();
  double real();
  std::optional<double> optional_real();
  int64_t integer();
  std::optional<int64_t> optional_integer();
  bool boolean();
  int32_t dtype();

  // The operator of this name gets the arguments, and its answer is this call's.
  void pass_on(const char* name);

  template <typename... Tensors>
  void answer(Tensors&&... tensors) {
    release();
    size_t place = 0;
    ((stack_[place++] = as_value(tensors.release())), ...);
  }
  // The same where the schema has `Tensor?`: None where there is no tensor.
  void answer_few(std::optional<Tensor> loss, std::optional<Tensor> gradient);

 private:
  enum class Kind : uint8_t { plain, tensor, optional_tensor, string, optional };

  static StableIValue as_value(AtenTensorHandle handle);
  template <typename Value>
  Value next(Kind kind);
  StableIValue* next_optional(Kind kind);
  void release();

  StableIValue* stack_;
  std::vector<Kind> kinds_;
  size_t place_ = 0;
};

enum class Reduction { none, mean, sum };

// What every loss is asked.
struct Options {
  explicit Options(Call& call);
  Options(Reduction reduction, double empty, int32_t dtype) : reduction(reduction), empty(empty), dtype(dtype) {}
  Reduction reduction;
  double empty;
  int32_t dtype;
  bool gradient = false;
};

// A few rows, for which most of what LibTorch does for a call of an operator takes longer than the arithmetic: the arguments
// of NAME_few, which are fewer than those of the operator NAME. It answers None where the kernels do not cover a call.
struct FewRows {
  explicit FewRows(Call& call)
      : input(call.tensor()),
        target(call.tensor()),
        options(call.boolean() ? Reduction::mean : Reduction::sum, std::numeric_limits<double>::quiet_NaN(), input.dtype),
        grad_output(call.optional_real()),
        given(call.optional_tensor()) {
    if (aoti_torch_grad_mode_is_enabled()) {
      throw std::runtime_error("torchlosses: this operator has no derivative; call the loss's function, which has one.");
    }
  }
  View input;
  View target;
  Options options;
  std::optional<double> grad_output;  // none where no gradient is wanted
  OptionalView given;                 // where it goes; none where it is to have memory of its own
};

// The gradient's place, if it is wanted.
struct FewGradients {
  explicit FewGradients(const FewRows& few) : place(few.given) {
    if (few.grad_output && !place) {
      fresh.emplace(new_like(few.input, few.input.dtype));
      place.emplace(fresh->view());
    }
    fits = !place || (place->dtype == few.input.dtype && place->has_shape_of(few.input));
  }
  std::optional<Tensor> fresh;
  OptionalView place;
  bool fits = true;
};

// Whether what is to be written is there: the gradient that came along with the loss, for an incoming gradient of 1.
inline bool is_ready(const View& grad_output, const Options& options) {
  return options.gradient && number_in(grad_output) == 1.0;
}

// What the reduced loss is divided by: 1 for a sum.
struct Denominator {
  // `counted()` says how many rows or elements are not ignored; it is asked for a mean without a normalizer only.
  template <typename Counted>
  Denominator(const Options& options, const OptionalView& normalizer, const Counted& counted) {
    if (options.reduction == Reduction::mean) {
      const std::optional<double> given = normalizer ? number_in(*normalizer) : std::nullopt;
      covered = !normalizer || given.has_value();
      value = normalizer ? given.value_or(1) : static_cast<double>(counted());
    }
  }
  double mean_of(double total, double empty) const {
    return value == 0 && total == 0 ? empty : total / value;
  }
  double value = 1;
  bool covered = true;
};

using Function = void (*)(StableIValue*, uint64_t, uint64_t);
void define(const std::string& schema);
// For the key CPU.
void implement(const char* name, Function function);

struct Registration {
  Registration(const char* name, Function function) {
    implement(name, function);
  }
};

// NAME_few; `options` are a loss's own in the schema, a comma before each. From autograd's key, torchlosses._declare has it
// passed on unseen, because a guard takes as long as the arithmetic: so it runs only where gradients are switched off.
template <void (*kFunction)(Call&)>
struct FewRegistration {
  FewRegistration(const std::string& name, const char* options) {
    const std::string few = name + "_few";
    define(few + "(Tensor input, Tensor target, bool mean, float? grad_output, Tensor(a!)? gradient" + options +
           ") -> (Tensor? loss, Tensor? gradient)");
    implement(few.c_str(), [](StableIValue* stack, uint64_t count, uint64_t) {
      Call call(stack, count);
      kFunction(call);
    });
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// Work
// ---------------------------------------------------------------------------------------------------------------------

const Kernels& kernels();

// Whether the kernels run, or everything goes to the operators in PyTorch operations.
bool is_enabled();

using Part = void (*)(int64_t begin, int64_t end, void* context);
void in_parallel(int64_t units, int64_t numbers, Part part, void* context);

// The units of a call that works through so many numbers, shared among threads.
template <typename Function>
void in_parallel(int64_t units, int64_t numbers, const Function& function) {
  in_parallel(
      units,
      numbers,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<const Function*>(context))(begin, end); },
      const_cast<Function*>(&function));
}

// What a gradient is where the mean is over nothing.
void fill_with_zeros(const View& view);

}  // namespace torchlosses
