// Losses of single elements, elementwise_losses.h, over all of them. An element's loss is multiplied by its weight and its
// sample's weight; one whose sample has weight 0, or whose target is to be ignored, leaves no trace.
//
// A block is walked through piece by piece. An operand whose elements are neighbours in the order of the walk is read where
// it is; of any other (expanded, transposed, of another dtype) a piece is copied first.
#pragma once

#include "elementwise_losses.h"
#include "sums.h"

namespace torchlosses {
namespace INSTRUCTION_SET {

// Elements of a piece of which something is copied: it stays in the first-level cache.
constexpr int64_t kPiece = 1024;

template <typename To, typename From>
inline void copy_run(To* to, const From* from, int64_t stride, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const auto value = widen(from[i * stride]);
    if constexpr (std::is_same_v<To, From>) {
      to[i] = from[i * stride];
    } else {
      to[i] = static_cast<To>(value);
    }
  }
}

// The elements [begin, begin + count) of an operand in the order of the walk.
template <typename To, typename From>
inline void copy_piece(const Elementwise& arguments, const Operand& operand, To* to, int64_t begin, int64_t count) {
  int64_t index[kDimensions] = {};
  int64_t offset = 0, left = begin;
  for (int d = arguments.dimensions - 1; d >= 0; --d) {
    index[d] = left % arguments.sizes[d];
    left /= arguments.sizes[d];
    offset += index[d] * operand.strides[d];
  }
  const int last = arguments.dimensions - 1;
  for (int64_t done = 0; done < count;) {
    const int64_t run = arguments.sizes[last] - index[last];
    const int64_t some = run < count - done ? run : count - done;
    copy_run(to + done, static_cast<const From*>(operand.data) + offset, operand.strides[last], some);
    done += some;
    index[last] += some;
    offset += some * operand.strides[last];
    for (int d = last; d > 0 && index[d] == arguments.sizes[d]; --d) {
      offset += operand.strides[d - 1] - index[d] * operand.strides[d];
      index[d] = 0;
      ++index[d - 1];
    }
  }
}

// One operand of a loss, a piece at a time, as numbers of type `To`.
template <typename To>
class Reader {
 public:
  Reader(const Elementwise& arguments, const Operand& operand, bool right_dtype)
      : arguments_(arguments), operand_(operand), direct_(operand.flat && right_dtype) {}

  bool copies() const {
    return operand_.data != nullptr && !direct_;
  }

  const To* at(int64_t begin, int64_t count) {
    if (!copies()) {
      return operand_.data == nullptr ? nullptr : static_cast<const To*>(operand_.data) + begin;
    }
    switch (operand_.dtype) {
      case Dtype::float32:
        copy_from<float>(begin, count);
        break;
      case Dtype::float64:
        copy_from<double>(begin, count);
        break;
      case Dtype::bfloat16:
        copy_from<BFloat16>(begin, count);
        break;
      case Dtype::float16:
        copy_from<Half>(begin, count);
        break;
    }
    return buffer_;
  }

 private:
  // Input and target come in the dtype that they are read in, weights in any that the compute dtype holds.
  template <typename From>
  void copy_from(int64_t begin, int64_t count) {
    if constexpr (std::is_same_v<To, From> || std::is_same_v<To, float> || std::is_same_v<To, double>) {
      copy_piece<To, From>(arguments_, operand_, buffer_, begin, count);
    }
  }

  const Elementwise& arguments_;
  const Operand& operand_;
  bool direct_;
  alignas(64) To buffer_[kPiece];
};

// A piece of all operands.
template <typename Stored>
struct Piece {
  using Number = Compute<Stored>;
  const Stored* x;
  const Stored* t;
  const Number* weight;
  const Number* sample_weight;
  const Number* pos_weight;
  const Number* grad;
  int64_t start;
  int64_t count;

  bool is_plain() const {
    return weight == nullptr && sample_weight == nullptr && pos_weight == nullptr && grad == nullptr;
  }
};

inline Doubles load_wide(const float* from) {
  HalfOfFloats part;
  std::memcpy(&part, from, sizeof(part));
  return widened(part);
}

#if defined(__AVX2__)
// Adds (x - t)² of whole vectors in double precision, and gives where it stopped.
inline int64_t add_squares(const float* x, const float* t, int64_t count, Total<float>& total) {
  int64_t i = 0;
#if defined(__AVX512F__)
  // There two vectors of half the width are converted in less time than one.
  static const bool halves_are_faster = __builtin_cpu_is("amd");
  if (!halves_are_faster) {
    return i;
  }
#endif
  constexpr int parts = 4, width = 4;
  __m256d sums[parts] = {};
  for (; i + parts * width <= count; i += parts * width) {
    for (int part = 0; part < parts; ++part) {
      const int64_t at = i + part * width;
      const __m256d logits = _mm256_cvtps_pd(_mm_loadu_ps(x + at)), targets = _mm256_cvtps_pd(_mm_loadu_ps(t + at));
      const __m256d error = _mm256_fmsub_pd(logits, _mm256_set1_pd(1), targets);
      sums[part] = _mm256_fmadd_pd(error, error, sums[part]);
    }
  }
  Doubles vectors[sizeof(sums) / sizeof(Doubles)];
  std::memcpy(vectors, sums, sizeof(sums));
  for (const Doubles& vector : vectors) {
    total.low += vector;
  }
  return i;
}
#endif

template <template <typename> class Loss, typename Stored, bool kPlain>
class Walker {
 public:
  using Number = Compute<Stored>;
  static constexpr int64_t lanes = kLanes<Number>;
  static constexpr bool kWide = Loss<Number>::kWide && std::is_same_v<Stored, float>;
  static constexpr bool kSquares = std::is_same_v<Loss<Stored>, SquaredError<float>>;

  explicit Walker(const Elementwise& arguments)
      : loss_(arguments),
        wide_loss_(arguments),
        scale_(static_cast<Number>(arguments.scale)),
        has_ignore_index_(arguments.has_ignore_index),
        ignored_(static_cast<Number>(arguments.ignore_index)),
        losses_(arguments.losses),
        losses_as_stored_(arguments.losses_dtype == arguments.dtype),
        gradient_(static_cast<Stored*>(arguments.grad_input)) {}

  // A function of its own, so that the copies stay in registers: a vector that is stored might be part of the originals.
  template <bool kSum, bool kGradient>
  __attribute__((noinline)) void walk(const Piece<Stored>& given, Total<Number>& sum) const {
    const Walker walker(*this);
    const Piece<Stored> piece(given);
    Total<Number> total = sum;
    int64_t i = 0;
#if defined(__AVX2__)
    if constexpr (kSum && kPlain && !kGradient && kSquares) {
      i = add_squares(piece.x, piece.t, piece.count, total);
    }
#endif
    if constexpr (kSum && kPlain && sizeof(Stored) != 4) {
      // A few are added before the sum that loses nothing: of 16 bits in 32, where it does not show, and pairs of doubles.
      constexpr int64_t few = sizeof(Stored) == 2 ? 16 : 2;
      for (; i + few * lanes <= piece.count; i += few * lanes) {
        Vector<Number> losses{};
        for (int64_t j = i; j < i + few * lanes; j += lanes) {
          losses = walker.template with_loss_of<kGradient>(piece, j, losses);
        }
        total.add(losses);
      }
    }
    for (; i + lanes <= piece.count; i += lanes) {
      walker.template step<kSum, kGradient>(piece, i, lanes, total);
    }
    sum = total;
    if (i < piece.count) {
      walker.template step<kSum, kGradient>(piece, i, piece.count - i, sum);
    }
  }

 private:
  // The losses of a whole vector of inputs without weights added to others; with its gradient.
  template <bool kGradient>
  Vector<Number> with_loss_of(const Piece<Stored>& piece, int64_t i, Vector<Number> losses) const {
    const Vector<Number> x = load_part(piece.x + i, lanes, Number(0)), t = load_part(piece.t + i, lanes, Number(0));
    if constexpr (kGradient) {
      const Vector<Number> gradient = loss_.slope(x, t, nullptr) * scale_;
      store_part(gradient_ + piece.start + i, lanes, gradient);
    }
    return with_loss(loss_, losses, x, t);
  }

  template <bool kSum, bool kGradient>
  void step(const Piece<Stored>& piece, int64_t i, int64_t count, Total<Number>& total) const {
    const bool whole = count == lanes;
    const Vector<Number> x = load_part(piece.x + i, count, Number(0)), t = load_part(piece.t + i, count, Number(0));
    Vector<Number> q, factor = all<Number>(1);
    Integers<Number> quiet{};
    if constexpr (!kPlain) {
      if (piece.pos_weight != nullptr) {
        q = load_part(piece.pos_weight + i, count, Number(0));
      }
      if (piece.weight != nullptr) {
        factor = load_part(piece.weight + i, count, Number(0));
      }
      if (piece.sample_weight != nullptr) {
        const Vector<Number> sample = load_part(piece.sample_weight + i, count, Number(0));
        quiet = sample == Number(0);
        factor *= sample;
      }
      if (has_ignore_index_) {
        quiet |= t == ignored_;
      }
    }
    const Vector<Number>* weight_of_positive = kPlain || piece.pos_weight == nullptr ? nullptr : &q;
    if constexpr (kSum) {
      if constexpr (kWide && kPlain) {
        if (whole) {
          constexpr int64_t half = kLanes<double>;
          total.low = with_loss(wide_loss_, total.low, load_wide(piece.x + i), load_wide(piece.t + i));
          total.high = with_loss(wide_loss_, total.high, load_wide(piece.x + i + half), load_wide(piece.t + i + half));
        } else {
          add_some_wide(x, t, factor, quiet, count, total);
        }
      } else if constexpr (kWide) {
        add_some_wide(x, t, factor, quiet, count, total);
      } else {
        Vector<Number> loss = loss_.loss(x, t, weight_of_positive);
        if constexpr (!kPlain) {
          loss = quiet ? Vector<Number>{} : loss * factor;
        }
        for (int64_t lane = count; lane < lanes; ++lane) {
          loss[lane] = 0;
        }
        total.add(loss);
      }
    } else if (losses_ != nullptr) {
      Vector<Number> loss = loss_.loss(x, t, weight_of_positive);
      if constexpr (!kPlain) {
        loss = quiet ? Vector<Number>{} : loss * factor;
      }
      if (losses_as_stored_) {
        store_part(static_cast<Stored*>(losses_) + piece.start + i, count, loss);
      } else {
        store_part(static_cast<Number*>(losses_) + piece.start + i, count, loss);
      }
    }
    if constexpr (kGradient) {
      Vector<Number> gradient = loss_.slope(x, t, weight_of_positive) * scale_;
      if constexpr (!kPlain) {
        if (piece.grad != nullptr) {
          gradient *= load_part(piece.grad + i, count, Number(0));
        }
        gradient = quiet ? Vector<Number>{} : gradient * factor;
      }
      store_part(gradient_ + piece.start + i, count, gradient);
    }
  }

  void add_some_wide(
      Vector<Number> x,
      Vector<Number> t,
      Vector<Number> factor,
      Integers<Number> quiet,
      int64_t count,
      Total<Number>& total) const {
    if constexpr (kWide) {
      for (int64_t lane = 0; lane < lanes; ++lane) {
        factor[lane] = lane < count ? factor[lane] : Number(0);
      }
      // An element that leaves no trace is one without an error.
      x = quiet ? Vector<Number>{} : x;
      t = quiet ? Vector<Number>{} : t;
      factor = quiet ? Vector<Number>{} : factor;
      const Halves logits(x), targets(t), factors(factor);
      total.add(
          wide_loss_.loss(logits.low, targets.low, nullptr) * factors.low,
          wide_loss_.loss(logits.high, targets.high, nullptr) * factors.high);
    }
  }

  const Loss<Number> loss_;
  const Loss<double> wide_loss_;
  const Number scale_;
  const bool has_ignore_index_;
  const Number ignored_;
  void* const losses_;
  const bool losses_as_stored_;
  Stored* const gradient_;
};

inline int64_t end_of(int64_t block, int64_t elements) {
  return (block + 1) * kBlock < elements ? (block + 1) * kBlock : elements;
}

template <template <typename> class Loss, typename Stored>
void elementwise_of(const Elementwise& arguments, int64_t begin, int64_t end) {
  using Number = Compute<Stored>;
  constexpr Dtype number = std::is_same_v<Number, double> ? Dtype::float64 : Dtype::float32;
  Reader<Stored> input(arguments, arguments.input, true), target(arguments, arguments.target, true);
  Reader<Number> weight(arguments, arguments.weight, arguments.weight.dtype == number);
  Reader<Number> sample_weight(arguments, arguments.sample_weight, arguments.sample_weight.dtype == number);
  Reader<Number> pos_weight(arguments, arguments.pos_weight, arguments.pos_weight.dtype == number);
  Reader<Number> grad(arguments, arguments.grad, arguments.grad.dtype == number);
  const Walker<Loss, Stored, true> plain(arguments);
  const Walker<Loss, Stored, false> full(arguments);
  const bool sums = arguments.partial_sums != nullptr, gradient = arguments.grad_input != nullptr;
  const auto run = [&](const auto& walker, const Piece<Stored>& piece, Total<Number>& total) {
    if (sums) {
      gradient ? walker.template walk<true, true>(piece, total) : walker.template walk<true, false>(piece, total);
    } else {
      gradient ? walker.template walk<false, true>(piece, total) : walker.template walk<false, false>(piece, total);
    }
  };
  const bool copies = input.copies() || target.copies() || weight.copies() || sample_weight.copies() ||
                      pos_weight.copies() || grad.copies();
  const int64_t longest = copies ? kPiece : kBlock;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t stop = end_of(block, arguments.elements);
    Total<Number> total;
    for (int64_t start = block * kBlock; start < stop; start += longest) {
      const int64_t count = stop - start < longest ? stop - start : longest;
      const Piece<Stored> piece{
          input.at(start, count),
          target.at(start, count),
          weight.at(start, count),
          sample_weight.at(start, count),
          pos_weight.at(start, count),
          grad.at(start, count),
          start,
          count};
      if (piece.is_plain() && !arguments.has_ignore_index) {
        run(plain, piece, total);
      } else {
        run(full, piece, total);
      }
    }
    if (sums) {
      arguments.partial_sums[block] = total.value();
    }
  }
}

template <typename Stored>
void elementwise_loss(const Elementwise& arguments, int64_t begin, int64_t end) {
  switch (arguments.loss) {
    case ElementwiseLoss::squared:
      return elementwise_of<SquaredError, Stored>(arguments, begin, end);
    case ElementwiseLoss::huber:
      return elementwise_of<Huber, Stored>(arguments, begin, end);
    case ElementwiseLoss::smooth_l1:
      return elementwise_of<SmoothL1, Stored>(arguments, begin, end);
    case ElementwiseLoss::binary_cross_entropy:
      return elementwise_of<BinaryCrossEntropy, Stored>(arguments, begin, end);
  }
}

template <typename Stored>
void count_elements_that_count(const Elementwise& arguments, int64_t begin, int64_t end) {
  Reader<Stored> target(arguments, arguments.target, true);
  const auto ignored = static_cast<Compute<Stored>>(arguments.ignore_index);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t stop = end_of(block, arguments.elements);
    int64_t counted = 0;
    for (int64_t start = block * kBlock; start < stop; start += kPiece) {
      const int64_t count = stop - start < kPiece ? stop - start : kPiece;
      const Stored* t = target.at(start, count);
      for (int64_t i = 0; i < count; ++i) {
        counted += widen(t[i]) != ignored;
      }
    }
    arguments.partial_sums[block] = static_cast<double>(counted);
  }
}

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
