// difference_loss_out and structure_loss_out on CPU tensors.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <vector>

#include "../common/large.h"
#include "../common/library.h"
#include "../common/operand.h"
#include "../operators/differences.h"
#include "differences.h"
#include "sorted_edges.h"

namespace prograd::cpu {
namespace {

constexpr int64_t chunk_size = 16384;  // elements of one partial sum, whatever thread makes it
constexpr int64_t grain_chunks = 4;    // for which a second thread pays

void difference_loss_out(const at::Tensor& prediction, const at::Tensor& target, bool soft_wing, double omega1,
                         double omega2, double epsilon, double factor, at::Tensor& loss, at::Tensor& cotangents) {
  check_difference_loss(at::kCPU, prediction, target, soft_wing, omega1, omega2, epsilon, loss, cotangents);
  const at::ScalarType dtype = common_dtype(prediction, target);
  const at::Tensor x = contiguous(prediction, dtype), t = contiguous(target, dtype);
  const Written written(cotangents, accumulation_dtype(dtype));
  prefer_huge_pages(written.data(), written.tensor().nbytes());
  const int64_t n = x.numel(), size = x.itemsize(), cotangent_size = int64_t(written.tensor().itemsize());
  const int64_t chunks = (n + chunk_size - 1) / chunk_size;
  const auto& kernels = kernels_for<DifferenceKernels>(storage_of(dtype));
  std::vector<double> sums(chunks);
  at::parallel_for(0, chunks, grain_chunks, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i * chunk_size;
      const Difference difference{static_cast<const char*>(data_of(x)) + at * size,
                                  static_cast<const char*>(data_of(t)) + at * size,
                                  written.data() + at * cotangent_size,
                                  soft_wing,
                                  omega1,
                                  omega2,
                                  epsilon,
                                  factor};
      sums[i] = kernels.loss(difference, std::min(chunk_size, n - at));
    }
  });
  written.write_back();
  double total = 0;
  for (const double sum : sums) total += sum;
  loss.fill_(factor * total);
}

constexpr int64_t sample_chunk = 64;  // samples of one partial sum

// The edges by one end, and what they weigh.
class OneEnd {
 public:
  OneEnd(const int64_t* ends, const int64_t* others, const std::vector<float>& weights, int64_t nodes)
      : sorted_(ends, int64_t(weights.size()), nodes) {
    for (std::size_t k = 0; k < weights.size(); ++k) {
      const int64_t e = sorted_.ends().order[k];
      others_.push_back(others[e]);
      weights_.push_back(weights[e]);
    }
  }
  WeightedEdges edges() const { return {sorted_.ends().starts, others_.data(), weights_.data()}; }

 private:
  SortedEdges sorted_;
  std::vector<int64_t> others_;
  std::vector<float> weights_;
};

struct alignas(64) Register {  // of any instruction set
  char bytes[64];
};

void structure_loss_out(const at::Tensor& prediction, const at::Tensor& target, const at::Tensor& rows,
                        const at::Tensor& columns, double omega1, double omega2, double epsilon, double factor,
                        at::Tensor& losses, at::Tensor& cotangents) {
  check_structure_loss(at::kCPU, prediction, target, rows, columns, omega1, omega2, epsilon, losses, cotangents);
  const at::ScalarType dtype = common_dtype(prediction, target), accumulation = accumulation_dtype(dtype);
  const at::Tensor x = contiguous(prediction, dtype), t = contiguous(target, dtype);
  const at::Tensor of_rows = rows.contiguous(), of_columns = columns.contiguous();
  const Written written(cotangents, accumulation);
  prefer_huge_pages(written.data(), written.tensor().nbytes());
  const int64_t samples = x.size(0), nodes = x.size(1), axes = x.size(2), n = nodes * axes, edges = rows.size(0);
  const int64_t size = x.itemsize(), cotangent_size = int64_t(written.tensor().itemsize());
  const int64_t *row = of_rows.const_data_ptr<int64_t>(), *column = of_columns.const_data_ptr<int64_t>();
  std::vector<float> degrees(nodes), weights;  // the authors' matrix is float32
  for (int64_t e = 0; e < edges; ++e) degrees[row[e]] += 1;
  for (int64_t e = 0; e < edges; ++e) weights.push_back(1 / degrees[row[e]]);
  const OneEnd by_row(row, column, weights, nodes), by_column(column, row, weights, nodes);
  const int64_t chunks = (samples + sample_chunk - 1) / sample_chunk;
  const auto& kernels = kernels_for<DifferenceKernels>(storage_of(dtype));
  const bool past_caches = int64_t(written.tensor().nbytes()) >= stream_bytes;
  std::vector<double> points(chunks), offsets(chunks);
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    std::vector<Register> scratch(3 * n);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i * sample_chunk * n;
      const Landmarks chunk{static_cast<const char*>(data_of(x)) + at * size,
                            static_cast<const char*>(data_of(t)) + at * size,
                            written.data() + at * cotangent_size,
                            written.data() + (samples * n + at) * cotangent_size,
                            by_row.edges(),
                            by_column.edges(),
                            std::min(sample_chunk, samples - i * sample_chunk),
                            nodes,
                            axes,
                            omega1,
                            omega2,
                            epsilon,
                            factor,
                            past_caches};
      kernels.structure(chunk, scratch.data(), &points[i], &offsets[i]);
    }
  });
  written.write_back();
  double totals[2] = {};
  for (const double sum : points) totals[0] += sum;
  for (const double sum : offsets) totals[1] += sum;
  for (int64_t k = 0; k < 2; ++k) losses.select(0, k).fill_(factor * totals[k]);
}

const Registration registration(c10::DispatchKey::CPU, [](torch::Library& library) {
  library.impl("difference_loss_out", TORCH_FN(difference_loss_out));
  library.impl("structure_loss_out", TORCH_FN(structure_loss_out));
});

}  // namespace
}  // namespace prograd::cpu
