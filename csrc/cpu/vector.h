// A register full of floats or doubles, of the width of the instruction set that this is compiled for. For loops that keep
// sums in registers; simple ones are left to the compiler. Included by kernels.cpp alone.
#pragma once

#include <cstdint>
#include <cstring>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "../math.h"

namespace prograd {
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

template <>
struct Arithmetic<Vector<float>> {
  typedef std::uint32_t Bits __attribute__((vector_size(vector_bytes)));
  PF_HOST_DEVICE static Vector<float> fused(Vector<float> a, Vector<float> b, Vector<float> c) {
    return multiply_add(a, b, c);
  }
};

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

// ---- small matrix products

// `rows` x `vectors` registers of C (+)= A B, with A's elements anywhere and B's and C's rows contiguous.
template <typename T, int rows, int vectors, bool add>
PF_HOST_DEVICE void product_tile(std::int64_t depth, const T* a, std::int64_t a_row, std::int64_t a_column, const T* b,
                                 std::int64_t b_row, T* c, std::int64_t c_row) {
  Vector<T> sums[rows][vectors];
  for (int i = 0; i < rows; ++i) {
    for (int v = 0; v < vectors; ++v) sums[i][v] = add ? vector_at(c + i * c_row + v * lanes<T>) : Vector<T>{};
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    Vector<T> of_b[vectors];
    for (int v = 0; v < vectors; ++v) of_b[v] = vector_at(b + k * b_row + v * lanes<T>);
    for (int i = 0; i < rows; ++i) {
      const Vector<T> x = broadcast(a[i * a_row + k * a_column]);
      for (int v = 0; v < vectors; ++v) sums[i][v] = multiply_add(x, of_b[v], sums[i][v]);
    }
  }
  for (int i = 0; i < rows; ++i) {
    for (int v = 0; v < vectors; ++v) put(c + i * c_row + v * lanes<T>, sums[i][v]);
  }
}

template <typename T, int vectors, bool add>
PF_HOST_DEVICE void product_columns(std::int64_t rows, std::int64_t depth, const T* a, std::int64_t a_row,
                                    std::int64_t a_column, const T* b, std::int64_t b_row, T* c, std::int64_t c_row) {
  std::int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    product_tile<T, 4, vectors, add>(depth, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row);
  }
  a += i * a_row;
  c += i * c_row;
  switch (rows - i) {
    case 3: return product_tile<T, 3, vectors, add>(depth, a, a_row, a_column, b, b_row, c, c_row);
    case 2: return product_tile<T, 2, vectors, add>(depth, a, a_row, a_column, b, b_row, c, c_row);
    case 1: return product_tile<T, 1, vectors, add>(depth, a, a_row, a_column, b, b_row, c, c_row);
    default: return;
  }
}

// C (+)= A B: A is rows x depth with element (i, k) at i a_row + k a_column; B is depth x columns and C rows x columns,
// both row by row; columns is a multiple of the lanes.
template <bool add, typename T>
__attribute__((noinline)) void product(std::int64_t rows, std::int64_t columns, std::int64_t depth, const T* a,
                                       std::int64_t a_row, std::int64_t a_column, const T* b, std::int64_t b_row, T* c,
                                       std::int64_t c_row) {
  constexpr int widest = vector_bytes == 64 ? 4 : 2;  // as many sums as there are registers for
  std::int64_t j = 0;
  for (; j + widest * lanes<T> <= columns; j += widest * lanes<T>) {
    product_columns<T, widest, add>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row);
  }
  for (; j + 2 * lanes<T> <= columns; j += 2 * lanes<T>) {
    product_columns<T, 2, add>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row);
  }
  for (; j < columns; j += lanes<T>) {
    product_columns<T, 1, add>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row);
  }
}

}  // namespace
}  // namespace prograd
