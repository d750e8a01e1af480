// What an operator may ask of its arguments before it reads or writes anything. A wrong call ends with a ValueError or
// TypeError that names the argument, what was expected and what came. prograd_fast/ops/ has the same for Python.
#pragma once

#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>

#include <c10/util/SmallVector.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "types.h"

namespace prograd {

using MaybeTensor = const std::optional<at::Tensor>&;

// The tensors of one call, all on one device of the type that the kernels are for.
class Arguments {
 public:
  Arguments(const char* name, const at::Tensor& first, c10::DeviceType type) : device_(device_of(name, first)) {
    TORCH_CHECK_VALUE(device_.type() == type, name, ": expected a tensor on ", c10::DeviceTypeName(type, true),
                      ", got ", device_, ".");
  }

  // The dispatcher takes None for any tensor, which is then none.
  static void defined(const char* name, const at::Tensor& tensor, int64_t index = -1) {
    TORCH_CHECK_TYPE(tensor.defined(), label(name, index), ": expected a tensor, got None.");
  }

  // A floating-point tensor with so many dimensions, of any sizes.
  void dimensions(const char* name, const at::Tensor& tensor, int64_t count) const {
    dense(name, tensor);
    TORCH_CHECK_VALUE(tensor.dim() == count, name, ": expected ", count, " dimensions, got shape ", tensor.sizes(),
                      ".");
    floating(name, tensor, tensor.sizes());
  }

  void floating(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes, int64_t index = -1) const {
    dense(name, tensor, index);
    const at::ScalarType dtype = tensor.scalar_type();
    TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
                     label(name, index), ": expected float64, float32, bfloat16 or float16, got ", dtype, ".");
    placed(name, tensor, sizes, index);
  }
  void floating(const char* name, MaybeTensor tensor, at::IntArrayRef sizes) const {
    if (tensor) floating(name, *tensor, sizes);
  }

  void integers(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes) const {
    dense(name, tensor);
    TORCH_CHECK_TYPE(tensor.scalar_type() == at::kLong, name, ": expected int64, got ", tensor.scalar_type(), ".");
    placed(name, tensor, sizes);
  }

  // Floating-point, to write to.
  void result(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes) const {
    floating(name, tensor, sizes);
    own_memory(name, tensor);
  }

  void integer_result(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes) const {
    integers(name, tensor, sizes);
    own_memory(name, tensor);
  }

  // Of one dtype, and contiguous, or contiguous in the last dimension.
  void whole(const char* name, const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef sizes) const {
    of_dtype(name, tensor, dtype, sizes);
    contiguous(name, tensor);
  }
  void rows(const char* name, const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef sizes,
            bool written = false) const {
    of_dtype(name, tensor, dtype, sizes);
    TORCH_CHECK_VALUE(tensor.size(-1) <= 1 || tensor.stride(-1) == 1, name, ": expected contiguous rows, got strides ",
                      tensor.strides(), " for shape ", sizes, ": call .contiguous() first.");
    if (written) own_memory(name, tensor);
  }

  // As many tensors as in another list, each of its partner's shape.
  void same(const char* name, at::TensorList tensors, at::TensorList like, bool written = false) const {
    TORCH_CHECK_VALUE(tensors.size() == like.size(), name, ": expected ", like.size(), " tensors, got ", tensors.size(),
                      ".");
    for (size_t i = 0; i < tensors.size(); ++i) {
      defined(name, like[i], int64_t(i));
      floating(name, tensors[i], like[i].sizes(), int64_t(i));
      if (written) own_memory(name, tensors[i], int64_t(i));
    }
  }

  // Tensors to write to: none shares memory with another or with what is read, but each may be its own partner itself.
  // Where a tensor has gaps, nothing is known.
  static void apart(const char* name, at::TensorList written, at::TensorList partners, at::TensorList others) {
    c10::SmallVector<Place, 4> places;
    for (size_t i = 0; i < written.size(); ++i) places.emplace_back(written[i], i);
    std::sort(places.begin(), places.end(), [](const Place& x, const Place& y) { return x.begin < y.begin; });
    const auto expect = [&](bool apart, const Place& place) {
      TORCH_CHECK_VALUE(apart, label(name, place.index), ": expected memory of its own, got some of another tensor's.");
    };
    for (size_t i = 1; i < places.size(); ++i) expect(places[i - 1].end <= places[i].begin, places[i]);
    const auto read = [&](const at::Tensor& tensor) {
      const Place place(tensor, 0);
      const auto starts_before = [](const Place& x, const char* end) { return x.begin < end; };
      const auto behind = std::lower_bound(places.begin(), places.end(), place.end, starts_before);
      if (behind != places.begin()) expect((behind - 1)->end <= place.begin, *(behind - 1));
    };
    for (size_t i = 0; i < written.size(); ++i) {
      const bool itself =
          Place(partners[i], 0).begin == Place(written[i], 0).begin && partners[i].strides() == written[i].strides();
      if (!itself) read(partners[i]);
      read(others[i]);
    }
  }

  // One number of a dtype that the host or a kernel reads as it is.
  void number(const char* name, const at::Tensor& tensor, int64_t index = -1) const {
    dense(name, tensor, index);
    TORCH_CHECK_VALUE(tensor.numel() == 1, label(name, index), ": expected one element, got shape ", tensor.sizes(),
                      ".");
    floating(name, tensor, tensor.sizes(), index);
  }
  void number(const char* name, MaybeTensor tensor) const {
    if (tensor) number(name, *tensor);
  }

 private:
  // Where a tensor is in memory; nowhere if it is empty or has gaps.
  struct Place {
    Place(const at::Tensor& tensor, size_t i) : index(int64_t(i)) {
      if (tensor.numel() == 0 || !tensor.is_non_overlapping_and_dense()) return;
      begin = static_cast<const char*>(tensor.const_data_ptr());
      end = begin + tensor.nbytes();
    }
    const char *begin = nullptr, *end = nullptr;
    int64_t index;
  };

  static c10::Device device_of(const char* name, const at::Tensor& tensor) {
    defined(name, tensor);
    return tensor.device();
  }

  static std::string label(const char* name, int64_t index) {
    return index < 0 ? name : std::string(name) + "[" + std::to_string(index) + "]";
  }

  static void dense(const char* name, const at::Tensor& tensor, int64_t index = -1) {
    defined(name, tensor, index);
    TORCH_CHECK_TYPE(tensor.layout() == at::kStrided && tensor.has_storage(), label(name, index),
                     ": expected a dense tensor, got layout ", tensor.layout(), ".");
  }

  void of_dtype(const char* name, const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef sizes) const {
    dense(name, tensor);
    TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, ": expected ", dtype, ", got ", tensor.scalar_type(), ".");
    floating(name, tensor, sizes);
  }

  static void contiguous(const char* name, const at::Tensor& tensor) {
    TORCH_CHECK_VALUE(tensor.is_contiguous(), name, ": expected contiguous memory, got strides ", tensor.strides(),
                      " for shape ", tensor.sizes(), ": call .contiguous() first.");
  }

  static void own_memory(const char* name, const at::Tensor& written, int64_t index = -1) {
    TORCH_CHECK_VALUE(written.is_contiguous() || at::has_internal_overlap(written) != at::MemOverlap::Yes,
                      label(name, index),
                      ": expected a place for each element, got an expanded tensor: "
                      "call .clone() first.");
  }

  // Of this shape, on the device of the others, with memory for all of its elements: that of a parameter may have been
  // given back while its shape stays, as sharding does between two steps.
  void placed(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes, int64_t index = -1) const {
    TORCH_CHECK_VALUE(tensor.sizes() == sizes, label(name, index), ": expected shape ", sizes, ", got ", tensor.sizes(),
                      ".");
    TORCH_CHECK_VALUE(tensor.device() == device_, label(name, index), ": expected device ", device_,
                      " as for the others, got ", tensor.device(), ".");
    const size_t needed =
        tensor.is_contiguous()
            ? size_t(tensor.storage_offset() + tensor.numel()) * tensor.itemsize()
            : at::detail::computeStorageNbytes(sizes, tensor.strides(), tensor.itemsize(), tensor.storage_offset());
    TORCH_CHECK_VALUE(tensor.numel() == 0 || tensor.storage().nbytes() >= needed, label(name, index), ": expected ",
                      needed, " bytes of memory, got ", tensor.storage().nbytes(), ": it was freed.");
  }

  c10::Device device_;
};

inline void check_positive(const char* name, double value) {
  TORCH_CHECK_VALUE(value > 0 && std::isfinite(value), name, ": expected a number above 0, got ", value, ".");
}

inline void check_reduction(int64_t reduction) {
  TORCH_CHECK_VALUE(0 <= reduction && reduction <= int64_t(Reduction::sum),
                    "reduction: expected 0 (none), 1 (mean) or 2 (sum), got ", reduction, ".");
}

}  // namespace prograd
