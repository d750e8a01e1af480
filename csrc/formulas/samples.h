// What a mean over samples needs, for CPU and GPU code alike.
#pragma once

#include "../common/math.h"

namespace prograd {

// exp(log_prob - top) of one sample; samples that all have -inf have equal shares, as the only one has the whole.
template <typename T>
PF_HOST_DEVICE T sample_share(T log_prob, T top) {
  return log_prob == top ? T(1) : exp(log_prob - top);
}

}  // namespace prograd
