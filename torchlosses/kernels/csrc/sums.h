// Sums over vectors, in more digits than they have.
#pragma once

#include "vector.h"

namespace torchlosses {
namespace INSTRUCTION_SET {

// Added in double precision, always in the same order.
template <typename Number>
inline double sum(Vector<Number> vector) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Number, float>) {
    const __m512 floats = bits<__m512>(vector);
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(floats));
    const __m512d high = _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(floats), 1)));
    return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
  }
#endif
  double result = 0;
  for (int lane = 0; lane < kLanes<Number>; ++lane) {
    result += static_cast<double>(vector[lane]);
  }
  return result;
}

// The two halves of a vector in double precision.
typedef float HalfOfFloats __attribute__((vector_size(kBytes / 2)));
struct Halves {
  explicit Halves(Floats vector) {
    HalfOfFloats parts[2];
    std::memcpy(parts, &vector, sizeof(vector));
    low = __builtin_convertvector(parts[0], Doubles);
    high = __builtin_convertvector(parts[1], Doubles);
  }
  Doubles low;
  Doubles high;
};

// Sums that are right to one rounding: of float32 in double precision, of float64 with what each addition rounds away.
template <typename Number>
struct Total;

template <>
struct Total<float> {
  void add(Floats vector) {
    const Halves halves(vector);
    add(halves.low, halves.high);
  }
  void add(Doubles first, Doubles second) {
    low += first;
    high += second;
  }
  double value() const {
    return sum<double>(low + high);
  }
  // The sum of each lane, rounded once.
  Floats by_lane() const {
    const HalfOfFloats parts[2] = {
        __builtin_convertvector(low, HalfOfFloats), __builtin_convertvector(high, HalfOfFloats)};
    Floats vector;
    std::memcpy(&vector, parts, sizeof(vector));
    return vector;
  }
  Doubles low{};
  Doubles high{};
};

template <>
struct Total<double> {
  void add(Doubles vector) {
    const Doubles next = sums + vector;
    const Doubles back = next - sums;
    lost += (sums - (next - back)) + (vector - back);
    sums = next;
  }
  // A sum that is not finite has lost nothing that could be told.
  double value() const {
    double result = 0, remainder = 0;
    for (int lane = 0; lane < kLanes<double>; ++lane) {
      const double next = result + sums[lane];
      const double back = next - result;
      remainder += ((result - (next - back)) + (sums[lane] - back)) + lost[lane];
      result = next;
    }
    return result - result == 0 ? result + remainder : result;
  }
  Doubles by_lane() const {
    return sums - sums == 0.0 ? sums + lost : sums;
  }
  Doubles sums{};
  Doubles lost{};
};

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
