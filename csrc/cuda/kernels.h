// What the CUDA kernels offer to C++: plain pointers and sizes. No torch header and no CUDA header here.
//
// All pointers are device pointers. Tensors are contiguous; the caller has checked shapes, dtypes and devices. Arithmetic
// is float, or double for Storage::float64; "arithmetic type" below means that. `stream` is a cudaStream_t. Nothing waits
// for the device. `workspace` holds at least the bytes that the *_workspace function of the operator asks for.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../transformer.h"

namespace prograd::cuda {

enum class Storage { float64, float32, bfloat16, float16 };
enum class Scope { tensor, row, global };
enum class Reduction { none, mean, sum };

// ---- gradients and updates

// One parameter. An operator reads the fields that it needs.
struct Tensor {
  void* task;           // a
  const void* general;  // b
  void* param;
  void* state[3];  // AdamW: exp_avg, exp_avg_sq, max_exp_avg_sq or null. SGD: momentum buffer or null
  float* step;
  int64_t units;      // conflict tests inside this tensor: its rows with Scope::row, else 1
  int64_t unit_size;  // elements of each
};

// How an update comes by its projection. coefficients (U, 2): given, in the arithmetic type. Null: ProGrad's, from
// entries (U, 3), which are computed and written.
struct Projection {
  Scope scope;
  const void* coefficients;
  void* entries;
  double lambda;
  const float* grad_scale;  // what the task gradient is divided by; null for 1
  const float* found_inf;   // above 0: nothing but entries is written; null for never
  bool maximize;
};

struct LearningRate {
  double value;
  const float* tensor;  // null, or on the device: then it counts
};

struct AdamWSettings {
  LearningRate lr;
  double beta1, beta2, eps, weight_decay;
};

struct SGDSettings {
  LearningRate lr;
  double momentum, dampening, weight_decay;
  bool nesterov, first;
};

// For all operators on lists of tensors.
size_t tensors_workspace(Storage storage, const Tensor* tensors, int count, Scope scope);

void gram(Storage storage, const Tensor* tensors, int count, Scope scope, void* entries, void* workspace, void* stream);

void project(Storage storage, const Tensor* tensors, int count, Scope scope, const void* coefficients, void* workspace,
             void* stream);

// states: storage of Tensor::state, that of the parameters or float32.
void adamw(Storage storage, Storage states, const Tensor* tensors, int count, const Projection& projection,
           const AdamWSettings& settings, void* workspace, void* stream);

void sgd(Storage storage, Storage states, const Tensor* tensors, int count, const Projection& projection,
         const SGDSettings& settings, void* workspace, void* stream);

// ---- losses

// What both losses have in common. offset, weights and losses are in the arithmetic type.
struct LossOptions {
  const int64_t* labels;         // (B,)
  const void* teacher_offset;    // (C,) or null
  const void* task_weight;       // (B,) or null
  const void* general_weight;    // (B,) or null
  double temperature;
  bool soft_ce;
  Reduction reduction;
  void* losses;      // (2, B) for Reduction::none, else (2,)
  void* cotangents;  // two arrays of the shape and storage of the student's argument
  int64_t* correct;  // ()
};

size_t dual_loss_workspace(Storage storage, int64_t rows);

// student, teacher: (rows, classes).
void dual_loss(Storage storage, const void* student, const void* teacher, int64_t rows, int64_t classes,
               const LossOptions& options, void* workspace, void* stream);

size_t linear_dual_loss_workspace(Storage storage, int64_t rows, int64_t classes);

// features: (rows, width); student, teacher: (classes, width). teacher null: the student is its own; cotangents are the
// task's alone.
void linear_dual_loss(Storage storage, const void* features, const void* student, const void* teacher, int64_t rows,
                      int64_t classes, int64_t width, double scale, const LossOptions& options, void* workspace,
                      void* stream);

// ---- samples: logits (samples, rows, classes)

size_t samples_workspace(Storage storage, int64_t samples, int64_t rows);

// losses: (rows,) for Reduction::none, else (); cotangents as the logits.
void sampled_cross_entropy(Storage storage, const void* logits, const int64_t* labels, int64_t samples, int64_t rows,
                           int64_t classes, Reduction reduction, void* losses, void* cotangents, void* workspace,
                           void* stream);

// log_probs: (rows, classes) in the arithmetic type.
void sampled_log_probs(Storage storage, const void* logits, int64_t samples, int64_t rows, int64_t classes,
                       void* log_probs, void* workspace, void* stream);

// ---- differences: factor times the sum of (prediction - target)^2, or of Soft Wing's function, and its gradient

struct DifferenceOptions {
  bool soft_wing;
  double omega1, omega2, epsilon, factor;
  void* loss;  // () in the arithmetic type
  void* cotangents;
};

size_t difference_loss_workspace(Storage storage, int64_t size);

void difference_loss(Storage storage, const void* prediction, const void* target, int64_t size,
                     const DifferenceOptions& options, void* workspace, void* stream);

// ---- text tower

// Rows of every group, and of every cotangent where there are several: strides in elements; columns are contiguous.
struct Rows {
  void* data;
  int64_t cotangent, group, row;
};

// Attention of packed segments with a shared prefix. Columns: heads of `width` each, in key_value and prefix twice.
struct Attention {
  Rows query;      // (groups, queries, heads * width)
  Rows key_value;  // (groups, rows, 2 * heads * width)
  Rows prefix;     // (groups, prefix_rows, 2 * heads * width)
  const int64_t* offsets;  // (segments + 1,)
  int64_t groups, queries, rows, prefix_rows, segments;
  int heads, width;
  double scale;
  bool last;  // one query for each segment, that of its last row
};

constexpr int kMaxHeadWidth = 128;

void shared_prefix_attention(Storage storage, const Attention& attention, const Rows& out, void* stream);

size_t shared_prefix_attention_backward_workspace(Storage storage, const Attention& attention);

void shared_prefix_attention_backward(Storage storage, const Attention& attention, int64_t cotangents,
                                      const Rows& gradient, const Rows& d_query, const Rows& d_key_value,
                                      const Rows& d_prefix, void* workspace, void* stream);

// x, branch, total, normed: (rows, columns); weight, bias (columns,) and statistics (rows, 2) in the arithmetic type.
void add_layer_norm(Storage storage, const void* x, const void* branch, const void* weight, const void* bias,
                    double eps, int64_t rows, int64_t columns, void* total, void* normed, void* statistics,
                    void* stream);

// d_total, d_normed: (cotangents, rows, columns).
void layer_norm_backward(Storage storage, void* d_total, const void* d_normed, const void* total,
                         const void* statistics, const void* weight, int64_t cotangents, int64_t rows,
                         int64_t columns, void* stream);

void gelu(Storage storage, const void* x, int64_t size, Approximate approximate, void* out, void* stream);

// gradient: (cotangents, size).
void gelu_backward(Storage storage, void* gradient, int64_t cotangents, const void* x, int64_t size,
                   Approximate approximate, void* stream);

}  // namespace prograd::cuda
