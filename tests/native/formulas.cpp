// Conversions of 16-bit floats, and the elementary functions.
#include "../../csrc/common/math.h"
#include "native.h"

namespace {

// Every 16-bit float goes to float and back unchanged; what lies between two goes to the even one.
void test_conversions() {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const Half half{std::uint16_t(bits)};
    const BFloat16 bfloat{std::uint16_t(bits)};
    Half half_again;
    BFloat16 bfloat_again;
    store(half_again, load(half));
    store(bfloat_again, load(bfloat));
    check(std::isnan(load(half)) ? std::isnan(load(half_again)) : half_again.bits == bits, InstructionSet::baseline,
          "float16 round trip", half_again.bits, bits);
    check(std::isnan(load(bfloat)) ? std::isnan(load(bfloat_again)) : bfloat_again.bits == bits,
          InstructionSet::baseline, "bfloat16 round trip", bfloat_again.bits, bits);
    const bool has_next = (bits & 0x7fff) < 0x7bff;
    if (has_next) {
      const Half next{std::uint16_t(bits + 1)};
      Half middle;
      store(middle, (load(half) + load(next)) / 2);
      check(middle.bits == (bits & 1 ? bits + 1 : bits), InstructionSet::baseline, "float16 tie", middle.bits, bits);
    }
  }
}

void test_exp() {
  double worst = 0;
  for (float x = -87.3f; x < 88.0f; x += 0.00037f) {
    const double wanted = std::exp(double(x));
    const float nearest = float(wanted);
    worst = std::fmax(worst, std::fabs(prograd::exp(x) - wanted) / (std::nextafter(nearest, INFINITY) - nearest));
  }
  check(worst < 1, InstructionSet::baseline, "exp, error in ulp", worst, 1);
  check(prograd::exp(-INFINITY) == 0 && std::isnan(prograd::exp(NAN)), InstructionSet::baseline, "exp(-inf)",
        prograd::exp(-INFINITY), 0);
}

void test_log() {
  double worst = 0;
  for (float x = 1.2e-38f; x < 3e38f; x *= 1.00003f) {
    const float wanted = float(std::log(double(x)));
    worst = std::fmax(worst, std::fabs(prograd::log(x) - std::log(double(x))) /
                                 (std::nextafter(std::fabs(wanted), INFINITY) - std::fabs(wanted)));
  }
  check(worst < 1, InstructionSet::baseline, "log, error in ulp", worst, 1);
  check(prograd::log(1.0f) == 0 && prograd::log(0.0f) == -INFINITY && prograd::log(INFINITY) == INFINITY,
        InstructionSet::baseline, "log(0), log(1), log(inf)", prograd::log(0.0f), -INFINITY);
  check(std::isnan(prograd::log(-1.0f)) && std::isnan(prograd::log(NAN)), InstructionSet::baseline, "log(-1), log(nan)",
        prograd::log(-1.0f), NAN);
}

const Test formulas([](InstructionSet set) {
  if (set != InstructionSet::baseline) return;  // they are compiled here
  test_conversions();
  test_exp();
  test_log();
});

}  // namespace
