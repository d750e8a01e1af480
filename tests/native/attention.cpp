// Attention with a shared prefix and its backward.
#include "../../csrc/cpu/attention.h"

#include "native.h"

namespace {

// Heads of c.n columns, which are few, in matrices with no element beyond the last row.
void test_attention(const Case& c) {
  if (c.n > 128) return;
  const Storage accumulation = accumulation_of(c.storage);
  // a segment longer than a block; one row; with the prefix around a register
  const std::vector<std::int64_t> offsets = {0, 3, 73, 74, 79};
  const std::int64_t segments = std::int64_t(offsets.size()) - 1, rows = offsets.back(), count = 2;
  for (const std::int64_t prefix : {0, 1, 17}) {
    for (const bool last : {false, true}) {
      double results[2][6] = {};
      for (int side = 0; side < 2; ++side) {
        const auto& kernels = c.kernels<AttentionKernels>(side);
        std::mt19937 random(1);
        const std::int64_t queries = last ? segments : rows, n = c.n;
        Buffer query(c.storage, queries * n, c.shift), key(c.storage, rows * n), value(c.storage, rows * n, c.shift),
            prefix_key(c.storage, prefix * n), prefix_value(c.storage, prefix * n, c.shift),
            out(c.storage, queries * n), gradient(c.storage, count * queries * n),
            d_query(c.storage, count * queries * n, c.shift), d_key(c.storage, count * rows * n),
            d_value(c.storage, count * rows * n), d_prefix(accumulation, count * 2 * prefix * n), sum(c.storage, n);
        for (Buffer* b : {&query, &key, &value, &prefix_key, &prefix_value, &gradient}) b->fill(random);
        const Attention all{query.data(),
                            key.data(),
                            value.data(),
                            prefix_key.data(),
                            prefix_value.data(),
                            n,
                            n,
                            n,
                            offsets.data(),
                            n,
                            prefix,
                            70,
                            1 / std::sqrt(double(n)),
                            last};
        Buffer scratch(accumulation, kernels.scratch(all, 0));
        kernels.forward(all, 0, segments, out.data(), n, scratch.data());
        Buffer backward_scratch(accumulation, kernels.scratch(all, count));
        kernels.backward(all,
                         {gradient.data(), d_query.data(), d_key.data(), d_value.data(), n, n, n, queries * n,
                          queries * n, rows * n, count, d_prefix.data()},
                         0, segments, backward_scratch.data());
        kernels.sum(d_prefix.data(), count * 2 * prefix, n, n, sum.data(), false);
        kernels.sum(d_prefix.data(), count * 2 * prefix, n, n, sum.data(), true);
        const double values[6] = {out[queries * n - 1],
                                  d_query[count * queries * n - 1],
                                  d_key[count * rows * n - 1],
                                  d_value[rows * n - 1],
                                  d_value[3 * n],
                                  sum[n - 1]};
        std::memcpy(results[side], values, sizeof values);
      }
      const char* names[6] = {"attention", "d_query", "d_key", "d_value", "d_value, other", "d_prefix"};
      for (int i = 0; i < 6; ++i) c.agree(names[i], results[1][i], results[0][i], 8);
    }
  }
}

const Test cases(test_attention);

}  // namespace
