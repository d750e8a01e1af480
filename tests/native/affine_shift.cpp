// Affine shift and its backward.
#include "../../csrc/cpu/affine_shift.h"

#include "native.h"

namespace {

// Of each period position, where it comes from in a channel of n positions; -1 where it comes from outside.
std::int64_t source(const Move& move, std::int64_t i) {
  const std::int64_t place = i % move.period - move.offset;
  return place >= 0 && place < move.period ? i - move.offset : -1;
}

void test_affine_shift(const Case& c) {
  // runs of four positions that are two apart; along the only axis; at rest; runs longer than a block
  const std::int64_t n = std::max<std::int64_t>(8, c.n / 8 * 8);
  for (const Move move : {Move{n, 2, 8}, Move{n, -2, 8}, Move{n, 1, n}, Move{n, -1, n}, Move{n, 0, n},
                          Move{7503, 2501, 7503}, Move{7503, -2501, 7503}}) {
    for (const bool past_caches : {false, true}) {
      const auto& kernels = c.kernels<AffineShiftKernels>(1);
      std::mt19937 random(1);
      const std::int64_t size = move.n;
      Buffer x(c.storage, size, c.shift), bias(c.storage, size, c.shift), out(c.storage, size, c.shift),
          d_x(c.storage, size);
      x.fill(random), bias.fill(random);
      const bool biased = move.offset != 1;
      kernels.forward(x.data(), biased ? bias.data() : nullptr, out.data(), 0.75, move, past_caches);
      const double total = kernels.backward(bias.data(), x.data(), d_x.data(), 0.5, move, past_caches);
      double sum = 0, terms = 1;
      for (std::int64_t i = 0; i < move.n; ++i) {
        const std::int64_t from = source(move, i);
        c.agree("affine shift", out[i], (from < 0 ? 0 : 0.75 * x[from]) + (biased ? bias[i] : 0), 4);
        const double h = from < 0 ? 0 : bias[from];
        c.agree("affine shift's gradient", d_x[i], 0.5 * h);
        sum += h * x[i], terms += std::fabs(h * x[i]);
      }
      c.agree("affine shift's sum", total, sum, terms);
    }
  }
}

const Test cases(test_affine_shift);

}  // namespace
