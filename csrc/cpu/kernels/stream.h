// Rows that are read and written register by register, whatever they are stored in. Results that are too large for the
// caches go past them. Included by the kernels alone.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "storage.h"
#include "vector.h"

namespace prograd::cpu {
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

// Copies them there, from any place to any other.
PF_HOST_DEVICE void stream_copy(void* to_, const void* from_, std::size_t size) {
  char* to = static_cast<char*>(to_);
  const char* from = static_cast<const char*>(from_);
  const std::size_t head = std::size_t(-reinterpret_cast<std::uintptr_t>(to)) % vector_bytes;
  std::size_t i = head < size ? head : size;
  std::memcpy(to, from, i);
  for (; i + vector_bytes <= size; i += vector_bytes) stream<vector_bytes>(to + i, from + i);
  std::memcpy(to + i, from + i, size - i);
}

// Fetches what follows 2 KiB behind, while n elements are read from there: the machine's own fetching stops at the end
// of each page.
template <typename S>
PF_HOST_DEVICE void fetch_ahead(const S* from, std::int64_t n) {
  constexpr std::int64_t line = 64 / std::int64_t(sizeof(S)), ahead = 32 * line;
  for (std::int64_t i = 0; i < n; i += line) __builtin_prefetch(from + i + ahead, 0, 2);
}

// Elements that are made in the first-level cache before they go out. Few, so that reading and writing overlap.
constexpr std::int64_t block = 256;

// Calls body(begin, end, where to write) for the blocks of n elements.
template <typename S, typename Body>
PF_HOST_DEVICE void each_block(S* to, std::int64_t n, bool past_caches, Body body) {
  S part[block];
  for (std::int64_t begin = 0; begin < n; begin += block) {
    const std::int64_t end = begin + block < n ? begin + block : n;
    body(begin, end, past_caches ? part : to + begin);
    if (past_caches) stream_copy(to + begin, part, std::size_t(end - begin) * sizeof(S));
  }
}

// Writes n elements, a register at a time: value(c, width) gives `width` of them from c on. Past the caches if nobody
// reads them soon; then what comes before the first register's place, and after the last one's, goes the usual way.
template <typename S>
class Writer {
  using T = Accumulation<S>;
  static constexpr std::size_t bytes = lanes<T> * sizeof(S);

 public:
  PF_HOST_DEVICE Writer(S* to, std::int64_t n, bool past_caches) : to_(to), n_(n), past_caches_(past_caches) {
    const std::size_t beyond = past_caches ? reinterpret_cast<std::uintptr_t>(to) % bytes : 0;
    if (beyond) head_ = std::int64_t((bytes - beyond) / sizeof(S));
    if (head_ > n) head_ = n;
  }

  template <typename Value>
  PF_HOST_DEVICE void head(Value value) const {
    if (head_) stored(to_, value(0, head_), head_);
  }

  // The register c elements after the head, if there is one.
  template <typename Value>
  PF_HOST_DEVICE void body(std::int64_t c, Value value) const {
    if (head_ + c + lanes<T> <= n_) whole(head_ + c, value);
  }

  template <typename Value>
  PF_HOST_DEVICE void tail(Value value) const {
    const std::int64_t i = n_ - (n_ - head_) % lanes<T>;
    if (i < n_) stored(to_ + i, value(i, n_ - i), n_ - i);
  }

  template <typename Value>
  PF_HOST_DEVICE void all(Value value) const {
    head(value);
    for (std::int64_t i = head_; i + lanes<T> <= n_; i += lanes<T>) whole(i, value);
    tail(value);
  }

 private:
  template <typename Value>
  PF_HOST_DEVICE void whole(std::int64_t i, Value value) const {
    if (past_caches_) {
      S part[lanes<T>];
      stored(part, value(i, lanes<T>), lanes<T>);
      stream<bytes>(to_ + i, part);
    } else {
      stored(to_ + i, value(i, lanes<T>), lanes<T>);
    }
  }

  S* to_;
  std::int64_t n_, head_ = 0;
  bool past_caches_;
};

}  // namespace
}  // namespace prograd::cpu
