// A register full of floats or doubles, of the width of the instruction set that this is compiled for. For loops that
// keep sums in registers; simple ones are left to the compiler. Included by the kernels alone.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "../../common/math.h"

namespace prograd::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <typename T>
constexpr std::int64_t lanes = vector_bytes / std::int64_t(sizeof(T));

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(vector_bytes)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
PF_HOST_DEVICE Vector<T> vector_at(const T* from) {
  Vector<T> x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

template <typename T>
PF_HOST_DEVICE void put(T* to, Vector<T> x) {
  std::memcpy(to, &x, sizeof x);
}

template <typename T>
PF_HOST_DEVICE Vector<T> broadcast(T x) {
  return x - Vector<T>{};  // not x + 0, which would lose the sign of -0
}

// a b + c: see `fused` of numbers
PF_HOST_DEVICE Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
PF_HOST_DEVICE Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

// 1 / x, wrong by less than 1.5 ulp, for magnitudes in [2^-126, 2^125]. A division takes the time of 20 products.
PF_HOST_DEVICE Vector<float> reciprocal(Vector<float> x) {
#ifdef __AVX512F__
  const Vector<float> near = _mm512_maskz_rcp14_ps(0xffff, x);  // 14 bits, doubled by a step of Newton's
  return multiply_add(near, multiply_add(-x, near, broadcast(1.0f)), near);
#else
  return 1.0f / x;
#endif
}
PF_HOST_DEVICE Vector<double> reciprocal(Vector<double> x) { return 1.0 / x; }

// x = mantissa 2^exponent, 1 <= mantissa < 2, for normal x above 0. The exponent of infinity is infinity; of NaN one of
// the two, at least, is NaN.
PF_HOST_DEVICE void split_in_two(Vector<float> x, Vector<float>& mantissa, Vector<float>& exponent) {
#ifdef __AVX512F__
  mantissa = _mm512_maskz_getmant_ps(0xffff, x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
  exponent = _mm512_maskz_getexp_ps(0xffff, x);
#else
  typedef std::int32_t Bits __attribute__((vector_size(vector_bytes)));
  const Bits bits = __builtin_bit_cast(Bits, x);
  mantissa = __builtin_bit_cast(Vector<float>, (bits & 0x007fffff) | 0x3f800000);
  exponent = __builtin_convertvector((bits >> 23) - 127, Vector<float>);
  exponent = x < std::numeric_limits<float>::infinity() ? exponent : x;
#endif
}
PF_HOST_DEVICE void split_in_two(Vector<double> x, Vector<double>& mantissa, Vector<double>& exponent) {
#ifdef __AVX512F__
  mantissa = _mm512_maskz_getmant_pd(0xff, x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
  exponent = _mm512_maskz_getexp_pd(0xff, x);
#else
  typedef std::int64_t Bits __attribute__((vector_size(vector_bytes)));
  const Bits bits = __builtin_bit_cast(Bits, x);
  mantissa = __builtin_bit_cast(Vector<double>, (bits & 0x000fffffffffffff) | 0x3ff0000000000000);
  // 52 bits of 2^52 that hold the exponent: there is no instruction that converts integers of this size
  exponent = __builtin_bit_cast(Vector<double>, (bits >> 52) | 0x4330000000000000) - (0x1p52 + 1023);
  exponent = x < std::numeric_limits<double>::infinity() ? exponent : x;
#endif
}

}  // namespace
}  // namespace prograd::cpu

template <>
struct prograd::Arithmetic<prograd::cpu::Vector<float>> {
  using Number = float;
  using V = prograd::cpu::Vector<float>;
  typedef std::uint32_t Bits __attribute__((vector_size(prograd::cpu::vector_bytes)));
  typedef std::int32_t Integers __attribute__((vector_size(prograd::cpu::vector_bytes)));
  PF_HOST_DEVICE static V fused(V a, V b, V c) { return prograd::cpu::multiply_add(a, b, c); }
  PF_HOST_DEVICE static V magnitude(V x) { return V(Bits(x) & 0x7fffffffu); }
  PF_HOST_DEVICE static V with_sign(V size, V of) { return V(Bits(size) | (Bits(of) & 0x80000000u)); }
  PF_HOST_DEVICE static V reciprocal(V x) { return prograd::cpu::reciprocal(x); }
  PF_HOST_DEVICE static V exponents(Bits bits) { return __builtin_convertvector(Integers(bits) >> 23, V); }
  PF_HOST_DEVICE static V exp(V x) { return exp_by_polynomial(x); }
  PF_HOST_DEVICE static V log(V x) { return log_of_normal(x); }
  PF_HOST_DEVICE static V log_of_rest(V x, V y) { return log_of_rest_by_polynomial(x, y); }
  PF_HOST_DEVICE static V power(V x, float exponent) {
    for (std::int64_t i = 0; i < prograd::cpu::lanes<float>; ++i) x[i] = ::powf(x[i], exponent);
    return x;
  }
};

// As the library has them, one by one.
template <>
struct prograd::Arithmetic<prograd::cpu::Vector<double>> {
  using Number = double;
  using V = prograd::cpu::Vector<double>;
  PF_HOST_DEVICE static V fused(V a, V b, V c) { return prograd::cpu::multiply_add(a, b, c); }
  PF_HOST_DEVICE static V magnitude(V x) { return x < 0.0 ? -x : x; }
  PF_HOST_DEVICE static V with_sign(V size, V of) { return of < 0.0 ? -size : size; }
  PF_HOST_DEVICE static V reciprocal(V x) { return prograd::cpu::reciprocal(x); }
  PF_HOST_DEVICE static V exp(V x) {
    return each(x, [](double y) { return ::exp(y); });
  }
  PF_HOST_DEVICE static V log(V x) {
    return each(x, [](double y) { return ::log(y); });
  }
  PF_HOST_DEVICE static V log_of_rest(V x, V y) {
    for (std::int64_t i = 0; i < prograd::cpu::lanes<double>; ++i) x[i] = prograd::log_of_rest(x[i], y[i]);
    return x;
  }
  PF_HOST_DEVICE static V power(V x, double exponent) {
    return each(x, [&](double y) { return ::pow(y, exponent); });
  }

 private:
  template <typename Function>
  PF_HOST_DEVICE static V each(V x, Function function) {
    for (std::int64_t i = 0; i < prograd::cpu::lanes<double>; ++i) x[i] = function(x[i]);
    return x;
  }
};

namespace prograd::cpu {
namespace {

using prograd::exp;
PF_HOST_DEVICE Vector<float> exp(Vector<float> x) { return Arithmetic<Vector<float>>::exp(x); }
PF_HOST_DEVICE Vector<double> exp(Vector<double> x) { return Arithmetic<Vector<double>>::exp(x); }

// Whether a comparison of registers of T holds in any lane.
template <typename T>
PF_HOST_DEVICE bool any(decltype(Vector<T>{} == Vector<T>{}) mask) {
  std::int64_t parts[vector_bytes / sizeof(std::int64_t)], all = 0;
  std::memcpy(parts, &mask, sizeof mask);
  for (const std::int64_t part : parts) all |= part;
  return all != 0;
}

// One number from all lanes, by halves. `combine` takes vectors of any length.
template <typename T, int bytes, typename V, typename Combine>
PF_HOST_DEVICE T reduced(V x, Combine combine) {
  if constexpr (bytes == sizeof(T)) {
    return x[0];
  } else {
    typedef T Part __attribute__((vector_size(bytes / 2)));
    Part low, high;
    std::memcpy(&low, &x, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof low, sizeof high);
    return reduced<T, bytes / 2>(Part(combine(low, high)), combine);
  }
}
// Not inlined: halves have an address, and a sum that has one is kept in memory all through the loop that adds it up.
template <typename T>
__attribute__((noinline)) T sum_of(Vector<T> x) {
  return reduced<T, vector_bytes>(x, [](auto a, auto b) { return a + b; });
}
template <typename T>
__attribute__((noinline)) T largest_of(Vector<T> x) {
  return reduced<T, vector_bytes>(x, [](auto a, auto b) { return a > b ? a : b; });
}

}  // namespace
}  // namespace prograd::cpu
