// dual_loss and dual_loss_out: their arguments, what is asked of them, and room for what they write. The linear dual
// loss has the latter and the options of the rows in common with them.
#pragma once

#include <cstring>
#include <tuple>

#include "../common/arguments.h"
#include "../common/kept_memory.h"
#include "../common/operand.h"

namespace prograd {

// Room for what the operators write.
struct LossResults {
  at::Tensor losses;      // (2,), or (2, B) without reduction, in the accumulation dtype
  at::Tensor cotangents;  // (2, ...), in the accumulation dtype of `like`
  at::Tensor correct;     // ()

  // by_row: one row per sample; other: what is multiplied by it or compared with it; like: what the losses are
  // differentiated in
  LossResults(const at::Tensor& by_row, const at::Tensor& other, int64_t reduction, const at::Tensor& like) {
    const auto options =
        like.options().dtype(accumulation_dtype(at::promote_types(by_row.scalar_type(), other.scalar_type())));
    const bool reduced = Reduction(reduction) != Reduction::none;
    losses = reduced ? at::empty({2}, options) : at::empty({2, by_row.size(0)}, options);
    const at::TensorOptions wide = like.options().dtype(accumulation_dtype(like.scalar_type()));
    const int64_t shape[] = {2, like.size(0), like.size(1)};
    cotangents = like.is_cpu() ? empty_in_kept_memory(shape, wide) : at::empty(shape, wide);
    correct = at::empty({}, like.options().dtype(at::kLong));
  }

  // One of the losses in memory of its own, which results of an operator must have. On the CPU without two more calls
  // through the dispatcher, which take as long as a few rows.
  at::Tensor loss(int64_t i) const {
    const at::Tensor copy = empty_loss();
    const auto bytes = copy.nbytes();
    const char* from = static_cast<const char*>(losses.const_data_ptr());
    if (bytes) std::memcpy(copy.mutable_data_ptr(), from + i * bytes, bytes);
    return copy;
  }
  // Room for one of them, for kernels that write each where they are told to.
  at::Tensor empty_loss() const { return at::empty(losses.sizes().slice(1), losses.options()); }
};

// What belongs to a row or a class.
struct RowOptions {
  const at::Tensor& labels;
  MaybeTensor teacher_offset, task_weight, general_weight;
  double temperature;
  bool soft_ce;
  int64_t reduction;
};

struct DualLossArguments {
  using Signature = void(const at::Tensor&, const at::Tensor&, const at::Tensor&, MaybeTensor, MaybeTensor, MaybeTensor,
                         double, bool, int64_t);

  const at::Tensor &student, &teacher, &labels;
  MaybeTensor teacher_offset, task_weight, general_weight;
  double temperature;
  bool soft_ce;
  int64_t reduction;

  const at::Tensor& by_row() const { return student; }
  const at::Tensor& differentiated() const { return student; }
  LossResults room() const { return {student, teacher, reduction, student}; }
  RowOptions row_options() const {
    return {labels, teacher_offset, task_weight, general_weight, temperature, soft_ce, reduction};
  }
};

inline void check_rows(const Arguments& arguments, int64_t rows, int64_t classes, const RowOptions& options) {
  TORCH_CHECK_VALUE(rows == 0 || classes > 0, "classes: expected at least one, got none.");
  arguments.integers("labels", options.labels, {rows});
  arguments.floating("teacher_offset", options.teacher_offset, {classes});
  arguments.floating("task_weight", options.task_weight, {rows});
  arguments.floating("general_weight", options.general_weight, {rows});
  check_positive("temperature", options.temperature);
  check_reduction(options.reduction);
}

inline Arguments check_inputs(c10::DeviceType type, const DualLossArguments& all) {
  const Arguments arguments("student", all.student, type);
  arguments.dimensions("student", all.student, 2);
  arguments.floating("teacher", all.teacher, all.student.sizes());
  check_rows(arguments, all.student.size(0), all.student.size(1), all.row_options());
  return arguments;
}

template <typename Inputs>
void check_results(const Arguments& arguments, const Inputs& all, const at::Tensor& losses,
                   const at::Tensor& cotangents, const at::Tensor& correct) {
  const at::Tensor& like = all.differentiated();
  if (Reduction(all.reduction) == Reduction::none) {
    arguments.result("losses", losses, {2, all.by_row().size(0)});
  } else {
    arguments.result("losses", losses, {2});
  }
  arguments.result("cotangents", cotangents, {2, like.size(0), like.size(1)});
  arguments.integers("correct", correct, {});
}

// The operator that writes its results, and the one that returns them. The latter is in C++ too, since allocation from
// Python takes longer than the losses of a small batch.
template <typename Inputs, typename Signature = typename Inputs::Signature>
struct LossOperator;

template <typename Inputs, typename... Each>
struct LossOperator<Inputs, void(Each...)> {
  using Out = void(Each..., at::Tensor& losses, at::Tensor& cotangents, at::Tensor& correct);
  using Returned = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>(Each...);
  using Kernel = void(const Inputs&, at::Tensor& losses, at::Tensor& cotangents, at::Tensor& correct);
  using KernelOfTwo = void(const Inputs&, const at::Tensor& task, const at::Tensor& general,
                           const at::Tensor& cotangents, const at::Tensor& correct);

  template <Kernel* kernel, c10::DeviceType type>
  static void out(Each... each, at::Tensor& losses, at::Tensor& cotangents, at::Tensor& correct) {
    const Inputs all{each...};
    check_results(check_inputs(type, all), all, losses, cotangents, correct);
    kernel(all, losses, cotangents, correct);
  }

  template <Kernel* kernel>
  static std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> returned(Each... each) {
    const Inputs all{each...};
    check_inputs(all.by_row().defined() ? all.by_row().device().type() : at::kCPU, all);
    LossResults room = all.room();
    kernel(all, room.losses, room.cotangents, room.correct);
    return {room.loss(0), room.loss(1), room.cotangents, room.correct};
  }

  template <KernelOfTwo* kernel, c10::DeviceType type>
  static void out_of_two(Each... each, at::Tensor& losses, at::Tensor& cotangents, at::Tensor& correct) {
    const Inputs all{each...};
    check_results(check_inputs(type, all), all, losses, cotangents, correct);
    kernel(all, losses.select(0, 0), losses.select(0, 1), cotangents, correct);
  }

  template <KernelOfTwo* kernel, c10::DeviceType type>
  static std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> returned_of_two(Each... each) {
    const Inputs all{each...};
    check_inputs(type, all);
    const LossResults room = all.room();
    const at::Tensor task = room.empty_loss(), general = room.empty_loss();
    kernel(all, task, general, room.cotangents, room.correct);
    return {task, general, room.cotangents, room.correct};
  }
};

}  // namespace prograd
