// One row of the dual loss. Included by kernels.cpp alone.
#pragma once

#include "kernels.h"
#include "storage.h"
#include "stream.h"
#include "update.h"

namespace prograd {
namespace {

// Fetch part of the next row while this one is computed: between two rows nothing else would use the memory.
inline void prefetch(const void* row, std::size_t begin, std::size_t end) {
  if (!row) return;
  for (std::size_t i = begin; i < end; i += 64) __builtin_prefetch(static_cast<const char*>(row) + i, 0, 2);
}

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

template <typename S>
Kernels::DualLosses dual_loss_row(const Kernels::DualLossRow& row) {
  using T = Accumulation<S>;
  const S* z = static_cast<const S*>(row.student);
  const S* t = static_cast<const S*>(row.teacher);
  const T* offset = static_cast<const T*>(row.teacher_offset);
  T* z_exp = static_cast<T*>(row.scratch);
  T* t_exp = z_exp + row.classes;
  T* z_exp_t = t_exp + row.classes;  // with a temperature; else the same as z_exp
  const std::int64_t classes = row.classes;
  const T temperature = T(row.temperature), inverse = T(1 / row.temperature);
  const T label_logit = load(z[row.label]);

  DualLossRow<T> sums;
  {
    T z_max = sums.student_max, t_max = sums.teacher_max;
    with_flag(offset != nullptr, [&](auto has_offset) {
#pragma omp simd reduction(max : z_max, t_max)
      for (std::int64_t c = 0; c < classes; ++c) {
        const T x = load(z[c]);
        const T y = has_offset() ? load(t[c]) + offset[c] : load(t[c]);
        z_max = x > z_max ? x : z_max;
        t_max = y > t_max ? y : t_max;
      }
    });
    sums.student_max = z_max;
    sums.teacher_max = t_max;
  }

  with_flag(offset != nullptr, [&](auto has_offset) {
    with_flag(row.temperature != 1, [&](auto tempered) {
      const T z_max = sums.student_max, t_max = sums.teacher_max;
      const bool soft_ce = row.soft_ce;
      T z_sum = 0, z_sum_t = 0, t_sum = 0, cross = 0;
      for (std::int64_t begin = 0; begin < classes; begin += stream_block) {
        const std::int64_t end = smaller(begin + stream_block, classes);
        prefetch(row.next_student, begin * sizeof(S), end * sizeof(S));
        prefetch(row.next_teacher, begin * sizeof(S), end * sizeof(S));
#pragma omp simd reduction(+ : z_sum, z_sum_t, t_sum, cross)
        for (std::int64_t c = begin; c < end; ++c) {
          T dz = load(z[c]) - z_max;
          T dt = (has_offset() ? load(t[c]) + offset[c] : load(t[c])) - t_max;
          const T s = exp(dz);
          if constexpr (tempered()) {
            dz *= inverse;
            dt *= inverse;
          }
          const T e = exp(dt);
          z_exp[c] = s;
          t_exp[c] = e;
          z_sum += s;
          t_sum += e;
          if constexpr (tempered()) {
            const T s_t = exp(dz);
            z_exp_t[c] = s_t;
            z_sum_t += s_t;
          }
          cross += DualLossRow<T>::cross_term(e, dz, dt, soft_ce);
        }
      }
      sums.student_sum = z_sum;
      sums.student_sum_t = tempered() ? z_sum_t : z_sum;
      sums.teacher_sum = t_sum;
      sums.cross = cross;
    });
  });
  if (row.temperature == 1) z_exp_t = z_exp;

  bool correct = label_logit == sums.student_max && sums.student_sum == sums.student_sum;  // not with a NaN
  for (std::int64_t c = 0; correct && c < row.label; ++c) correct = load(z[c]) < label_logit;

  // block by block through the first-level cache, on its way out
  S task[stream_block], general[stream_block];
  const T task_factor = T(row.task_cotangent_weight) / sums.student_sum;
  const T p_factor = T(row.general_cotangent_weight) * temperature / sums.student_sum_t;
  const T q_factor = T(row.general_cotangent_weight) * temperature / sums.teacher_sum;
  S* task_out = static_cast<S*>(row.task_cotangent);
  S* general_out = static_cast<S*>(row.general_cotangent);
  for (std::int64_t begin = 0; begin < classes; begin += stream_block) {
    const std::int64_t n = smaller(begin + stream_block, classes) - begin;
    S* to = row.stream ? task : task_out + begin;
    S* to_general = row.stream ? general : general_out + begin;
#pragma omp simd
    for (std::int64_t c = 0; c < n; ++c) {
      store(to[c], z_exp[begin + c] * task_factor);
      store(to_general[c], z_exp_t[begin + c] * p_factor - t_exp[begin + c] * q_factor);
    }
    if (row.label >= begin && row.label < begin + n) {
      store(to[row.label - begin], z_exp[row.label] * task_factor - T(row.task_cotangent_weight));
    }
    if (row.stream) {
      stream(task_out + begin, task, n * sizeof(S));
      stream(general_out + begin, general, n * sizeof(S));
    }
  }

  return {row.task_weight * sums.task(label_logit), row.general_weight * sums.general(temperature, row.soft_ce),
          correct};
}

}  // namespace
}  // namespace prograd
