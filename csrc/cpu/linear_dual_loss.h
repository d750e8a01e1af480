// The matrix products of linear_dual_loss_out and linear_cross_entropy_out. Its rows are those of dual_loss.h.
#pragma once

#include "dispatch.h"

namespace prograd::cpu {

// Columns of B whose packed panels, of whatever instruction set, can be written apart from the others.
constexpr std::int64_t panel_group = 2 * widest_register;
constexpr std::int64_t packed_size(std::int64_t depth, std::int64_t columns) {  // elements
  return depth * ((columns + panel_group - 1) / panel_group * panel_group);
}
constexpr std::int64_t product_scratch = 49152;  // elements

// C (+)= scale A B, with A (rows, depth) and C (rows, columns); element (i, k) of A is at i a_row + k a_column.
struct Product {
  std::int64_t rows, columns, depth;
  const void* a;
  std::int64_t a_row, a_column;
  const void* packed;  // B, packed_size(depth, columns) elements
  double scale;
  bool add;
  void* c;
  std::int64_t c_row, c_column;
  void* scratch;  // product_scratch elements
};

// All matrices are in the accumulation dtype of the storage.
struct ProductKernels {
  // B (depth, columns) of a product in the order in which it is read; element (k, j) is at k b_row + j b_column. Column
  // j starts at packed + j depth where j is a multiple of panel_group.
  void (*pack)(std::int64_t depth, std::int64_t columns, const void* b, std::int64_t b_row, std::int64_t b_column,
               void* packed);
  void (*product)(const Product&);
};

}  // namespace prograd::cpu
