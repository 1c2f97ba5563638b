// The kernels of one instruction set: compiled once for each, with -DINSTRUCTION_SET=... and the matching options.
#include "cee.h"
#include "cross_entropy_buffered.h"
#include "cross_entropy_positions.h"
#include "elementwise.h"
#include "log_probs.h"

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

void cross_entropy(const CrossEntropy& arguments, int64_t begin, int64_t end) {
  with_dtype(arguments.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    if (arguments.copied) {
      with_dtype(arguments.shares_dtype, [&](auto share) {
        cross_entropy_buffered<Stored, decltype(share)>(arguments, begin, end);
      });
    } else if (arguments.walk == Walk::across_positions) {
      cross_entropy_across_positions<Stored>(arguments, begin, end);
    } else if (is_short(arguments) && !arguments.with_statistics) {
      cross_entropy_turned<Stored>(arguments, begin, end);
    } else {
      cross_entropy_along_classes<Stored>(arguments, begin, end);
    }
  });
}

void log_probabilities(const LogProbabilities& arguments, int64_t begin, int64_t end) {
  with_dtype(arguments.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    if (arguments.copied) {
      log_probabilities_buffered<Stored>(arguments, begin, end);
    } else {
      log_probabilities_along_classes<Stored>(arguments, begin, end);
    }
  });
}

void textbook(const TextbookCrossEntropy& arguments, int64_t begin, int64_t end) {
  with_dtype(arguments.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    if (arguments.walk == Walk::along_classes) {
      textbook_along_classes<Stored>(arguments, begin, end);
    } else {
      textbook_across_positions<Stored>(arguments, begin, end);
    }
  });
}

void elementwise(const Elementwise& arguments, int64_t begin, int64_t end) {
  with_dtype(arguments.dtype, [&](auto stored) { elementwise_loss<decltype(stored)>(arguments, begin, end); });
}

void count_elements(const Elementwise& arguments, int64_t begin, int64_t end) {
  with_dtype(
      arguments.dtype, [&](auto stored) { count_elements_that_count<decltype(stored)>(arguments, begin, end); });
}

}  // namespace

extern const Kernels kernels = {
    TORCHLOSSES_TEXT(INSTRUCTION_SET),
    cross_entropy,
    log_probabilities,
    textbook,
    elementwise,
    count_elements,
};

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
