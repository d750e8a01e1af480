// shared_prefix_attention_out and shared_prefix_attention_backward_out on CPU tensors.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <vector>

#include "../common/library.h"
#include "../common/operand.h"
#include "../operators/attention.h"
#include "attention.h"

namespace prograd::cpu {
namespace {

constexpr int64_t chunk_rows = 256;    // of the segments that one task takes, unless one of them is longer
constexpr int64_t grain_size = 16384;  // elements of the rows of a head for which a second thread pays

char* at_element(const at::Tensor& tensor, int64_t i) {
  return static_cast<char*>(tensor.mutable_data_ptr()) + i * tensor.itemsize();
}
const char* element_of(const at::Tensor& tensor, int64_t i) {
  return static_cast<const char*>(data_of(tensor)) + i * tensor.itemsize();
}

// The tasks of a call: each head of each chunk of segments of each group, then each head of the leading rows, which are
// one more segment that sees no prefix. They depend on the sizes alone.
class Tasks {
 public:
  struct Task {
    int64_t group, chunk, head;
  };

  Tasks(const at::Tensor& query, const at::Tensor& key_value, MaybeTensor prefix, int64_t leading,
        const at::Tensor& offsets, int64_t heads, double scale, bool last)
      : kernels(kernels_for<AttentionKernels>(storage_of(query.scalar_type()))),
        groups(query.size(0)),
        heads(heads),
        width(query.size(2) / heads),
        first_row(leading),
        first_query(last ? 0 : leading),
        prefix_rows(prefix ? prefix->size(1) : leading),
        query_(query),
        key_value_(key_value),
        prefix_(prefix ? *prefix : key_value),
        offsets_(offsets.contiguous()),
        leading_offsets_{0, leading},
        scale_(scale),
        last_(last) {
    const int64_t rows = key_value.size(1) - leading;
    const int64_t* offset = offsets_.const_data_ptr<int64_t>();
    const int64_t segments = offsets.numel() - 1;
    int64_t begin = 0;
    TORCH_CHECK_VALUE(offset[0] == 0 && offset[segments] == rows, "offsets: expected 0 ... ", rows, ", got ", offset[0],
                      " ... ", offset[segments], ".");
    for (int64_t i = 0; i < segments; ++i) {
      TORCH_CHECK_VALUE(offset[i] < offset[i + 1], "offsets: expected no empty segment, got ", offset[i], ", ",
                        offset[i + 1], " at ", i, ".");
      longest_ = std::max(longest_, offset[i + 1] - offset[i]);
      if (i > begin && offset[i + 1] - offset[begin] > chunk_rows) {
        chunks_.push_back(begin);
        begin = i;
      }
    }
    if (segments > 0) chunks_.push_back(begin);
    chunks_.push_back(segments);
  }

  int64_t chunks() const { return int64_t(chunks_.size()) - 1; }
  bool of_leading(const Task& task) const { return task.chunk == chunks(); }
  int64_t begin(const Task& task) const { return of_leading(task) ? 0 : chunks_[task.chunk]; }
  int64_t end(const Task& task) const { return of_leading(task) ? 1 : chunks_[task.chunk + 1]; }
  int64_t row(const Task& task) const { return of_leading(task) ? 0 : first_row; }  // where its offsets begin
  int64_t query(const Task& task) const { return of_leading(task) ? 0 : first_query; }

  Attention attention(const Task& task) const {
    const int64_t column = task.head * width, d = heads * width;
    const int64_t key = task.group * key_value_.stride(0) + row(task) * key_value_.stride(1) + column,
                  prefix = task.group * prefix_.stride(0) + column;
    return {element_of(query_, task.group * query_.stride(0) + query(task) * query_.stride(1) + column),
            element_of(key_value_, key),
            element_of(key_value_, key + d),
            element_of(prefix_, prefix),
            element_of(prefix_, prefix + d),
            query_.stride(1),
            key_value_.stride(1),
            prefix_.stride(1),
            of_leading(task) ? leading_offsets_ : offsets_.const_data_ptr<int64_t>(),
            width,
            of_leading(task) ? 0 : prefix_rows,
            of_leading(task) ? first_row : longest_,
            scale_,
            last_};
  }

  // body(task, attention, scratch) of all tasks, head by head of one chunk after the other: its rows are then near.
  template <typename Body>
  void each(int64_t cotangents, const Body& body) const {
    const int64_t per_group = chunks() + (first_query > 0), count = groups * per_group * heads;
    if (count == 0) return;
    const int64_t scratch_size =
        std::max(chunks() > 0 ? kernels.scratch(attention({0, 0, 0}), cotangents) : 0,
                 first_query > 0 ? kernels.scratch(attention({0, chunks(), 0}), cotangents) : 0);
    const int64_t work = std::max<int64_t>(1, (cotangents + 1) * std::min(key_value_.size(1), chunk_rows) * width);
    at::parallel_for(0, count, std::max<int64_t>(1, grain_size / work), [&](int64_t begin, int64_t end) {
      const at::AutoDispatchBelowADInplaceOrView below_autograd;  // threads of the pool do not inherit it
      const at::Tensor scratch =
          at::empty({scratch_size}, query_.options().dtype(accumulation_dtype(query_.scalar_type())));
      for (int64_t i = begin; i < end; ++i) {
        const Task task{i / heads / per_group, i / heads % per_group, i % heads};
        body(task, attention(task), scratch.mutable_data_ptr());
      }
    });
  }

  const AttentionKernels& kernels;
  const int64_t groups, heads, width;
  const int64_t first_row, first_query;  // of the segments: the number of leading rows, and of leading queries
  const int64_t prefix_rows;

 private:
  const at::Tensor &query_, &key_value_, &prefix_;
  at::Tensor offsets_;
  int64_t leading_offsets_[2];
  double scale_;
  bool last_;
  int64_t longest_ = 1;
  std::vector<int64_t> chunks_;  // the first segment of each, and the number of segments
};

void shared_prefix_attention_out(const at::Tensor& query, const at::Tensor& key_value, MaybeTensor prefix,
                                 int64_t leading, const at::Tensor& offsets, int64_t heads, double scale, bool last,
                                 at::Tensor& out) {
  const Arguments arguments = check_attention(at::kCPU, query, key_value, prefix, leading, offsets, heads, last);
  arguments.rows("out", out, query.scalar_type(), query.sizes(), true);
  const Tasks tasks(query, key_value, prefix, leading, offsets, heads, scale, last);
  tasks.each(0, [&](const auto& task, const Attention& attention, void* scratch) {
    const int64_t row = task.group * out.stride(0) + tasks.query(task) * out.stride(1);
    tasks.kernels.forward(attention, tasks.begin(task), tasks.end(task), at_element(out, row + task.head * tasks.width),
                          out.stride(1), scratch);
  });
}

// The gradients of the prefix are summed over each chunk, then over the chunks in their order; those of leading rows
// are added to what their own queries gave.
void shared_prefix_attention_backward_out(const at::Tensor& gradient, const at::Tensor& query,
                                          const at::Tensor& key_value, MaybeTensor prefix, int64_t leading,
                                          const at::Tensor& offsets, int64_t heads, double scale, bool last,
                                          at::Tensor& d_query, at::Tensor& d_key_value,
                                          const std::optional<at::Tensor>& d_prefix) {
  const Arguments arguments = check_attention(at::kCPU, query, key_value, prefix, leading, offsets, heads, last);
  check_attention_backward(arguments, gradient, query, key_value, prefix, d_query, d_key_value, d_prefix);
  const Tasks tasks(query, key_value, prefix, leading, offsets, heads, scale, last);
  const int64_t count = gradient.size(0), width = tasks.width, rows = tasks.prefix_rows, d = heads * width;
  const int64_t of_head = count * 2 * rows * width;  // elements of the prefix gradients of one task
  const at::Tensor partial = at::empty({tasks.groups, tasks.chunks(), heads, of_head},
                                       query.options().dtype(accumulation_dtype(query.scalar_type())));
  tasks.each(count, [&](const auto& task, const Attention& attention, void* scratch) {
    const int64_t column = task.head * width, first = tasks.query(task);
    const int64_t key = task.group * d_key_value.stride(1) + tasks.row(task) * d_key_value.stride(2) + column;
    const int64_t part = (task.group * tasks.chunks() + task.chunk) * heads + task.head;
    const AttentionGradients gradients{
        element_of(gradient, task.group * gradient.stride(1) + first * gradient.stride(2) + column),
        at_element(d_query, task.group * d_query.stride(1) + first * d_query.stride(2) + column),
        at_element(d_key_value, key),
        at_element(d_key_value, key + d),
        gradient.stride(2),
        d_query.stride(2),
        d_key_value.stride(2),
        gradient.stride(0),
        d_query.stride(0),
        d_key_value.stride(0),
        count,
        tasks.of_leading(task) ? nullptr : at_element(partial, part * of_head)};
    tasks.kernels.backward(attention, gradients, tasks.begin(task), tasks.end(task), scratch);
  });
  const at::Tensor& d_shared = d_prefix ? *d_prefix : d_key_value;
  const int64_t per_group = heads * count * 2 * rows, additions = std::max<int64_t>(1, tasks.chunks() * width);
  at::parallel_for(
      0, tasks.groups * per_group, std::max<int64_t>(1, grain_size / additions), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t group = i / per_group, head = i / (count * 2 * rows) % heads, k = i / (2 * rows) % count,
                        half = i / rows % 2, row = i % rows;
          tasks.kernels.sum(element_of(partial, (group * tasks.chunks() * per_group + i % per_group) * width),
                            tasks.chunks(), per_group * width, width,
                            at_element(d_shared, k * d_shared.stride(0) + group * d_shared.stride(1) +
                                                     row * d_shared.stride(2) + half * d + head * width),
                            tasks.first_query > 0);
        }
      });
}

const Registration registration(c10::DispatchKey::CPU, [](torch::Library& library) {
  library.impl("shared_prefix_attention_out", TORCH_FN(shared_prefix_attention_out));
  library.impl("shared_prefix_attention_backward_out", TORCH_FN(shared_prefix_attention_backward_out));
});

}  // namespace
}  // namespace prograd::cpu
