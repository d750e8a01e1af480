// What the tests of the CPU kernels share: memory with nothing around it, and the kernels of each instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/kernels/storage.h"

using namespace prograd;
using namespace prograd::cpu;

inline int failures = 0;

inline void check(bool condition, InstructionSet set, const char* what, double got, double wanted) {
  if (condition) return;
  ++failures;
  std::printf("%s, %s: got %.9g, expected %.9g\n", name_of(set), what, got, wanted);
}

constexpr std::size_t size_of(Storage storage) {
  return storage == Storage::float64 ? 8 : storage == Storage::float32 ? 4 : 2;
}
constexpr Storage accumulation_of(Storage storage) {
  return storage == Storage::float64 ? Storage::float64 : Storage::float32;
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
  std::size_t size() const { return size_of(storage_); }  // of an element
  void* data() { return bytes_.data() + shift_ * size_of(storage_); }
  double operator[](std::int64_t i) const { return at(i + shift_); }

 private:
  double at(std::size_t i) const {
    switch (storage_) {
      case Storage::float64: return get<double>(i);
      case Storage::float32: return get<float>(i);
      case Storage::bfloat16: return load(get<BFloat16>(i));
      default: return load(get<Half>(i));
    }
  }
  void put(std::size_t i, double value) {
    switch (storage_) {
      case Storage::float64: return set<double>(i, value);
      case Storage::float32: return set<float>(i, float(value));
      case Storage::bfloat16: return set<BFloat16>(i, float(value));
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

struct Case {
  InstructionSet set;
  Storage storage;
  std::int64_t n, shift;
  double tolerance;

  // side 0: what every machine can run; side 1: the instruction set
  template <typename Kernels>
  const Kernels& kernels(int side) const {
    return kernels_for<Kernels>(side ? set : InstructionSet::baseline, storage);
  }

  void agree(const char* what, double got, double wanted, double scale = 1) const {
    check(std::fabs(got - wanted) <= tolerance * scale * std::fmax(1, std::fabs(wanted)), set, what, got, wanted);
  }
};

// A test of a family is a static object; main.cpp runs them all, for every instruction set or for every case.
struct Test {
  static std::vector<void (*)(InstructionSet)>& of_sets() {
    static std::vector<void (*)(InstructionSet)> tests;
    return tests;
  }
  static std::vector<void (*)(const Case&)>& of_cases() {
    static std::vector<void (*)(const Case&)> tests;
    return tests;
  }

  explicit Test(void (*test)(InstructionSet)) { of_sets().push_back(test); }
  explicit Test(void (*test)(const Case&)) { of_cases().push_back(test); }
};
