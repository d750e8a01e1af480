// The losses of a difference.
#include "../../csrc/cpu/differences.h"

#include "native.h"

namespace {

void test_differences(const Case& c) {
  for (const bool soft_wing : {false, true}) {
    double results[2][2] = {};
    for (int side = 0; side < 2; ++side) {
      std::mt19937 random(8);
      Buffer x(c.storage, c.n, c.shift), t(c.storage, c.n), cotangents(accumulation_of(c.storage), c.n, c.shift);
      x.fill(random), t.fill(random);
      const Difference difference{x.data(), t.data(), cotangents.data(), soft_wing, 0.5, 20, 0.5, 0.25};
      results[side][0] = c.kernels<DifferenceKernels>(side).loss(difference, c.n);
      results[side][1] = cotangents[c.n - 1];
    }
    c.agree("difference loss", results[1][0], results[0][0]);
    c.agree("difference cotangent", results[1][1], results[0][1]);
  }
}

struct alignas(64) Register {
  char bytes[64];
};

// Points and their offsets: three nodes of a ring, and one that has no neighbour; more samples than a register has
// lanes.
void test_structure(const Case& c) {
  const std::int64_t nodes = 4;  // edges 0-1, 0-2, 1-2, 2-0
  const std::int64_t row_starts[5] = {0, 2, 3, 4, 4}, columns[4] = {1, 2, 2, 0};
  const std::int64_t column_starts[5] = {0, 1, 2, 4, 4}, rows[4] = {2, 0, 0, 1};
  const float of_rows[4] = {0.5f, 0.5f, 1, 1}, of_columns[4] = {1, 0.5f, 0.5f, 1};
  const std::int64_t samples = c.n < 64 ? 19 : 2;
  const std::int64_t n = samples * nodes * c.n;
  std::vector<double> results[2];
  for (int side = 0; side < 2; ++side) {
    std::mt19937 random(8);
    const Storage accumulation = accumulation_of(c.storage);
    Buffer x(c.storage, n, c.shift), t(c.storage, n), of_points(accumulation, n, c.shift), of_offsets(accumulation, n);
    std::vector<Register> scratch(3 * nodes * c.n);
    x.fill(random), t.fill(random);
    const Landmarks landmarks{x.data(),
                              t.data(),
                              of_points.data(),
                              of_offsets.data(),
                              {row_starts, columns, of_rows},
                              {column_starts, rows, of_columns},
                              samples,
                              nodes,
                              c.n,
                              0.5,
                              20,
                              0.5,
                              0.25,
                              side == 1};
    double points = 0, offsets = 0;
    c.kernels<DifferenceKernels>(side).structure(landmarks, scratch.data(), &points, &offsets);
    results[side] = {points / double(n), offsets / double(n)};
    for (std::int64_t i = 0; i < n; ++i) results[side].insert(results[side].end(), {of_points[i], of_offsets[i]});
  }
  for (std::size_t i = 0; i < results[0].size(); ++i) {
    c.agree(i < 2 ? "structure loss" : "structure cotangent", results[1][i], results[0][i], 10);
  }
}

// Equal numbers, whose roundings all go one way; see projection.cpp.
void test_long_loss(InstructionSet set) {
  constexpr std::int64_t n = 16384;
  for (const double value : {0.1, 0.7, 1.1, 1.9, 3.3}) {
    Buffer x(Storage::float32, n), t(Storage::float32, n), cotangents(Storage::float32, n);
    x.fill_with(value), t.fill_with(-value);
    const Difference difference{x.data(), t.data(), cotangents.data(), false, 1, 1, 1, 1};
    const double got = kernels_for<DifferenceKernels>(set, Storage::float32).loss(difference, n);
    const double wanted = 4 * x[0] * x[0] * double(n);
    check(std::fabs(got / wanted - 1) < 4e-6, set, "loss of equal differences", got, wanted);
  }
}

const Test cases(test_differences);
const Test structure(test_structure);
const Test long_loss(test_long_loss);

}  // namespace
