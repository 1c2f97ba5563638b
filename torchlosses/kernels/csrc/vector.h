// Vectors of numbers, their loads and stores.
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

// a b + c, in one rounding where the processor has an instruction for it. The compiler makes none by itself: whether it would
// depends on what stands around, and a gradient must be the same to the bit wherever it is made.
inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return bits<Floats>(_mm512_fmadd_ps(bits<__m512>(a), bits<__m512>(b), bits<__m512>(c)));
#elif defined(__FMA__)
  return bits<Floats>(_mm256_fmadd_ps(bits<__m256>(a), bits<__m256>(b), bits<__m256>(c)));
#elif defined(__FP_FAST_FMAF)
  for (int lane = 0; lane < kLanes<float>; ++lane) {
    c[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
  }
  return c;
#else
  return a * b + c;
#endif
}

inline Doubles multiply_add(Doubles a, Doubles b, Doubles c) {
#if defined(__AVX512F__)
  return bits<Doubles>(_mm512_fmadd_pd(bits<__m512d>(a), bits<__m512d>(b), bits<__m512d>(c)));
#elif defined(__FMA__)
  return bits<Doubles>(_mm256_fmadd_pd(bits<__m256d>(a), bits<__m256d>(b), bits<__m256d>(c)));
#elif defined(__FP_FAST_FMA)
  for (int lane = 0; lane < kLanes<double>; ++lane) {
    c[lane] = __builtin_fma(a[lane], b[lane], c[lane]);
  }
  return c;
#else
  return a * b + c;
#endif
}

inline Floats multiply_add(Floats a, Floats b, float c) {
  return multiply_add(a, b, all<float>(c));
}
inline Floats multiply_add(Floats a, float b, Floats c) {
  return multiply_add(a, all<float>(b), c);
}
inline Floats multiply_add(Floats a, float b, float c) {
  return multiply_add(a, all<float>(b), all<float>(c));
}
inline Doubles multiply_add(Doubles a, Doubles b, double c) {
  return multiply_add(a, b, all<double>(c));
}
inline Doubles multiply_add(Doubles a, double b, Doubles c) {
  return multiply_add(a, all<double>(b), c);
}
inline Doubles multiply_add(Doubles a, double b, double c) {
  return multiply_add(a, all<double>(b), all<double>(c));
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

// The compiler makes pieces of the conversion of a vector.
inline Floats load(const BFloat16* from) {
#if defined(__AVX512F__)
  const __m256i shorts = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return bits<Floats>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(shorts), 16));
#elif defined(__AVX2__)
  const __m128i shorts = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return bits<Floats>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(shorts), 16));
#else
  typedef uint16_t Shorts __attribute__((vector_size(kBytes / 2)));
  typedef uint32_t Words __attribute__((vector_size(kBytes)));
  Shorts shorts;
  std::memcpy(&shorts, from, sizeof(shorts));
  return bits<Floats>(__builtin_convertvector(shorts, Words) << 16);
#endif
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

// Numbers of the compute dtype, in the order that a pair of `Stored` has.
template <typename Stored>
inline Pair<Compute<Stored>> load_pair_as(const Compute<Stored>* from) {
  constexpr int lanes = kLanes<Compute<Stored>>;
  if constexpr (std::is_same_v<Stored, BFloat16>) {
    Pair<float> pair;
    for (int lane = 0; lane < lanes; ++lane) {
      pair.first[lane] = from[2 * lane];
      pair.second[lane] = from[2 * lane + 1];
    }
    return pair;
  } else {
    return {load(from), load(from + lanes)};
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

// Where a row begins in a tensor, if there is one.
template <typename Stored>
inline const Stored* row_at(const void* base, const Layout& layout, int64_t sample, int64_t position) {
  return base == nullptr ? nullptr
                         : static_cast<const Stored*>(base) + sample * layout.sample + position * layout.position;
}

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
