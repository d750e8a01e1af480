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

  // -log softmax(z)[y]
  PF_HOST_DEVICE T task(T z_label) const { return log(student_sum) - (z_label - student_max); }

  // T^2 KL(q || p), or T^2 times the soft cross-entropy
  PF_HOST_DEVICE T general(T temperature, bool soft_ce) const {
    const T entropy = soft_ce ? T(0) : log(teacher_sum);
    return temperature * temperature * (cross / teacher_sum - entropy + log(student_sum_t));
  }
};

// One class of a row on a GPU, against maxima that are known, in powers of 2, which are one instruction there. At a
// temperature of 1 one power of the student serves both losses.
template <typename T, bool unit_temperature>
struct DualLossClass {
  T student, student_t, teacher;         // e^(z - m_z), e^((z - m_z)/T), e^((t - m_t)/T)
  T student_exponent, teacher_exponent;  // those of 2 of the latter two

  // log2_e, log2_e_t: log2(e), and the same over T
  PF_HOST_DEVICE DualLossClass(T z, T t, T student_max, T teacher_max, T log2_e, T log2_e_t) {
    const T dz = z - student_max;
    student_exponent = dz * log2_e_t;
    teacher_exponent = (t - teacher_max) * log2_e_t;
    student_t = power_of_2(student_exponent);
    teacher = power_of_2(teacher_exponent);
    student = unit_temperature ? student_t : power_of_2(dz * log2_e);
  }

  // cross / ln 2 of DualLossSums with this class. kl: 1, or 0 for the soft cross-entropy.
  PF_HOST_DEVICE T added_to(T cross, T kl) const {
    const T log2_ratio = fused(kl, teacher_exponent, -student_exponent);
    return teacher > T(0) ? fused(teacher, log2_ratio, cross) : cross;
  }
};

}  // namespace prograd
