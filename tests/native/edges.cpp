// Sums along the edges of a graph, and their backward.
#include "../../csrc/cpu/edges.h"

#include "native.h"

namespace {

void test_edges(const Case& c) {
  const std::int64_t rows[6] = {0, 0, 1, 2, 2, 2}, columns[6] = {0, 2, 1, 0, 1, 2}, nodes = 3, edges = 6;
  const SortedEdges by_row(rows, edges, nodes), by_column(columns, edges, nodes);
  for (const bool transposed : {false, true}) {
    double results[2][5] = {};
    for (int side = 0; side < 2; ++side) {
      std::mt19937 random(4);
      const Storage storage = accumulation_of(c.storage);
      const std::int64_t n = nodes * c.n;
      Buffer own(storage, n, c.shift), other(storage, n), gradient(storage, n, c.shift), y(storage, n, c.shift);
      Buffer d_own(storage, n), d_other(storage, n, c.shift);
      Buffer logits(storage, edges), shares(storage, edges), d_logits(storage, edges);
      Buffer scratch(storage, std::max(2 * nodes, nodes + 2 * c.n));
      own.fill(random), other.fill(random), gradient.fill(random), logits.fill(random);
      const Edges graph{rows,
                        columns,
                        edges,
                        nodes,
                        c.n,
                        transposed,
                        transposed ? by_column.ends() : by_row.ends(),
                        transposed ? by_row.ends() : by_column.ends()};
      const auto& kernels = c.kernels<EdgeKernels>(side);
      kernels.shares(graph, logits.data(), shares.data(), scratch.data());
      const bool past_caches = side == 1;
      kernels.sum(graph, own.data(), other.data(), shares.data(), y.data(), scratch.data(), past_caches);
      kernels.backward(graph, gradient.data(), own.data(), other.data(), shares.data(), d_own.data(), d_other.data(),
                       d_logits.data(), scratch.data(), past_caches);
      const double got[5] = {shares[5], y[n - 1], d_own[n - 1], d_other[0], d_logits[3]};
      std::memcpy(results[side], got, sizeof got);
    }
    const char* names[5] = {"share", "sum", "gradient of own", "gradient of other", "gradient of a logit"};
    for (int i = 0; i < 5; ++i) c.agree(names[i], results[1][i], results[0][i], 10);
  }
}

const Test cases(test_edges);

}  // namespace
