// The arguments of a call, the way to the operators in PyTorch operations, threads, and what Python asks by name.
#include "host.h"

#include <cstdlib>
#include <stdexcept>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

// LibTorch tells what went wrong from 2.13 on.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace torchlosses {

void check(AOTITorchError code) {
  if (code == AOTI_TORCH_SUCCESS) {
    return;
  }
  const char* message = nullptr;
  if (torch_exception_get_what_without_backtrace != nullptr) {
    message = torch_exception_get_what_without_backtrace();
  }
  throw std::runtime_error(message == nullptr ? "torchlosses: PyTorch refused a call" : message);
}

Call::~Call() {
  release();
}

void Call::release() {
  for (size_t i = 0; i < kinds_.size(); ++i) {
    const StableIValue value = stack_[i];
    switch (kinds_[i]) {
      case Kind::plain:
        break;
      case Kind::tensor:
        aoti_torch_delete_tensor_object(value_in<AtenTensorHandle>(value));
        break;
      case Kind::string:
        torch_delete_string(value_in<StringHandle>(value));
        break;
      case Kind::optional_tensor:
      case Kind::optional: {
        const StableIValue* inner = value_in<StableIValue*>(value);
        if (inner != nullptr && kinds_[i] == Kind::optional_tensor) {
          aoti_torch_delete_tensor_object(value_in<AtenTensorHandle>(*inner));
        }
        delete inner;
        break;
      }
    }
  }
  kinds_.clear();
}

template <typename Value>
Value Call::next(Kind kind) {
  if (place_ >= kinds_.size()) {
    throw std::logic_error("torchlosses: an operator's schema and its function differ");
  }
  kinds_[place_] = kind;
  return value_in<Value>(stack_[place_++]);
}

StableIValue* Call::next_optional(Kind kind) {
  return next<StableIValue*>(kind);
}

View Call::tensor() {
  return View(next<AtenTensorHandle>(Kind::tensor));
}

OptionalView Call::optional_tensor() {
  const StableIValue* inner = next_optional(Kind::optional_tensor);
  return inner == nullptr ? std::nullopt : OptionalView(View(value_in<AtenTensorHandle>(*inner)));
}

std::string Call::string() {
  const StringHandle handle = next<StringHandle>(Kind::string);
  const char* text = nullptr;
  check(torch_string_c_str(handle, &text));
  return text;
}

double Call::real() {
  return next<double>(Kind::plain);
}

std::optional<double> Call::optional_real() {
  const StableIValue* inner = next_optional(Kind::optional);
  return inner == nullptr ? std::nullopt : std::optional<double>(value_in<double>(*inner));
}

int64_t Call::integer() {
  return next<int64_t>(Kind::plain);
}

std::optional<int64_t> Call::optional_integer() {
  const StableIValue* inner = next_optional(Kind::optional);
  return inner == nullptr ? std::nullopt : std::optional<int64_t>(value_in<int64_t>(*inner));
}

bool Call::boolean() {
  return next<bool>(Kind::plain);
}

int32_t Call::dtype() {
  return next<int32_t>(Kind::plain);
}

StableIValue Call::as_value(AtenTensorHandle handle) {
  return value_of(handle);
}

void Call::pass_on(const char* name) {
  kinds_.clear();
  check(torch_call_dispatcher(name, "", stack_, TORCH_ABI_VERSION));
}

void Call::answer_few(std::optional<Tensor> loss, std::optional<Tensor> gradient) {
  release();
  const auto optional = [](std::optional<Tensor>& tensor) {
    return tensor ? value_of(new StableIValue(as_value(tensor->release()))) : StableIValue(0);
  };
  stack_[0] = optional(loss);
  stack_[1] = optional(gradient);
}

Options::Options(Call& call) {
  const std::string name = call.string();
  reduction = name == "mean" ? Reduction::mean : name == "sum" ? Reduction::sum : Reduction::none;
  empty = call.real();
  dtype = call.dtype();
  gradient = (call.integer() & 1) != 0;
}

// What is registered stays so until the process ends.

void define(const std::string& schema) {
  static const TorchLibraryHandle library = [] {
    TorchLibraryHandle handle = nullptr;
    check(aoti_torch_library_init_fragment("torchlosses", __FILE__, __LINE__, &handle));
    return handle;
  }();
  check(aoti_torch_library_def(library, schema.c_str()));
}

void implement(const char* name, Function function) {
  static const TorchLibraryHandle library = [] {
    TorchLibraryHandle handle = nullptr;
    check(aoti_torch_library_init_impl("torchlosses", "CPU", __FILE__, __LINE__, &handle));
    return handle;
  }();
  check(torch_library_impl(library, name, function, TORCH_ABI_VERSION));
}

namespace {

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

std::atomic<bool> enabled{true};
std::atomic<bool> forked{false};

// Work of about this many numbers is worth waking a thread for.
constexpr int64_t kGrain = 32768;

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

bool is_enabled() {
  return enabled.load(std::memory_order_relaxed);
}

void in_parallel(int64_t units, int64_t numbers, Part part, void* context) {
  if (units == 0) {
    return;
  }
  const int64_t per_unit = numbers / units > 0 ? numbers / units : 1;
  const int64_t grain = kGrain / per_unit > 0 ? kGrain / per_unit : 1;
  // The threads of the parent do not exist in a forked process, and OpenMP would wait for them for ever.
  if (units <= grain || forked.load(std::memory_order_relaxed)) {
    part(0, units, context);
    return;
  }
  check(torch_parallel_for(0, units, grain, part, context));
}

}  // namespace torchlosses

// What Python asks the library for by name.
extern "C" {

__attribute__((visibility("default"))) const char* torchlosses_instruction_set() {
  return torchlosses::kernels().instruction_set;
}

__attribute__((visibility("default"))) void torchlosses_enable(int value) {
  torchlosses::enabled.store(value != 0);
}

}  // extern "C"

#if defined(__unix__) || defined(__APPLE__)
namespace {
const int registered_for_fork = pthread_atfork(nullptr, nullptr, [] { torchlosses::forked.store(true); });
}
#endif
