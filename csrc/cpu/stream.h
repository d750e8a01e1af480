// Rows that are read and written register by register, whatever they are stored in. Results that are too large for the
// caches go past them. Included by the kernels' headers alone.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "storage.h"
#include "vector.h"

namespace prograd {
namespace {

// The first n elements, and `rest` in the other lanes.
template <typename S, typename T = Accumulation<S>>
PF_HOST_DEVICE Vector<T> loaded(const S* from, std::int64_t n, T rest) {
  if constexpr (std::is_same_v<S, T>) {
    if (n == lanes<T>) return vector_at(from);
  }
  T x[lanes<T>];
  if (n == lanes<T>) {
#pragma omp simd
    for (std::int64_t i = 0; i < lanes<T>; ++i) x[i] = load(from[i]);
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < lanes<T>; ++i) {
      x[i] = rest;
      if (i < n) x[i] = load(from[i]);
    }
  }
  return vector_at(x);
}

// The first n lanes.
template <typename S>
PF_HOST_DEVICE void stored(S* to, Vector<Accumulation<S>> x, std::int64_t n) {
  using T = Accumulation<S>;
  if constexpr (std::is_same_v<S, T>) {
    if (n == lanes<T>) return put(to, x);
  }
  T from[lanes<T>];
  put(from, x);
  if (n == lanes<T>) {
#pragma omp simd
    for (std::int64_t i = 0; i < lanes<T>; ++i) store(to[i], from[i]);
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < lanes<T>; ++i) {
      if (i < n) store(to[i], from[i]);
    }
  }
}

// Calls body(c, width) for n elements, `width` of them from c on: registers full, and in the end what is left.
template <typename T, typename Body>
PF_HOST_DEVICE void each_vector(std::int64_t n, Body body) {
  std::int64_t c = 0;
  for (; c + lanes<T> <= n; c += lanes<T>) body(c, lanes<T>);
  if (c < n) body(c, n - c);
}

// To memory that nobody reads soon, at a multiple of `bytes`: whole cache lines go out without being read in first.
template <std::size_t bytes>
PF_HOST_DEVICE void stream(void* to, const void* from) {
#ifdef __AVX512F__
  if constexpr (bytes == 64) {
    return _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
  }
#endif
#ifdef __SSE2__
  if constexpr (bytes % 16 == 0) {
    for (std::size_t i = 0; i < bytes / 16; ++i) {
      _mm_stream_si128(static_cast<__m128i*>(to) + i, _mm_loadu_si128(static_cast<const __m128i*>(from) + i));
    }
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

// Writes n elements, value(c, width) those from c on; past the caches if nobody reads them soon.
template <typename S, typename Value>
PF_HOST_DEVICE void write(S* to, std::int64_t n, bool past_caches, Value value) {
  using T = Accumulation<S>;
  std::int64_t begin = 0;
  if (past_caches) {
    constexpr std::size_t bytes = lanes<T> * sizeof(S);
    const std::size_t beyond = reinterpret_cast<std::uintptr_t>(to) % bytes;
    begin = beyond ? std::int64_t((bytes - beyond) / sizeof(S)) : 0;
    if (begin > n) begin = n;
    if (begin) stored(to, value(0, begin), begin);
    for (; begin + lanes<T> <= n; begin += lanes<T>) {
      S part[lanes<T>];
      stored(part, value(begin, lanes<T>), lanes<T>);
      stream<bytes>(to + begin, part);
    }
  }
  each_vector<T>(n - begin, [&](std::int64_t c, std::int64_t width) {
    stored(to + begin + c, value(begin + c, width), width);
  });
}

}  // namespace
}  // namespace prograd
