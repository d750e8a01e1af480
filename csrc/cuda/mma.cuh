// Products of small matrices on tensor cores, and what feeds them: PTX on a GPU, tests/gpu/simt/mma.h in the tests.
//
// All are done by whole warps. Fragments of mma.sync.m16n8k16 as in the PTX ISA, group = lane / 4, pair = lane % 4 * 2:
// A has in its four registers the rows group, group + 8, group, group + 8 and the columns pair, pair + 1, in the last two
// plus 8; B has in its two registers the rows pair, pair + 1 of column `group`, in the second plus 8; C has row `group`,
// columns pair and pair + 1, then the same of row group + 8. So two neighbours of C, 16 x 16, rounded to 16 bits are an A.
#pragma once

#include "platform.cuh"

namespace prograd::cuda {

constexpr int kMma = 16;  // rows and columns of A, rows of B

#ifdef __CUDACC__

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// c += a b
template <typename T>
__device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Four matrices of 8 x 8: lane 8 m + r has the address of row r of matrix m in shared memory.
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(unsigned (&out)[4], const void* row) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
}

// 16 bytes from global to shared memory, or zeros where they are not `wanted`; the thread goes on meanwhile.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(wanted ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups of this thread's copies but the last kPending.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// 2^x to about 2 ulp; 0 where the result would be subnormal.
__device__ __forceinline__ float fast_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Two numbers rounded to T, the first in the low half.
template <typename T>
__device__ __forceinline__ unsigned rounded_pair(float first, float second) {
  unsigned bits;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  }
  return bits;
}

#else

template <typename T>
void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  simt::mma_m16n8k16(c, a, b0, b1, [](uint16_t bits) { return widen(T{bits}); });
}

template <bool kTransposed>
void load_matrices(unsigned (&out)[4], const void* row) {
  simt::ldmatrix_x4(out, row, kTransposed);
}

inline void copy_async(void* to, const void* from, bool wanted) { simt::copy_async(to, wanted ? from : nullptr); }

inline void commit_copies() { simt::commit_copies(); }

template <int kPending>
void wait_copies() {
  simt::wait_copies(kPending);
}

inline float fast_exp2(float x) { return ::exp2f(x); }

template <typename T>
unsigned rounded_pair(float first, float second) {
  T pair[2];
  narrow(pair[0], first);
  narrow(pair[1], second);
  unsigned bits;
  memcpy(&bits, pair, sizeof bits);
  return bits;
}

#endif

template <typename T>
__device__ __forceinline__ void widen_pair(float (&out)[2], unsigned pair) {
  T values[2];
  memcpy(values, &pair, sizeof values);
  out[0] = widen(values[0]);
  out[1] = widen(values[1]);
}

// ---- 16 rows or more of a matrix in shared memory

// Elements from one row to the next: 16 bytes more than a row has, so that the eight rows of a matrix that ldmatrix
// reads at a time lie in different banks.
template <int kColumns>
constexpr int kPitch = kColumns + 8;

// Where a lane's row of load_matrices starts in 16 rows from `tile` on, 16 columns: matrices by rows, then columns. As
// such an A, or transposed the B of two neighbouring products with these rows.
template <int kColumns, typename T>
__device__ __forceinline__ const T* rows_first(const T* tile, int column) {
  const int lane = int(threadIdx.x) % kWarp;
  return tile + lane % 16 * kPitch<kColumns> + column + lane / 16 * 8;
}

// The same by columns, then rows: the B of two neighbouring products with the transposed rows.
template <int kColumns, typename T>
__device__ __forceinline__ const T* columns_first(const T* tile, int column) {
  const int lane = int(threadIdx.x) % kWarp;
  return tile + (lane % 8 + lane / 16 * 8) * kPitch<kColumns> + column + lane / 8 % 2 * 8;
}

// 16 rows as A, in registers.
template <typename T, int kColumns>
struct HeldRows {
  unsigned values[kColumns / kMma][4];

  __device__ __forceinline__ void load(const T* tile) {
#pragma unroll
    for (int k = 0; k < kColumns / kMma; ++k) load_matrices<false>(values[k], rows_first<kColumns>(tile, k * kMma));
  }
  __device__ __forceinline__ void fragment(unsigned (&a)[4], int k) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = values[k][i];
  }
};

// The same, left where they are.
template <typename T, int kColumns>
struct SharedRows {
  const T* tile;

  __device__ __forceinline__ void load(const T* from) { tile = from; }
  __device__ __forceinline__ void fragment(unsigned (&a)[4], int k) const {
    load_matrices<false>(a, rows_first<kColumns>(tile, k * kMma));
  }
};

// c = 16 rows times the 16 transposed rows of a tile.
template <typename T, int kColumns, template <typename, int> class A>
__device__ __forceinline__ void multiply_transposed(float (&c)[2][4], const A<T, kColumns>& rows, const T* tile) {
#pragma unroll
  for (int i = 0; i < 8; ++i) c[i / 4][i % 4] = 0;
#pragma unroll
  for (int k = 0; k < kColumns / kMma; ++k) {
    unsigned a[4], b[4];
    rows.fragment(a, k);
    load_matrices<false>(b, columns_first<kColumns>(tile, k * kMma));
    mma<T>(c[0], a, b[0], b[1]);
    mma<T>(c[1], a, b[2], b[3]);
  }
}

// sum += a times the 16 rows of a tile.
template <typename T, int kColumns>
__device__ __forceinline__ void multiply_add(float (&sum)[kColumns / 8][4], const unsigned (&a)[4], const T* tile) {
#pragma unroll
  for (int k = 0; k < kColumns / kMma; ++k) {
    unsigned b[4];
    load_matrices<true>(b, rows_first<kColumns>(tile, k * kMma));
    mma<T>(sum[2 * k], a, b[0], b[1]);
    mma<T>(sum[2 * k + 1], a, b[2], b[3]);
  }
}

// A 16 x 16 C, rounded, as A.
template <typename T>
__device__ __forceinline__ void as_fragment(unsigned (&a)[4], const float (&c)[2][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = rounded_pair<T>(c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1]);
}

}  // namespace prograd::cuda
