// How the elements of many tensors are split: in units, each with one conflict test, and in chunks, each with one
// partial sum. Neither depends on the number of threads, so that no result does.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <algorithm>

#include "../operators.h"

namespace prograd::cpu {

constexpr int64_t chunk_size = 16384;    // elements of one partial sum: 64 KiB of float32
constexpr int64_t one_pass_size = 65536; // a unit of up to so many is summed and updated while it is in the cache;
constexpr int64_t several_units = 4;     // up to twice as many where there are this many times as many elements, so that
                                         // the other threads have their share
constexpr int64_t grain_size = 65536;    // elements for which a second thread pays

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
  Units(at::TensorList tensors, int64_t scope) : scope_(scope) {
    int64_t all = 0;
    for (const at::Tensor& tensor : tensors) all += tensor.numel();
    for (size_t i = 0; i < tensors.size(); ++i) {
      const int64_t size = tensors[i].numel();
      const int64_t rows = scope == by_row && tensors[i].dim() > 0 ? tensors[i].size(0) : 1;
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t n = size / rows, begin = row * n, end = begin + n, index = units_.size();
        const bool whole = n <= one_pass_size || (n <= 2 * one_pass_size && n * several_units <= all);
        units_.push_back({int64_t(i), begin, end, scope == global ? 0 : index, n_chunks_, whole && scope != global});
        n_chunks_ += (n + chunk_size - 1) / chunk_size;
        const int64_t step = whole ? n : chunk_size;
        for (int64_t at = begin; at < end; at += step) {
          parts_.push_back({index, at, std::min(at + step, end), elements_ + at - begin});
        }
        elements_ += n;
      }
    }
  }

  int64_t entries() const { return scope_ == global ? 1 : int64_t(units_.size()); }
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
  int64_t scope_, n_chunks_ = 0, elements_ = 0;
  c10::SmallVector<Unit, 4> units_;
  c10::SmallVector<Part, 4> parts_;
};

}  // namespace prograd::cpu
