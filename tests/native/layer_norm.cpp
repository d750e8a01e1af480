// Layer norm and its backward.
#include "../../csrc/cpu/layer_norm.h"

#include "native.h"

namespace {

void test_layer_norm(const Case& c) {
  const Storage accumulation = accumulation_of(c.storage);
  double results[2][4] = {};
  for (int side = 0; side < 2; ++side) {
    const auto& kernels = c.kernels<LayerNormKernels>(side);
    std::mt19937 random(1);
    const std::int64_t rows = 2, count = 2, n = rows * c.n;
    Buffer x(c.storage, n, c.shift), branch(c.storage, n), total(c.storage, n), normed(c.storage, n, c.shift),
        weight(accumulation, c.n), bias(accumulation, c.n, c.shift), statistics(accumulation, 2 * rows),
        d_normed(c.storage, count * n, c.shift), d_total(c.storage, count * n);
    for (Buffer* buffer : {&x, &branch, &weight, &bias, &d_normed, &d_total}) buffer->fill(random, 0.5);
    kernels.forward({x.data(), branch.data(), weight.data(), bias.data(), total.data(), normed.data(),
                     statistics.data(), c.n, 1e-2},
                    0, rows);
    kernels.backward(
        {d_normed.data(), total.data(), statistics.data(), weight.data(), d_total.data(), count, rows, c.n}, 0, rows);
    const double values[4] = {total[n - 1], normed[n - 1], statistics[2 * rows - 1], d_total[count * n - 1]};
    std::memcpy(results[side], values, sizeof values);
  }
  const char* names[4] = {"total", "normed", "rstd", "d_total"};
  for (int i = 0; i < 4; ++i) c.agree(names[i], results[1][i], results[0][i], 4);
}

const Test cases(test_layer_norm);

}  // namespace
