// Rows of the dual loss.
#include "../../csrc/cpu/dual_loss.h"

#include "native.h"

namespace {

// Three rows: one is written while the next is computed, and the last by itself.
void test_dual_loss(const Case& c) {
  constexpr std::int64_t count = 3;
  const Storage accumulation = accumulation_of(c.storage);
  for (int variant = 0; variant < 16; ++variant) {
    double results[2][count][5] = {};
    for (int side = 0; side < 2; ++side) {
      std::mt19937 random(variant);
      Buffer z(c.storage, count * c.n, c.shift), t(c.storage, count * c.n), offset(accumulation, c.n),
          scratch(accumulation, dual_loss_scratch(c.n)), task(accumulation, count * c.n, c.shift),
          general(accumulation, count * c.n);
      for (Buffer* buffer : {&z, &t, &offset}) buffer->fill(random);
      const bool in_place = variant & 8 && c.storage == accumulation;
      Buffer &task_to = in_place ? z : task, &general_to = in_place ? t : general;
      DualLossRow rows[count] = {};
      for (std::int64_t i = 0; i < count; ++i) {
        const auto of = [&](Buffer& buffer) { return static_cast<char*>(buffer.data()) + i * c.n * buffer.size(); };
        DualLossRow& row = rows[i];
        row.student = of(z), row.teacher = of(t), row.classes = c.n, row.label = i * c.n / count;
        row.teacher_offset = variant & 1 ? offset.data() : nullptr;
        row.temperature = variant & 2 ? 2.5 : 1;
        row.soft_ce = variant & 4;
        row.task_weight = row.general_weight = 1;
        row.task_cotangent_weight = row.general_cotangent_weight = 0.5;
        row.task_cotangent = of(task_to);
        row.general_cotangent = of(general_to);
        row.stream = variant & 4;
      }
      DualLosses losses[count];
      c.kernels<DualLossKernels>(side).rows(rows, count, scratch.data(), losses);
      for (std::int64_t i = 0; i < count; ++i) {
        const double values[5] = {losses[i].task, losses[i].general, double(losses[i].correct),
                                  task_to[i * c.n + rows[i].label], general_to[(i + 1) * c.n - 1]};
        std::memcpy(results[side][i], values, sizeof values);
      }
    }
    const char* names[5] = {"task loss", "general loss", "correct", "task cotangent", "general cotangent"};
    for (std::int64_t i = 0; i < count; ++i) {
      for (int k = 0; k < 5; ++k) c.agree(names[k], results[1][i][k], results[0][i][k]);
    }
  }
}

const Test cases(test_dual_loss);

}  // namespace
