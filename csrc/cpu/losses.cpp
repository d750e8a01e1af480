// dual_loss_out, linear_dual_loss_out and linear_cross_entropy_out on CPU tensors.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include "../checks.h"
#include "../operators.h"
#include "kernels.h"
#include "large.h"
#include "operand.h"

namespace prograd::cpu {
namespace {

constexpr int64_t grain_size = 16384;           // classes times rows for which a second thread pays
constexpr int64_t product_grain = 1 << 20;      // products of two elements for which a second thread pays

// What all rows of a call have in common.
struct Options {
  at::Tensor labels, teacher_offset, task_weight, general_weight;  // undefined where not given
  double temperature;
  bool soft_ce;
  int64_t reduction, rows;

  Options(const at::Tensor& labels_, int64_t classes, const std::optional<at::Tensor>& offset,
          const std::optional<at::Tensor>& task, const std::optional<at::Tensor>& general, double temperature,
          bool soft_ce, int64_t reduction, at::ScalarType accumulation)
      : labels(labels_.contiguous()),
        teacher_offset(offset ? contiguous(*offset, accumulation) : at::Tensor()),
        task_weight(task ? contiguous(*task, accumulation) : at::Tensor()),
        general_weight(general ? contiguous(*general, accumulation) : at::Tensor()),
        temperature(temperature),
        soft_ce(soft_ce),
        reduction(reduction),
        rows(labels_.numel()) {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t label = labels.const_data_ptr<int64_t>()[i];
      TORCH_CHECK_VALUE(label >= 0 && label < classes, "labels[", i, "]: ", label, " is out of bounds for ", classes,
                        " classes.");
    }
  }

  Kernels::DualLossRow row(int64_t i) const {
    const double share = reduction == mean ? 1.0 / double(rows) : 1.0;
    Kernels::DualLossRow row{};
    row.label = labels.const_data_ptr<int64_t>()[i];
    row.teacher_offset = teacher_offset.defined() ? data_of(teacher_offset) : nullptr;
    row.temperature = temperature;
    row.soft_ce = soft_ce;
    row.task_weight = task_weight.defined() ? get(task_weight, i) : 1;
    row.general_weight = general_weight.defined() ? get(general_weight, i) : 1;
    row.task_cotangent_weight = row.task_weight * share;
    row.general_cotangent_weight = row.general_weight * share;
    return row;
  }

  // Row after row, whatever thread computed them.
  void write(const std::vector<Kernels::DualLosses>& results, at::Tensor& losses, at::Tensor& correct) const {
    const Written written(losses, accumulation_dtype(losses.scalar_type()));
    double task = 0, general = 0;
    int64_t count = 0;
    for (int64_t i = 0; i < rows; ++i) {
      task += results[i].task;
      general += results[i].general;
      count += results[i].correct;
      if (reduction == none) {
        set(written.tensor(), i, results[i].task);
        set(written.tensor(), rows + i, results[i].general);
      }
    }
    if (reduction != none) {
      const double n = reduction == mean ? double(rows) : 1;
      set(written.tensor(), 0, task / n);
      set(written.tensor(), 1, general / n);
    }
    written.write_back();
    *correct.mutable_data_ptr<int64_t>() = count;
  }
};

at::Tensor unit_stride(const at::Tensor& matrix, at::ScalarType dtype) {
  const at::Tensor converted = matrix.scalar_type() == dtype ? matrix : matrix.to(dtype);
  return converted.size(1) <= 1 || converted.stride(1) == 1 ? converted : converted.contiguous();
}

// Rows [0, n) of student and teacher, which are rows [first, first + n) of the call; cotangents may be the logits.
void rows_of_dual_loss(const Options& options, int64_t first, const at::Tensor& student, const at::Tensor& teacher,
                       char* task_cotangents, char* general_cotangents, bool stream, Kernels::DualLosses* results) {
  const int64_t n = student.size(0), classes = student.size(1), size = student.itemsize();
  const Storage storage = storage_of(student.scalar_type());
  const Kernels& table = kernels();
  at::parallel_for(0, n, std::max<int64_t>(1, grain_size / std::max<int64_t>(1, classes)), [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;  // threads of the pool do not inherit it
    const at::Tensor scratch =
        at::empty({dual_loss_scratch(classes)}, student.options().dtype(accumulation_dtype(student.scalar_type())));
    std::vector<Kernels::DualLossRow> rows(end - begin);
    for (int64_t i = begin; i < end; ++i) {
      Kernels::DualLossRow& row = rows[i - begin] = options.row(first + i);
      row.student = static_cast<const char*>(data_of(student)) + i * student.stride(0) * size;
      row.teacher = static_cast<const char*>(data_of(teacher)) + i * teacher.stride(0) * size;
      row.classes = classes;
      row.task_cotangent = task_cotangents + i * classes * size;
      row.general_cotangent = general_cotangents + i * classes * size;
      row.stream = stream;
    }
    table.dual_loss_rows(storage, rows.data(), end - begin, scratch.mutable_data_ptr(), results + begin);
  });
}

// B of a product, packed on all threads.
void pack(Storage storage, int64_t depth, int64_t columns, const at::Tensor& b, int64_t b_row, int64_t b_column,
          const at::Tensor& packed) {
  const int64_t groups = (columns + panel_group - 1) / panel_group, size = b.itemsize();
  const char* from = static_cast<const char*>(data_of(b));
  char* to = static_cast<char*>(packed.mutable_data_ptr());
  at::parallel_for(0, groups, std::max<int64_t>(1, grain_size / (depth + 1)), [&](int64_t begin, int64_t end) {
    const int64_t first = begin * panel_group, n = std::min(columns, end * panel_group) - first;
    kernels().pack(storage, depth, n, from + first * b_column * size, b_row, b_column, to + first * depth * size);
  });
}

// A product whose rows the threads share. That changes no sum, so no bit.
void multiply(Storage storage, const Kernels::Product& all, const at::TensorOptions& options) {
  const int64_t size = options.dtype().itemsize(), row_work = all.columns * all.depth;
  at::parallel_for(0, all.rows, product_grain / (row_work + 1) + 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const at::Tensor scratch = at::empty({product_scratch}, options);
    Kernels::Product part = all;
    part.rows = end - begin;
    part.a = static_cast<const char*>(all.a) + begin * all.a_row * size;
    part.c = static_cast<char*>(all.c) + begin * all.c_row * size;
    part.scratch = scratch.mutable_data_ptr();
    kernels().product(storage, part);
  });
}

// The logits exist for a few rows at a time: twice as many as fit the memory of one class matrix. So the extra memory
// is that of one class matrix and of a copy of these rows, whatever the batch; and the matrix products are those of the
// formula, none twice. Without a teacher (undefined) the student is its own: nothing is multiplied for it, and nothing
// comes out.
std::vector<Kernels::DualLosses> rows_of_linear(const Options& options, const at::Tensor& x, const at::Tensor& student,
                                                const at::Tensor& teacher, double scale, const at::Tensor& cotangents) {
  const int64_t rows = x.size(0), classes = student.size(0), width = x.size(1);
  const int64_t block = std::max<int64_t>(1, std::min(rows, width / 2));
  const Storage storage = storage_of(x.scalar_type());
  const at::Tensor logits = at::empty({2, block, classes}, x.options());
  const at::Tensor packed = at::empty({std::max(packed_size(width, block), packed_size(block, width))}, x.options());
  std::vector<Kernels::DualLosses> results(rows);
  if (rows == 0) cotangents.zero_();
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t n = std::min(block, rows - first);
    const at::Tensor x_block = x.narrow(0, first, n), z = logits[0].narrow(0, 0, n), t = logits[1].narrow(0, 0, n);
    const std::pair<at::Tensor, at::Tensor> sides[] = {{z, student}, {t, teacher}};
    // Both products have the classes as their rows: logits^T = scale classes x^T, then cotangents += scale logits^T x.
    pack(storage, width, n, x_block, 1, width, packed);
    for (const auto& [to, weights] : sides) {
      if (!weights.defined()) continue;
      multiply(storage,
               {classes, n, width, data_of(weights), width, 1, data_of(packed), scale, false, to.mutable_data_ptr(), 1,
                classes, nullptr},
               x.options());
    }
    rows_of_dual_loss(options, first, z, teacher.defined() ? t : z, static_cast<char*>(z.mutable_data_ptr()),
                      static_cast<char*>(t.mutable_data_ptr()), false, results.data() + first);
    pack(storage, n, width, x_block, width, 1, packed);
    for (int64_t k = 0; k < cotangents.size(0); ++k) {
      multiply(storage,
               {classes, width, n, data_of(sides[k].first), 1, classes, data_of(packed), scale, first > 0,
                cotangents[k].mutable_data_ptr(), width, 1, nullptr},
               x.options());
    }
  }
  return results;
}

}  // namespace

void dual_loss_out(const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& labels,
                   const std::optional<at::Tensor>& teacher_offset, const std::optional<at::Tensor>& task_weight,
                   const std::optional<at::Tensor>& general_weight, double temperature, bool soft_ce,
                   int64_t reduction, at::Tensor& losses, at::Tensor& cotangents, at::Tensor& correct) {
  const Arguments arguments = check_dual_loss(
      at::kCPU, student, teacher, {labels, teacher_offset, task_weight, general_weight, temperature, reduction});
  check_results(arguments, student.size(0), student, reduction, losses, cotangents, correct);
  const at::ScalarType dtype = common_dtype(student, teacher, cotangents);
  const Options options(labels, student.size(1), teacher_offset, task_weight, general_weight, temperature, soft_ce,
                        reduction, accumulation_dtype(dtype));
  const Written written(cotangents, dtype);
  const int64_t bytes = student.numel() * int64_t(written.tensor().itemsize());
  prefer_huge_pages(written.data(), 2 * bytes);
  std::vector<Kernels::DualLosses> results(options.rows);
  rows_of_dual_loss(options, 0, unit_stride(student, dtype), unit_stride(teacher, dtype), written.data(),
                    written.data() + bytes, 2 * bytes >= stream_bytes, results.data());
  written.write_back();
  options.write(results, losses, correct);
}

void linear_dual_loss_out(const at::Tensor& features, const at::Tensor& student_classes,
                          const at::Tensor& teacher_classes, const at::Tensor& labels,
                          const std::optional<at::Tensor>& teacher_offset,
                          const std::optional<at::Tensor>& task_weight,
                          const std::optional<at::Tensor>& general_weight, double scale, double temperature,
                          bool soft_ce, int64_t reduction, at::Tensor& losses, at::Tensor& cotangents,
                          at::Tensor& correct) {
  const Arguments arguments =
      check_linear_dual_loss(at::kCPU, features, student_classes, teacher_classes,
                             {labels, teacher_offset, task_weight, general_weight, temperature, reduction});
  check_results(arguments, features.size(0), student_classes, reduction, losses, cotangents, correct);
  const at::ScalarType dtype = accumulation_dtype(common_dtype(features, student_classes, teacher_classes));
  const Options options(labels, student_classes.size(0), teacher_offset, task_weight, general_weight, temperature,
                        soft_ce, reduction, dtype);
  const Written written(cotangents, dtype);
  const auto results = rows_of_linear(options, contiguous(features, dtype), contiguous(student_classes, dtype),
                                      contiguous(teacher_classes, dtype), scale, written.tensor());
  written.write_back();
  options.write(results, losses, correct);
}

void linear_cross_entropy_out(const at::Tensor& features, const at::Tensor& classes, const at::Tensor& labels,
                              double scale, at::Tensor& loss, at::Tensor& cotangents) {
  check_linear_cross_entropy(at::kCPU, features, classes, labels, loss, cotangents);
  const at::ScalarType dtype = accumulation_dtype(common_dtype(features, classes));
  const Options options(labels, classes.size(0), {}, {}, {}, 1, false, mean, dtype);
  const Written written(cotangents.unsqueeze(0), dtype);
  const auto results = rows_of_linear(options, contiguous(features, dtype), contiguous(classes, dtype), at::Tensor(),
                                      scale, written.tensor());
  written.write_back();
  double task = 0;
  for (const auto& row : results) task += row.task;
  loss.fill_(task / double(results.size()));
}

}  // namespace prograd::cpu
