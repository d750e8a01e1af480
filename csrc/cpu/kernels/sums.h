// Long sums. A float that takes up one number after another rounds away more of each the larger it has become, and of
// equal numbers always in the same direction. So a float adds up no more than `run` numbers, and doubles add up the
// floats. Included by the kernels alone.
#pragma once

#include <cstdint>

#include "vector.h"

namespace prograd::cpu {
namespace {

constexpr std::int64_t run = 16;  // numbers for one lane of a register

// Calls body(begin, end) for parts of n elements whose sum a register of T may add up.
template <typename T, typename Body>
PF_HOST_DEVICE void each_run(std::int64_t n, const Body& body) {
  constexpr std::int64_t step = run * lanes<T>;
  std::int64_t i = 0;
  for (; i + step <= n; i += step) body(i, i + step);
  if (i < n) body(i, n);
}

}  // namespace
}  // namespace prograd::cpu
