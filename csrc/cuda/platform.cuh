// The few words that the kernels need beyond C++: from CUDA on a GPU, from tests/gpu/simt/simt.h where the tests run
// the same source on a CPU. No torch header here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../common/types.h"

#ifdef __CUDACC__

#include <assert.h>
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// A kernel parameter that is read in place, never copied to local memory.
#define PF_CONSTANT const __grid_constant__
// Declares `name` of type `type` in the shared memory of the block, uninitialised.
#define PF_SHARED(type, name)                                                               \
  __shared__ __align__(16) unsigned char name##_bytes[sizeof(::prograd::cuda::Same<type>)]; \
  auto& name = *reinterpret_cast<::prograd::cuda::Same<type>*>(name##_bytes)
#define PF_CHECK(condition) \
  if (!(condition)) __assert_fail(#condition, __FILE__, __LINE__, __func__)

#else

#include "simt.h"

#define PF_CONSTANT const
#define PF_SHARED(type, name) SIMT_SHARED(type, name)
#define PF_CHECK(condition) \
  if (!(condition)) simt::fail("failed: " #condition)

#endif

namespace prograd::cuda {

template <typename T>
using Same = T;  // lets a macro declare arrays: Same<float[32]> name

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

#ifdef __CUDACC__

template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
}

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

inline void allow_shared(const void* kernel, size_t bytes) {
  if (bytes > 48 << 10) {  // beyond 48 KB a kernel has to ask
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
  }
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device, value;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// What a block may have on this device, less the little that the kernels declare themselves.
inline size_t max_shared_bytes() { return size_t(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) - 4096; }

// Starts kernel(args...) on the stream. A cooperative launch may synchronise its grid.
template <typename... Parameters>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, bool cooperative,
            void* stream, std::common_type_t<Parameters>... args) {
  const void* entry = reinterpret_cast<const void*>(kernel);
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&args))...};
  allow_shared(entry, shared_bytes);
  const dim3 grid(static_cast<unsigned>(blocks)), block(static_cast<unsigned>(threads));
  const auto queue = static_cast<cudaStream_t>(stream);
  check(cooperative ? cudaLaunchCooperativeKernel(entry, grid, block, pointers, shared_bytes, queue)
                    : cudaLaunchKernel(entry, grid, block, pointers, shared_bytes, queue));
}

// The most blocks that can run at the same time, as a cooperative launch must.
template <typename Kernel>
int64_t resident_blocks(Kernel* kernel, int threads, size_t shared_bytes) {
  int each;
  allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, shared_bytes));
  return int64_t(device_attribute(cudaDevAttrMultiProcessorCount)) * each;
}

inline void fill_zero(void* memory, size_t bytes, void* stream) {
  check(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream)));
}

#else

template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(simt::dynamic_shared());
}

template <typename... Parameters>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, bool cooperative, void*,
            std::common_type_t<Parameters>... args) {
  simt::launch(kernel, dim3(unsigned(blocks)), dim3(unsigned(threads)), shared_bytes, cooperative, args...);
}

inline size_t max_shared_bytes() { return simt::schedule.shared_limit - 4096; }

template <typename Kernel>
int64_t resident_blocks(Kernel*, int, size_t) {
  return simt::schedule.resident_blocks;
}

inline void fill_zero(void* memory, size_t bytes, void*) {
  std::memset(memory, 0, bytes);
  ++simt::launches;  // on a GPU it takes as long as a small kernel
}

#endif

// ---- what tensors store, and its conversion to what it is computed in

using bfloat16 = __nv_bfloat16;
using float16 = __half;

__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float widen(float16 value) { return __half2float(value); }

__device__ __forceinline__ void narrow(double& out, double value) { out = value; }
__device__ __forceinline__ void narrow(float& out, float value) { out = value; }
__device__ __forceinline__ void narrow(bfloat16& out, float value) { out = __float2bfloat16_rn(value); }
__device__ __forceinline__ void narrow(float16& out, float value) { out = __float2half_rn(value); }

}  // namespace prograd::cuda
