// The kernels of difference_loss_out and structure_loss_out.
#pragma once

#include "dispatch.h"

namespace prograd::cpu {

struct Difference {
  const void *prediction, *target;
  void* cotangents;  // in the accumulation dtype
  bool soft_wing;
  double omega1, omega2, epsilon, factor;
};

// The edges of a graph by one of their ends: those of a node are starts[node] ... starts[node + 1] - 1.
struct WeightedEdges {
  const std::int64_t *starts, *others;  // others: the nodes at the other ends
  const float* weights;                 // 1 over the number of edges of the row
};

// Samples of landmarks, (samples, nodes, axes), and a graph.
struct Landmarks {
  const void *prediction, *target;
  void *of_points, *of_offsets;  // cotangents, in the accumulation dtype
  WeightedEdges by_row, by_column;
  std::int64_t samples, nodes, axes;
  double omega1, omega2, epsilon, factor;
  bool past_caches;
};

struct DifferenceKernels {
  // Sum of f(prediction - target) over n elements, f the square or Soft Wing's function; cotangents = factor f'.
  double (*loss)(const Difference&, std::int64_t n);
  // Adds up Soft Wing's function of the points, and of their offsets from the mean of their neighbours. Scratch: 3
  // nodes axes registers, at a multiple of their size.
  void (*structure)(const Landmarks&, void* scratch, double* points, double* offsets);
};

}  // namespace prograd::cpu
