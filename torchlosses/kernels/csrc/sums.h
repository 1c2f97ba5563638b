// Sums over vectors, in more digits than they have.
#pragma once

#include "vector.h"

namespace torchlosses {
namespace INSTRUCTION_SET {

// Half of a vector of floats, in double precision and back. Of the conversion of vectors the compiler makes pieces.
typedef float HalfOfFloats __attribute__((vector_size(kBytes / 2)));
inline Doubles widened(HalfOfFloats floats) {
#if defined(__AVX512F__)
  return bits<Doubles>(_mm512_cvtps_pd(bits<__m256>(floats)));
#elif defined(__AVX2__)
  return bits<Doubles>(_mm256_cvtps_pd(bits<__m128>(floats)));
#else
  return __builtin_convertvector(floats, Doubles);
#endif
}
inline HalfOfFloats narrowed(Doubles doubles) {
#if defined(__AVX512F__)
  return bits<HalfOfFloats>(_mm512_cvtpd_ps(bits<__m512d>(doubles)));
#elif defined(__AVX2__)
  return bits<HalfOfFloats>(_mm256_cvtpd_ps(bits<__m256d>(doubles)));
#else
  return __builtin_convertvector(doubles, HalfOfFloats);
#endif
}

struct Halves {
  explicit Halves(Floats vector) {
#if defined(__AVX512F__)
    const __m512 floats = bits<__m512>(vector);
    low = bits<Doubles>(_mm512_cvtps_pd(_mm512_castps512_ps256(floats)));
    high = widened(bits<HalfOfFloats>(_mm512_extractf64x4_pd(_mm512_castps_pd(floats), 1)));
#else
    HalfOfFloats parts[2];
    std::memcpy(parts, &vector, sizeof(vector));
    low = widened(parts[0]);
    high = widened(parts[1]);
#endif
  }
  Doubles low;
  Doubles high;
};

// Added in double precision, always in the same order.
template <typename Number>
inline double sum(Vector<Number> vector) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Number, float>) {
    const Halves halves(vector);
    return _mm512_reduce_add_pd(bits<__m512d>(halves.low + halves.high));
  }
#endif
  double result = 0;
  for (int lane = 0; lane < kLanes<Number>; ++lane) {
    result += static_cast<double>(vector[lane]);
  }
  return result;
}

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
    const HalfOfFloats parts[2] = {narrowed(low), narrowed(high)};
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
