// A kernel that touches one element, for the tests of the pages around tensors.
#include "../../../csrc/cuda/platform.cuh"

#include "harness.h"

static void touch(float* values, int64_t index, bool write) {
  if (threadIdx.x != 0) return;
  if (write) values[index] = 1;
  else if (static_cast<volatile float*>(values)[index] == 12345.0f) values[0] = 2;
}

PF_EXPORT const char* simt_touch(float* values, int64_t index, bool write) {
  return caught([&] { launch(touch, 1, 32, 0, false, nullptr, values, index, write); });
}

PF_EXPORT const char* simt_touch_on_the_host(const float* values) {
  return caught([&] {
    if (*static_cast<const volatile float*>(values) == 12345.0f) throw simt::Fault("no such value");
  });
}
