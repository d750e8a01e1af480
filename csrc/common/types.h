// The vocabulary of all kernels, for CPU and GPU code alike. No torch header here.
#pragma once

#include <type_traits>

namespace prograd {

// What a tensor stores.
enum class Storage : int { float64, float32, bfloat16, float16 };

// What the elements of a storage type S are computed in: double for double, else float.
template <typename S>
using Accumulation = std::conditional_t<std::is_same_v<S, double>, double, float>;

// A type as a value, for functions that are called with it.
template <typename T>
struct Type {
  using type = T;
};

// The options of the operators, numbered as the operators take them.
enum class Scope : int { tensor, row, global };
enum class Reduction : int { none, mean, sum };
enum class GeluApproximation : int { none, tanh, sigmoid };

}  // namespace prograd
