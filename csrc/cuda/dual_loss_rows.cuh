// What both loss operators share: the state of a row of logits while its classes come in, and the end of a batch.
#pragma once

#include "../formulas/dual_loss.h"
#include "dual_loss.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace prograd::cuda {

// LossOptions with types.
template <typename A>
struct Losses {
  const int64_t* labels;
  const A* teacher_offset;
  const A* task_weight;
  const A* general_weight;
  A temperature;
  bool soft_ce;
  Reduction reduction;
  int64_t rows, classes;
  A* losses;
  int64_t* correct;
  A* row_losses;  // (2, rows): losses itself where there is no reduction
  int* row_correct;
  unsigned* ticket;

  // The factor of a row's cotangents.
  __device__ A cotangent_weight(const A* weight, int64_t row) const {
    const A factor = weight ? weight[row] : A(1);
    return reduction == Reduction::mean ? factor / A(rows) : factor;
  }

  __device__ int64_t label(int64_t row) const {
    const int64_t label = labels[row];
    PF_CHECK(label >= 0 && label < classes);
    return label;
  }
};

// Part of a row: its sums, and the first of its largest student logits.
template <typename A>
struct RowPart {
  DualLossSums<A> sums;
  int best = 0;

  // Consecutive classes: c, c + 1 ... An absent class is -inf in both.
  template <int N>
  __device__ __forceinline__ void add(const A (&z)[N], const A (&t)[N], int c, const Losses<A>& losses) {
    const A inverse = A(1) / losses.temperature;
    A z_max = sums.student_max, t_max = sums.teacher_max;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (z[i] > z_max) best = c + i;
      z_max = larger(z_max, z[i]);
      t_max = larger(t_max, t[i]);
    }
    if (z_max > sums.student_max || t_max > sums.teacher_max) {
      sums = sums.relative_to(z_max, t_max, inverse, losses.soft_ce);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) sums.add(z[i], t[i], inverse, losses.soft_ce);
  }

  __device__ __forceinline__ RowPart merged(const RowPart& other, const Losses<A>& losses) const {
    RowPart both;
    both.sums = DualLossSums<A>::merged(sums, other.sums, A(1) / losses.temperature, losses.soft_ce);
    const bool tie = sums.student_max == other.sums.student_max;
    const bool mine = tie ? best < other.best : sums.student_max > other.sums.student_max;
    both.best = mine ? best : other.best;
    return both;
  }

  __device__ __forceinline__ RowPart from_lane(int offset) const {
    RowPart other;
    other.sums.student_max = __shfl_xor_sync(kFullMask, sums.student_max, offset);
    other.sums.teacher_max = __shfl_xor_sync(kFullMask, sums.teacher_max, offset);
    other.sums.student_sum = __shfl_xor_sync(kFullMask, sums.student_sum, offset);
    other.sums.student_sum_t = __shfl_xor_sync(kFullMask, sums.student_sum_t, offset);
    other.sums.teacher_sum = __shfl_xor_sync(kFullMask, sums.teacher_sum, offset);
    other.sums.cross = __shfl_xor_sync(kFullMask, sums.cross, offset);
    other.best = __shfl_xor_sync(kFullMask, best, offset);
    return other;
  }

  // By one thread, once the row is complete.
  __device__ void write(int64_t row, int64_t label, A z_label, const Losses<A>& losses) const {
    const A task = sums.task(z_label), general = sums.general(losses.temperature, losses.soft_ce);
    losses.row_losses[row] = losses.task_weight ? task * losses.task_weight[row] : task;
    losses.row_losses[losses.rows + row] = losses.general_weight ? general * losses.general_weight[row] : general;
    losses.row_correct[row] = best == label;
  }
};

// Sums over the rows, by the last block, in an order that depends on their number alone.
template <typename A>
__device__ void finish_batch(const Losses<A>& losses) {
  Sums<A, 2> sums;
  Sums<long long, 1> correct;
  for (int64_t row = threadIdx.x; row < losses.rows; row += blockDim.x) {
    sums.values[0] += losses.row_losses[row];
    sums.values[1] += losses.row_losses[losses.rows + row];
    correct.values[0] += losses.row_correct[row];
  }
  sums = block_sum(sums);
  correct = block_sum(correct);
  if (threadIdx.x != 0) return;
  *losses.correct = correct.values[0];
  if (losses.reduction == Reduction::none) return;
  for (int k = 0; k < 2; ++k) {
    losses.losses[k] = losses.reduction == Reduction::mean ? sums.values[k] / A(losses.rows) : sums.values[k];
  }
}

// Memory: two losses and one count for each row, and a ticket.
template <typename A>
size_t losses_workspace(int64_t rows) {
  return sizeof(A) * 2 * rows + sizeof(int) * rows + sizeof(unsigned);
}

template <typename A>
Losses<A> make_losses(const LossOptions& options, int64_t rows, int64_t classes, void* workspace) {
  A* of_rows = static_cast<A*>(workspace);
  int* correct = reinterpret_cast<int*>(of_rows + 2 * rows);
  return {options.labels,
          static_cast<const A*>(options.teacher_offset),
          static_cast<const A*>(options.task_weight),
          static_cast<const A*>(options.general_weight),
          A(options.temperature),
          options.soft_ce,
          options.reduction,
          rows,
          classes,
          static_cast<A*>(options.losses),
          options.correct,
          options.reduction == Reduction::none ? static_cast<A*>(options.losses) : of_rows,
          correct,
          reinterpret_cast<unsigned*>(correct + rows)};
}

}  // namespace prograd::cuda
