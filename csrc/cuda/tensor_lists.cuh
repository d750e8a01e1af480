// Lists of tensors, cut into chunks: one block works on one chunk at a time. The cuts depend on the sizes alone, so
// that sums come out the same on every device.
#pragma once

#include <algorithm>
#include <vector>

#include "tensor_lists.h"
#include "vector.cuh"

namespace prograd::cuda {

constexpr int kThreads = 512;
constexpr int kEach = 16;  // elements of a chunk that one thread has
constexpr int kChunk = kThreads * kEach;
template <typename T>
constexpr int kBlocks = sizeof(T) == 8 ? 1 : 2;  // that a multiprocessor must have the registers for

// A launch takes a whole list in its arguments, so that a CUDA graph keeps the addresses. CUDA 12.1 raised their limit
// from 4 KB to 32,764 bytes; short lists have the smaller table, as all arguments are copied at each launch.
constexpr int kFewTensors = 40;
#if defined(__CUDACC__) && CUDART_VERSION < 12010
constexpr int kManyTensors = kFewTensors;
#else
constexpr int kManyTensors = 400;
#endif

// The part of a list of tensors that one launch works on. Its chunks are blocks of a grid: 32 bits number them.
template <int kCapacity>
struct Table {
  Operands tensors[kCapacity];
  unsigned first_chunk[kCapacity + 1];  // within this table; the last is their number
  unsigned first_unit[kCapacity];       // within this table
  bool aligned[kCapacity];              // every chunk of every pointer starts on 16 bytes
  int64_t units_before, chunks_before;  // in the tables before this one
  int64_t chunks_of_all;                // in all tables
  int64_t elements;
  int count;
  bool global;          // all tensors are one unit
  bool split_units;     // some unit has several chunks
  bool one_chunk_each;  // each tensor is one chunk
  int threads;          // of a block: enough for the largest unit

  __host__ __device__ int64_t chunks() const { return first_chunk[count]; }
};
static_assert(sizeof(Table<kFewTensors>) + 256 <= 4096, "leaves room for the other arguments");
static_assert(sizeof(Table<kManyTensors>) + 256 <= 32764, "leaves room for the other arguments");

// Where one chunk lies.
struct Chunk {
  int tensor;
  int64_t offset;  // its first element
  int size;
  int64_t unit;
  int64_t first, number;  // of the chunks of its unit, counted over all tables
  int64_t index;          // of this one
};

__host__ __device__ inline int64_t chunks_of(int64_t unit_size) {
  return unit_size <= kChunk ? 1 : (unit_size + kChunk - 1) / kChunk;  // an empty unit has one: its entries are zero
}

// index: within the table.
template <int kCapacity>
__device__ Chunk find_chunk(const Table<kCapacity>& table, int64_t index) {
  int t = 0;
  for (int end = table.count; end - t > 1;) {  // the last tensor that begins at this chunk or before: it is not empty
    const int middle = (t + end) / 2;
    if (index >= table.first_chunk[middle]) t = middle;
    else end = middle;
  }
  const int64_t unit_size = table.tensors[t].unit_size, of_unit = chunks_of(unit_size);
  const int64_t within = index - table.first_chunk[t], unit = within / of_unit, part = within - unit * of_unit;
  const int64_t left = unit_size - part * kChunk;
  Chunk chunk;
  chunk.tensor = t;
  chunk.offset = unit * unit_size + part * kChunk;
  chunk.size = int(left < kChunk ? left : kChunk);
  chunk.unit = table.global ? 0 : table.units_before + table.first_unit[t] + unit;
  chunk.index = table.chunks_before + index;
  chunk.first = table.global ? 0 : chunk.index - part;
  chunk.number = table.global ? table.chunks_of_all : of_unit;
  return chunk;
}

inline bool all_aligned(const Tensor& tensor, int vector) {
  const bool rows = tensor.units == 1 || tensor.unit_size % vector == 0;
  return rows && is_aligned(tensor.task) && is_aligned(tensor.general) && is_aligned(tensor.param) &&
         is_aligned(tensor.state[0]) && is_aligned(tensor.state[1]) && is_aligned(tensor.state[2]);
}

// Units and chunks of a list.
struct Counts {
  int64_t units = 0, chunks = 0;

  Counts(const Tensor* tensors, int count, Scope scope) {
    for (int t = 0; t < count; ++t) {
      units += tensors[t].units;
      chunks += tensors[t].units * chunks_of(tensors[t].unit_size);
    }
    if (scope == Scope::global) units = 1;
  }
};

// vector: elements of a 16-byte access.
template <int kCapacity>
std::vector<Table<kCapacity>> make_tables(const Tensor* tensors, int count, Scope scope, int vector) {
  std::vector<Table<kCapacity>> tables((count + kCapacity - 1) / kCapacity);
  const Counts all(tensors, count, scope);
  int64_t units = 0, chunks = 0;
  for (size_t i = 0; i < tables.size(); ++i) {
    Table<kCapacity>& table = tables[i];
    table.count = std::min(kCapacity, count - int(i) * kCapacity);
    table.global = scope == Scope::global;
    table.units_before = units;
    table.chunks_before = chunks;
    table.chunks_of_all = all.chunks;
    table.one_chunk_each = true;
    int64_t largest = 0;
    table.first_chunk[0] = table.elements = 0;
    for (int t = 0; t < table.count; ++t) {
      const Tensor& tensor = tensors[i * kCapacity + t];
      const int64_t of_tensor = tensor.units * chunks_of(tensor.unit_size);
      table.tensors[t] = tensor;
      table.aligned[t] = all_aligned(tensor, vector);
      table.first_unit[t] = unsigned(units - table.units_before);
      table.first_chunk[t + 1] = unsigned(table.first_chunk[t] + of_tensor);
      table.one_chunk_each = table.one_chunk_each && of_tensor == 1;
      table.elements += tensor.units * tensor.unit_size;
      units += tensor.units;
      largest = std::max(largest, tensor.unit_size);
    }
    table.split_units = table.global ? all.chunks > 1 : largest > kChunk;
    chunks += table.chunks();
    const int64_t wanted = (largest + vector * kWarp - 1) / (vector * kWarp) * kWarp;
    table.threads = int(std::min<int64_t>(std::max<int64_t>(wanted, kWarp), kThreads));
  }
  return tables;
}

// Whether the driver takes arguments beyond 4 KB.
inline bool takes_large_tables() {
#ifdef __CUDACC__
  int version;
  check(cudaDriverGetVersion(&version));
  return version >= 12010;
#else
  return true;
#endif
}

// Calls function(tables) with as few tables as the list needs.
template <typename Function>
void with_tables(const Tensor* tensors, int count, Scope scope, int vector, Function function) {
  if (count <= kFewTensors || !takes_large_tables()) function(make_tables<kFewTensors>(tensors, count, scope, vector));
  else function(make_tables<kManyTensors>(tensors, count, scope, vector));
}

// What the operators on lists of tensors need besides their arguments.
template <typename A>
struct Workspace {
  A* partials;             // three for each chunk
  unsigned* unit_tickets;  // 0 at the start, as the next
  unsigned* step_tickets;  // one for each table; here for as many as there can be
  size_t ticket_bytes, bytes;

  Workspace(void* memory, const Tensor* tensors, int count, Scope scope) {
    const Counts all(tensors, count, scope);
    partials = static_cast<A*>(memory);
    unit_tickets = reinterpret_cast<unsigned*>(partials + 3 * all.chunks);
    step_tickets = unit_tickets + all.units;
    ticket_bytes = sizeof(unsigned) * size_t(all.units + (count + kFewTensors - 1) / kFewTensors);
    bytes = sizeof(A) * size_t(3 * all.chunks) + ticket_bytes;
  }
};

// ---- both gradients of a chunk, a part of kVector elements of each thread at a time

template <typename T>
constexpr int kParts = kEach / kVector<T>;

// First of the elements of this thread in part p.
template <typename T>
__device__ __forceinline__ int part_begin(int p) {
  return int(p * blockDim.x + threadIdx.x) * kVector<T>;
}

template <typename T>
struct Gradients {
  Pack<T> task, general;

  template <int kCapacity>
  __device__ __forceinline__ void read(const Table<kCapacity>& table, const Chunk& chunk, int p) {
    const Operands& tensor = table.tensors[chunk.tensor];
    const int at = part_begin<T>(p);
    const bool aligned = table.aligned[chunk.tensor];
    cuda::read(task, static_cast<const T*>(tensor.task) + chunk.offset + at, 0, chunk.size - at, aligned);
    cuda::read(general, static_cast<const T*>(tensor.general) + chunk.offset + at, 0, chunk.size - at, aligned);
  }

  // For arithmetic.
  __device__ __forceinline__ void widened(Accumulation<T> (&a)[kVector<T>], Accumulation<T> (&b)[kVector<T>]) const {
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      a[i] = widen(task.values[i]);
      b[i] = widen(general.values[i]);
    }
  }
};

// Where a block keeps the gradients of its one chunk: each thread has a place for each of its parts.
template <typename T>
__device__ __forceinline__ void keep_part(int p, const Gradients<T>& part) {
  Pack<T>* kept = dynamic_shared<Pack<T>>() + p * blockDim.x + threadIdx.x;
  kept[0] = part.task;
  kept[kParts<T> * blockDim.x] = part.general;
}

template <typename T>
__device__ __forceinline__ Gradients<T> kept_part(int p) {
  const Pack<T>* kept = dynamic_shared<Pack<T>>() + p * blockDim.x + threadIdx.x;
  return {kept[0], kept[kParts<T> * blockDim.x]};
}

template <typename T>
size_t kept_bytes(int threads) {
  return sizeof(Gradients<T>) * kParts<T> * threads;
}

}  // namespace prograd::cuda
