// Lists of tensors. Their elements are split in units, each with one conflict test, and in chunks, each with one
// partial sum. Neither depends on the number of threads, so that no result does.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <algorithm>

#include "../common/operand.h"
#include "../formulas/projection.h"
#include "../operators/projection.h"
#include "projection.h"

namespace prograd::cpu {

constexpr int64_t chunk_size = 16384;  // elements of one partial sum: 64 KiB of float32
constexpr int64_t grain_size = 65536;  // elements for which a second thread pays

// A unit of up to so many elements is summed and updated while it is in the cache; one of up to twice as many, where
// there are `several_units` times as many elements, so that the other threads have their share.
constexpr int64_t one_pass_size = 65536;
constexpr int64_t several_units = 4;

struct Unit {
  int64_t tensor, begin, end;  // elements of one tensor
  int64_t entry;               // row of the Gram entries and coefficients
  int64_t first_chunk;         // of the partial sums
  bool one_pass;               // sums and update run one after the other on one thread
};

// What one thread does in one go: a whole unit, or a chunk of a large one.
struct Part {
  int64_t unit, begin, end;  // elements of the unit's tensor
  int64_t start;             // elements of all parts before this one
};

class Units {
 public:
  Units(at::TensorList tensors, Scope scope) : scope_(scope) {
    int64_t all = 0;
    for (const at::Tensor& tensor : tensors) all += tensor.numel();
    for (size_t i = 0; i < tensors.size(); ++i) {
      const int64_t size = tensors[i].numel();
      const int64_t rows = scope == Scope::row && tensors[i].dim() > 0 ? tensors[i].size(0) : 1;
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t n = size / rows, begin = row * n, end = begin + n, index = units_.size();
        const bool whole = n <= one_pass_size || (n <= 2 * one_pass_size && n * several_units <= all);
        units_.push_back(
            {int64_t(i), begin, end, scope == Scope::global ? 0 : index, n_chunks_, whole && scope != Scope::global});
        n_chunks_ += (n + chunk_size - 1) / chunk_size;
        const int64_t step = whole ? n : chunk_size;
        for (int64_t at = begin; at < end; at += step) {
          parts_.push_back({index, at, std::min(at + step, end), elements_ + at - begin});
        }
        elements_ += n;
      }
    }
  }

  int64_t entries() const { return scope_ == Scope::global ? 1 : int64_t(units_.size()); }
  int64_t chunks() const { return n_chunks_; }
  auto begin() const { return units_.begin(); }
  auto end() const { return units_.end(); }

  // body(unit, begin, end) for all parts, on several threads if there is enough to do. `backwards`: the last part
  // first, so that a second pass begins with what the first one has left in the cache.
  template <typename Body>
  void each_part(bool backwards, const Body& body) const {
    // equal numbers of elements for the threads: each takes the parts that start in its range
    at::parallel_for(0, elements_, grain_size, [&](int64_t range_begin, int64_t range_end) {
      const auto starts_before = [](const Part& part, int64_t element) { return part.start < element; };
      const auto first = std::lower_bound(parts_.begin(), parts_.end(), range_begin, starts_before);
      const auto last = std::lower_bound(first, parts_.end(), range_end, starts_before);
      const auto count = last - first;
      for (auto i = decltype(count)(0); i < count; ++i) {
        const Part& part = backwards ? *(last - 1 - i) : *(first + i);
        body(units_[part.unit], part.begin, part.end);
      }
    });
  }

 private:
  Scope scope_;
  int64_t n_chunks_ = 0, elements_ = 0;
  c10::SmallVector<Unit, 4> units_;
  c10::SmallVector<Part, 4> parts_;
};

// ---- gradients and their Gram entries

// The gradients of one tensor.
struct Gradients {
  const ProjectionKernels& kernels;
  at::Tensor task, general;

  Gradients(const at::Tensor& a, const at::Tensor& b, at::ScalarType dtype)
      : kernels(kernels_for<ProjectionKernels>(storage_of(dtype))),
        task(contiguous(a, dtype)),
        general(contiguous(b, dtype)) {}

  const char* task_at(int64_t i) const { return static_cast<const char*>(data_of(task)) + i * task.itemsize(); }
  const char* general_at(int64_t i) const { return static_cast<const char*>(data_of(general)) + i * task.itemsize(); }
};

using GradientList = c10::SmallVector<Gradients, 4>;

struct Sums {
  double task = 0, dot = 0, general = 0;

  // chunk after chunk, in double: the sum over chunks adds no error of its own
  void add(const Gradients& gradients, int64_t begin, int64_t end) {
    double sums[3];
    gradients.kernels.gram(gradients.task_at(begin), gradients.general_at(begin), end - begin, sums);
    task += sums[0], dot += sums[1], general += sums[2];
  }
  void add(const Sums& other) { task += other.task, dot += other.dot, general += other.general; }
};

inline Sums sums_of(const Gradients& gradients, const Unit& unit) {
  Sums sums;
  for (int64_t begin = unit.begin; begin < unit.end; begin += chunk_size) {
    sums.add(gradients, begin, std::min(begin + chunk_size, unit.end));
  }
  return sums;
}

inline void write_entry(const at::Tensor& entries, int64_t i, const Sums& sums) {
  const WrittenNumbers written(entries);
  written.set(3 * i, sums.task);
  written.set(3 * i + 1, sums.dot);
  written.set(3 * i + 2, sums.general);
}

// The sums of all units that are not in one pass, by entry; `then` runs on the others as soon as theirs are written.
template <typename Then>
void write_entries(const Units& units, const GradientList& gradients, const at::Tensor& entries, bool one_pass,
                   const Then& then) {
  std::vector<Sums> partial(units.chunks());
  units.each_part(false, [&](const Unit& unit, int64_t begin, int64_t end) {
    if (one_pass && unit.one_pass) {
      write_entry(entries, unit.entry, sums_of(gradients[unit.tensor], unit));
      then(unit);
      return;
    }
    for (int64_t at = begin; at < end; at += chunk_size) {
      partial[unit.first_chunk + (at - unit.begin) / chunk_size].add(gradients[unit.tensor], at,
                                                                     std::min(at + chunk_size, end));
    }
  });
  Sums all;
  if (units.begin() == units.end() && units.entries() == 1) write_entry(entries, 0, all);  // of no tensors
  for (const Unit& unit : units) {
    const int64_t chunks = (unit.end - unit.begin + chunk_size - 1) / chunk_size;
    if (one_pass && unit.one_pass && chunks > 0) continue;
    Sums sums;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sums.add(partial[unit.first_chunk + chunk]);
    all.add(sums);
    write_entry(entries, unit.entry, units.entries() == 1 ? all : sums);
  }
}

// ---- what is done with them

struct Coefficients {
  double alpha, beta;
};

// ProGrad's, from the entries as they were written: in their dtype, as the reference.
template <typename Arguments>
Coefficients prograd_coefficients(const Arguments& all, const at::Tensor& entries, int64_t i) {
  const Numbers numbers(entries);
  const double task_norm = numbers[3 * i], dot = numbers[3 * i + 1], norm = numbers[3 * i + 2];
  const bool wide = entries.scalar_type() == at::kDouble;
  return {1, wide ? conflict_beta<double>(task_norm, dot, norm, all.lambda, all.noise_floor)
                  : conflict_beta<float>(float(task_norm), float(dot), float(norm), float(all.lambda),
                                         float(all.noise_floor))};
}

// apply(unit, begin, end, coefficients) on all elements of all units, with the coefficients that were given, else with
// ProGrad's, from the entries, which are written. `skipped`: that is all.
template <typename Arguments, typename Apply>
void project_units(const Units& units, const GradientList& gradients, const Arguments& all, bool skipped,
                   const Apply& apply) {
  if (all.coefficients) {
    if (skipped) return;
    const at::Tensor given = contiguous(*all.coefficients, accumulation_dtype(all.coefficients->scalar_type()));
    const Numbers coefficients(given);
    units.each_part(false, [&](const Unit& unit, int64_t begin, int64_t end) {
      apply(unit, begin, end, Coefficients{coefficients[2 * unit.entry], coefficients[2 * unit.entry + 1]});
    });
    return;
  }
  const Written written(all.entries, accumulation_dtype(all.entries.scalar_type()));
  const at::Tensor& entries = written.tensor();
  write_entries(units, gradients, entries, true, [&](const Unit& unit) {
    if (!skipped) apply(unit, unit.begin, unit.end, prograd_coefficients(all, entries, unit.entry));
  });
  if (!skipped && !std::all_of(units.begin(), units.end(), [](const Unit& unit) { return unit.one_pass; })) {
    units.each_part(true, [&](const Unit& unit, int64_t begin, int64_t end) {
      if (!unit.one_pass) apply(unit, begin, end, prograd_coefficients(all, entries, unit.entry));
    });
  }
  written.write_back();
}

}  // namespace prograd::cpu
