// The local soft-argmax of one map and its backward.
#include "../../csrc/cpu/soft_argmax.h"

#include "native.h"

namespace {

void test_soft_argmax(const Case& c) {
  for (const std::int64_t window : {1, 5, 63}) {
    double results[2][4] = {};
    for (int side = 0; side < 2; ++side) {
      std::mt19937 random(3);
      const Storage accumulation = accumulation_of(c.storage);
      Buffer values(c.storage, 3 * c.n, c.shift), d_values(c.storage, 3 * c.n, c.shift);
      Buffer point(accumulation, 2), gradient(accumulation, 2);
      values.fill(random), gradient.fill(random);
      values.set_at(c.n + c.n / 2, 9);  // the peak
      const HeatMap map{values.data(), 3, c.n, window, 2.0};
      const auto& kernels = c.kernels<SoftArgmaxKernels>(side);
      const std::int64_t peak = kernels.point(map, point.data());
      check(peak == c.n + c.n / 2, c.set, "peak", double(peak), double(c.n + c.n / 2));
      kernels.backward(map, peak, gradient.data(), d_values.data(), side == 1);
      const double got[4] = {point[0], point[1], d_values[peak], d_values[3 * c.n - 1]};
      std::memcpy(results[side], got, sizeof got);
    }
    const char* names[4] = {"x", "y", "gradient of the peak", "gradient of the last value"};
    for (int i = 0; i < 4; ++i) c.agree(names[i], results[1][i], results[0][i], 10);
  }
}

const Test cases(test_soft_argmax);

}  // namespace
