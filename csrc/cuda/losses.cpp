// dual_loss_out and linear_dual_loss_out on CUDA tensors.
#include "../checks.h"
#include "../operators.h"
#include "launch.h"

namespace prograd::cuda {
namespace {

// The arguments that both operators share, kept alive for a launch.
class Losses {
 public:
  Losses(const Launch& launch, const at::Tensor& labels, const std::optional<at::Tensor>& teacher_offset,
         const std::optional<at::Tensor>& task_weight, const std::optional<at::Tensor>& general_weight,
         double temperature, bool soft_ce, int64_t reduction, at::ScalarType dtype, at::Tensor& losses,
         at::Tensor& cotangents, at::Tensor& correct)
      : labels_(launch.operand(labels, at::kLong, "labels")),
        teacher_offset_(launch.operand(teacher_offset, accumulation_dtype(dtype), "teacher_offset")),
        task_weight_(launch.operand(task_weight, accumulation_dtype(dtype), "task_weight")),
        general_weight_(launch.operand(general_weight, accumulation_dtype(dtype), "general_weight")),
        losses_(losses, accumulation_dtype(dtype)),
        cotangents_(cotangents, dtype),
        correct_(correct, at::kLong),
        temperature_(temperature),
        soft_ce_(soft_ce),
        reduction_(static_cast<Reduction>(reduction)) {}

  LossOptions options() const {
    return {pointer_or_null<int64_t>(labels_), pointer_or_null(teacher_offset_), pointer_or_null(task_weight_),
            pointer_or_null(general_weight_),  temperature_,                     soft_ce_,
            reduction_,                        losses_.data(),                   cotangents_.data(),
            reinterpret_cast<int64_t*>(correct_.data())};
  }

  void write_back() const {
    losses_.write_back();
    cotangents_.write_back();
    correct_.write_back();
  }

 private:
  at::Tensor labels_, teacher_offset_, task_weight_, general_weight_;
  Written losses_, cotangents_, correct_;
  double temperature_;
  bool soft_ce_;
  Reduction reduction_;
};

}  // namespace

void dual_loss_out(const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& labels,
                   const std::optional<at::Tensor>& teacher_offset, const std::optional<at::Tensor>& task_weight,
                   const std::optional<at::Tensor>& general_weight, double temperature, bool soft_ce,
                   int64_t reduction, at::Tensor& losses, at::Tensor& cotangents, at::Tensor& correct) {
  const Arguments given = check_dual_loss(
      at::kCUDA, student, teacher, {labels, teacher_offset, task_weight, general_weight, temperature, reduction});
  check_results(given, student.size(0), student, reduction, losses, cotangents, correct);
  const Launch launch(student);
  const at::ScalarType dtype = common_dtype(student, teacher, cotangents);
  const Losses arguments(launch, labels, teacher_offset, task_weight, general_weight, temperature, soft_ce, reduction,
                         dtype, losses, cotangents, correct);
  const at::Tensor z = launch.operand(student, dtype, "student"), t = launch.operand(teacher, dtype, "teacher");
  const at::Tensor workspace = launch.workspace(dual_loss_workspace(storage_of(dtype), z.size(0)));
  dual_loss(storage_of(dtype), z.const_data_ptr(), t.const_data_ptr(), z.size(0), z.size(1), arguments.options(),
            workspace.mutable_data_ptr(), launch.stream());
  arguments.write_back();
}

void linear_dual_loss_out(const at::Tensor& features, const at::Tensor& student_classes,
                          const at::Tensor& teacher_classes, const at::Tensor& labels,
                          const std::optional<at::Tensor>& teacher_offset,
                          const std::optional<at::Tensor>& task_weight,
                          const std::optional<at::Tensor>& general_weight, double scale, double temperature,
                          bool soft_ce, int64_t reduction, at::Tensor& losses, at::Tensor& cotangents,
                          at::Tensor& correct) {
  const Arguments given =
      check_linear_dual_loss(at::kCUDA, features, student_classes, teacher_classes,
                             {labels, teacher_offset, task_weight, general_weight, temperature, reduction});
  check_results(given, features.size(0), student_classes, reduction, losses, cotangents, correct);
  const Launch launch(features);
  const at::ScalarType dtype = common_dtype(features, student_classes, teacher_classes, cotangents);
  const Losses arguments(launch, labels, teacher_offset, task_weight, general_weight, temperature, soft_ce, reduction,
                         dtype, losses, cotangents, correct);
  const at::Tensor x = launch.operand(features, dtype, "features");
  const at::Tensor student = launch.operand(student_classes, dtype, "student_classes");
  const at::Tensor teacher = launch.operand(teacher_classes, dtype, "teacher_classes");
  const int64_t rows = x.size(0), classes = student.size(0);
  const at::Tensor workspace = launch.workspace(linear_dual_loss_workspace(storage_of(dtype), rows, classes));
  linear_dual_loss(storage_of(dtype), x.const_data_ptr(), student.const_data_ptr(), teacher.const_data_ptr(), rows,
                   classes, x.size(1), scale, arguments.options(), workspace.mutable_data_ptr(), launch.stream());
  arguments.write_back();
}

}  // namespace prograd::cuda
