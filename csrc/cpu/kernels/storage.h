// The types of what tensors store, and their conversion to what they are computed in. The conversions have no branches,
// so that loops over them vectorise for every instruction set.
#pragma once

#include <cstdint>

#include "../../common/math.h"
#include "../../common/types.h"

namespace prograd::cpu {

struct BFloat16 {
  std::uint16_t bits;
};
struct Half {
  std::uint16_t bits;
};

PF_HOST_DEVICE std::uint32_t bits_of(float x) { return __builtin_bit_cast(std::uint32_t, x); }
PF_HOST_DEVICE float float_of(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }

PF_HOST_DEVICE double load(double x) { return x; }
PF_HOST_DEVICE float load(float x) { return x; }
PF_HOST_DEVICE float load(BFloat16 x) { return float_of(std::uint32_t(x.bits) << 16); }
PF_HOST_DEVICE float load(Half x) {
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  // the exponent's bias goes from 15 to 127 by a product, which normalises subnormal numbers on the way
  const std::uint32_t scaled = bits_of(float_of(magnitude << 13) * 0x1p112f);
  const std::uint32_t not_finite = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return float_of(scaled | not_finite | std::uint32_t(x.bits & 0x8000u) << 16);
}

// Round to nearest, ties to even.
PF_HOST_DEVICE void store(double& to, double x) { to = x; }
PF_HOST_DEVICE void store(float& to, float x) { to = x; }
PF_HOST_DEVICE void store(BFloat16& to, float x) {
  const std::uint32_t u = bits_of(x);
  const std::uint32_t rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
  to.bits = std::uint16_t((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
PF_HOST_DEVICE void store(Half& to, float x) {
  const std::uint32_t u = bits_of(x), magnitude = u & 0x7fffffffu;
  const std::uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // adding 0.5 leaves a multiple of 2^-24, the smallest half, in the low bits
  const std::uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  const std::uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const std::uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  to.bits = std::uint16_t((magnitude >= 0x47800000u ? large : finite) | (u >> 16 & 0x8000u));
}

}  // namespace prograd::cpu
