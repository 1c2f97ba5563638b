// The kernels of one instruction set: compiled once for each, with -DINSTRUCTION_SET=... and the matching options.
#include "cee.h"
#include "cross_entropy.h"
#include "cross_entropy_extended.h"
#include "mse.h"

namespace torchlosses {
namespace INSTRUCTION_SET {
namespace {

#define TORCHLOSSES_TEXT_(name) #name
#define TORCHLOSSES_TEXT(name) TORCHLOSSES_TEXT_(name)

// Calls `function` with a value of the C++ type behind a dtype.
template <typename Function>
void with_dtype(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::float32:
      return function(float{});
    case Dtype::float64:
      return function(double{});
    case Dtype::bfloat16:
      return function(BFloat16{});
    case Dtype::float16:
      return function(Half{});
  }
}

void run_cross_entropy_forward(const CrossEntropy& arguments, int64_t begin, int64_t end) {
  with_dtype(arguments.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    if (arguments.walk == Walk::along_classes && is_short(arguments)) {
      turned<false, Stored>(arguments, begin, end, forward_across_positions<Stored>);
    } else if (arguments.walk == Walk::along_classes) {
      forward_along_classes<Stored>(arguments, begin, end);
    } else {
      forward_across_positions<Stored>(arguments, begin, end);
    }
  });
}

void run_cross_entropy_backward(const CrossEntropy& arguments, int64_t begin, int64_t end) {
  with_dtype(arguments.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    if (arguments.walk == Walk::along_classes && is_short(arguments)) {
      turned<true, Stored>(arguments, begin, end, backward_across_positions<Stored>);
    } else if (arguments.walk == Walk::along_classes) {
      backward_along_classes<Stored>(arguments, begin, end);
    } else {
      backward_across_positions<Stored>(arguments, begin, end);
    }
  });
}

void run_cross_entropy_extended_forward(const CrossEntropy& arguments, int64_t begin, int64_t end) {
  with_dtype(arguments.dtype, [&](auto stored) { extended_forward<decltype(stored)>(arguments, begin, end); });
}

void run_cross_entropy_extended_backward(const CrossEntropy& arguments, int64_t begin, int64_t end) {
  with_dtype(arguments.dtype, [&](auto stored) { extended_backward<decltype(stored)>(arguments, begin, end); });
}

void run_mse_forward(const SquaredError& arguments, int64_t begin, int64_t end) {
  with_dtype(arguments.dtype, [&](auto stored) { squared_error_forward<decltype(stored)>(arguments, begin, end); });
}

void run_mse_backward(const SquaredError& arguments, int64_t begin, int64_t end) {
  with_dtype(arguments.dtype, [&](auto stored) { squared_error_backward<decltype(stored)>(arguments, begin, end); });
}

void run_cee_forward(const TextbookCrossEntropy& arguments, int64_t begin, int64_t end) {
  with_dtype(arguments.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    if (arguments.walk == Walk::along_classes) {
      textbook_forward<Stored>(arguments, begin, end);
    } else {
      textbook_forward_across_positions<Stored>(arguments, begin, end);
    }
  });
}

void run_cee_backward(const TextbookCrossEntropy& arguments, int64_t begin, int64_t end) {
  with_dtype(arguments.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    if (arguments.walk == Walk::along_classes) {
      textbook_backward<Stored>(arguments, begin, end);
    } else {
      textbook_backward_across_positions<Stored>(arguments, begin, end);
    }
  });
}

}  // namespace

extern const Kernels kernels = {
    TORCHLOSSES_TEXT(INSTRUCTION_SET),
    run_cross_entropy_forward,
    run_cross_entropy_backward,
    run_cross_entropy_extended_forward,
    run_cross_entropy_extended_backward,
    run_mse_forward,
    run_mse_backward,
    run_cee_forward,
    run_cee_backward,
};

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
