// What a row of logits comes down to, and the end of a batch.
#pragma once

#include "../formulas/dual_loss.h"
#include "dual_loss.h"
#include "reduce.cuh"

namespace prograd::cuda {

// LossOptions with types.
template <typename A>
struct Losses {
  const int64_t* labels;
  const A* teacher_offset;
  const A* task_weight;
  const A* general_weight;
  A temperature, log2_e_t;  // T, log2(e) / T
  A kl;                     // 1, or 0 for the soft cross-entropy
  Reduction reduction;
  int64_t rows, classes;
  A *task, *general;
  int64_t* correct;
  // (rows,) each: the three above where they are not reduced
  A *row_task, *row_general;
  int64_t* row_correct;

  __device__ bool soft_ce() const { return kl == A(0); }
  __device__ bool known(int64_t label) const { return label >= 0 && label < classes; }

  // The factors of a row's cotangents.
  __device__ A task_factor(int64_t row) const {
    return known(labels[row]) ? factor(task_weight, row) : std::numeric_limits<A>::quiet_NaN();
  }
  __device__ A general_factor(int64_t row) const { return factor(general_weight, row) * temperature; }

 private:
  __device__ A factor(const A* weight, int64_t row) const {
    const A own = weight ? weight[row] : A(1);
    return reduction == Reduction::mean ? own / A(rows) : own;
  }
};

// The largest logits of a row or of a part of it. NaN: none so far.
template <typename A>
struct RowMaxima {
  A student = std::numeric_limits<A>::lowest(), teacher = std::numeric_limits<A>::lowest();
  A before = std::numeric_limits<A>::quiet_NaN();  // of the student, over the classes before the label

  __device__ __forceinline__ void add(A z, A t) {
    student = larger_number(student, z);
    teacher = larger_number(teacher, t);
  }
  __device__ __forceinline__ void add_before(A z) { before = larger_number(before, z); }

  __device__ __forceinline__ static RowMaxima over_block(const RowMaxima& mine) {
    return block_reduce(
        mine, RowMaxima{},
        [](const RowMaxima& maxima, int offset) {
          return RowMaxima{__shfl_xor_sync(kFullMask, maxima.student, offset),
                           __shfl_xor_sync(kFullMask, maxima.teacher, offset),
                           __shfl_xor_sync(kFullMask, maxima.before, offset)};
        },
        [](const RowMaxima& a, const RowMaxima& b) {
          return RowMaxima{larger_number(a.student, b.student), larger_number(a.teacher, b.teacher),
                           larger_number(a.before, b.before)};
        });
  }
};

// The sums of DualLossSums that classes add to, with the cross term in powers of 2.
template <typename A, bool unit_temperature>
struct ClassSums {
  static constexpr int kSums = unit_temperature ? 3 : 4;
  Sums<A, kSums> all;

  __device__ __forceinline__ void add(const DualLossClass<A, unit_temperature>& one, A kl) {
    all.values[0] += one.student;
    all.values[1] += one.teacher;
    all.values[2] = one.added_to(all.values[2], kl);
    if constexpr (!unit_temperature) all.values[3] += one.student_t;
  }

  __device__ __forceinline__ DualLossSums<A> over_block(const RowMaxima<A>& maxima) const {
    constexpr A ln_2 = A(0.69314718055994530942);
    const Sums<A, kSums> total = block_sum(all);
    DualLossSums<A> sums;
    sums.student_max = maxima.student;
    sums.teacher_max = maxima.teacher;
    sums.student_sum = total.values[0];
    sums.student_sum_t = total.values[kSums == 4 ? 3 : 0];
    sums.teacher_sum = total.values[1];
    sums.cross = total.values[2] * ln_2;
    return sums;
  }
};

// A part of a row that several blocks share.
template <typename A>
struct RowPart {
  DualLossSums<A> sums;
  A before;   // of RowMaxima
  A z_label;  // NaN where the label is in another part
};

// By one thread, once the row is complete. z_label: NaN where the label is no class.
template <typename A>
__device__ void write_row(const Losses<A>& losses, int64_t row, const DualLossSums<A>& sums, A before, A z_label) {
  const A task = sums.task(z_label), general = sums.general(losses.temperature, losses.soft_ce());
  losses.row_task[row] = losses.task_weight ? task * losses.task_weight[row] : task;
  losses.row_general[row] = losses.general_weight ? general * losses.general_weight[row] : general;
  // the first of the largest logits; no row with a NaN is right
  losses.row_correct[row] = z_label >= sums.student_max && !(before >= z_label) && sums.student_sum == sums.student_sum;
}

// Sums over the rows by one block, in an order that depends on their number alone.
template <typename A>
__device__ void finish_batch(const Losses<A>& losses) {
  Sums<A, 2> sums;
  Sums<long long, 1> correct;
#pragma unroll 1
  for (int64_t row = threadIdx.x; row < losses.rows; row += blockDim.x) {
    sums.values[0] += losses.row_task[row];
    sums.values[1] += losses.row_general[row];
    correct.values[0] += losses.row_correct[row];
  }
  sums = block_sum(sums);
  correct = block_sum(correct);
  if (threadIdx.x != 0) return;
  *losses.correct = correct.values[0];
  if (losses.reduction == Reduction::none) return;
  const A share = losses.reduction == Reduction::mean ? A(losses.rows) : A(1);
  *losses.task = sums.values[0] / share;
  *losses.general = sums.values[1] / share;
}

// Memory: two losses and one count for each row.
template <typename A>
size_t losses_workspace(int64_t rows) {
  return (2 * sizeof(A) + sizeof(int64_t)) * rows;
}

template <typename A>
Losses<A> make_losses(const LossOptions& options, int64_t rows, int64_t classes, void* workspace) {
  auto* row_correct = static_cast<int64_t*>(workspace);
  A* of_rows = reinterpret_cast<A*>(row_correct + rows);
  A *task = static_cast<A*>(options.task), *general = static_cast<A*>(options.general);
  const bool reduced = options.reduction != Reduction::none && rows != 1;  // one row is its own mean
  return {options.labels,
          static_cast<const A*>(options.teacher_offset),
          static_cast<const A*>(options.task_weight),
          static_cast<const A*>(options.general_weight),
          A(options.temperature),
          A(1.44269504088896340736 / options.temperature),
          A(!options.soft_ce),
          options.reduction,
          rows,
          classes,
          task,
          general,
          options.correct,
          reduced ? of_rows : task,
          reduced ? of_rows + rows : general,
          rows == 1 ? options.correct : row_correct};
}

}  // namespace prograd::cuda
