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

// What every loss of rows of classes is given. Numbers of the compute dtype are `void*` here: float for all dtypes but
// float64. A kernel makes the loss, the gradient, or both in one look at a row; what is not asked for is nullptr.
struct RowLoss {
  Dtype dtype;
  Walk walk;
  int64_t tile;  // positions at a time, where the walk is across positions
  Sizes sizes;
  const void* input;
  Layout input_layout;

  const int64_t* indices;  // or nullptr, and then
  const void* shares;      // probabilities
  Dtype shares_dtype;
  Layout target_layout;

  const void* sample_weight;  // one a row, or nullptr

  void* losses;  // one a row

  // It may write over the input: a row, or a tile, is read before it is written.
  void* grad_input;
  Layout grad_layout;
  const void* grad_rows;  // the incoming gradient of each row, or nullptr
  double scale;           // what it is multiplied by, or the incoming gradient itself

  std::atomic<bool>* out_of_bounds;
};

// What every loss of logits is given.
struct LogitsLoss : RowLoss {
  int64_t ignore_index;
  double logit_scale;
  double logit_softcap;  // 0: none
  bool copied;           // rows are brought into a buffer first
};

struct CrossEntropy : LogitsLoss {
  const void* weight;  // one a class, or nullptr
  double weight_sum;   // the number of classes without weights
  double label_smoothing;
  double z_loss;

  // For each row its maximum m, and rest = Σ exp(y - m) over all classes but one at the maximum: written with the loss,
  // and read where the gradient comes without it.
  void* maximum;
  void* rest;
  bool with_statistics;  // also where only the gradient is made, whose way through the rows must not depend on it
  void* statistics;      // kRowStatistics numbers of each row, all rows of one after the other; or nullptr
};

// Log-sum-exp, log-probability of the target, whether the largest logit is the target's (1 or 0), entropy.
constexpr int64_t kRowStatistics = 4;

// `losses` are log-probability and entropy of each row, and `grad_rows` their incoming gradients: two fields where tensors
// of logits have classes.
struct LogProbabilities : LogitsLoss {
  Layout values_layout;
  // For each row m, rest, the mean distance Σ p (m - y), and whether the largest logit is the target's (1 or 0), all rows
  // of one after the other: written with the values, and read with the gradient.
  void* state;
};

constexpr int64_t kLogProbabilitiesState = 4;

struct TextbookCrossEntropy : RowLoss {
  double delta;
  bool validate;
  std::atomic<bool>* not_probabilities;
};

enum class ElementwiseLoss { squared, huber, smooth_l1, binary_cross_entropy };

// The dimensions that elements are walked through by, the last one fastest.
constexpr int kDimensions = 6;

struct Operand {
  const void* data;  // nullptr: there is none
  Dtype dtype;
  bool flat;  // its elements are neighbours in memory in the order of the walk
  int64_t strides[kDimensions];
};

struct Elementwise {
  ElementwiseLoss loss;
  Dtype dtype;
  int64_t elements;
  int dimensions;
  int64_t sizes[kDimensions];
  Operand input;
  Operand target;
  Operand weight;
  Operand sample_weight;
  Operand pos_weight;
  double parameter;  // δ of huber, β of smooth_l1, the label smoothing
  bool has_ignore_index;
  double ignore_index;

  double* partial_sums;  // one a block; or
  void* losses;          // one an element, of dtype `losses_dtype`; or nullptr
  Dtype losses_dtype;

  void* grad_input;  // or nullptr
  Operand grad;      // the incoming gradient of each element, or none
  double scale;
};

// Elements of a block of an elementwise loss: fixed, so that a sum does not depend on the number of threads.
constexpr int64_t kBlock = 32768;

// Classes that are not neighbours in memory, (N, C, M): the lanes of a vector are positions, and a tile of them is walked
// through class by class. No tile is wider than this.
constexpr int64_t kTile = 256;
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
  void (*cross_entropy)(const CrossEntropy&, int64_t begin, int64_t end);
  void (*log_probabilities)(const LogProbabilities&, int64_t begin, int64_t end);
  void (*textbook)(const TextbookCrossEntropy&, int64_t begin, int64_t end);
  void (*elementwise)(const Elementwise&, int64_t begin, int64_t end);
  // Into `partial_sums` how many elements of each block are not ignored.
  void (*count_elements)(const Elementwise&, int64_t begin, int64_t end);
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
