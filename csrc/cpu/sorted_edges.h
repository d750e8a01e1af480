// Sorts the edges of a graph by one of their ends.
#pragma once

#include <numeric>
#include <vector>

#include "ends.h"

namespace prograd::cpu {

// Each node's are in their order.
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
