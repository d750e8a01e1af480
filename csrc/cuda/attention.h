// The launchers of shared_prefix_attention_out and shared_prefix_attention_backward_out; see launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/types.h"

namespace prograd::cuda {

// Rows of every group, and of every cotangent where there are several: strides in elements; columns are contiguous.
struct Rows {
  void* data;
  int64_t cotangent, group, row;
};

// Attention of packed segments with a shared prefix. Columns: heads of `width` each, in key_value and prefix twice. Where
// the prefix is attended to by its own rows too, `prefix` and `key_value` are neighbours in one tensor.
struct Attention {
  Rows query;              // (groups, queries, heads * width): those of the prefix's own rows, then those of the segments
  Rows key_value;          // (groups, rows, 2 * heads * width) of the segments
  Rows prefix;             // (groups, prefix_rows, 2 * heads * width)
  const int64_t* offsets;  // (segments + 1,), of rows of key_value
  int64_t groups, queries, leading, rows, prefix_rows, segments;  // leading: queries of the prefix's rows, all or none
  int heads, width;
  double scale;
  bool last;  // one query for each segment, that of its last row
};

constexpr int kMaxHeadWidth = 128;

void shared_prefix_attention(Storage storage, const Attention& attention, const Rows& out, void* stream);

size_t shared_prefix_attention_backward_workspace(Storage storage, const Attention& attention, int64_t cotangents);

void shared_prefix_attention_backward(Storage storage, const Attention& attention, int64_t cotangents,
                                      const Rows& gradient, const Rows& d_query, const Rows& d_key_value,
                                      const Rows& d_prefix, void* workspace, void* stream);

}  // namespace prograd::cuda
