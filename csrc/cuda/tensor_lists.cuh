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
constexpr int kMaxTensors = 40;                  // of one launch: its table must fit into 4 KB of kernel arguments

// A part of a list of tensors that one launch works on.
struct Table {
  Tensor tensors[kMaxTensors];
  bool aligned[kMaxTensors];             // every chunk of every pointer starts on 16 bytes
  int64_t first_chunk[kMaxTensors + 1];  // within this table; the last is their number
  int64_t first_unit[kMaxTensors];       // within the whole list
  int64_t chunks_before;                 // in the tables before this one
  int64_t chunks_of_all;                 // in all tables
  int64_t elements;
  int count;
  bool global;       // all tensors are one unit
  bool split_units;  // some unit has several chunks
  int threads;       // of a block: enough for the largest unit

  __host__ __device__ int64_t chunks() const { return first_chunk[count]; }
};

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

__device__ inline Chunk find_chunk(const Table& table, int64_t index) {
  int t = 0;
  while (index >= table.first_chunk[t + 1]) ++t;
  const int64_t unit_size = table.tensors[t].unit_size, of_unit = chunks_of(unit_size);
  const int64_t within = index - table.first_chunk[t], unit = within / of_unit, part = within - unit * of_unit;
  const int64_t left = unit_size - part * kChunk;
  Chunk chunk;
  chunk.tensor = t;
  chunk.offset = unit * unit_size + part * kChunk;
  chunk.size = int(left < kChunk ? left : kChunk);
  chunk.unit = table.global ? 0 : table.first_unit[t] + unit;
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

// vector: elements of a 16-byte access.
inline std::vector<Table> make_tables(const Tensor* tensors, int count, Scope scope, int vector) {
  std::vector<Table> tables((count + kMaxTensors - 1) / kMaxTensors);
  int64_t unit = 0, chunks = 0;
  for (size_t i = 0; i < tables.size(); ++i) {
    Table& table = tables[i];
    table.count = std::min(kMaxTensors, count - int(i) * kMaxTensors);
    table.global = scope == Scope::global;
    table.chunks_before = chunks;
    int64_t largest = 0;
    table.first_chunk[0] = table.elements = 0;
    for (int t = 0; t < table.count; ++t) {
      const Tensor& tensor = tensors[i * kMaxTensors + t];
      table.tensors[t] = tensor;
      table.aligned[t] = all_aligned(tensor, vector);
      table.first_unit[t] = unit;
      table.first_chunk[t + 1] = table.first_chunk[t] + tensor.units * chunks_of(tensor.unit_size);
      unit += tensor.units;
      table.elements += tensor.units * tensor.unit_size;
      largest = std::max(largest, tensor.unit_size);
    }
    table.split_units = largest > kChunk;
    chunks += table.chunks();
    const int64_t wanted = (largest + vector * kWarp - 1) / (vector * kWarp) * kWarp;
    table.threads = int(std::min<int64_t>(std::max<int64_t>(wanted, kWarp), kThreads));
  }
  for (Table& table : tables) {
    table.chunks_of_all = chunks;
    if (table.global) table.split_units = chunks > 1;
  }
  return tables;
}

inline int64_t count_units(const Tensor* tensors, int count, Scope scope) {
  if (scope == Scope::global) return 1;
  int64_t units = 0;
  for (int t = 0; t < count; ++t) units += tensors[t].units;
  return units;
}

// What the operators on lists of tensors need besides their arguments.
template <typename A>
struct Workspace {
  A* partials;        // three for each chunk
  unsigned* tickets;  // one for each unit and one for each table, 0 at the start
  size_t ticket_bytes, bytes;

  Workspace(void* memory, const std::vector<Table>& tables, int64_t units) {
    const int64_t chunks = tables.empty() ? 0 : tables[0].chunks_of_all;
    partials = static_cast<A*>(memory);
    tickets = reinterpret_cast<unsigned*>(partials + 3 * chunks);
    ticket_bytes = sizeof(unsigned) * size_t(units + int64_t(tables.size()));
    bytes = sizeof(A) * size_t(3 * chunks) + ticket_bytes;
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

  __device__ __forceinline__ void read(const Table& table, const Chunk& chunk, int p) {
    const Tensor& tensor = table.tensors[chunk.tensor];
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
