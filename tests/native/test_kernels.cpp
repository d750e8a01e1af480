// The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: every instruction set, dtype and loop, on
// memory with nothing around it. `make native` runs this; that the numbers are right is tested from Python, here only
// that the instruction sets agree.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../../csrc/cpu/kernels.h"
#include "../../csrc/cpu/storage.h"

using namespace prograd;

namespace {

int failures = 0;

void check(bool condition, const char* isa, const char* what, double got, double wanted) {
  if (condition) return;
  ++failures;
  std::printf("%s, %s: got %.9g, expected %.9g\n", isa, what, got, wanted);
}

constexpr std::size_t size_of(Storage storage) {
  return storage == Storage::f64 ? 8 : storage == Storage::f32 ? 4 : 2;
}

// Memory of exactly n elements, so that the sanitizer sees the first byte outside; `shift` elements from an aligned
// start, as for a row of a matrix.
class Buffer {
 public:
  Buffer(Storage storage, std::int64_t n, std::int64_t shift = 0)
      : storage_(storage), shift_(shift), bytes_((n + shift) * size_of(storage)) {}

  Buffer& fill(std::mt19937& random, double offset = 0) {
    std::normal_distribution<double> normal(offset);
    for (std::size_t i = 0; i < bytes_.size() / size_of(storage_); ++i) put(i, normal(random));
    return *this;
  }
  Buffer& positive() {
    for (std::size_t i = 0; i < bytes_.size() / size_of(storage_); ++i) put(i, std::fabs(at(i)));
    return *this;
  }
  Buffer& fill_with(double value) {
    for (std::size_t i = 0; i < bytes_.size() / size_of(storage_); ++i) put(i, value);
    return *this;
  }
  void set_at(std::int64_t i, double value) { put(i + shift_, value); }
  void* data() { return bytes_.data() + shift_ * size_of(storage_); }
  double operator[](std::int64_t i) const { return at(i + shift_); }

 private:
  double at(std::size_t i) const {
    switch (storage_) {
      case Storage::f64: return get<double>(i);
      case Storage::f32: return get<float>(i);
      case Storage::bf16: return load(get<BFloat16>(i));
      default: return load(get<Half>(i));
    }
  }
  void put(std::size_t i, double value) {
    switch (storage_) {
      case Storage::f64: return set<double>(i, value);
      case Storage::f32: return set<float>(i, float(value));
      case Storage::bf16: return set<BFloat16>(i, float(value));
      default: return set<Half>(i, float(value));
    }
  }
  template <typename T>
  T get(std::size_t i) const {
    T value;
    std::memcpy(&value, bytes_.data() + i * sizeof(T), sizeof(T));
    return value;
  }
  template <typename T, typename V>
  void set(std::size_t i, V value) {
    T stored;
    store(stored, value);
    std::memcpy(bytes_.data() + i * sizeof(T), &stored, sizeof(T));
  }

  Storage storage_;
  std::int64_t shift_;
  std::vector<unsigned char> bytes_;
};

// Every 16-bit float goes to float and back unchanged; what lies between two goes to the even one.
void test_conversions() {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const Half half{std::uint16_t(bits)};
    const BFloat16 bfloat{std::uint16_t(bits)};
    Half half_again;
    BFloat16 bfloat_again;
    store(half_again, load(half));
    store(bfloat_again, load(bfloat));
    check(std::isnan(load(half)) ? std::isnan(load(half_again)) : half_again.bits == bits, "any", "float16 round trip",
          half_again.bits, bits);
    check(std::isnan(load(bfloat)) ? std::isnan(load(bfloat_again)) : bfloat_again.bits == bits, "any",
          "bfloat16 round trip", bfloat_again.bits, bits);
    const bool has_next = (bits & 0x7fff) < 0x7bff;
    if (has_next) {
      const Half next{std::uint16_t(bits + 1)};
      Half middle;
      store(middle, (load(half) + load(next)) / 2);
      check(middle.bits == (bits & 1 ? bits + 1 : bits), "any", "float16 tie", middle.bits, bits);
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
  check(worst < 1, "any", "exp, error in ulp", worst, 1);
  check(prograd::exp(-INFINITY) == 0 && std::isnan(prograd::exp(NAN)), "any", "exp(-inf)", prograd::exp(-INFINITY), 0);
}

void test_log() {
  double worst = 0;
  for (float x = 1.2e-38f; x < 3e38f; x *= 1.00003f) {
    const float wanted = float(std::log(double(x)));
    worst = std::fmax(worst, std::fabs(prograd::log(x) - std::log(double(x))) /
                                 (std::nextafter(std::fabs(wanted), INFINITY) - std::fabs(wanted)));
  }
  check(worst < 1, "any", "log, error in ulp", worst, 1);
  check(prograd::log(1.0f) == 0 && prograd::log(0.0f) == -INFINITY && prograd::log(INFINITY) == INFINITY, "any",
        "log(0), log(1), log(inf)", prograd::log(0.0f), -INFINITY);
  check(std::isnan(prograd::log(-1.0f)) && std::isnan(prograd::log(NAN)), "any", "log(-1), log(nan)",
        prograd::log(-1.0f), NAN);
}

struct Case {
  const Kernels& kernels;
  const Kernels& baseline;
  Storage storage;
  std::int64_t n, shift;
  double tolerance;

  void agree(const char* what, double got, double wanted, double scale = 1) const {
    check(std::fabs(got - wanted) <= tolerance * scale * std::fmax(1, std::fabs(wanted)), kernels.isa, what, got, wanted);
  }
};

void test_updates(const Case& c) {
  for (const Storage moments : {c.storage, c.storage == Storage::f64 ? Storage::f64 : Storage::f32}) {
    for (int variant = 0; variant < 8; ++variant) {
      const bool conflict = variant & 1, amsgrad = variant & 2, momentum = variant & 4;
      double results[2][6] = {};
      for (int side = 0; side < 2; ++side) {
        const Kernels& kernels = side ? c.kernels : c.baseline;
        std::mt19937 random(variant);
        Buffer p(c.storage, c.n, c.shift), a(c.storage, c.n, c.shift), b(c.storage, c.n), m(moments, c.n), v(moments, c.n),
            largest(moments, c.n, c.shift);
        for (Buffer* buffer : {&p, &a, &b, &m, &v, &largest}) buffer->fill(random);
        v.positive(), largest.positive();
        double sums[3];
        kernels.gram(c.storage, a.data(), b.data(), c.n, 0.5, sums);
        const double beta = conflict ? -0.3 : 0;
        kernels.adamw(c.storage, moments, {p.data(), a.data(), b.data(), m.data(), v.data(),
                                           amsgrad ? largest.data() : nullptr},
                      c.n, AdamW<double>::at(3, 1e-2, 0.9, 0.99, 1e-8, 0.1), 1, beta);
        kernels.sgd(c.storage, moments, {p.data(), a.data(), b.data(), momentum ? m.data() : nullptr}, c.n,
                    SGD<double>{1e-2, momentum ? 0.9 : 0, 0.9, 0.1, conflict, amsgrad}, 1, beta);
        kernels.project(c.storage, a.data(), b.data(), c.n, 0.5, beta);
        const std::int64_t last = c.n - 1;
        const double row[6] = {sums[0], sums[1], sums[2], p[last], m[last / 2], a[last]};
        std::memcpy(results[side], row, sizeof row);
      }
      const char* names[6] = {"gram aa", "gram ab", "gram bb", "parameter", "moment", "projected"};
      for (int i = 0; i < 6; ++i) c.agree(names[i], results[1][i], results[0][i], i == 1 ? double(c.n) : 1);
    }
  }
}

// Three rows: one is written while the next is computed, and the last by itself.
void test_dual_loss(const Case& c) {
  constexpr std::int64_t count = 3;
  const Storage accumulation = c.storage == Storage::f64 ? Storage::f64 : Storage::f32;
  const std::int64_t size = c.storage == Storage::f64 ? 8 : c.storage == Storage::f32 ? 4 : 2;
  for (int variant = 0; variant < 16; ++variant) {
    double results[2][count][5] = {};
    for (int side = 0; side < 2; ++side) {
      std::mt19937 random(variant);
      Buffer z(c.storage, count * c.n, c.shift), t(c.storage, count * c.n), offset(accumulation, c.n),
          scratch(accumulation, dual_loss_scratch(c.n)), task(c.storage, count * c.n, c.shift),
          general(c.storage, count * c.n);
      for (Buffer* buffer : {&z, &t, &offset}) buffer->fill(random);
      const bool in_place = variant & 8;
      Buffer &task_to = in_place ? z : task, &general_to = in_place ? t : general;
      Kernels::DualLossRow rows[count] = {};
      for (std::int64_t i = 0; i < count; ++i) {
        const auto of = [&](Buffer& buffer) { return static_cast<char*>(buffer.data()) + i * c.n * size; };
        Kernels::DualLossRow& row = rows[i];
        row.student = of(z), row.teacher = of(t), row.classes = c.n, row.label = i * c.n / count;
        row.teacher_offset = variant & 1 ? offset.data() : nullptr;
        row.temperature = variant & 2 ? 2.5 : 1;
        row.soft_ce = variant & 4;
        row.task_weight = row.general_weight = 1;
        row.task_cotangent_weight = row.general_cotangent_weight = 0.5;
        row.task_cotangent = of(task_to);
        row.general_cotangent = of(general_to);
        row.stream = variant & 4;
      }
      Kernels::DualLosses losses[count];
      (side ? c.kernels : c.baseline).dual_loss_rows(c.storage, rows, count, scratch.data(), losses);
      for (std::int64_t i = 0; i < count; ++i) {
        const double values[5] = {losses[i].task, losses[i].general, double(losses[i].correct),
                                  task_to[i * c.n + rows[i].label], general_to[(i + 1) * c.n - 1]};
        std::memcpy(results[side][i], values, sizeof values);
      }
    }
    const char* names[5] = {"task loss", "general loss", "correct", "task cotangent", "general cotangent"};
    for (std::int64_t i = 0; i < count; ++i) {
      for (int k = 0; k < 5; ++k) c.agree(names[k], results[1][i][k], results[0][i][k]);
    }
  }
}

void test_gelu(const Case& c) {
  for (const Approximate approximate : {Approximate::none, Approximate::tanh, Approximate::sigmoid}) {
    double results[2][3] = {};
    for (int side = 0; side < 2; ++side) {
      const Kernels& kernels = side ? c.kernels : c.baseline;
      std::mt19937 random(1);
      const std::int64_t count = 2;
      Buffer x(c.storage, c.n, c.shift), out(c.storage, c.n), gradients(c.storage, count * c.n, c.shift);
      x.fill(random), gradients.fill(random);
      kernels.gelu(c.storage, x.data(), out.data(), c.n, approximate);
      kernels.gelu_backward(c.storage, x.data(), gradients.data(), c.n, count, c.n, approximate);
      const double values[3] = {out[c.n - 1], gradients[c.n / 2], gradients[2 * c.n - 1]};
      std::memcpy(results[side], values, sizeof values);
    }
    const char* names[3] = {"gelu", "first gelu gradient", "last gelu gradient"};
    for (int i = 0; i < 3; ++i) c.agree(names[i], results[1][i], results[0][i]);
  }
}

void test_layer_norm(const Case& c) {
  const Storage accumulation = c.storage == Storage::f64 ? Storage::f64 : Storage::f32;
  double results[2][4] = {};
  for (int side = 0; side < 2; ++side) {
    const Kernels& kernels = side ? c.kernels : c.baseline;
    std::mt19937 random(1);
    const std::int64_t rows = 2, count = 2, n = rows * c.n;
    Buffer x(c.storage, n, c.shift), branch(c.storage, n), total(c.storage, n), normed(c.storage, n, c.shift),
        weight(accumulation, c.n), bias(accumulation, c.n, c.shift), statistics(accumulation, 2 * rows),
        d_normed(c.storage, count * n, c.shift), d_total(c.storage, count * n);
    for (Buffer* buffer : {&x, &branch, &weight, &bias, &d_normed, &d_total}) buffer->fill(random, 0.5);
    kernels.add_layer_norm(c.storage,
                           {x.data(), branch.data(), weight.data(), bias.data(), total.data(), normed.data(),
                            statistics.data(), c.n, 1e-2},
                           0, rows);
    kernels.layer_norm_backward(
        c.storage, {d_normed.data(), total.data(), statistics.data(), weight.data(), d_total.data(), count, rows, c.n}, 0,
        rows);
    const double values[4] = {total[n - 1], normed[n - 1], statistics[2 * rows - 1], d_total[count * n - 1]};
    std::memcpy(results[side], values, sizeof values);
  }
  const char* names[4] = {"total", "normed", "rstd", "d_total"};
  for (int i = 0; i < 4; ++i) c.agree(names[i], results[1][i], results[0][i], 4);
}

// Heads of c.n columns, in matrices with no element beyond the last row.
void test_attention(const Case& c) {
  const Storage accumulation = c.storage == Storage::f64 ? Storage::f64 : Storage::f32;
  // a segment longer than a block; one row; with the prefix around a register
  const std::vector<std::int64_t> offsets = {0, 3, 73, 74, 79};
  const std::int64_t segments = std::int64_t(offsets.size()) - 1, rows = offsets.back(), count = 2;
  for (const std::int64_t prefix : {0, 1, 17}) {
    for (const bool last : {false, true}) {
      double results[2][6] = {};
      for (int side = 0; side < 2; ++side) {
        const Kernels& kernels = side ? c.kernels : c.baseline;
        std::mt19937 random(1);
        const std::int64_t queries = last ? segments : rows, n = c.n;
        Buffer query(c.storage, queries * n, c.shift), key(c.storage, rows * n), value(c.storage, rows * n, c.shift),
            prefix_key(c.storage, prefix * n), prefix_value(c.storage, prefix * n, c.shift), out(c.storage, queries * n),
            gradient(c.storage, count * queries * n), d_query(c.storage, count * queries * n, c.shift),
            d_key(c.storage, count * rows * n), d_value(c.storage, count * rows * n),
            d_prefix(accumulation, count * 2 * prefix * n), sum(c.storage, n);
        for (Buffer* b : {&query, &key, &value, &prefix_key, &prefix_value, &gradient}) b->fill(random);
        const Kernels::Attention all{query.data(), key.data(), value.data(), prefix_key.data(), prefix_value.data(), n, n,
                                     n, offsets.data(), n, prefix, 70, 1 / std::sqrt(double(n)), last};
        Buffer scratch(accumulation, kernels.attention_scratch(c.storage, all, 0));
        kernels.attention(c.storage, all, 0, segments, out.data(), n, scratch.data());
        Buffer backward_scratch(accumulation, kernels.attention_scratch(c.storage, all, count));
        kernels.attention_backward(c.storage, all,
                                   {gradient.data(), d_query.data(), d_key.data(), d_value.data(), n, n, n, queries * n,
                                    queries * n, rows * n, count, d_prefix.data()},
                                   0, segments, backward_scratch.data());
        kernels.sum(c.storage, d_prefix.data(), count * 2 * prefix, n, n, sum.data());
        const double values[6] = {out[queries * n - 1],       d_query[count * queries * n - 1],
                                  d_key[count * rows * n - 1], d_value[rows * n - 1],
                                  d_value[3 * n],              sum[n - 1]};
        std::memcpy(results[side], values, sizeof values);
      }
      const char* names[6] = {"attention", "d_query", "d_key", "d_value", "d_value, other", "d_prefix"};
      for (int i = 0; i < 6; ++i) c.agree(names[i], results[1][i], results[0][i], 8);
    }
  }
}

void test_samples(const Case& c) {
  const Storage accumulation = c.storage == Storage::f64 ? Storage::f64 : Storage::f32;
  for (const std::int64_t samples : {1, 3}) {
    double results[2][4] = {};
    for (int side = 0; side < 2; ++side) {
      std::mt19937 random(7);
      Buffer z(c.storage, samples * c.n, c.shift), cotangents(c.storage, samples * c.n, c.shift),
          scratch(accumulation, 3 * samples), log_probs(accumulation, c.n);
      z.fill(random);
      Kernels::SampledRow row{z.data(), samples, c.n, c.n, cotangents.data(), scratch.data(), samples == 3};
      const Kernels& kernels = side ? c.kernels : c.baseline;
      const std::int64_t label = c.n / 3;
      results[side][0] = kernels.sampled_cross_entropy_row(c.storage, row, label, 0.5);
      kernels.sampled_log_probs_row(c.storage, row, log_probs.data());
      results[side][1] = cotangents[label];
      results[side][2] = cotangents[samples * c.n - 1];
      results[side][3] = log_probs[c.n - 1];
    }
    const char* names[4] = {"sampled loss", "cotangent of the label", "last cotangent", "log probability"};
    for (int i = 0; i < 4; ++i) c.agree(names[i], results[1][i], results[0][i]);
  }
}

void test_differences(const Case& c) {
  for (const bool soft_wing : {false, true}) {
    double results[2][2] = {};
    for (int side = 0; side < 2; ++side) {
      std::mt19937 random(8);
      Buffer x(c.storage, c.n, c.shift), t(c.storage, c.n), cotangents(c.storage, c.n, c.shift);
      x.fill(random), t.fill(random);
      const Kernels::Difference difference{x.data(), t.data(), cotangents.data(), soft_wing, 0.5, 20, 0.5, 0.25};
      results[side][0] = (side ? c.kernels : c.baseline).difference_loss(c.storage, difference, c.n);
      results[side][1] = cotangents[c.n - 1];
    }
    c.agree("difference loss", results[1][0], results[0][0]);
    c.agree("difference cotangent", results[1][1], results[0][1]);
  }
}

// A product in the layouts of the linear losses, against sums in double; and the same bits in parts.
struct ProductCase {
  const Kernels& kernels;
  Storage storage;
  std::int64_t rows, columns, depth;
  bool strips, transposed, add;  // A's rows are not contiguous; C's are not; C holds something already
  std::int64_t shift;            // elements from an aligned start

  Buffer random_buffer(std::int64_t n, int seed) const {
    std::mt19937 random(seed);
    Buffer buffer(storage, n, shift);
    buffer.fill(random);
    return buffer;
  }

  // C, multiplied `at_once` rows at a time; A's row `bad` and B's column `bad` begin with `value`, if bad >= 0.
  Buffer product(std::int64_t at_once, std::int64_t bad = -1, double value = 0) const {
    const std::int64_t size = size_of(storage), a_row = strips ? 1 : depth, a_column = strips ? rows : 1;
    const std::int64_t c_row = transposed ? 1 : columns, c_column = transposed ? rows : 1;
    Buffer a = random_buffer(rows * depth, 1), b = random_buffer(depth * columns, 2), c = random_buffer(rows * columns, 3);
    if (bad >= 0 && rows * columns * depth > 0) a.set_at(bad % rows * a_row, value), b.set_at(bad % columns, value);
    Buffer packed(storage, packed_size(depth, columns)), scratch(storage, product_scratch);
    kernels.pack(storage, depth, columns, b.data(), columns, 1, packed.data());
    for (std::int64_t first = 0; first < rows; first += at_once) {
      kernels.product(storage,
                      {std::min(at_once, rows - first), columns, depth, static_cast<char*>(a.data()) + first * a_row * size,
                       a_row, a_column, packed.data(), 0.5, add, static_cast<char*>(c.data()) + first * c_row * size, c_row,
                       c_column, scratch.data()});
    }
    return c;
  }

  void test() const {
    const Buffer a = random_buffer(rows * depth, 1), b = random_buffer(depth * columns, 2),
                 before = random_buffer(rows * columns, 3), whole = product(rows);
    const Buffer in_parts = product(7), one_by_one = product(1);
    const double infinity = std::numeric_limits<double>::infinity();
    const Buffer infinite = product(rows, 1, infinity);
    const double tolerance = storage == Storage::f64 ? 1e-14 : 1e-6;
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < columns; ++j) {
        double sum = 0;
        for (std::int64_t k = 0; k < depth; ++k) {
          sum += a[strips ? k * rows + i : i * depth + k] * b[k * columns + j];
        }
        const std::int64_t at = transposed ? j * rows + i : i * columns + j;
        const double wanted = 0.5 * sum + (add ? before[at] : 0);
        check(std::fabs(whole[at] - wanted) <= tolerance * double(depth + 1), kernels.isa, "product", whole[at], wanted);
        check(whole[at] == in_parts[at] && whole[at] == one_by_one[at], kernels.isa, "product in parts", in_parts[at],
              whole[at]);
        if (depth == 0) continue;
        const bool touched = i == 1 % rows || j == 1 % columns;
        check(touched ? !std::isfinite(infinite[at]) : infinite[at] == whole[at], kernels.isa, "product with infinities",
              infinite[at], whole[at]);
      }
    }
  }
};

void test_products(const Kernels& kernels) {
  // nothing; one; around tiles of 6 and 12, panels of 4 to 32, a group of panels, and blocks of 96 rows and 512 terms
  const std::int64_t sizes[][3] = {{0, 3, 2},   {3, 0, 2},    {3, 2, 0},     {1, 1, 1},    {5, 3, 2},    {6, 4, 7},
                                   {7, 5, 13},  {11, 31, 17}, {12, 32, 5},   {13, 33, 31}, {95, 15, 64}, {96, 16, 3},
                                   {97, 17, 9}, {6, 8, 511},  {13, 33, 512}, {7, 31, 513}, {3, 2, 1025}, {193, 65, 24}};
  for (const Storage storage : {Storage::f64, Storage::f32}) {
    for (const auto& [rows, columns, depth] : sizes) {
      for (int variant = 0; variant < 8; ++variant) {
        const bool strips = variant & 1, transposed = variant & 2, add = variant & 4;
        ProductCase{kernels, storage, rows, columns, depth, strips, transposed, add, variant % 3}.test();
      }
    }
  }
}

// Equal numbers, whose roundings all go one way. Under a sanitizer the compiler may keep a run in one lane, so the bound
// is wider than that of tests/ops/test_long_sums.py; a plain sum of so many is off by 3e-5.
void test_long_sums(const Kernels& kernels) {
  constexpr std::int64_t n = 16384;
  for (const double value : {0.1, 0.7, 1.1, 1.9, 3.3}) {
    Buffer a(Storage::f32, n), b(Storage::f32, n), cotangents(Storage::f32, n);
    a.fill_with(value), b.fill_with(-value);
    const double x = a[0];
    double sums[3];
    kernels.gram(Storage::f32, a.data(), b.data(), n, 1, sums);
    const double squares = kernels.difference_loss(
        Storage::f32, {a.data(), b.data(), cotangents.data(), false, 1, 1, 1, 1}, n);
    const double got[4] = {sums[0], sums[1], sums[2], squares / 4}, sign[4] = {1, -1, 1, 1};
    for (int i = 0; i < 4; ++i) {
      const double wanted = sign[i] * x * x * double(n);
      check(std::fabs(got[i] / wanted - 1) < 4e-6, kernels.isa, "sum of equal numbers", got[i], wanted);
    }
  }
}

}  // namespace

int main() {
  test_conversions();
  test_exp();
  test_log();
  const Kernels& baseline = *kernels_for("baseline");
  int tables = 0;
  for (const char* isa : {"baseline", "avx2", "avx512"}) {
    const Kernels* kernels = kernels_for(isa);
    if (!kernels) continue;
    ++tables;
    test_products(*kernels);
    test_long_sums(*kernels);
    for (const Storage storage : {Storage::f64, Storage::f32, Storage::bf16, Storage::f16}) {
      // the instruction sets differ in the order of sums and in fused products, so in the last bit of what is stored
      const double tolerance = storage == Storage::f64 ? 1e-13 : storage == Storage::f32 ? 1e-5 : 1e-2;
      // one element; around a vector and a cache line; around a block of cotangents
      for (const std::int64_t n : {1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 1000, 1023, 1025, 2500}) {
        for (const std::int64_t shift : {0, 1, 3}) {
          const Case c{*kernels, baseline, storage, n, shift, tolerance};
          test_updates(c);
          test_dual_loss(c);
          test_samples(c);
          test_differences(c);
          test_gelu(c);
          test_layer_norm(c);
          if (n <= 128) test_attention(c);  // columns of a head
        }
      }
    }
  }
  std::printf("%d instruction sets, best: %s; %d failures\n", tables, kernels().isa, failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
