// Tensors for which the dispatcher has nothing to do but to find the kernel.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace prograd {

// Whether nothing but autograd looks at what is done to a tensor: no subclass, mode, transform or tracer.
inline bool plain(const at::Tensor& tensor) {
  constexpr c10::DispatchKeySet expected =
      c10::autograd_dispatch_keyset_with_ADInplaceOrView | c10::autocast_dispatch_keyset |
      c10::DispatchKeySet({c10::DispatchKey::Dense, c10::DispatchKey::BackendSelect});
  const auto local = c10::impl::tls_local_dispatch_key_set();
  const c10::DispatchKeySet keys = (tensor.key_set() | local.included_) - local.excluded_ - expected;
  return keys.highestFunctionalityKey() == c10::DispatchKey::Undefined && (tensor.is_cpu() || tensor.is_cuda());
}

}  // namespace prograd
