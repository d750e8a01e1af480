// Products of large matrices.
#include "../../csrc/cpu/linear_dual_loss.h"

#include "native.h"

namespace {

// A product in the layouts of the linear losses, against sums in double; and the same bits in parts.
struct ProductCase {
  InstructionSet set;
  Storage storage;
  std::int64_t rows, columns, depth;
  bool strips, transposed, add;  // A's rows are not contiguous; C's are not; C holds something already
  std::int64_t shift;            // elements from an aligned start

  Buffer random_buffer(std::int64_t n, int seed) const {
    std::mt19937 random(seed);
    Buffer buffer(storage, n, shift);
    buffer.fill(random);
    return buffer;
  }

  // C, multiplied `at_once` rows at a time; A's row `bad` and B's column `bad` begin with `value`, if bad >= 0.
  Buffer product(std::int64_t at_once, std::int64_t bad = -1, double value = 0) const {
    const std::int64_t size = size_of(storage), a_row = strips ? 1 : depth, a_column = strips ? rows : 1;
    const std::int64_t c_row = transposed ? 1 : columns, c_column = transposed ? rows : 1;
    Buffer a = random_buffer(rows * depth, 1), b = random_buffer(depth * columns, 2),
           c = random_buffer(rows * columns, 3);
    if (bad >= 0 && rows * columns * depth > 0) a.set_at(bad % rows * a_row, value), b.set_at(bad % columns, value);
    Buffer packed(storage, packed_size(depth, columns)), scratch(storage, product_scratch);
    const auto& kernels = kernels_for<ProductKernels>(set, storage);
    kernels.pack(depth, columns, b.data(), columns, 1, packed.data());
    for (std::int64_t first = 0; first < rows; first += at_once) {
      kernels.product({std::min(at_once, rows - first), columns, depth,
                       static_cast<char*>(a.data()) + first * a_row * size, a_row, a_column, packed.data(), 0.5, add,
                       static_cast<char*>(c.data()) + first * c_row * size, c_row, c_column, scratch.data()});
    }
    return c;
  }

  void test() const {
    const Buffer a = random_buffer(rows * depth, 1), b = random_buffer(depth * columns, 2),
                 before = random_buffer(rows * columns, 3), whole = product(rows);
    const Buffer in_parts = product(7), one_by_one = product(1);
    const double infinity = std::numeric_limits<double>::infinity();
    const Buffer infinite = product(rows, 1, infinity);
    const double tolerance = storage == Storage::float64 ? 1e-14 : 1e-6;
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < columns; ++j) {
        double sum = 0;
        for (std::int64_t k = 0; k < depth; ++k) {
          sum += a[strips ? k * rows + i : i * depth + k] * b[k * columns + j];
        }
        const std::int64_t at = transposed ? j * rows + i : i * columns + j;
        const double wanted = 0.5 * sum + (add ? before[at] : 0);
        check(std::fabs(whole[at] - wanted) <= tolerance * double(depth + 1), set, "product", whole[at], wanted);
        check(whole[at] == in_parts[at] && whole[at] == one_by_one[at], set, "product in parts", in_parts[at],
              whole[at]);
        if (depth == 0) continue;
        const bool touched = i == 1 % rows || j == 1 % columns;
        check(touched ? !std::isfinite(infinite[at]) : infinite[at] == whole[at], set, "product with infinities",
              infinite[at], whole[at]);
      }
    }
  }
};

void test_products(InstructionSet set) {
  // nothing; one; around tiles of 6 and 12, panels of 4 to 32, a group of panels, and blocks of 96 rows and 512 terms
  const std::int64_t sizes[][3] = {{0, 3, 2},   {3, 0, 2},    {3, 2, 0},     {1, 1, 1},    {5, 3, 2},    {6, 4, 7},
                                   {7, 5, 13},  {11, 31, 17}, {12, 32, 5},   {13, 33, 31}, {95, 15, 64}, {96, 16, 3},
                                   {97, 17, 9}, {6, 8, 511},  {13, 33, 512}, {7, 31, 513}, {3, 2, 1025}, {193, 65, 24}};
  for (const Storage storage : {Storage::float64, Storage::float32}) {
    for (const auto& [rows, columns, depth] : sizes) {
      for (int variant = 0; variant < 8; ++variant) {
        const bool strips = variant & 1, transposed = variant & 2, add = variant & 4;
        ProductCase{set, storage, rows, columns, depth, strips, transposed, add, variant % 3}.test();
      }
    }
  }
}

const Test products(test_products);

}  // namespace
