// One row of the dual loss. Included by kernels.cpp alone.
#pragma once

#include "kernels.h"
#include "storage.h"
#include "stream.h"
#include "update.h"
#include "vector.h"

namespace prograd {
namespace {

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Memory is waited for unless it is asked for in time: the next row while the results of this one go out, the block after
// the next while the exponentials of this one are computed, and never so much at once that the requests queue.
template <typename S>
Kernels::DualLosses dual_loss_row(const Kernels::DualLossRow& row) {
  using T = Accumulation<S>;
  using V = Vector<T>;
  constexpr std::int64_t block = dual_loss_block;
  const S* z = static_cast<const S*>(row.student);
  const S* t = static_cast<const S*>(row.teacher);
  const T* offset = static_cast<const T*>(row.teacher_offset);
  const std::int64_t classes = row.classes, padded = (classes + lanes<T> - 1) / lanes<T> * lanes<T>;
  T* z_exp = static_cast<T*>(row.scratch);
  T* t_exp = z_exp + padded;
  T* z_exp_t = t_exp + padded;   // with a temperature; else the same as z_exp
  T* maxima = z_exp_t + padded;  // of each block and those before it, which its exponentials are relative to
  const T temperature = T(row.temperature), inverse = T(1 / row.temperature);
  const T label_logit = load(z[row.label]);
  constexpr T infinity = std::numeric_limits<T>::infinity();

  DualLossRow<T> sums;
  with_flag(offset != nullptr, [&](auto has_offset) {
    with_flag(row.temperature != 1, [&](auto tempered) {
      const bool soft_ce = row.soft_ce;
      for (std::int64_t begin = 0; begin < classes; begin += block) {
        const std::int64_t n = smaller(block, classes - begin);
        // -inf for classes that there are not: they are no maximum, and have no exponential
        const auto student = [&](std::int64_t c, std::int64_t width) { return loaded(z + begin + c, width, -infinity); };
        const auto teacher = [&](std::int64_t c, std::int64_t width) {
          V x = loaded(t + begin + c, width, -infinity);
          if constexpr (has_offset()) x += loaded(offset + begin + c, width, T(0));
          return x;
        };
        V z_maxima = broadcast(sums.student_max), t_maxima = broadcast(sums.teacher_max);
        each_vector<T>(n, [&](std::int64_t c, std::int64_t width) {
          z_maxima = larger(student(c, width), z_maxima);
          t_maxima = larger(teacher(c, width), t_maxima);
        });
        const T z_max = largest_of<T>(z_maxima), t_max = largest_of<T>(t_maxima);
        if (z_max > sums.student_max || t_max > sums.teacher_max) {
          sums = sums.relative_to(z_max, t_max, inverse, soft_ce);
        }
        maxima[2 * (begin / block)] = z_max;
        maxima[2 * (begin / block) + 1] = t_max;

        V z_sum{}, z_sum_t{}, t_sum{}, cross{};
        each_vector<T>(n, [&](std::int64_t c, std::int64_t width) {
          __builtin_prefetch(z + begin + c + 2 * block, 0, 3);
          __builtin_prefetch(t + begin + c + 2 * block, 0, 3);
          V dz = student(c, width) - z_max, dt = teacher(c, width) - t_max;
          const V s = exp(dz);
          if constexpr (tempered()) {
            dz *= inverse;
            dt *= inverse;
          }
          const V e = exp(dt);
          put(z_exp + begin + c, s);
          put(t_exp + begin + c, e);
          z_sum += s;
          t_sum += e;
          if constexpr (tempered()) {
            const V s_t = exp(dz);
            put(z_exp_t + begin + c, s_t);
            z_sum_t += s_t;
          }
          cross += DualLossRow<T>::cross_term(e, dz, dt, soft_ce);
        });
        const T z_total = sum_of<T>(z_sum);
        sums.student_sum += z_total;
        sums.student_sum_t += tempered() ? sum_of<T>(z_sum_t) : z_total;
        sums.teacher_sum += sum_of<T>(t_sum);
        sums.cross += sum_of<T>(cross);
      }
    });
  });
  if (row.temperature == 1) z_exp_t = z_exp;

  bool correct = label_logit == sums.student_max && sums.student_sum == sums.student_sum;  // not with a NaN
  for (std::int64_t c = 0; correct && c < row.label; ++c) correct = load(z[c]) < label_logit;

  const T of_task = T(row.task_cotangent_weight), of_general = T(row.general_cotangent_weight) * temperature;
  S* task_out = static_cast<S*>(row.task_cotangent);
  S* general_out = static_cast<S*>(row.general_cotangent);
  const S *next_z = static_cast<const S*>(row.next_student), *next_t = static_cast<const S*>(row.next_teacher);
  for (std::int64_t begin = 0; begin < classes; begin += block) {
    const std::int64_t n = smaller(block, classes - begin);
    const T dz = maxima[2 * (begin / block)] - sums.student_max;
    const T dt = maxima[2 * (begin / block) + 1] - sums.teacher_max;
    const T task_factor = of_task * exp(dz) / sums.student_sum;
    const T p_factor = of_general * exp(dz * inverse) / sums.student_sum_t;
    const T q_factor = of_general * exp(dt * inverse) / sums.teacher_sum;
    const T *s = z_exp + begin, *s_t = z_exp_t + begin, *e = t_exp + begin;
    write(task_out + begin, n, row.stream, [&](std::int64_t c, std::int64_t) {
      if (next_z) {
        __builtin_prefetch(next_z + begin + c, 0, 2);
        __builtin_prefetch(next_t + begin + c, 0, 2);
      }
      return vector_at(s + c) * task_factor;
    });
    write(general_out + begin, n, row.stream, [&](std::int64_t c, std::int64_t) {
      return vector_at(s_t + c) * p_factor - vector_at(e + c) * q_factor;
    });
    if (row.label >= begin && row.label < begin + n) {
      store(task_out[row.label], z_exp[row.label] * task_factor - of_task);
    }
  }

  return {row.task_weight * sums.task(label_logit), row.general_weight * sums.general(temperature, row.soft_ce),
          correct};
}

}  // namespace
}  // namespace prograd
