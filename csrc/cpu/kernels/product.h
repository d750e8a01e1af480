// Matrix products whose sums have one order. Included by the kernels alone.
//
// Element (i, j) of A B is the sum of a_ik b_kj over k. Its terms are added one after the other, k = 0 first; a sum of
// more than `depth_block` terms in packed_product (linear_dual_loss.cpp) is a sum of such blocks. So the bits of a
// result depend on the depth, and on whether the instruction set rounds a product before it adds it. They do not depend
// on how many rows and columns are multiplied at a time, on where the matrices lie, or on the thread. A matrix library
// promises less: it may choose its blocks by the number of threads.
#pragma once

#include <cstdint>

#include "vector.h"

namespace prograd::cpu {
namespace {

// Adds A B to sums, `rows` x `vectors` registers. A's elements lie anywhere, B's rows are contiguous.
template <int rows, int vectors, typename T>
PF_HOST_DEVICE void add_product(std::int64_t depth, const T* a, std::int64_t a_row, std::int64_t a_column, const T* b,
                                std::int64_t b_row, Vector<T> (&sums)[rows][vectors]) {
  for (std::int64_t k = 0; k < depth; ++k) {
    Vector<T> of_b[vectors];
    for (int v = 0; v < vectors; ++v) of_b[v] = vector_at(b + k * b_row + v * lanes<T>);
    for (int i = 0; i < rows; ++i) {
      const Vector<T> x = broadcast(a[i * a_row + k * a_column]);
      for (int v = 0; v < vectors; ++v) sums[i][v] = multiply_add(x, of_b[v], sums[i][v]);
    }
  }
}

// `rows` x `vectors` registers of C (+)= A B, with B's and C's rows contiguous.
template <typename T, int rows, int vectors, bool add>
PF_HOST_DEVICE void product_tile(std::int64_t depth, const T* a, std::int64_t a_row, std::int64_t a_column, const T* b,
                                 std::int64_t b_row, T* c, std::int64_t c_row) {
  Vector<T> sums[rows][vectors];
  for (int i = 0; i < rows; ++i) {
    for (int v = 0; v < vectors; ++v) sums[i][v] = add ? vector_at(c + i * c_row + v * lanes<T>) : Vector<T>{};
  }
  add_product(depth, a, a_row, a_column, b, b_row, sums);
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
}  // namespace prograd::cpu
