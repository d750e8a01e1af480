// GELU and its backward.
#include "../../csrc/cpu/gelu.h"

#include "native.h"

namespace {

void test_gelu(const Case& c) {
  for (const GeluApproximation approximation :
       {GeluApproximation::none, GeluApproximation::tanh, GeluApproximation::sigmoid}) {
    double results[2][3] = {};
    for (int side = 0; side < 2; ++side) {
      const auto& kernels = c.kernels<GeluKernels>(side);
      std::mt19937 random(1);
      const std::int64_t count = 2;
      Buffer x(c.storage, c.n, c.shift), out(c.storage, c.n), gradients(c.storage, count * c.n, c.shift);
      x.fill(random), gradients.fill(random);
      kernels.forward(x.data(), out.data(), c.n, approximation);
      kernels.backward(x.data(), gradients.data(), c.n, count, c.n, approximation);
      const double values[3] = {out[c.n - 1], gradients[c.n / 2], gradients[2 * c.n - 1]};
      std::memcpy(results[side], values, sizeof values);
    }
    const char* names[3] = {"gelu", "first gelu gradient", "last gelu gradient"};
    for (int i = 0; i < 3; ++i) c.agree(names[i], results[1][i], results[0][i]);
  }
}

const Test cases(test_gelu);

}  // namespace
