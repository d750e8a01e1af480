// Runs of consecutive elements: 16 bytes at a time where they are aligned and complete, one by one elsewhere.
#pragma once

#include "platform.cuh"

namespace prograd::cuda {

// Elements of one 16-byte access.
template <typename T>
constexpr int kVector = 16 / int(sizeof(T));

inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <typename T>
struct alignas(16) Pack {
  T values[kVector<T>];
};

// As one instruction: of a plain assignment the compiler may make one store for each element.
template <typename T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T>& pack) {
  uint4 bits;
  memcpy(&bits, &pack, sizeof bits);
  __stcg(reinterpret_cast<uint4*>(to), bits);
}

// As one instruction. The tests on a CPU, which could read it, find an address that a GPU cannot.
template <typename Wide, typename T>
__device__ __forceinline__ Wide load_wide(const T* from) {
#ifndef __CUDACC__
  if (reinterpret_cast<uintptr_t>(from) % alignof(Wide)) simt::fail("misaligned address");
#endif
  return *reinterpret_cast<const Wide*>(from);
}

// Elements begin ... end - 1 of a pack from memory, and zeros.
template <typename T>
__device__ __forceinline__ void read(Pack<T>& pack, const T* from, int begin, int64_t end, bool aligned) {
  if (aligned && begin <= 0 && end >= kVector<T>) {
    pack = load_wide<Pack<T>>(from);
  } else {
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      if (i >= begin && i < end) pack.values[i] = from[i];
      else narrow(pack.values[i], Accumulation<T>(0));
    }
  }
}

// Elements begin ... end - 1 of a pack to memory.
template <typename T>
__device__ __forceinline__ void write(T* to, const Pack<T>& pack, int begin, int64_t end, bool aligned) {
  if (aligned && begin <= 0 && end >= kVector<T>) {
    store_pack(to, pack);
  } else {
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      if (i >= begin && i < end) to[i] = pack.values[i];
    }
  }
}

// The row of a matrix that starts at `start`, for packs that start on 16 bytes: the first one may begin before the row.
template <typename T>
struct PackedRow {
  T* first;      // of the first pack
  bool aligned;  // as the packs are

  __device__ PackedRow(T* start, int before) : first(start - before), aligned(uintptr_t(first) % 16 == 0) {}
};

template <typename T>
__device__ int elements_before(const T* start) {
  return int(uintptr_t(start) % 16 / sizeof(T));
}

// The first `valid` of N elements, for arithmetic.
template <int N, typename T>
__device__ __forceinline__ void load(Accumulation<T> (&values)[N], const T* from, int valid, bool aligned) {
  static_assert(N % kVector<T> == 0, "whole packs");
#pragma unroll
  for (int k = 0; k < N; k += kVector<T>) {
    Pack<T> pack;
    read(pack, from + k, 0, valid - k, aligned);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) values[k + i] = widen(pack.values[i]);
  }
}

// Elements begin ... end - 1 of N.
template <int N, typename T>
__device__ __forceinline__ void store(T* to, const Accumulation<T> (&values)[N], int begin, int64_t end, bool aligned) {
  static_assert(N % kVector<T> == 0, "whole packs");
#pragma unroll
  for (int k = 0; k < N; k += kVector<T>) {
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) narrow(pack.values[i], values[k + i]);
    write(to + k, pack, begin - k, end - k, aligned);
  }
}

template <int N, typename T>
__device__ __forceinline__ void store(T* to, const Accumulation<T> (&values)[N], int valid, bool aligned) {
  store<N, T>(to, values, 0, valid, aligned);
}

}  // namespace prograd::cuda
