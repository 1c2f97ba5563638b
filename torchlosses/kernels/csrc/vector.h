// Vectors of numbers, their loads and stores, and exp, log and log1p on them.
//
// Written in the vector extension of GCC and Clang, so that one text serves every instruction set: it is compiled once for
// each, with INSTRUCTION_SET as the name of its namespace and the compiler's options as its meaning.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "arguments.h"

namespace torchlosses {
namespace INSTRUCTION_SET {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

typedef float Floats __attribute__((vector_size(kBytes)));
typedef double Doubles __attribute__((vector_size(kBytes)));
typedef int32_t Integers32 __attribute__((vector_size(kBytes)));
typedef int64_t Integers64 __attribute__((vector_size(kBytes)));

// What a dtype is computed in: float32 for the short ones.
template <typename Stored>
struct ComputedIn {
  using type = float;
};
template <>
struct ComputedIn<double> {
  using type = double;
};
template <typename Stored>
using Compute = typename ComputedIn<Stored>::type;

template <typename Number>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = Floats;
  using Integers = Integers32;
  using Integer = int32_t;
};
template <>
struct VectorOf<double> {
  using type = Doubles;
  using Integers = Integers64;
  using Integer = int64_t;
};
template <typename Number>
using Vector = typename VectorOf<Number>::type;
template <typename Number>
using Integers = typename VectorOf<Number>::Integers;
template <typename Number>
constexpr int kLanes = kBytes / sizeof(Number);

template <typename Number>
inline Vector<Number> all(Number value) {
  return Vector<Number>{} + value;
}

template <typename To, typename From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// ---------------------------------------------------------------------------------------------------------------------
// Loads and stores. bfloat16 is the upper half of a float32; both short dtypes are rounded to nearest even.
// ---------------------------------------------------------------------------------------------------------------------

inline float widen(BFloat16 value) {
  return bits<float>(static_cast<uint32_t>(value.bits) << 16);
}

inline float widen(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  // The exponent is too small by 112 once the bits are in place; the multiplication is exact, also for subnormals.
  float result = bits<float>(magnitude << 13) * 0x1p112f;
  if (magnitude >= 0x7c00u) {
    result = bits<float>(0x7f800000u | (magnitude << 13));
  }
  return bits<float>(bits<uint32_t>(result) | sign);
}

inline float widen(float value) {
  return value;
}
inline double widen(double value) {
  return value;
}

template <typename Stored>
inline Stored narrow(Compute<Stored> value) {
  return value;
}

template <>
inline BFloat16 narrow<BFloat16>(float value) {
  const uint32_t word = bits<uint32_t>(value);
  if (value != value) {
    return BFloat16{static_cast<uint16_t>((word >> 16) | 0x40u)};
  }
  return BFloat16{static_cast<uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16)};
}

template <>
inline Half narrow<Half>(float value) {
  const uint32_t word = bits<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((word >> 16) & 0x8000u);
  const uint32_t magnitude = word & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return Half{static_cast<uint16_t>(sign | 0x7e00u)};
  }
  if (magnitude >= 0x477ff000u) {
    return Half{static_cast<uint16_t>(sign | 0x7c00u)};
  }
  if (magnitude < 0x38800000u) {
    // Below the smallest normal number: adding 0.5 moves the last kept bit to the end of the float32, rounded there.
    const float shifted = bits<float>(magnitude) + 0.5f;
    return Half{static_cast<uint16_t>(sign | (bits<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u;
  return Half{static_cast<uint16_t>(sign | (rounded >> 13))};
}

inline Floats load(const float* from) {
  Floats vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}

inline Doubles load(const double* from) {
  Doubles vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}

inline Floats load(const BFloat16* from) {
  typedef uint16_t Shorts __attribute__((vector_size(kBytes / 2)));
  typedef uint32_t Words __attribute__((vector_size(kBytes)));
  Shorts shorts;
  std::memcpy(&shorts, from, sizeof(shorts));
  return bits<Floats>(__builtin_convertvector(shorts, Words) << 16);
}

inline Floats load(const Half* from) {
#if defined(__AVX512F__)
  return bits<Floats>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__F16C__)
  return bits<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  Floats vector;
  for (int lane = 0; lane < kLanes<float>; ++lane) {
    vector[lane] = widen(from[lane]);
  }
  return vector;
#endif
}

inline void store(float* to, Floats vector) {
  std::memcpy(to, &vector, sizeof(vector));
}

inline void store(double* to, Doubles vector) {
  std::memcpy(to, &vector, sizeof(vector));
}

typedef uint32_t Words __attribute__((vector_size(kBytes)));

// Rounded to nearest even; the bfloat16 is the upper half of each word. A nan keeps its place above infinity.
inline Words rounded_to_bfloat16(Floats vector) {
  const Words words = bits<Words>(vector);
  const Words rounded = words + (((words >> 16) & 1u) + 0x7fffu);
  const Words quiet = words | 0x400000u;
#if defined(__AVX512F__)
  const __m512 floats = bits<__m512>(vector);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(floats, floats, _CMP_UNORD_Q);
  return bits<Words>(_mm512_mask_mov_epi32(bits<__m512i>(rounded), is_nan, bits<__m512i>(quiet)));
#else
  const Words is_nan = bits<Words>(vector != vector);
  return (quiet & is_nan) | (rounded & ~is_nan);
#endif
}

inline void store(BFloat16* to, Floats vector) {
  typedef uint16_t Shorts __attribute__((vector_size(kBytes / 2)));
  const Shorts shorts = __builtin_convertvector(rounded_to_bfloat16(vector) >> 16, Shorts);
  std::memcpy(to, &shorts, sizeof(shorts));
}

inline void store(Half* to, Floats vector) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(
      reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(bits<__m512>(vector), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(bits<__m256>(vector), _MM_FROUND_TO_NEAREST_INT));
#else
  for (int lane = 0; lane < kLanes<float>; ++lane) {
    to[lane] = narrow<Half>(vector[lane]);
  }
#endif
}

template <typename Number>
inline Integers<Number> load_integers(const typename VectorOf<Number>::Integer* from) {
  Integers<Number> vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}

template <typename Vector>
inline void store_integers(int32_t* to, Vector vector) {
  std::memcpy(to, &vector, sizeof(vector));
}

template <typename Vector>
inline void store_integers(int64_t* to, Vector vector) {
  std::memcpy(to, &vector, sizeof(vector));
}

// Two vectors of neighbours, in an order that `store_pair` restores: for sums, and where each number stands for itself.
template <typename Number>
struct Pair {
  Vector<Number> first;
  Vector<Number> second;
};

template <typename Stored>
inline Pair<Compute<Stored>> load_pair(const Stored* from) {
  if constexpr (std::is_same_v<Stored, BFloat16>) {
    // A word holds two of them: no lane has to be moved.
    Words words;
    std::memcpy(&words, from, sizeof(words));
    return {bits<Floats>(words << 16), bits<Floats>(words & 0xffff0000u)};
  } else {
    return {load(from), load(from + kLanes<Compute<Stored>>)};
  }
}

template <typename Stored>
inline void store_pair(Stored* to, Pair<Compute<Stored>> pair) {
  if constexpr (std::is_same_v<Stored, BFloat16>) {
    const Words words = (rounded_to_bfloat16(pair.first) >> 16) | (rounded_to_bfloat16(pair.second) & 0xffff0000u);
    std::memcpy(to, &words, sizeof(words));
  } else {
    store(to, pair.first);
    store(to + kLanes<Compute<Stored>>, pair.second);
  }
}

// The first `count` numbers; the other lanes hold `filling`.
template <typename Stored>
inline Vector<Compute<Stored>> load_some(const Stored* from, int64_t count, Compute<Stored> filling) {
  using Number = Compute<Stored>;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Stored, float>) {
    const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1u);
    return bits<Floats>(_mm512_mask_loadu_ps(_mm512_set1_ps(filling), mask, from));
  }
#endif
  Vector<Number> vector = all<Number>(filling);
  for (int64_t lane = 0; lane < count; ++lane) {
    vector[lane] = widen(from[lane]);
  }
  return vector;
}

template <typename Stored>
inline void store_some(Stored* to, int64_t count, Vector<Compute<Stored>> vector) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Stored, float>) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1u), bits<__m512>(vector));
    return;
  }
#endif
  for (int64_t lane = 0; lane < count; ++lane) {
    to[lane] = narrow<Stored>(vector[lane]);
  }
}

template <typename Stored>
inline Vector<Compute<Stored>> load_part(const Stored* from, int64_t count, Compute<Stored> filling) {
  return count < kLanes<Compute<Stored>> ? load_some(from, count, filling) : load(from);
}

template <typename Stored>
inline void store_part(Stored* to, int64_t count, Vector<Compute<Stored>> vector) {
  if (count < kLanes<Compute<Stored>>) {
    store_some(to, count, vector);
  } else {
    store(to, vector);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Over the lanes of a vector
// ---------------------------------------------------------------------------------------------------------------------

template <typename Number>
inline Vector<Number> larger(Vector<Number> candidate, Vector<Number> present) {
  // A nan is no candidate; the sums that follow bring it out.
  return candidate > present ? candidate : present;
}

template <typename Number>
inline Number largest(Vector<Number> vector) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Number, float>) {
    return _mm512_reduce_max_ps(bits<__m512>(vector));
  }
#endif
  Number result = vector[0];
  for (int lane = 1; lane < kLanes<Number>; ++lane) {
    result = vector[lane] > result ? vector[lane] : result;
  }
  return result;
}

// The first lane in which the mask is set, or the number of lanes.
template <typename Number>
inline int64_t first_lane(Integers<Number> mask) {
  int64_t lane = 0;
  while (lane < kLanes<Number> && mask[lane] == 0) {
    ++lane;
  }
  return lane;
}

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

template <typename Mask>
inline bool any(Mask mask) {
#if defined(__AVX512F__)
  const __m512i words = bits<__m512i>(mask);
  return _mm512_test_epi32_mask(words, words) != 0;
#elif defined(__AVX2__)
  const __m256i words = bits<__m256i>(mask);
  return !_mm256_testz_si256(words, words);
#else
  int64_t halves[2];
  std::memcpy(halves, &mask, sizeof(halves));
  return (halves[0] | halves[1]) != 0;
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// exp, log and log1p: range reduction to a short interval, and there a polynomial (float32: S. Moshier's Cephes library;
// float64: the series of exp). Errors below 2 units in the last place. ±inf and nan as in the C library.
// ---------------------------------------------------------------------------------------------------------------------

// The larger of a bound and x; a nan stays.
inline Floats at_least(float bound, Floats x) {
#if defined(__AVX512F__)
  return bits<Floats>(_mm512_max_ps(_mm512_set1_ps(bound), bits<__m512>(x)));
#elif defined(__AVX2__)
  return bits<Floats>(_mm256_max_ps(_mm256_set1_ps(bound), bits<__m256>(x)));
#else
  return x < bound ? all<float>(bound) : x;
#endif
}

// For x <= 0: all exponents here are differences from a maximum.
inline Floats exp(Floats x) {
  // Below this the result is 0.
  x = at_least(-104.0f, x);
  // Adding 1.5 · 2^23 leaves the nearest whole number in the low bits.
  constexpr float kRounding = 12582912.0f;
  const Floats rounded = x * 1.44269504088896341f + kRounding;
  const Floats n = rounded - kRounding;
  Floats r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Floats p = all<float>(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
#if defined(__AVX512F__)
  return bits<Floats>(_mm512_scalef_ps(bits<__m512>(p), bits<__m512>(n)));
#else
  const Integers32 exponent = bits<Integers32>(rounded) - bits<int32_t>(kRounding);
  const Integers32 tiny = x < -87.0f;
  if (!any(tiny)) {
    return bits<Floats>(bits<Integers32>(p) + (exponent << 23));
  }
  // 2^n in two factors: the exponent of one alone would not reach the subnormal numbers.
  const Integers32 half = exponent >> 1;
  return p * bits<Floats>((half + 127) << 23) * bits<Floats>((exponent - half + 127) << 23);
#endif
}

inline Doubles exp(Doubles x) {
  x = x < -746.0 ? all<double>(-746.0) : x;
  constexpr double kRounding = 6755399441055744.0;
  const Doubles rounded = x * 1.4426950408889634074 + kRounding;
  const Doubles n = rounded - kRounding;
  Doubles r = x - n * 6.93145751953125e-1;
  r = r - n * 1.42860682030941723212e-6;
  constexpr double kSeries[] = {
      1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
      1.0 / 5040,       1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      1.0 / 2};
  Doubles p = all<double>(kSeries[0]);
  for (int term = 1; term < 12; ++term) {
    p = p * r + kSeries[term];
  }
  p = p * (r * r) + r + 1.0;
  const Integers64 exponent = bits<Integers64>(rounded) - bits<int64_t>(kRounding);
  const Integers64 half = exponent >> 1;
  return p * bits<Doubles>((half + 1023) << 52) * bits<Doubles>((exponent - half + 1023) << 52);
}

inline Floats log(Floats x) {
  const Floats original = x;
  // A subnormal number is made normal first.
  const Integers32 subnormal = x < std::numeric_limits<float>::min();
  x = subnormal ? x * 0x1p25f : x;
  const Integers32 word = bits<Integers32>(x);
  // x = 2^n (1 + f) with 1 + f between sqrt(1/2) and sqrt(2).
  Integers32 exponent = ((word - 0x3f3504f3) >> 23);
  const Floats f = bits<Floats>(word - (exponent << 23)) - 1.0f;
  exponent = subnormal ? exponent - 25 : exponent;
  const Floats n = __builtin_convertvector(exponent, Floats);
  Floats p = all<float>(7.0376836292e-2f);
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const Floats square = f * f;
  Floats result = p * f * square;
  result = result + n * -2.12194440e-4f;
  result = result - square * 0.5f;
  result = f + result;
  result = result + n * 0.693359375f;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  result = original == kInfinity ? original : result;
  result = original == 0.0f ? all<float>(-kInfinity) : result;
  result = original < 0.0f ? all<float>(std::numeric_limits<float>::quiet_NaN()) : result;
  return original != original ? original : result;
}

inline Doubles log(Doubles x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) {
    x[lane] = std::log(x[lane]);
  }
  return x;
}

// For x from -1/2 on.
inline Floats log1p(Floats x) {
  const Floats rounded = x + 1.0f;
  // What the addition rounded away, x - (rounded - 1), comes back to first order.
  return log(rounded) + (x - (rounded - 1.0f)) / rounded;
}

inline Doubles log1p(Doubles x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) {
    x[lane] = std::log1p(x[lane]);
  }
  return x;
}

template <typename Number>
inline Number exp_of(Number x) {
  return exp(all<Number>(x))[0];
}

template <typename Number>
inline Number log1p_of(Number x) {
  return log1p(all<Number>(x))[0];
}

// tanh(x) and its slope, 4 e / (1 + e)² with e = exp(-2 |x|), which keeps its digits where tanh is close to 1. Next to 0 the
// rational functions of the Cephes library, elsewhere (1 - e) / (1 + e).
template <typename Number>
struct Tanh {
  Vector<Number> value;
  Vector<Number> slope;
};

inline Floats tanh_next_to_0(Floats x) {
  const Floats square = x * x;
  Floats p = all<float>(-5.70498872745e-3f);
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  return p * square * x + x;
}

inline Doubles tanh_next_to_0(Doubles x) {
  const Doubles square = x * x;
  Doubles p = all<double>(-9.64399179425052238628e-1);
  p = p * square - 9.92877231001918586564e1;
  p = p * square - 1.61468768441708447952e3;
  Doubles q = square + 1.12811678491632931402e2;
  q = q * square + 2.23548839060100448583e3;
  q = q * square + 4.84406305325125486048e3;
  return x * square * (p / q) + x;
}

template <typename Number>
inline Tanh<Number> tanh(Vector<Number> x) {
  const Vector<Number> magnitude = x < Number(0) ? -x : x;
  const Vector<Number> e = exp(magnitude * Number(-2));
  const Vector<Number> sum = e + Number(1);
  const Vector<Number> far = (Number(1) - e) / sum;
  const Vector<Number> value = magnitude < Number(0.625) ? tanh_next_to_0(x) : (x < Number(0) ? -far : far);
  return {value, e * Number(4) / (sum * sum)};
}

// Where a row begins in a tensor.
template <typename Stored>
inline const Stored* row_at(const void* base, const Layout& layout, int64_t sample, int64_t position) {
  return static_cast<const Stored*>(base) + sample * layout.sample + position * layout.position;
}

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
