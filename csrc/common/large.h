// Results that do not stay in the caches.
#pragma once

#include <cstdint>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace prograd {

constexpr int64_t stream_bytes = 16 << 20;  // results of this size are written past the caches

// Memory that nobody has written to yet costs a page fault for every 4 KiB, which takes longer than writing them; with
// huge pages one for every 2 MiB. Advice only: it changes nothing for memory that is in use.
inline void prefer_huge_pages([[maybe_unused]] char* data, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
  constexpr std::uintptr_t page = 4096;
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + page - 1) / page * page;
  const auto end = reinterpret_cast<std::uintptr_t>(data) + bytes;
  if (bytes >= stream_bytes) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace prograd
