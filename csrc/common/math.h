// Elementary functions of one number, for CPU and GPU code alike. No torch header here.
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

// a b + c, rounded once where the machine can. Spelled out, and the compiler told to fuse nothing by itself, so that
// the roundings of the updates are those of torch.optim's fused kernels. (nvcc is told so for the sources of the
// updates and of the projection, CMakeLists.txt: the others would only lose by it.)
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

PF_HOST_DEVICE float magnitude(float x) { return ::fabsf(x); }
PF_HOST_DEVICE double magnitude(double x) { return ::fabs(x); }

// What a formula needs besides operators: for numbers of type F, or for registers full of them (cpu/kernels/vector.h).
template <typename F>
struct Arithmetic;

// e^x for x up to 88: a softmax asks for none above 0. A polynomial without branches, so that loops vectorise: error
// below 1 ulp where the result is a normal number, 0 below that (torch keeps the subnormals; a softmax cannot tell),
// NaN for NaN.
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

// x = (1 + f) 2^n, f in [root of 1/2 - 1, root of 2 - 1), for normal x above 0.
template <typename F>
PF_HOST_DEVICE void split(F x, F& f, F& n) {
  using A = Arithmetic<F>;
  using Bits = typename A::Bits;
  // where 1 + f is above the root of 1/2, subtracting the root's bits carries into the exponent
  const Bits bits = __builtin_bit_cast(Bits, x), n_bits = (bits - 0x3f3504f3u) & 0xff800000u;
  n = A::exponents(n_bits);
  f = __builtin_bit_cast(F, bits - n_bits) - 1.0f;
}

// ln((1 + f) 2^n) of such f and n: a polynomial without branches, error below 1 ulp.
template <typename F>
PF_HOST_DEVICE F log_by_polynomial(F f, F n) {
  using A = Arithmetic<F>;
  const F square = f * f;
  // minimax of (ln(1 + f) - f + f^2 / 2) / f^3, from Cephes' logf
  F p = A::fused(F{} + 7.0376836292e-2f, f, F{} - 1.1514610310e-1f);
  p = A::fused(p, f, F{} + 1.1676998740e-1f);
  p = A::fused(p, f, F{} - 1.2420140846e-1f);
  p = A::fused(p, f, F{} + 1.4249322787e-1f);
  p = A::fused(p, f, F{} - 1.6668057665e-1f);
  p = A::fused(p, f, F{} + 2.0000714765e-1f);
  p = A::fused(p, f, F{} - 2.4999993993e-1f);
  p = A::fused(p, f, F{} + 3.3333331174e-1f);
  p *= f * square;
  // ln 2 in two parts, the first with so few bits that n times it is exact
  p = A::fused(n, F{} - 2.12194440e-4f, p);
  p = A::fused(F{} - 0.5f, square, p);
  return A::fused(n, F{} + 0.693359375f, f + p);
}

// ln x for normal x above 0, inf and NaN.
template <typename F>
PF_HOST_DEVICE F log_of_normal(F x) {
  F f, n;
  split(x, f, n);
  return x < std::numeric_limits<float>::infinity() ? log_by_polynomial(f, n) : x;
}

// ln(1 - x) for x in [0, 1), with all digits near 0; y: 1 - x with all digits near 0 of its own, a normal number.
template <typename F>
PF_HOST_DEVICE F log_of_rest_by_polynomial(F x, F y) {
  F f, n;
  split(y, f, n);
  return log_by_polynomial(x < 0.25f ? -x : f, x < 0.25f ? F{} : n);
}

// ln(1 + x) for x in [0, 1]: minimax of ln(1 + x) / x, error of 2 ulp.
template <typename F>
PF_HOST_DEVICE F log_of_1_and_more(F x) {
  using A = Arithmetic<F>;
  F p = A::fused(F{} + 5.23269456e-3f, x, F{} - 2.95052435e-2f);
  p = A::fused(p, x, F{} + 7.82259628e-2f);
  p = A::fused(p, x, F{} - 1.36632472e-1f);
  p = A::fused(p, x, F{} + 1.91060081e-1f);
  p = A::fused(p, x, F{} - 2.48429820e-1f);
  p = A::fused(p, x, F{} + 3.33190978e-1f);
  p = A::fused(p, x, F{} - 4.99994934e-1f);
  return x * A::fused(p, x, F{} + 0.99999994f);
}

PF_HOST_DEVICE float exp(float x) {
#ifdef __CUDA_ARCH__
  return ::expf(x);
#else
  return exp_by_polynomial(x);
#endif
}
PF_HOST_DEVICE double exp(double x) { return ::exp(x); }

// ln x; -inf for 0, NaN below it and for NaN.
PF_HOST_DEVICE double log(double x) { return ::log(x); }
PF_HOST_DEVICE float log(float x);

PF_HOST_DEVICE double log_of_rest(double x, double y) { return x < 0.5 ? ::log1p(-x) : ::log(y); }
PF_HOST_DEVICE float log_of_rest(float x, float y);

template <>
struct Arithmetic<float> {
  using Number = float;
  using Bits = std::uint32_t;
  PF_HOST_DEVICE static float fused(float a, float b, float c) { return prograd::fused(a, b, c); }
  PF_HOST_DEVICE static float magnitude(float x) { return prograd::magnitude(x); }
  PF_HOST_DEVICE static float with_sign(float size, float of) { return ::copysignf(size, of); }
  PF_HOST_DEVICE static float reciprocal(float x) { return 1.0f / x; }
  PF_HOST_DEVICE static float exponents(Bits bits) { return float(std::int32_t(bits) >> 23); }
  PF_HOST_DEVICE static float exp(float x) { return prograd::exp(x); }
  PF_HOST_DEVICE static float log(float x) { return prograd::log(x); }
  PF_HOST_DEVICE static float log_of_rest(float x, float y) { return prograd::log_of_rest(x, y); }
  PF_HOST_DEVICE static float power(float x, float exponent) { return ::powf(x, exponent); }
};
template <>
struct Arithmetic<double> {
  using Number = double;
  PF_HOST_DEVICE static double fused(double a, double b, double c) { return prograd::fused(a, b, c); }
  PF_HOST_DEVICE static double magnitude(double x) { return prograd::magnitude(x); }
  PF_HOST_DEVICE static double with_sign(double size, double of) { return ::copysign(size, of); }
  PF_HOST_DEVICE static double reciprocal(double x) { return 1.0 / x; }
  PF_HOST_DEVICE static double exp(double x) { return prograd::exp(x); }
  PF_HOST_DEVICE static double log(double x) { return prograd::log(x); }
  PF_HOST_DEVICE static double log_of_rest(double x, double y) { return prograd::log_of_rest(x, y); }
  PF_HOST_DEVICE static double power(double x, double exponent) { return ::pow(x, exponent); }
};

PF_HOST_DEVICE float log(float x) {
#ifdef __CUDA_ARCH__
  return ::logf(x);
#else
  const float outside = x == 0.0f ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  const float result = log_of_normal(x);
  return x > 0.0f ? result : outside;
#endif
}

PF_HOST_DEVICE float log_of_rest(float x, float y) {
#ifdef __CUDA_ARCH__
  // ln(1 - x) = ln u - ((u - 1) + x) / u, u = 1 - x rounded
  const float u = x < 0.5f ? 1.0f - x : y, logarithm = ::logf(u);
  return x < 0.5f ? logarithm - __fdividef((u - 1.0f) + x, u) : logarithm;
#else
  return log_of_rest_by_polynomial(x, y);
#endif
}

template <typename T>
PF_HOST_DEVICE T larger(T a, T b) {
  return a > b ? a : b;
}

// The same, but a NaN loses against any number: one instruction of a GPU, where the above takes two.
PF_HOST_DEVICE float larger_number(float a, float b) { return ::fmaxf(a, b); }
PF_HOST_DEVICE double larger_number(double a, double b) { return ::fmax(a, b); }

// 2^x of GPU code. In float one instruction, wrong by up to 2 ulp (the CUDA C++ programming guide, of exp2f, which is
// this instruction), and 0 where the result is no normal number; in double what the library has. On the CPU, where the
// tests run GPU code, as wrong as it may be: 2 ulp up or down, as a bit of x has it.
PF_HOST_DEVICE float power_of_2(float x) {
#ifdef __CUDA_ARCH__
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  const float power = ::exp2f(x);
  if (power < std::numeric_limits<float>::min()) return 0.0f;
  if (x == 0.0f || !(power < 1e38f)) return power;  // 2^0 is 1, in PTX too
  const std::uint32_t error = __builtin_bit_cast(std::uint32_t, x) & 1 ? 2 : -2;
  return __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, power) + error);
#endif
}
PF_HOST_DEVICE double power_of_2(double x) { return ::exp2(x); }

}  // namespace prograd
