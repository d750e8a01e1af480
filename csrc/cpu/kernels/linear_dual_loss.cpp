// Products of large matrices: B in panels, A in strips.
//
//   for each block of the depth    (512)
//     for each block of A's rows   (96)  stays in the second-level cache
//       for each panel of B              stays in the first-level cache, or near
//         for each tile of C             stays in registers
//
// A is read where it lies if its rows are contiguous, so that a large A is not copied for the sake of a few columns of
// B.
#include "../linear_dual_loss.h"

#include "product.h"
#include "table.h"

namespace prograd::cpu {
namespace {

template <typename T>
constexpr std::int64_t panel_columns = 2 * lanes<T>;
static_assert(panel_group % panel_columns<float> == 0 && panel_group % panel_columns<double> == 0);
constexpr int tile_rows = vector_bytes == 64 ? 12 : 6;  // as many sums as there are registers for
constexpr std::int64_t depth_block = 512, row_block = 96;
static_assert(row_block % tile_rows == 0 && row_block * depth_block == product_scratch);

// B panel by panel: each has a row for each of B's, with zeros beyond the last column.
template <typename T>
void pack_panels(std::int64_t depth, std::int64_t columns, const T* b, std::int64_t b_row, std::int64_t b_column,
                 T* packed) {
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
void packed_product(const Product& all) {
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

template <typename S>
struct Products {
  using T = Accumulation<S>;

  static void pack(std::int64_t depth, std::int64_t columns, const void* b, std::int64_t b_row, std::int64_t b_column,
                   void* packed) {
    pack_panels(depth, columns, static_cast<const T*>(b), b_row, b_column, static_cast<T*>(packed));
  }

  static constexpr ProductKernels kernels{pack, packed_product<T>};
};

}  // namespace

template <>
const ByStorage<ProductKernels> Compiled<ProductKernels>::PF_ISA = by_storage<Products>();

}  // namespace prograd::cpu
