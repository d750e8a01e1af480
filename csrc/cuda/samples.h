// The launchers of sampled_cross_entropy_out and sampled_log_probs_out; see launch.h. logits: (samples, rows, classes).
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/types.h"

namespace prograd::cuda {

size_t samples_workspace(Storage storage, int64_t samples, int64_t rows);

// losses: (rows,) for Reduction::none, else (); cotangents as the logits, both in the arithmetic type.
void sampled_cross_entropy(Storage storage, const void* logits, const int64_t* labels, int64_t samples, int64_t rows,
                           int64_t classes, Reduction reduction, void* losses, void* cotangents, void* workspace,
                           void* stream);

// log_probs: (rows, classes) in the arithmetic type.
void sampled_log_probs(Storage storage, const void* logits, int64_t samples, int64_t rows, int64_t classes,
                       void* log_probs, void* workspace, void* stream);

}  // namespace prograd::cuda
