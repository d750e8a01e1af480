// What the CPU kernels offer: plain functions on contiguous memory, one thread each, no torch.
//
// kernels.cpp is compiled once for each instruction set; kernels() is the table of the best one for this machine.
// Callers split the work in chunks whose sizes do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "../math.h"

namespace prograd {

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

  // Both losses of one row, and both cotangents. The cotangents may lie where the logits lie.
  struct DualLossRow {
    const void *student, *teacher;  // (classes,)
    const void *next_student, *next_teacher;  // what the thread reads next, or null
    std::int64_t classes, label;
    const void* teacher_offset;  // (classes,) in the accumulation dtype, or null
    double temperature;
    bool soft_ce;
    double task_weight, general_weight;             // of the losses
    double task_cotangent_weight, general_cotangent_weight;  // the same over B for a mean
    void *task_cotangent, *general_cotangent;       // (classes,)
    void* scratch;                                  // 3 x classes in the accumulation dtype
    bool stream;  // write past the caches: results too large to be read from there again
  };
  struct DualLosses {
    double task, general;
    bool correct;
  };
  DualLosses (*dual_loss_row)(Storage, const DualLossRow&);
};

// The best table for this machine, or the one of the name given ("avx512", "avx2", "baseline"); null where this machine
// or this build cannot run it.
const Kernels& kernels();
const Kernels* kernels_for(const char* isa);

}  // namespace prograd
