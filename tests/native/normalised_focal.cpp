// The normalised focal loss.
#include "../../csrc/cpu/normalised_focal.h"

#include <utility>

#include "native.h"

namespace {

void test_focal(const Case& c) {
  for (const auto& [gamma, max_mult] : {std::pair(0.5, 1.5), {1.0, 1.5}, {2.0, 1.5}, {0.5, -1.0}, {2.0, -1.0}}) {
    double results[2][2] = {};
    for (int side = 0; side < 2; ++side) {
      std::mt19937 random(6);
      Buffer z(c.storage, c.n, c.shift), cotangents(accumulation_of(c.storage), c.n, c.shift);
      z.fill(random);
      std::vector<std::int64_t> labels(c.n);
      for (std::int64_t i = 0; i < c.n; ++i) labels[i] = i % 3 - (i % 7 == 0 ? 1 : 0) > 0 ? 1 : (i % 5 == 0 ? -1 : 0);
      const Mask mask{z.data(), labels.data(), cotangents.data(), c.n, 0.3, gamma, max_mult, 1e-12};
      results[side][0] = c.kernels<FocalKernels>(side).loss(mask);
      results[side][1] = cotangents[c.n - 1];
    }
    c.agree("focal loss", results[1][0], results[0][0], 10);
    c.agree("focal cotangent", results[1][1], results[0][1], 10);
  }
}

// NaN, for whoever sees it to look for the label.
void test_unknown_labels(const Case& c) {
  for (const std::int64_t wrong : {2, -2, 255}) {
    for (const double max_mult : {-1.0, 2.0}) {
      Buffer z(c.storage, c.n, c.shift), cotangents(accumulation_of(c.storage), c.n, c.shift);
      z.fill_with(0.5);
      std::vector<std::int64_t> labels(c.n, -1);
      labels[c.n / 2] = wrong;
      const Mask mask{z.data(), labels.data(), cotangents.data(), c.n, 0.3, 2, max_mult, 1e-12};
      const double loss = c.kernels<FocalKernels>(1).loss(mask);
      check(std::isnan(loss), c.set, "focal loss with an unknown label", loss, NAN);
    }
  }
}

const Test cases(test_focal);
const Test unknown_labels(test_unknown_labels);

}  // namespace
