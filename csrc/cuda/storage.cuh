// From a storage dtype known at run time to a type.
#pragma once

#include "kernels.h"
#include "platform.cuh"

namespace prograd::cuda {

template <typename T>
struct Type {
  using type = T;
};

// Calls function(Type<T>{}) for the T of `storage`.
template <typename Function>
void with_storage(Storage storage, Function function) {
  switch (storage) {
    case Storage::float64: return function(Type<double>{});
    case Storage::float32: return function(Type<float>{});
    case Storage::bfloat16: return function(Type<bfloat16>{});
    case Storage::float16: return function(Type<float16>{});
  }
}

}  // namespace prograd::cuda
