// Rows of several samples.
#include "../../csrc/cpu/samples.h"

#include "native.h"

namespace {

void test_samples(const Case& c) {
  const Storage accumulation = accumulation_of(c.storage);
  for (const std::int64_t samples : {1, 3}) {
    double results[2][4] = {};
    for (int side = 0; side < 2; ++side) {
      std::mt19937 random(7);
      Buffer z(c.storage, samples * c.n, c.shift), cotangents(accumulation, samples * c.n, c.shift),
          scratch(accumulation, 3 * samples), log_probs(accumulation, c.n);
      z.fill(random);
      SampledRow row{z.data(), samples, c.n, c.n, cotangents.data(), scratch.data(), samples == 3};
      const auto& kernels = c.kernels<SampleKernels>(side);
      const std::int64_t label = c.n / 3;
      results[side][0] = kernels.cross_entropy(row, label, 0.5);
      kernels.log_probs(row, log_probs.data());
      results[side][1] = cotangents[label];
      results[side][2] = cotangents[samples * c.n - 1];
      results[side][3] = log_probs[c.n - 1];
    }
    const char* names[4] = {"sampled loss", "cotangent of the label", "last cotangent", "log probability"};
    for (int i = 0; i < 4; ++i) c.agree(names[i], results[1][i], results[0][i]);
  }
}

const Test cases(test_samples);

}  // namespace
