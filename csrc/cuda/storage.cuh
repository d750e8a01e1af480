// From a storage dtype known at run time to a type.
#pragma once

#include "platform.cuh"

namespace prograd::cuda {

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

// The same for what T is computed in, with a result.
template <typename Function>
auto with_accumulation(Storage storage, Function function) {
  return storage == Storage::float64 ? function(Type<double>{}) : function(Type<float>{});
}

}  // namespace prograd::cuda
