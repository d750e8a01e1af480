// Steps of AdamW and SGD.
#include "../../csrc/cpu/updates.h"

#include "native.h"

namespace {

void test_updates(const Case& c) {
  for (const bool wide_moments : {false, true}) {
    const Storage moments = wide_moments ? accumulation_of(c.storage) : c.storage;
    for (int variant = 0; variant < 8; ++variant) {
      const bool conflict = variant & 1, amsgrad = variant & 2, momentum = variant & 4;
      double results[2][2] = {};
      for (int side = 0; side < 2; ++side) {
        const auto& kernels = c.kernels<UpdateKernels>(side);
        std::mt19937 random(variant);
        Buffer p(c.storage, c.n, c.shift), a(c.storage, c.n, c.shift), b(c.storage, c.n), m(moments, c.n),
            v(moments, c.n), largest(moments, c.n, c.shift);
        for (Buffer* buffer : {&p, &a, &b, &m, &v, &largest}) buffer->fill(random);
        v.positive(), largest.positive();
        const double beta = conflict ? -0.3 : 0;
        kernels.adamw(wide_moments,
                      {p.data(), a.data(), b.data(), m.data(), v.data(), amsgrad ? largest.data() : nullptr}, c.n,
                      AdamW<double>::at(3, 1e-2, 0.9, 0.99, 1e-8, 0.1), 1, beta);
        kernels.sgd(wide_moments, {p.data(), a.data(), b.data(), momentum ? m.data() : nullptr}, c.n,
                    SGD<double>{1e-2, momentum ? 0.9 : 0, 0.9, 0.1, conflict, amsgrad}, 1, beta);
        const std::int64_t last = c.n - 1;
        results[side][0] = p[last];
        results[side][1] = m[last / 2];
      }
      c.agree("parameter", results[1][0], results[0][0]);
      c.agree("moment", results[1][1], results[0][1]);
    }
  }
}

const Test cases(test_updates);

}  // namespace
