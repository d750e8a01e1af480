// What the CPU kernels offer: plain functions on contiguous memory, one thread each, no torch.
//
// kernels.cpp is compiled once for each instruction set; kernels() is the table of the best one for this machine.
// Callers split the work in chunks whose sizes do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "../math.h"
#include "../transformer.h"

namespace prograd {

// Classes of a row whose logits stay in the first-level cache from their maximum to their exponentials.
constexpr std::int64_t dual_loss_block = 1024;

// Elements of the accumulation dtype: for each of two rows its exponentials, read in registers that may reach beyond the
// last one, and the maxima of its blocks.
constexpr std::int64_t widest_register = 16;  // elements
constexpr std::int64_t dual_loss_scratch(std::int64_t classes) {
  const std::int64_t exponentials = 3 * (classes + widest_register), maxima = 2 * (classes / dual_loss_block + 1);
  return 2 * ((exponentials + maxima) / widest_register + 2) * widest_register;
}

// Columns of B whose packed panels, of whatever instruction set, can be written apart from the others.
constexpr std::int64_t panel_group = 2 * widest_register;
constexpr std::int64_t packed_size(std::int64_t depth, std::int64_t columns) {  // elements
  return depth * ((columns + panel_group - 1) / panel_group * panel_group);
}
constexpr std::int64_t product_scratch = 49152;  // elements

enum class Storage { f64, f32, bf16, f16 };

// Arithmetic is double for f64, else float.
struct Kernels {
  const char* isa;

  // sums: ||a||^2, <a,b>, ||b||^2 of n elements, a multiplied by task_scale
  void (*gram)(Storage, const void* a, const void* b, std::int64_t n, double task_scale, double* sums);

  // a = alpha a + beta b
  void (*project)(Storage, void* a, const void* b, std::int64_t n, double alpha, double beta);

  // One step on g = alpha a + beta b. `moments` is the dtype of exp_avg, exp_avg_sq and max_exp_avg_sq (null without
  // amsgrad): that of the parameter, or f32.
  struct AdamWTensors {
    void* param;
    const void *task, *general;
    void *exp_avg, *exp_avg_sq, *max_exp_avg_sq;
  };
  void (*adamw)(Storage, Storage moments, const AdamWTensors&, std::int64_t n, const AdamW<double>&, double alpha,
                double beta);

  struct SGDTensors {
    void* param;
    const void *task, *general;
    void* momentum_buffer;  // null without momentum
  };
  void (*sgd)(Storage, Storage moments, const SGDTensors&, std::int64_t n, const SGD<double>&, double alpha,
              double beta);

  // Both losses of rows of one length, and both cotangents. A row's cotangents may lie where its logits lie.
  struct DualLossRow {
    const void *student, *teacher;  // (classes,)
    std::int64_t classes, label;
    const void* teacher_offset;  // (classes,) in the accumulation dtype, or null
    double temperature;
    bool soft_ce;
    double task_weight, general_weight;             // of the losses
    double task_cotangent_weight, general_cotangent_weight;  // the same over B for a mean
    void *task_cotangent, *general_cotangent;       // (classes,)
    bool stream;  // write past the caches: results too large to be read from there again
  };
  struct DualLosses {
    double task, general;
    bool correct;
  };
  // scratch: dual_loss_scratch(classes) elements
  void (*dual_loss_rows)(Storage, const DualLossRow*, std::int64_t count, void* scratch, DualLosses* results);

  // One row of the logits of several samples, sample_stride elements apart.
  struct SampledRow {
    const void* logits;  // (samples, classes)
    std::int64_t samples, classes, sample_stride;
    void* cotangents;  // laid out as the logits
    void* scratch;     // 3 x samples in the accumulation dtype
    bool stream;
  };
  // The loss; the cotangents are multiplied by weight.
  double (*sampled_cross_entropy_row)(Storage, const SampledRow&, std::int64_t label, double weight);
  void (*sampled_log_probs_row)(Storage, const SampledRow&, void* log_probs);  // (classes,) in the accumulation dtype

  // B (depth, columns) of a product in the order in which it is read; element (k, j) is at k b_row + j b_column. Column j
  // starts at packed + j depth where j is a multiple of panel_group. Storage: f64 or f32, here and for the product.
  void (*pack)(Storage, std::int64_t depth, std::int64_t columns, const void* b, std::int64_t b_row,
               std::int64_t b_column, void* packed);

  // C (+)= scale A B, with A (rows, depth) and C (rows, columns); element (i, k) of A is at i a_row + k a_column.
  struct Product {
    std::int64_t rows, columns, depth;
    const void* a;
    std::int64_t a_row, a_column;
    const void* packed;  // B, packed_size(depth, columns) elements
    double scale;
    bool add;
    void* c;
    std::int64_t c_row, c_column;
    void* scratch;  // product_scratch elements
  };
  void (*product)(Storage, const Product&);

  // Sum of f(prediction - target) over n elements, f the square or Soft Wing's function; cotangents = factor f'.
  struct Difference {
    const void *prediction, *target;
    void* cotangents;
    bool soft_wing;
    double omega1, omega2, epsilon, factor;
  };
  double (*difference_loss)(Storage, const Difference&, std::int64_t n);

  // out = GELU(x) of n elements, which may lie in the same place
  void (*gelu)(Storage, const void* x, void* out, std::int64_t n, Approximate);

  // `count` gradients of n elements each, `stride` elements apart, times GELU'(x)
  void (*gelu_backward)(Storage, const void* x, void* gradients, std::int64_t n, std::int64_t count,
                        std::int64_t stride, Approximate);

  // Rows [begin, end) of total = x + branch and of its norm. Weight, bias and statistics (rows, 2) are in the
  // accumulation dtype.
  struct AddLayerNorm {
    const void *x, *branch, *weight, *bias;
    void *total, *normed, *statistics;
    std::int64_t width;
    double eps;
  };
  void (*add_layer_norm)(Storage, const AddLayerNorm&, std::int64_t begin, std::int64_t end);

  // The gradients through it: d_total (count, rows, width) += those from d_normed.
  struct LayerNormBackward {
    const void *d_normed, *total, *statistics, *weight;
    void* d_total;
    std::int64_t count, rows, width;
  };
  void (*layer_norm_backward)(Storage, const LayerNormBackward&, std::int64_t begin, std::int64_t end);

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
  // Elements of the accumulation dtype that a call needs as scratch memory; count: cotangents, 0 for the forward.
  std::int64_t (*attention_scratch)(Storage, const Attention&, std::int64_t count);

  // The results of segments [begin, end).
  void (*attention)(Storage, const Attention&, std::int64_t begin, std::int64_t end, void* out, std::int64_t out_row,
                    void* scratch);

  // The same backward, for `count` cotangents: each pointer is to the first one's columns of row 0.
  struct AttentionGradients {
    const void* gradient;
    void *d_query, *d_key, *d_value;
    std::int64_t gradient_row, d_query_row, d_key_row;                 // from one row to the next
    std::int64_t gradient_next, d_query_next, d_key_next;  // from one cotangent to the next
    std::int64_t count;
    void* d_prefix;  // (count, 2, prefix, width) in the accumulation dtype: the sums over these segments
  };
  void (*attention_backward)(Storage, const Attention&, const AttentionGradients&, std::int64_t begin,
                             std::int64_t end, void* scratch);

  // out = the sum of `count` arrays of n numbers in the accumulation dtype, `stride` apart, in their order
  void (*sum)(Storage, const void* arrays, std::int64_t count, std::int64_t stride, std::int64_t n, void* out);
};

// The best table for this machine, or the one of the name given ("avx512", "avx2", "baseline"); null where this machine
// or this build cannot run it.
const Kernels& kernels();
const Kernels* kernels_for(const char* isa);

}  // namespace prograd
