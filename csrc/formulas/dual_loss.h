// The dual loss of one row of logits, class by class, for CPU and GPU code alike.
#pragma once

#include "../common/math.h"

namespace prograd {

// Sums of one row of logits z (student) and t (teacher), or of a part of it, relative to the part's own maxima:
//   student_sum    = sum exp(z - m_z)         student_sum_t = sum exp((z - m_z)/T)
//   teacher_sum    = sum exp((t - m_t)/T)     cross         = sum exp((t - m_t)/T) ([(t - m_t)/T] - (z - m_z)/T)
// with [...] left out for the soft cross-entropy. Maxima start at the lowest finite number, which keeps -inf - (-inf)
// out of parts that hold nothing but -inf.
template <typename T>
struct DualLossSums {
  T student_max = std::numeric_limits<T>::lowest();
  T teacher_max = std::numeric_limits<T>::lowest();
  T student_sum = 0, student_sum_t = 0, teacher_sum = 0, cross = 0;

  // One class, once the maxima of the part are known.
  PF_HOST_DEVICE void add(T z, T t, T inverse_temperature, bool soft_ce) {
    const T dz = z - student_max, dt = t - teacher_max;
    const T e = exp(dt * inverse_temperature);
    student_sum += exp(dz);
    student_sum_t += exp(dz * inverse_temperature);
    teacher_sum += e;
    cross += cross_term(e, dz * inverse_temperature, dt * inverse_temperature, soft_ce);
  }

  // 0 log 0 = 0: a class that the teacher excludes would otherwise make 0 * inf = NaN.
  template <typename F>
  PF_HOST_DEVICE static F cross_term(F e, F dz, F dt, bool soft_ce) {
    const F log_q = soft_ce ? F{} : dt;
    return e > F{} ? e * (log_q - dz) : F{};
  }

  // This part relative to larger maxima.
  PF_HOST_DEVICE DualLossSums relative_to(T z_max, T t_max, T inverse_temperature, bool soft_ce) const {
    const T dz = student_max - z_max, dt = teacher_max - t_max;
    const T r = exp(dt * inverse_temperature);
    DualLossSums moved;
    moved.student_max = z_max;
    moved.teacher_max = t_max;
    moved.student_sum = student_sum * exp(dz);
    moved.student_sum_t = student_sum_t * exp(dz * inverse_temperature);
    if (!(r * teacher_sum == T(0))) {  // NaN goes on; what has vanished takes its infinities along
      moved.teacher_sum = r * teacher_sum;
      moved.cross = r * (cross + teacher_sum * ((soft_ce ? T(0) : dt) - dz) * inverse_temperature);
    }
    return moved;
  }

  // Two parts of one row. Any order gives the same sums but for rounding: callers keep theirs fixed.
  PF_HOST_DEVICE static DualLossSums merged(const DualLossSums& a, const DualLossSums& b, T inverse_temperature,
                                            bool soft_ce) {
    const T z_max = larger(a.student_max, b.student_max), t_max = larger(a.teacher_max, b.teacher_max);
    DualLossSums sum = a.relative_to(z_max, t_max, inverse_temperature, soft_ce);
    const DualLossSums other = b.relative_to(z_max, t_max, inverse_temperature, soft_ce);
    sum.student_sum += other.student_sum;
    sum.student_sum_t += other.student_sum_t;
    sum.teacher_sum += other.teacher_sum;
    sum.cross += other.cross;
    return sum;
  }

  // -log softmax(z)[y]
  PF_HOST_DEVICE T task(T z_label) const { return log(student_sum) - (z_label - student_max); }

  // T^2 KL(q || p), or T^2 times the soft cross-entropy
  PF_HOST_DEVICE T general(T temperature, bool soft_ce) const {
    const T entropy = soft_ce ? T(0) : log(teacher_sum);
    return temperature * temperature * (cross / teacher_sum - entropy + log(student_sum_t));
  }

  // d task / dz and d general / dz of one class
  PF_HOST_DEVICE T task_cotangent(T z, bool is_label) const {
    return exp(z - student_max) / student_sum - (is_label ? T(1) : T(0));
  }
  PF_HOST_DEVICE T general_cotangent(T z, T t, T temperature) const {
    const T p = exp((z - student_max) / temperature) / student_sum_t;
    const T q = exp((t - teacher_max) / temperature) / teacher_sum;
    return temperature * (p - q);
  }
};

}  // namespace prograd
