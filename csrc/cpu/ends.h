// The edges of a graph, sorted by one of their ends.
#pragma once

#include <cstdint>

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

}  // namespace prograd::cpu
