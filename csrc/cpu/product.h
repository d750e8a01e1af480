// Matrix products whose sums have one order. Included by kernels.cpp and the kernels' headers alone.
//
// Element (i, j) of A B is the sum of a_ik b_kj over k. Its terms are added one after the other, k = 0 first; a sum of
// more than `depth_block` terms in packed_product is a sum of such blocks. So the bits of a result depend on the depth,
// and on whether the instruction set rounds a product before it adds it. They do not depend on how many rows and columns
// are multiplied at a time, on where the matrices lie, or on the thread. A matrix library promises less: it may choose
// its blocks by the number of threads.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "vector.h"

namespace prograd {
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

// ---- small products: everything is in the caches as it is

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

// ---- large products: B in panels, A in strips
//
//   for each block of the depth    (512)
//     for each block of A's rows   (96)  stays in the second-level cache
//       for each panel of B              stays in the first-level cache, or near
//         for each tile of C             stays in registers
//
// A is read where it lies if its rows are contiguous, so that a large A is not copied for the sake of a few columns of B.

template <typename T>
constexpr std::int64_t panel_columns = 2 * lanes<T>;
static_assert(panel_group % panel_columns<float> == 0 && panel_group % panel_columns<double> == 0);
constexpr int tile_rows = vector_bytes == 64 ? 12 : 6;  // as many sums as there are registers for
constexpr std::int64_t depth_block = 512, row_block = 96;
static_assert(row_block % tile_rows == 0 && row_block * depth_block == product_scratch);

// B panel by panel: each has a row for each of B's, with zeros beyond the last column.
template <typename T>
void pack(std::int64_t depth, std::int64_t columns, const T* b, std::int64_t b_row, std::int64_t b_column, T* packed) {
  constexpr std::int64_t width = panel_columns<T>;
  for (std::int64_t j = 0; j < columns; j += width, b += width * b_column, packed += width * depth) {
    const std::int64_t n = columns - j < width ? columns - j : width;
    if (n == width && b_column == 1) {
      for (std::int64_t k = 0; k < depth; ++k) {
        put(packed + k * width, vector_at(b + k * b_row));
        put(packed + k * width + lanes<T>, vector_at(b + k * b_row + lanes<T>));
      }
      continue;
    }
    for (std::int64_t c = 0; c < n; ++c) {
      for (std::int64_t k = 0; k < depth; ++k) packed[k * width + c] = b[k * b_row + c * b_column];
    }
    for (std::int64_t c = n; c < width; ++c) {
      for (std::int64_t k = 0; k < depth; ++k) packed[k * width + c] = 0;
    }
  }
}

// Rows of A column by column, with zeros beyond the last row.
template <typename T>
PF_HOST_DEVICE void pack_strip(std::int64_t rows, std::int64_t depth, const T* a, std::int64_t a_row,
                               std::int64_t a_column, T* strip) {
  for (std::int64_t k = 0; k < depth; ++k, a += a_column, strip += tile_rows) {
    if (rows == tile_rows) {
      for (int i = 0; i < tile_rows; ++i) strip[i] = a[i * a_row];
    } else {
      for (int i = 0; i < tile_rows; ++i) strip[i] = i < rows ? a[i * a_row] : T(0);
    }
  }
}

// The first rows and columns of C (+)= scale sums.
template <typename T>
PF_HOST_DEVICE void write_tile(const Vector<T> (&sums)[tile_rows][2], std::int64_t rows, std::int64_t columns, T scale,
                               bool add, T* c, std::int64_t c_row, std::int64_t c_column) {
  if (rows == tile_rows && columns == panel_columns<T> && c_column == 1) {
    for (int i = 0; i < tile_rows; ++i) {
      for (int v = 0; v < 2; ++v) {
        T* to = c + i * c_row + v * lanes<T>;
        put(to, add ? multiply_add(broadcast(scale), sums[i][v], vector_at(to)) : scale * sums[i][v]);
      }
    }
    return;
  }
  T tile[tile_rows][panel_columns<T>];
  for (int i = 0; i < tile_rows; ++i) {
    for (int v = 0; v < 2; ++v) put(tile[i] + v * lanes<T>, sums[i][v]);
  }
  for (std::int64_t j = 0; j < columns; ++j) {
    for (std::int64_t i = 0; i < rows; ++i) {
      T& to = c[i * c_row + j * c_column];
      to = add ? fused(scale, tile[i][j], to) : scale * tile[i][j];
    }
  }
}

template <typename T>
void packed_product(const Kernels::Product& all) {
  constexpr std::int64_t width = panel_columns<T>;
  const T *a = static_cast<const T*>(all.a), *packed = static_cast<const T*>(all.packed);
  T *c = static_cast<T*>(all.c), *strips = static_cast<T*>(all.scratch);
  std::int64_t k = 0;
  do {  // once where there is nothing to add up: C (+)= 0
    const std::int64_t depth = all.depth - k < depth_block ? all.depth - k : depth_block;
    for (std::int64_t first = 0; first < all.rows; first += row_block) {
      const std::int64_t end = all.rows - first < row_block ? all.rows : first + row_block;
      // body(first row of a tile, its rows, whether A is read where it lies)
      const auto each_tile = [&](const auto& body) {
        for (std::int64_t i = first; i < end; i += tile_rows) {
          const std::int64_t rows = end - i < tile_rows ? end - i : tile_rows;
          body(i, rows, all.a_column == 1 && rows == tile_rows);
        }
      };
      each_tile([&](std::int64_t i, std::int64_t rows, bool in_place) {
        if (in_place) return;
        pack_strip(rows, depth, a + i * all.a_row + k * all.a_column, all.a_row, all.a_column,
                   strips + (i - first) * depth_block);
      });
      for (std::int64_t j = 0; j < all.columns; j += width) {
        const T* panel = packed + j * all.depth + k * width;
        const std::int64_t columns = all.columns - j < width ? all.columns - j : width;
        each_tile([&](std::int64_t i, std::int64_t rows, bool in_place) {
          Vector<T> sums[tile_rows][2] = {};
          if (in_place) {
            add_product(depth, a + i * all.a_row + k, all.a_row, 1, panel, width, sums);
          } else {
            add_product(depth, strips + (i - first) * depth_block, 1, tile_rows, panel, width, sums);
          }
          write_tile(sums, rows, columns, T(all.scale), all.add || k > 0, c + i * all.c_row + j * all.c_column,
                     all.c_row, all.c_column);
        });
      }
    }
    k += depth_block;
  } while (k < all.depth);
}

}  // namespace
}  // namespace prograd
