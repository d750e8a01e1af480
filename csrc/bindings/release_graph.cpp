#include "release_graph.h"

#include <torch/csrc/autograd/function.h>

#include <unordered_set>

namespace prograd {

using torch::autograd::Node;

void release_graph(const std::vector<at::Tensor>& losses) {
  std::vector<Node*> nodes;  // the losses own the first ones, and nodes own those behind them
  std::unordered_set<Node*> seen;
  const auto add = [&](Node* node) {
    if (node && seen.insert(node).second) nodes.push_back(node);
  };
  for (const at::Tensor& loss : losses) add(loss.grad_fn().get());
  for (size_t i = 0; i < nodes.size(); ++i) {
    for (const torch::autograd::Edge& edge : nodes[i]->next_edges()) add(edge.function.get());
  }
  for (Node* node : nodes) node->release_variables();
}

}  // namespace prograd
