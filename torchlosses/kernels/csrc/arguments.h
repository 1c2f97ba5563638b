// What the operators hand to the kernels: pointers, sizes and strides. No LibTorch type: a kernel knows memory only.
#pragma once

#include <atomic>
#include <cstdint>

namespace torchlosses {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

enum class Dtype { float32, float64, bfloat16, float16 };

// A tensor of (samples, classes, positions); for 2-D tensors there is one position. Strides count elements.
struct Layout {
  int64_t sample = 0;
  int64_t classes = 0;
  int64_t position = 0;
};

// How a kernel walks through it: along the classes of one row after the other, or across positions, a tile at a time.
enum class Walk { along_classes, across_positions };

struct Sizes {
  int64_t samples = 0;
  int64_t classes = 0;
  int64_t positions = 0;
  int64_t rows() const {
    return samples * positions;
  }
  // A division costs as much as a short row.
  int64_t sample_of(int64_t row) const {
    return positions == 1 ? row : row / positions;
  }
  int64_t position_of(int64_t row) const {
    return positions == 1 ? 0 : row % positions;
  }
};

// Numbers of the compute dtype are `void*` here: float for all dtypes but float64.
struct CrossEntropy {
  Dtype dtype;
  Walk walk;
  int64_t tile;  // positions at a time, where the walk is across positions
  Sizes sizes;
  const void* input;
  Layout input_layout;

  const int64_t* indices;  // or nullptr, and then
  const void* shares;      // probabilities of the input's dtype
  Layout target_layout;
  int64_t ignore_index;

  const void* weight;  // one a class, or nullptr
  double weight_sum;   // the number of classes without weights
  double label_smoothing;

  // For each row its maximum m, and rest = Σ exp(x - m) over all classes but one at the maximum.
  void* maximum;
  void* rest;

  // Forward
  void* losses;

  // What only the extended kernels look at.
  const void* sample_weight;  // one a row, or nullptr
  double z_loss;
  double logit_softcap;  // 0: none
  void* statistics;      // forward: kRowStatistics numbers of each row, all rows of one after the other; or nullptr

  // Backward. It may write over the input: a row, or a tile, is read before it is written.
  const void* grad_rows;
  int64_t grad_stride;  // 0: one number for all rows
  double scale;         // what the incoming gradient is multiplied by
  void* grad_input;
  Layout grad_layout;

  std::atomic<bool>* out_of_bounds;
};

// Log-sum-exp, log-probability of the target, whether the largest logit is the target's (1 or 0), entropy.
constexpr int64_t kRowStatistics = 4;

struct SquaredError {
  Dtype dtype;
  int64_t elements;
  const void* input;
  const void* target;
  const void* weight;  // of the compute dtype, or nullptr

  double* partial_sums;  // forward: one a block; or
  void* losses;          // one an element, of dtype `losses_dtype`
  Dtype losses_dtype;

  const void* grad;  // backward: one number, or one an element, of the compute dtype
  bool grad_is_scalar;
  double scale;
  void* grad_input;
};

struct TextbookCrossEntropy {
  Dtype dtype;
  Walk walk;
  int64_t tile;
  Sizes sizes;
  const void* input;
  Layout input_layout;
  const int64_t* indices;
  const void* shares;
  Layout target_layout;
  double delta;
  bool validate;
  void* losses;

  const void* grad_rows;
  int64_t grad_stride;
  double scale;
  void* grad_input;
  Layout grad_layout;

  std::atomic<bool>* out_of_bounds;
  std::atomic<bool>* not_probabilities;
};

// Elements of a block of the squared error: fixed, so that a sum does not depend on the number of threads.
constexpr int64_t kBlock = 32768;

// Classes that are not neighbours in memory, (N, C, M): the lanes of a vector are positions, and a tile of them is walked
// through class by class. No tile is wider than this.
constexpr int64_t kTile = 256;
// Few additions in the short format before the double one takes over.
constexpr int64_t kClassesAtATime = 128;

struct Tile {
  int64_t sample;
  int64_t position;
  int64_t width;
};

inline Tile tile_at(const Sizes& sizes, int64_t tile, int64_t unit) {
  const int64_t tiles = (sizes.positions + tile - 1) / tile;
  const int64_t position = (unit % tiles) * tile;
  const int64_t left = sizes.positions - position;
  return {unit / tiles, position, left < tile ? left : tile};
}

// Each works on units [begin, end): rows, tiles or blocks. Any division of the units among threads gives the same bits.
struct Kernels {
  const char* instruction_set;
  void (*cross_entropy_forward)(const CrossEntropy&, int64_t begin, int64_t end);
  void (*cross_entropy_backward)(const CrossEntropy&, int64_t begin, int64_t end);
  void (*cross_entropy_extended_forward)(const CrossEntropy&, int64_t begin, int64_t end);
  void (*cross_entropy_extended_backward)(const CrossEntropy&, int64_t begin, int64_t end);
  void (*mse_forward)(const SquaredError&, int64_t begin, int64_t end);
  void (*mse_backward)(const SquaredError&, int64_t begin, int64_t end);
  void (*cee_forward)(const TextbookCrossEntropy&, int64_t begin, int64_t end);
  void (*cee_backward)(const TextbookCrossEntropy&, int64_t begin, int64_t end);
};

namespace baseline {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

}  // namespace torchlosses
