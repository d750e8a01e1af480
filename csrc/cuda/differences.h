// The launchers of difference_loss_out and structure_loss_out; see launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/types.h"
#include "edges.h"

namespace prograd::cuda {

// factor times the sum of (prediction - target)^2, or of Soft Wing's function, and its gradient
struct DifferenceOptions {
  bool soft_wing;
  double omega1, omega2, epsilon, factor;
  void* loss;        // () in the arithmetic type
  void* cotangents;  // in the arithmetic type
};

size_t difference_loss_workspace(Storage storage, int64_t size);

void difference_loss(Storage storage, const void* prediction, const void* target, int64_t size,
                     const DifferenceOptions& options, void* workspace, void* stream);

// Landmarks (samples, nodes, axes) of a graph whose rows listen to its columns.
struct Structure {
  const void *prediction, *target;
  const int64_t *rows, *columns;  // of each edge
  int64_t samples, nodes, axes;
  Segments by_row, by_column;
  double omega1, omega2, epsilon, factor;
  void* losses;      // (2,) in the arithmetic type: of points, of offsets
  void* cotangents;  // (2, samples, nodes, axes) in the arithmetic type
};

size_t structure_loss_workspace(Storage storage, const Structure& structure);

void structure_loss(Storage storage, const Structure& structure, void* workspace, void* stream);

}  // namespace prograd::cuda
