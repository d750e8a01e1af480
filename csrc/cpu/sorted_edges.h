// The edges of a graph, sorted by one of their ends.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

#include "../common/math.h"

namespace prograd::cpu {

// Those of a node are order[starts[node]] ... order[starts[node + 1] - 1].
struct Ends {
  const std::int64_t *starts, *order;

  // Calls body(e) for the edges of a node.
  template <typename Body>
  PF_HOST_DEVICE void each(std::int64_t node, Body body) const {
    for (std::int64_t k = starts[node]; k < starts[node + 1]; ++k) body(order[k]);
  }
};

// Sorts them; each node's stay in their order.
class SortedEdges {
 public:
  SortedEdges(const std::int64_t* ends, std::int64_t edges, std::int64_t nodes) : starts_(nodes + 1), order_(edges) {
    for (std::int64_t e = 0; e < edges; ++e) ++starts_[ends[e] + 1];
    std::partial_sum(starts_.begin(), starts_.end(), starts_.begin());
    std::vector<std::int64_t> places(starts_.begin(), starts_.end() - 1);
    for (std::int64_t e = 0; e < edges; ++e) order_[places[ends[e]]++] = e;
  }
  Ends ends() const { return {starts_.data(), order_.data()}; }

 private:
  std::vector<std::int64_t> starts_, order_;
};

}  // namespace prograd::cpu
