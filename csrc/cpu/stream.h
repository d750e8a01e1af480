// Results that are too large for the caches go past them. Included by the kernels' headers alone.
#pragma once

#include <cstdint>
#include <cstring>
#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace prograd {
namespace {

constexpr std::int64_t stream_block = 1024;  // elements that are computed in the first-level cache on their way out

// Copy to memory that nobody reads soon: whole cache lines go out without being read in first.
inline void stream(void* to, const void* from, std::size_t bytes) {
#ifdef __SSE2__
  char* d = static_cast<char*>(to);
  const char* s = static_cast<const char*>(from);
  const std::size_t head = (64 - reinterpret_cast<std::uintptr_t>(d) % 64) % 64;
  if (bytes >= head + 64) {
    std::memcpy(d, s, head);
    d += head, s += head, bytes -= head;
    for (; bytes >= 64; d += 64, s += 64, bytes -= 64) {
      for (int i = 0; i < 64; i += 16) {
        const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(s + i));
        _mm_stream_si128(reinterpret_cast<__m128i*>(d + i), x);
      }
    }
  }
  std::memcpy(d, s, bytes);
#else
  std::memcpy(to, from, bytes);
#endif
}

}  // namespace
}  // namespace prograd
