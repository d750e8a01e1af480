// The formulas of the kernels, one element or one row at a time, for CPU and GPU code alike. No torch header here.
//
// The reference in plain PyTorch, with the same names, is prograd_fast/reference/.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

// Always inlined: the CPU kernels are compiled once for each instruction set, and the linker must not give a baseline
// machine the AVX-512 copy of a shared function.
#ifdef __CUDACC__
#define PF_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PF_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace prograd {

// ---- elementary functions

// a b + c, rounded once where the machine can. Spelled out, and the compiler told to fuse nothing by itself, so that the
// roundings of the updates are those of torch.optim's fused kernels.
PF_HOST_DEVICE float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__)
  return ::fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
PF_HOST_DEVICE double fused(double a, double b, double c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__)
  return ::fma(a, b, c);
#else
  return a * b + c;
#endif
}

PF_HOST_DEVICE float root(float x) { return ::sqrtf(x); }
PF_HOST_DEVICE double root(double x) { return ::sqrt(x); }
PF_HOST_DEVICE double log(double x) { return ::log(x); }

// ln x. On the CPU a polynomial without branches, so that loops vectorise: error below 1 ulp where x is a normal number;
// -inf for 0, NaN below it and for NaN.
PF_HOST_DEVICE float log(float x) {
#ifdef __CUDA_ARCH__
  return ::logf(x);
#else
  // x = m 2^n with m in [root of 1/2, root of 2): subtracting the root's bits carries into the exponent where m is above
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x), n_bits = (bits - 0x3f3504f3u) & 0xff800000u;
  const float n = float(std::int32_t(n_bits) >> 23), f = __builtin_bit_cast(float, bits - n_bits) - 1.0f;
  const float square = f * f;
  // minimax of (ln(1 + f) - f + f^2 / 2) / f^3, from Cephes' logf
  float p = fused(7.0376836292e-2f, f, -1.1514610310e-1f);
  p = fused(p, f, 1.1676998740e-1f);
  p = fused(p, f, -1.2420140846e-1f);
  p = fused(p, f, 1.4249322787e-1f);
  p = fused(p, f, -1.6668057665e-1f);
  p = fused(p, f, 2.0000714765e-1f);
  p = fused(p, f, -2.4999993993e-1f);
  p = fused(p, f, 3.3333331174e-1f);
  p *= f * square;
  // ln 2 in two parts, the first with so few bits that n times it is exact
  p = fused(n, -2.12194440e-4f, p);
  p = fused(-0.5f, square, p);
  const float result = fused(n, 0.693359375f, f + p);
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const float outside = x == 0.0f ? -infinity : x > 0.0f ? x : std::numeric_limits<float>::quiet_NaN();
  return x > 0.0f && x < infinity ? result : outside;
#endif
}

// What a formula for numbers of type F, or for registers full of them (cpu/vector.h), needs besides operators.
template <typename F>
struct Arithmetic;
template <>
struct Arithmetic<float> {
  using Bits = std::uint32_t;
  PF_HOST_DEVICE static float fused(float a, float b, float c) { return prograd::fused(a, b, c); }
};

// e^x for x up to 88: a softmax asks for none above 0. A polynomial without branches, so that loops vectorise: error
// below 1 ulp where the result is a normal number, 0 below that (torch keeps the subnormals; a softmax cannot tell), NaN
// for NaN.
template <typename F>
PF_HOST_DEVICE F exp_by_polynomial(F x) {
  using A = Arithmetic<F>;
  // Adding 1.5 * 2^23 leaves the integer nearest to x / ln 2 in the low bits; 127 more make it a float's exponent.
  constexpr float to_exponent = 12582912.0f + 127.0f;
  const F shifted = A::fused(x, F{} + 1.44269504f, F{} + to_exponent);
  const F n = shifted - to_exponent;
  // x - n ln 2 with ln 2 in two parts, the first with so few bits that n times it is exact
  const F r = A::fused(n, F{} - 1.42860677e-6f, A::fused(n, F{} - 0.693145752f, x));
  // minimax on [-ln 2 / 2, ln 2 / 2]
  F p = A::fused(F{} + 1.37805939e-3f, r, F{} + 8.37312452e-3f);
  p = A::fused(p, r, F{} + 4.16695364e-2f);
  p = A::fused(p, r, F{} + 1.66664720e-1f);
  p = A::fused(p, r, F{} + 4.99999851e-1f);
  p = A::fused(p * r, r, r) + 1.0f;
  const F power_of_2 = __builtin_bit_cast(F, __builtin_bit_cast(typename A::Bits, shifted) << 23);
  return x < -87.3365402f ? F{} : p * power_of_2;
}

PF_HOST_DEVICE float exp(float x) {
#ifdef __CUDA_ARCH__
  return ::expf(x);
#else
  return exp_by_polynomial(x);
#endif
}
PF_HOST_DEVICE double exp(double x) { return ::exp(x); }

template <typename T>
PF_HOST_DEVICE T larger(T a, T b) {
  return a > b ? a : b;
}

// ---- projection: g = alpha a + beta b

// ProGrad's beta = -lambda min(0, <a,b>) / ||b||^2; 0 where ||b||^2 vanishes, or a sum or the quotient is not finite.
template <typename T>
PF_HOST_DEVICE T conflict_beta(T dot, T general_norm, T lambda) {
  constexpr T smallest = std::numeric_limits<T>::min();  // below it the quotient has no correct digits left
  constexpr T largest = std::numeric_limits<T>::max();
  const T quotient = dot / general_norm;
  // every comparison with NaN is false
  const bool usable = quotient < T(0) && quotient >= -largest && general_norm >= smallest && general_norm <= largest;
  return usable ? -lambda * quotient : T(0);
}

// beta = 0 must not touch b: 0 * inf is NaN.
template <typename T>
PF_HOST_DEVICE T projected(T a, T b, T alpha, T beta) {
  return beta == T(0) ? alpha * a : fused(beta, b, alpha * a);
}

// ---- AdamW

template <typename T>
struct AdamW {
  T decay;         // 1 - lr wd
  T beta2;
  T grad1, grad2;  // 1 - beta1, 1 - beta2
  T step_size;     // lr / (1 - beta1^t)
  T root_scale;    // sqrt(1 - beta2^t)
  T eps;

  // step: t, 1 at the first step. In double and rounded once, as torch.optim does.
  PF_HOST_DEVICE static AdamW at(double step, double lr, double beta1, double beta2, double eps, double weight_decay) {
    return {T(1 - lr * weight_decay), T(beta2),
            T(1 - beta1),             T(1 - beta2),
            T(lr / (1 - ::pow(beta1, step))), T(::sqrt(1 - ::pow(beta2, step))),
            T(eps)};
  }

  // By linear interpolation, as torch.optim does.
  PF_HOST_DEVICE T exp_avg(T m, T g) const { return fused(grad1, g - m, m); }
  PF_HOST_DEVICE T exp_avg_sq(T v, T g) const { return fused(g, g * grad2, v * beta2); }
  // v: the largest so far with amsgrad
  PF_HOST_DEVICE T parameter(T p, T m, T v) const { return p * decay - step_size * m / (root(v) / root_scale + eps); }

  template <typename U>
  PF_HOST_DEVICE AdamW<U> as() const {
    return {U(decay), U(beta2), U(grad1), U(grad2), U(step_size), U(root_scale), U(eps)};
  }
};

// ---- SGD

template <typename T>
struct SGD {
  T lr, momentum;
  T keep;  // 1 - dampening
  T weight_decay;
  bool nesterov, first;

  // g: the gradient plus weight decay; with momentum, it enters the buffer and what comes out replaces it
  PF_HOST_DEVICE T decayed(T p, T g) const { return fused(weight_decay, p, g); }
  PF_HOST_DEVICE T buffer(T m, T g) const { return first ? g : fused(momentum, m, keep * g); }
  PF_HOST_DEVICE T direction(T m, T g) const { return nesterov ? fused(momentum, m, g) : m; }
  PF_HOST_DEVICE T parameter(T p, T direction) const { return fused(-lr, direction, p); }

  template <typename U>
  PF_HOST_DEVICE SGD<U> as() const {
    return {U(lr), U(momentum), U(keep), U(weight_decay), nesterov, first};
  }
};

// ---- samples

// exp(log_prob - top) of one sample; samples that all have -inf have equal shares, as the only one has the whole.
template <typename T>
PF_HOST_DEVICE T sample_share(T log_prob, T top) {
  return log_prob == top ? T(1) : exp(log_prob - top);
}

// ---- dual loss

// Sums of one row of logits z (student) and t (teacher), or of a part of it, relative to the part's own maxima:
//   student_sum    = sum exp(z - m_z)         student_sum_t = sum exp((z - m_z)/T)
//   teacher_sum    = sum exp((t - m_t)/T)     cross         = sum exp((t - m_t)/T) ([(t - m_t)/T] - (z - m_z)/T)
// with [...] left out for the soft cross-entropy. Maxima start at the lowest finite number, which keeps -inf - (-inf)
// out of parts that hold nothing but -inf.
template <typename T>
struct DualLossRow {
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
  PF_HOST_DEVICE DualLossRow relative_to(T z_max, T t_max, T inverse_temperature, bool soft_ce) const {
    const T dz = student_max - z_max, dt = teacher_max - t_max;
    const T r = exp(dt * inverse_temperature);
    DualLossRow moved;
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
  PF_HOST_DEVICE static DualLossRow merged(
      const DualLossRow& a, const DualLossRow& b, T inverse_temperature, bool soft_ce) {
    const T z_max = larger(a.student_max, b.student_max), t_max = larger(a.teacher_max, b.teacher_max);
    DualLossRow sum = a.relative_to(z_max, t_max, inverse_temperature, soft_ce);
    const DualLossRow other = b.relative_to(z_max, t_max, inverse_temperature, soft_ce);
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
