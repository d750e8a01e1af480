// Frees what losses' graphs have saved, as `loss.backward()` does.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace prograd {

// A later backward through these graphs is PyTorch's own error "backward through the graph a second time".
void release_graph(const std::vector<at::Tensor>& losses);

}  // namespace prograd
