// linear_dual_loss, linear_dual_loss_out and linear_cross_entropy_out on CPU tensors.
#include "linear_dual_loss.h"

#include "../common/library.h"
#include "../operators/linear_dual_loss.h"
#include "dual_loss_rows.h"

namespace prograd::cpu {
namespace {

constexpr int64_t pack_grain = 16384;       // elements for which a second thread pays
constexpr int64_t product_grain = 1 << 20;  // products of two elements for which a second thread pays

// B of a product, packed on all threads.
void pack(const ProductKernels& kernels, int64_t depth, int64_t columns, const at::Tensor& b, int64_t b_row,
          int64_t b_column, const at::Tensor& packed) {
  const int64_t groups = (columns + panel_group - 1) / panel_group, size = b.itemsize();
  const char* from = static_cast<const char*>(data_of(b));
  char* to = static_cast<char*>(packed.mutable_data_ptr());
  at::parallel_for(0, groups, std::max<int64_t>(1, pack_grain / (depth + 1)), [&](int64_t begin, int64_t end) {
    const int64_t first = begin * panel_group, n = std::min(columns, end * panel_group) - first;
    kernels.pack(depth, n, from + first * b_column * size, b_row, b_column, to + first * depth * size);
  });
}

// A product whose rows the threads share. That changes no sum, so no bit.
void multiply(const ProductKernels& kernels, const Product& all, const at::TensorOptions& options) {
  const int64_t size = options.dtype().itemsize(), row_work = all.columns * all.depth;
  at::parallel_for(0, all.rows, product_grain / (row_work + 1) + 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const at::Tensor scratch = at::empty({product_scratch}, options);
    Product part = all;
    part.rows = end - begin;
    part.a = static_cast<const char*>(all.a) + begin * all.a_row * size;
    part.c = static_cast<char*>(all.c) + begin * all.c_row * size;
    part.scratch = scratch.mutable_data_ptr();
    kernels.product(part);
  });
}

// The logits exist for a few rows at a time: twice as many as fit the memory of one class matrix. So the extra memory
// is that of one class matrix and of a copy of these rows, whatever the batch; and the matrix products are those of the
// formula, none twice. Without a teacher (undefined) the student is its own: nothing is multiplied for it, and nothing
// comes out.
std::vector<DualLosses> rows_of_linear(const Rows& all, const at::Tensor& x, const at::Tensor& student,
                                       const at::Tensor& teacher, double scale, const at::Tensor& cotangents) {
  const int64_t rows = x.size(0), classes = student.size(0), width = x.size(1);
  const int64_t block = std::max<int64_t>(1, std::min(rows, width / 2));
  const auto& kernels = kernels_for<ProductKernels>(storage_of(x.scalar_type()));
  const at::Tensor logits = at::empty({2, block, classes}, x.options());
  const at::Tensor packed = at::empty({std::max(packed_size(width, block), packed_size(block, width))}, x.options());
  std::vector<DualLosses> results(rows);
  if (rows == 0) cotangents.zero_();
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t n = std::min(block, rows - first);
    const at::Tensor x_block = x.narrow(0, first, n), z = logits[0].narrow(0, 0, n), t = logits[1].narrow(0, 0, n);
    const std::pair<at::Tensor, at::Tensor> sides[] = {{z, student}, {t, teacher}};
    // Both products have the classes as their rows: logits^T = scale classes x^T, then cotangents += scale logits^T x.
    pack(kernels, width, n, x_block, 1, width, packed);
    for (const auto& [to, weights] : sides) {
      if (!weights.defined()) continue;
      multiply(kernels,
               {classes, n, width, data_of(weights), width, 1, data_of(packed), scale, false, to.mutable_data_ptr(), 1,
                classes, nullptr},
               x.options());
    }
    all.compute(first, z, teacher.defined() ? t : z, static_cast<char*>(z.mutable_data_ptr()),
                static_cast<char*>(t.mutable_data_ptr()), false, results.data() + first);
    pack(kernels, n, width, x_block, width, 1, packed);
    for (int64_t k = 0; k < cotangents.size(0); ++k) {
      multiply(kernels,
               {classes, width, n, data_of(sides[k].first), 1, classes, data_of(packed), scale, first > 0,
                cotangents[k].mutable_data_ptr(), width, 1, nullptr},
               x.options());
    }
  }
  return results;
}

void linear_dual_loss(const LinearDualLossArguments& all, at::Tensor& losses, at::Tensor& cotangents,
                      at::Tensor& correct) {
  const at::ScalarType dtype = accumulation_dtype(common_dtype(all.features, all.student_classes, all.teacher_classes));
  const Rows rows(all.row_options(), all.student_classes.size(0), dtype);
  const Written written(cotangents, dtype);
  const auto results = rows_of_linear(rows, contiguous(all.features, dtype), contiguous(all.student_classes, dtype),
                                      contiguous(all.teacher_classes, dtype), all.scale, written.tensor());
  written.write_back();
  rows.write(results, losses, correct);
}

void linear_cross_entropy_out(const at::Tensor& features, const at::Tensor& classes, const at::Tensor& labels,
                              double scale, at::Tensor& loss, at::Tensor& cotangents) {
  check_linear_cross_entropy(at::kCPU, features, classes, labels, loss, cotangents);
  const at::ScalarType dtype = accumulation_dtype(common_dtype(features, classes));
  const std::optional<at::Tensor> none;
  const Rows rows({labels, none, none, none, 1, false, int64_t(Reduction::mean)}, classes.size(0), dtype);
  const Written written(cotangents.unsqueeze(0), dtype);
  const auto results = rows_of_linear(rows, contiguous(features, dtype), contiguous(classes, dtype), at::Tensor(),
                                      scale, written.tensor());
  written.write_back();
  double task = 0;
  for (const DualLosses& row : results) task += row.task;
  loss.fill_(task / double(results.size()));
}

const Registration registration(c10::DispatchKey::CPU, [](torch::Library& library) {
  using Operator = LossOperator<LinearDualLossArguments>;
  library.impl("linear_dual_loss", TORCH_FN(Operator::returned<linear_dual_loss>));
  library.impl("linear_dual_loss_out", TORCH_FN((Operator::out<linear_dual_loss, at::kCPU>)));
  library.impl("linear_cross_entropy_out", TORCH_FN(linear_cross_entropy_out));
});

}  // namespace
}  // namespace prograd::cpu
