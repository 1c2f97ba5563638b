// Tensors as the operators for the CPU see and make them.
#include "host.h"

#include <array>
#include <stdexcept>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "vector.h"

namespace torchlosses {

const Dtypes& dtypes() {
  static const Dtypes all;
  return all;
}

std::optional<Dtype> dtype_of(int32_t code) {
  const Dtypes& all = dtypes();
  if (code == all.float32) {
    return Dtype::float32;
  }
  if (code == all.float64) {
    return Dtype::float64;
  }
  if (code == all.bfloat16) {
    return Dtype::bfloat16;
  }
  if (code == all.float16) {
    return Dtype::float16;
  }
  return std::nullopt;
}

int32_t code_of(Dtype dtype) {
  const Dtypes& all = dtypes();
  return dtype == Dtype::float32    ? all.float32
         : dtype == Dtype::float64  ? all.float64
         : dtype == Dtype::bfloat16 ? all.bfloat16
                                    : all.float16;
}

int64_t size_of(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
}

View::View(AtenTensorHandle tensor) : handle(tensor) {
  check(aoti_torch_get_dim(tensor, &dimensions));
  check(aoti_torch_get_sizes(tensor, &sizes));
  check(aoti_torch_get_strides(tensor, &strides));
  check(aoti_torch_get_dtype(tensor, &dtype));
  check(aoti_torch_get_data_ptr(tensor, &data));
  // Without memory the address counts from 0.
  if (reinterpret_cast<uintptr_t>(data) >> 31 == 0 && elements() > 0) {
    int64_t bytes = 0;
    check(aoti_torch_get_storage_size(tensor, &bytes));
    if (bytes == 0) {
      throw std::runtime_error(
          "torchlosses: a tensor has elements but no memory, because its storage was resized to 0, as FSDP does with "
          "parameters that are not in use. Give the loss tensors that hold their values.");
    }
  }
}

int64_t View::elements() const {
  int64_t result = 1;
  for (int64_t d = 0; d < dimensions; ++d) {
    result *= sizes[d];
  }
  return result;
}

bool View::has_shape_of(const View& other) const {
  return dimensions == other.dimensions &&
         std::memcmp(sizes, other.sizes, static_cast<size_t>(dimensions) * sizeof(int64_t)) == 0;
}

bool View::is_contiguous() const {
  int64_t expected = 1;
  for (int64_t d = dimensions - 1; d >= 0; --d) {
    if (sizes[d] != 1 && strides[d] != expected) {
      return false;
    }
    expected *= sizes[d];
  }
  return true;
}

bool View::is_dense() const {
  if (is_contiguous()) {
    return true;
  }
  int64_t reached = 1;
  std::vector<bool> used(static_cast<size_t>(dimensions), false);
  for (int64_t step = 0; step < dimensions; ++step) {
    bool found = false;
    for (int64_t d = dimensions - 1; d >= 0 && !found; --d) {
      if (!used[static_cast<size_t>(d)] && (sizes[d] == 1 || strides[d] == reached)) {
        used[static_cast<size_t>(d)] = found = true;
        reached *= sizes[d];
      }
    }
    if (!found) {
      return false;
    }
  }
  return true;
}

Tensor::~Tensor() {
  if (handle_ != nullptr) {
    aoti_torch_delete_tensor_object(handle_);
  }
}

namespace {

Tensor new_tensor(const int64_t* sizes, const int64_t* strides, int64_t dimensions, int32_t dtype) {
  AtenTensorHandle handle = nullptr;
  check(aoti_torch_empty_strided(dimensions, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// A page of 4 KiB costs more to take from the system than its arithmetic does; huge pages cost a tenth of it.
void advise_huge_pages(const Tensor& tensor, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t(1) << 21;
  if (static_cast<uintptr_t>(bytes) < kHuge) {
    return;
  }
  const uintptr_t memory = reinterpret_cast<uintptr_t>(tensor.data());
  const uintptr_t begin = (memory + kHuge - 1) & ~(kHuge - 1);
  const uintptr_t end = (memory + static_cast<uintptr_t>(bytes)) & ~(kHuge - 1);
  if (begin < end) {
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#else
  (void)tensor;
  (void)bytes;
#endif
}

AtenTensorHandle empty_like(const View& view, int32_t dtype) {
  AtenTensorHandle input = nullptr;
  check(aoti_torch_new_tensor_handle(view.handle, &input));
  // Who is called takes what is on the stack, and deletes it.
  std::array<StableIValue, 6> stack{value_of(input), value_of(new StableIValue(value_of(dtype))), 0, 0, 0, 0};
  check(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return value_in<AtenTensorHandle>(stack[0]);
}

double element(const View& view, int64_t offset) {
  switch (*dtype_of(view.dtype)) {
    case Dtype::float32:
      return static_cast<double>(static_cast<const float*>(view.data)[offset]);
    case Dtype::float64:
      return static_cast<const double*>(view.data)[offset];
    case Dtype::bfloat16:
      return static_cast<double>(baseline::widen(static_cast<const BFloat16*>(view.data)[offset]));
    case Dtype::float16:
      return static_cast<double>(baseline::widen(static_cast<const Half*>(view.data)[offset]));
  }
  return 0;
}

}  // namespace

Tensor new_contiguous(const std::vector<int64_t>& sizes, int32_t dtype) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  }
  return new_tensor(sizes.data(), strides.data(), static_cast<int64_t>(sizes.size()), dtype);
}

Tensor new_like(const View& view, int32_t dtype) {
  Tensor result = view.is_dense() ? new_tensor(view.sizes, view.strides, view.dimensions, dtype)
                                  : Tensor(empty_like(view, dtype));
  advise_huge_pages(result, view.elements() * size_of(*dtype_of(dtype)));
  return result;
}

Tensor no_elements(int32_t dtype) {
  const int64_t size = 0, stride = 1;
  return new_tensor(&size, &stride, 1, dtype);
}

Tensor new_number(double value, int32_t dtype) {
  Tensor result = new_tensor(nullptr, nullptr, 0, dtype);
  put_number(result.data(), value, dtype);
  return result;
}

void put_number(void* to, double value, int32_t dtype) {
  switch (*dtype_of(dtype)) {
    case Dtype::float32:
      *static_cast<float*>(to) = static_cast<float>(value);
      break;
    case Dtype::float64:
      *static_cast<double*>(to) = value;
      break;
    case Dtype::bfloat16:
      *static_cast<BFloat16*>(to) = baseline::narrow<BFloat16>(static_cast<float>(value));
      break;
    case Dtype::float16:
      *static_cast<Half*>(to) = baseline::narrow<Half>(static_cast<float>(value));
      break;
  }
}

Tensor rounded(Tensor numbers, int32_t dtype) {
  const View from = numbers.view();
  if (from.dtype == dtype) {
    return numbers;
  }
  Tensor result = new_like(from, dtype);
  char* to = static_cast<char*>(result.view().data);
  const int64_t count = from.elements(), size = size_of(*dtype_of(dtype));
  for (int64_t i = 0; i < count; ++i) {
    put_number(to + i * size, element(from, i), dtype);
  }
  return result;
}

std::optional<double> number_in(const View& view) {
  const Dtypes& all = dtypes();
  if (view.dimensions != 0) {
    return std::nullopt;
  }
  if (dtype_of(view.dtype)) {
    return element(view, 0);
  }
  if (view.dtype == all.int64) {
    return static_cast<double>(*static_cast<const int64_t*>(view.data));
  }
  if (view.dtype == all.int32) {
    return static_cast<double>(*static_cast<const int32_t*>(view.data));
  }
  return std::nullopt;
}

Numbers::Numbers(const OptionalView& view, Dtype compute, Rounded rounded) : compute_(compute) {
  if (!view) {
    return;
  }
  const std::optional<Dtype> dtype = dtype_of(view->dtype);
  covered_ = dtype && (*dtype != Dtype::float64 || compute == Dtype::float64 || rounded == Rounded::yes);
  if (!covered_) {
    return;
  }
  count_ = view->elements();
  data_ = view->data;
  if (*dtype == compute && view->is_contiguous()) {
    return;
  }
  // Room for either dtype, aligned for both.
  room_.resize(static_cast<size_t>(count_));
  data_ = room_.data();
  std::vector<int64_t> index(static_cast<size_t>(view->dimensions), 0);
  int64_t offset = 0;
  for (int64_t i = 0; i < count_; ++i) {
    const double value = element(*view, offset);
    if (compute == Dtype::float64) {
      room_[static_cast<size_t>(i)] = value;
    } else {
      const float number = static_cast<float>(value);
      std::memcpy(reinterpret_cast<char*>(room_.data()) + i * 4, &number, sizeof(number));
    }
    for (int64_t d = view->dimensions - 1; d >= 0; --d) {
      offset += view->strides[d];
      if (++index[static_cast<size_t>(d)] < view->sizes[d]) {
        break;
      }
      offset -= view->strides[d] * view->sizes[d];
      index[static_cast<size_t>(d)] = 0;
    }
  }
}

double Numbers::sum() const {
  return sum_of(data_, compute_, count_);
}

namespace {

// Four sums that do not wait for each other; of float64 each has beside it what its additions rounded away.
template <typename Number>
double sum_of(const Number* values, int64_t count) {
  constexpr int64_t kSums = 4;
  double sums[kSums] = {}, lost[kSums] = {};
  const auto add = [](double& sum, double& lost, double value) {
    const double next = sum + value, back = next - sum;
    lost += (sum - (next - back)) + (value - back);
    sum = next;
  };
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (int64_t j = 0; j < kSums; ++j) {
      add(sums[j], lost[j], static_cast<double>(values[i + j]));
    }
  }
  for (; i < count; ++i) {
    add(sums[0], lost[0], static_cast<double>(values[i]));
  }
  for (int64_t j = 1; j < kSums; ++j) {
    add(sums[0], lost[0], sums[j]);
    lost[0] += lost[j];
  }
  // A sum that is not finite has lost nothing that could be told.
  return sums[0] - sums[0] == 0 ? sums[0] + lost[0] : sums[0];
}

}  // namespace

double sum_of(const void* numbers, Dtype dtype, int64_t count) {
  return dtype == Dtype::float64 ? sum_of(static_cast<const double*>(numbers), count)
                                 : sum_of(static_cast<const float*>(numbers), count);
}

void fill_with_zeros(const View& view) {
  std::memset(view.data, 0, static_cast<size_t>(view.elements() * size_of(*dtype_of(view.dtype))));
}

}  // namespace torchlosses
