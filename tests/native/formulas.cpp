// Conversions of 16-bit floats, and the elementary functions.
#include "../../csrc/common/math.h"
#include "../../csrc/formulas/dual_loss.h"
#include "../../csrc/formulas/projection.h"
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

// ln(1 - x) of a probability x and of 1 minus it, each with its digits near 0.
void test_log_of_rest() {
  double worst = 0;
  for (float odds = 2e-38f; odds < 5e37f; odds *= 1.001f) {
    const double x = 1 / (1 + double(odds)), y = 1 / (1 + 1 / double(odds));
    const double wanted = x < 0.5 ? std::log1p(-double(float(x))) : std::log(double(float(y)));
    const float nearest = float(std::fabs(wanted));
    worst = std::fmax(worst, std::fabs(prograd::log_of_rest(float(x), float(y)) - wanted) /
                                 (std::nextafter(nearest, INFINITY) - nearest));
  }
  check(worst < 3, InstructionSet::baseline, "log_of_rest, error in ulp", worst, 3);
  check(prograd::log_of_rest(0.0f, 1.0f) == 0, InstructionSet::baseline, "log_of_rest(0)",
        prograd::log_of_rest(0.0f, 1.0f), 0);
}

// What vanishes beside larger maxima takes its infinities along: 0 · inf must not make NaN of a loss. NaN goes on.
template <typename T>
void test_relative_to() {
  DualLossSums<T> part;
  part.student_max = 1, part.teacher_max = -2000;
  part.student_sum = 2, part.student_sum_t = 3, part.teacher_sum = 4, part.cross = INFINITY;
  const DualLossSums<T> vanished = part.relative_to(1, 0, 1, false);
  check(vanished.teacher_sum == 0 && vanished.cross == 0, InstructionSet::baseline, "vanished teacher", vanished.cross,
        0);
  check(vanished.student_sum == 2 && vanished.student_sum_t == 3, InstructionSet::baseline, "student beside it",
        vanished.student_sum, 2);
  const DualLossSums<T> infinite = part.relative_to(1, -1999, 1, false);
  check(infinite.cross == T(INFINITY), InstructionSet::baseline, "teacher that has not vanished", infinite.cross,
        INFINITY);
  part.teacher_sum = NAN;
  check(std::isnan(part.relative_to(1, 0, 1, false).teacher_sum), InstructionSet::baseline, "NaN beside a maximum",
        part.relative_to(1, 0, 1, false).teacher_sum, NAN);
  // both maxima move: e^(dz/T) and e^(dt/T) times the sums, and the ratio by their difference
  const DualLossSums<T> sums{0, 0, 2, 3, 4, 5};
  const DualLossSums<T> moved = sums.relative_to(2, 3, T(0.5), false);
  const double r = std::exp(-1.5), wanted = r * (5 + 4 * (-3.0 + 2.0) * 0.5);
  check(std::fabs(moved.cross - wanted) < 1e-5, InstructionSet::baseline, "moved cross", moved.cross, wanted);
  check(std::fabs(moved.student_sum - 2 * std::exp(-2.0)) < 1e-5 &&
            std::fabs(moved.student_sum_t - 3 * std::exp(-1.0)) < 1e-5 && std::fabs(moved.teacher_sum - 4 * r) < 1e-5,
        InstructionSet::baseline, "moved sums", moved.student_sum, 2 * std::exp(-2.0));
}

// No projection where the quotient, a sum or what is projected away is no finite number.
template <typename T>
void test_conflict_beta() {
  constexpr T infinity = std::numeric_limits<T>::infinity(), largest = std::numeric_limits<T>::max();
  constexpr T smallest = std::numeric_limits<T>::min(), nan = std::numeric_limits<T>::quiet_NaN();
  struct Case {
    const char* what;
    T task_norm, dot, general_norm, floor, wanted;
  };
  const Case cases[] = {
      {"conflict", 4, -3, 2, 0, T(1.5)},
      {"agreement", 4, 3, 2, 0, 0},
      {"quotient beyond the largest number", 1, -largest, T(0.25), 0, 0},
      {"the largest quotient", 1, -largest, 1, 0, largest},
      {"infinite product", 1, -infinity, 2, 0, 0},
      {"no general gradient", 1, -1, 0, 0, 0},
      {"general gradient without correct digits", 1, -smallest, smallest / 2, 0, 0},
      {"the least general gradient", 1, -smallest, smallest, 0, 1},
      {"infinite general gradient", 1, -1, infinity, 0, 0},
      {"NaN", 1, nan, 1, 0, 0},
      {"general gradient at the floor", 4, -1, 1, T(0.5), 0},
      {"just above it", T(3.9), -1, 1, T(0.5), 1},
      {"infinite task gradient", infinity, -1, 1, T(0.5), 1},
  };
  for (const Case& one : cases) {
    const T beta = conflict_beta(one.task_norm, one.dot, one.general_norm, T(1), one.floor);
    check(beta == one.wanted, InstructionSet::baseline, one.what, beta, one.wanted);
  }
}

const Test formulas([](InstructionSet set) {
  if (set != InstructionSet::baseline) return;  // they are compiled here
  test_conversions();
  test_exp();
  test_log();
  test_log_of_rest();
  test_relative_to<float>();
  test_relative_to<double>();
  test_conflict_beta<float>();
  test_conflict_beta<double>();
});

}  // namespace
