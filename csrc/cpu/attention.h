// The kernels of shared_prefix_attention_out and shared_prefix_attention_backward_out.
#pragma once

#include "dispatch.h"

namespace prograd::cpu {

// One head of one group of packed segments: its columns of row 0 of each matrix, and how far apart the rows lie.
struct Attention {
  const void *query, *key, *value, *prefix_key, *prefix_value;
  std::int64_t query_row, key_row, prefix_row;  // a key and its value are in rows of the same stride
  const std::int64_t* offsets;
  std::int64_t width;    // d / heads
  std::int64_t prefix;   // its rows
  std::int64_t longest;  // rows of the longest segment, or more
  double scale;
  bool last;  // one query per segment
};

// Of `count` cotangents: each pointer is to the first one's columns of row 0.
struct AttentionGradients {
  const void* gradient;
  void *d_query, *d_key, *d_value;
  std::int64_t gradient_row, d_query_row, d_key_row;     // from one row to the next
  std::int64_t gradient_next, d_query_next, d_key_next;  // from one cotangent to the next
  std::int64_t count;
  void* d_prefix;  // (count, 2, prefix, width) in the accumulation dtype: the sums over these segments
};

struct AttentionKernels {  // of segments [begin, end)
  // Elements of the accumulation dtype that a call needs as scratch memory; count: cotangents, 0 for the forward.
  std::int64_t (*scratch)(const Attention&, std::int64_t count);
  void (*forward)(const Attention&, std::int64_t begin, std::int64_t end, void* out, std::int64_t out_row,
                  void* scratch);
  void (*backward)(const Attention&, const AttentionGradients&, std::int64_t begin, std::int64_t end, void* scratch);

  // out = the sum of `count` arrays of n numbers in the accumulation dtype, `stride` apart, in their order; or out plus
  // that sum
  void (*sum)(const void* arrays, std::int64_t count, std::int64_t stride, std::int64_t n, void* out, bool add);
};

}  // namespace prograd::cpu
