// exp, log, log1p and tanh of vectors: range reduction to a short interval, and there a polynomial (float32: S. Moshier's
// Cephes library; float64: the series of exp). Errors below 2 units in the last place. ±inf and nan as in the C library.
#pragma once

#include "vector.h"

// A binary built here also runs where the C library is older than the newest version of its logarithm.
#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver log, log@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
__asm__(".symver log, log@GLIBC_2.17");
#endif

namespace torchlosses {
namespace INSTRUCTION_SET {

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

// x, or where exp(x) is 0 a number whose exp is 0 and whose product with it is 0 too. A nan stays.
inline Floats finite_exponent(Floats x) {
  return at_least(-104.0f, x);
}
inline Doubles finite_exponent(Doubles x) {
  return x < -746.0 ? all<double>(-746.0) : x;
}

// For x <= 0: all exponents here are differences from a maximum.
inline Floats exp(Floats x) {
  x = finite_exponent(x);
  // Adding 1.5 · 2^23 leaves the nearest whole number in the low bits.
  constexpr float kRounding = 12582912.0f;
  const Floats rounded = multiply_add(x, 1.44269504088896341f, kRounding);
  const Floats n = rounded - kRounding;
  Floats r = multiply_add(n, -0.693359375f, x);
  r = multiply_add(n, 2.12194440e-4f, r);
  Floats p = all<float>(1.9875691500e-4f);
  p = multiply_add(p, r, 1.3981999507e-3f);
  p = multiply_add(p, r, 8.3334519073e-3f);
  p = multiply_add(p, r, 4.1665795894e-2f);
  p = multiply_add(p, r, 1.6666665459e-1f);
  p = multiply_add(p, r, 5.0000001201e-1f);
  p = multiply_add(p, r * r, r) + 1.0f;
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
  x = finite_exponent(x);
  constexpr double kRounding = 6755399441055744.0;
  const Doubles rounded = multiply_add(x, 1.4426950408889634074, kRounding);
  const Doubles n = rounded - kRounding;
  Doubles r = multiply_add(n, -6.93145751953125e-1, x);
  r = multiply_add(n, -1.42860682030941723212e-6, r);
  constexpr double kSeries[] = {
      1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
      1.0 / 5040,       1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      1.0 / 2};
  Doubles p = all<double>(kSeries[0]);
  for (int term = 1; term < 12; ++term) {
    p = multiply_add(p, r, kSeries[term]);
  }
  p = multiply_add(p, r * r, r) + 1.0;
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
  p = multiply_add(p, f, -1.1514610310e-1f);
  p = multiply_add(p, f, 1.1676998740e-1f);
  p = multiply_add(p, f, -1.2420140846e-1f);
  p = multiply_add(p, f, 1.4249322787e-1f);
  p = multiply_add(p, f, -1.6668057665e-1f);
  p = multiply_add(p, f, 2.0000714765e-1f);
  p = multiply_add(p, f, -2.4999993993e-1f);
  p = multiply_add(p, f, 3.3333331174e-1f);
  const Floats square = f * f;
  Floats result = p * f * square;
  result = multiply_add(n, -2.12194440e-4f, result);
  result = multiply_add(square, -0.5f, result);
  result = f + result;
  result = multiply_add(n, 0.693359375f, result);
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

// log(1 + x) for x from 0 on, right to float32's digits. The C library's log1p takes longer than the rest of a short row.
inline double log1p_of_rest(float x) {
  const double wide = static_cast<double>(x), rounded = 1 + wide;
  return std::log(rounded) + (wide - (rounded - 1)) / rounded;
}
inline double log1p_of_rest(double x) {
  return std::log1p(x);
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
  p = multiply_add(p, square, 2.06390887954e-2f);
  p = multiply_add(p, square, -5.37397155531e-2f);
  p = multiply_add(p, square, 1.33314422036e-1f);
  p = multiply_add(p, square, -3.33332819422e-1f);
  return multiply_add(p * square, x, x);
}

inline Doubles tanh_next_to_0(Doubles x) {
  const Doubles square = x * x;
  Doubles p = all<double>(-9.64399179425052238628e-1);
  p = multiply_add(p, square, -9.92877231001918586564e1);
  p = multiply_add(p, square, -1.61468768441708447952e3);
  Doubles q = square + 1.12811678491632931402e2;
  q = multiply_add(q, square, 2.23548839060100448583e3);
  q = multiply_add(q, square, 4.84406305325125486048e3);
  return multiply_add(x * square, p / q, x);
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

}  // namespace INSTRUCTION_SET
}  // namespace torchlosses
