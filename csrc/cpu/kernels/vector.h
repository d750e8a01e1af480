// A register full of floats or doubles, of the width of the instruction set that this is compiled for. For loops that
// keep sums in registers; simple ones are left to the compiler. Included by the kernels alone.
#pragma once

#include <cstdint>
#include <cstring>
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

}  // namespace
}  // namespace prograd::cpu

template <>
struct prograd::Arithmetic<prograd::cpu::Vector<float>> {
  typedef std::uint32_t Bits __attribute__((vector_size(prograd::cpu::vector_bytes)));
  PF_HOST_DEVICE static prograd::cpu::Vector<float> fused(prograd::cpu::Vector<float> a, prograd::cpu::Vector<float> b,
                                                          prograd::cpu::Vector<float> c) {
    return prograd::cpu::multiply_add(a, b, c);
  }
};

namespace prograd::cpu {
namespace {

using prograd::exp;
PF_HOST_DEVICE Vector<float> exp(Vector<float> x) { return exp_by_polynomial(x); }
PF_HOST_DEVICE Vector<double> exp(Vector<double> x) {
  for (std::int64_t i = 0; i < lanes<double>; ++i) x[i] = exp(x[i]);
  return x;
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
