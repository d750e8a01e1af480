// Rows of the dual loss on CPU tensors, for logits that are given and for logits that are multiplied out.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <vector>

#include "../operators/dual_loss.h"
#include "dual_loss.h"

namespace prograd::cpu {

// What all rows of a call have in common.
class Rows {
 public:
  Rows(const RowOptions& options, int64_t classes, at::ScalarType accumulation)
      : count(options.labels.numel()),
        labels_(options.labels.contiguous()),
        teacher_offset_(given(options.teacher_offset, accumulation)),
        task_weight_(given(options.task_weight, accumulation)),
        general_weight_(given(options.general_weight, accumulation)),
        temperature_(options.temperature),
        soft_ce_(options.soft_ce),
        reduction_(Reduction(options.reduction)) {
    for (int64_t i = 0; i < count; ++i) {
      TORCH_CHECK_VALUE(label(i) >= 0 && label(i) < classes, "labels[", i, "]: ", label(i), " is out of bounds for ",
                        classes, " classes.");
    }
  }

  const int64_t count;

  // Rows [0, n) of student and teacher, which are rows [first, first + n) of the call; cotangents, in the accumulation
  // dtype, may be the logits.
  void compute(int64_t first, const at::Tensor& student, const at::Tensor& teacher, char* task_cotangents,
               char* general_cotangents, bool stream, DualLosses* results) const {
    constexpr int64_t grain_size = 16384;  // classes times rows for which a second thread pays
    const int64_t n = student.size(0), classes = student.size(1), size = student.itemsize();
    const at::ScalarType accumulation = accumulation_dtype(student.scalar_type());
    const int64_t cotangent_bytes = classes * int64_t(c10::elementSize(accumulation));
    const auto& kernels = kernels_for<DualLossKernels>(storage_of(student.scalar_type()));
    const int64_t grain = std::max<int64_t>(1, grain_size / std::max<int64_t>(1, classes));
    at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
      const at::AutoDispatchBelowADInplaceOrView below_autograd;  // threads of the pool do not inherit it
      const at::Tensor scratch = at::empty({dual_loss_scratch(classes)}, student.options().dtype(accumulation));
      std::vector<DualLossRow> rows(end - begin);
      for (int64_t i = begin; i < end; ++i) {
        DualLossRow& row = rows[i - begin] = options_of_row(first + i);
        row.student = static_cast<const char*>(data_of(student)) + i * student.stride(0) * size;
        row.teacher = static_cast<const char*>(data_of(teacher)) + i * teacher.stride(0) * size;
        row.classes = classes;
        row.task_cotangent = task_cotangents + i * cotangent_bytes;
        row.general_cotangent = general_cotangents + i * cotangent_bytes;
        row.stream = stream;
      }
      kernels.rows(rows.data(), end - begin, scratch.mutable_data_ptr(), results + begin);
    });
  }

  // Row after row, whatever thread computed them.
  void write(const std::vector<DualLosses>& results, at::Tensor& losses, at::Tensor& correct) const {
    const Written written(losses, accumulation_dtype(losses.scalar_type()));
    const WrittenNumbers numbers(written.tensor());
    double task = 0, general = 0;
    int64_t n_correct = 0;
    for (int64_t i = 0; i < count; ++i) {
      task += results[i].task;
      general += results[i].general;
      n_correct += results[i].correct;
      if (reduction_ == Reduction::none) {
        numbers.set(i, results[i].task);
        numbers.set(count + i, results[i].general);
      }
    }
    if (reduction_ != Reduction::none) {
      const double n = reduction_ == Reduction::mean ? double(count) : 1;
      numbers.set(0, task / n);
      numbers.set(1, general / n);
    }
    written.write_back();
    *correct.mutable_data_ptr<int64_t>() = n_correct;
  }

 private:
  static at::Tensor given(MaybeTensor tensor, at::ScalarType dtype) {  // undefined where it is not
    return tensor ? contiguous(*tensor, dtype) : at::Tensor();
  }

  int64_t label(int64_t i) const { return labels_.const_data_ptr<int64_t>()[i]; }

  DualLossRow options_of_row(int64_t i) const {
    const double share = reduction_ == Reduction::mean ? 1.0 / double(count) : 1.0;
    DualLossRow row{};
    row.label = label(i);
    row.teacher_offset = teacher_offset_.defined() ? data_of(teacher_offset_) : nullptr;
    row.temperature = temperature_;
    row.soft_ce = soft_ce_;
    row.task_weight = task_weight_.defined() ? Numbers(task_weight_)[i] : 1;
    row.general_weight = general_weight_.defined() ? Numbers(general_weight_)[i] : 1;
    row.task_cotangent_weight = row.task_weight * share;
    row.general_cotangent_weight = row.general_weight * share;
    return row;
  }

  at::Tensor labels_, teacher_offset_, task_weight_, general_weight_;
  double temperature_;
  bool soft_ce_;
  Reduction reduction_;
};

}  // namespace prograd::cpu
