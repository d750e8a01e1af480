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
constexpr int64_t one_pass_size = 65536; // a unit of up to so many is summed and updated while it is in the cache
constexpr int64_t grain_size = 65536;    // elements for which a second thread pays

struct Unit {
  int64_t tensor, begin, end;  // elements of one tensor
  int64_t entry;               // row of the Gram entries and coefficients
  int64_t first_chunk;         // of the partial sums
};

class Units {
 public:
  Units(at::TensorList tensors, int64_t scope) : scope_(scope) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      const int64_t size = tensors[i].numel();
      const int64_t rows = scope == by_row && tensors[i].dim() > 0 ? tensors[i].size(0) : 1;
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t n = size / rows;
        units_.push_back({int64_t(i), row * n, row * n + n, scope == global ? 0 : int64_t(units_.size()), n_chunks_});
        n_chunks_ += (n + chunk_size - 1) / chunk_size;
      }
      elements_ += size;
    }
  }

  int64_t entries() const { return scope_ == global ? 1 : int64_t(units_.size()); }
  int64_t chunks() const { return n_chunks_; }
  auto begin() const { return units_.begin(); }
  auto end() const { return units_.end(); }

  // Whether a unit's sums and update run one after the other on one thread.
  bool in_one_pass(const Unit& unit) const { return scope_ != global && unit.end - unit.begin <= one_pass_size; }

  // body(unit, begin, end) for whole units of up to one_pass_size elements and for the chunks of the others, on several
  // threads if there is enough to do.
  template <typename Body>
  void each_part(const Body& body) const {
    if (elements_ <= grain_size) {
      for (const Unit& unit : units_) parts_of(unit, body);
      return;
    }
    // equal numbers of elements for the threads: each takes the parts that start in its range
    at::parallel_for(0, elements_, grain_size, [&](int64_t range_begin, int64_t range_end) {
      int64_t start = 0;
      for (const Unit& unit : units_) {
        if (start >= range_end) break;
        const int64_t size = unit.end - unit.begin;
        if (start + size > range_begin) {
          parts_of(unit, [&](const Unit& u, int64_t begin, int64_t end) {
            const int64_t at = start + begin - u.begin;
            if (at >= range_begin && at < range_end) body(u, begin, end);
          });
        }
        start += size;
      }
    });
  }

 private:
  template <typename Body>
  static void parts_of(const Unit& unit, const Body& body) {
    const int64_t size = unit.end - unit.begin;
    const int64_t step = size <= one_pass_size ? size : chunk_size;
    for (int64_t begin = unit.begin; begin < unit.end; begin += step) {
      body(unit, begin, std::min(begin + step, unit.end));
    }
  }

  int64_t scope_, n_chunks_ = 0, elements_ = 0;
  c10::SmallVector<Unit, 8> units_;
};

}  // namespace prograd::cpu
