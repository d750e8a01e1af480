// Tensors as the kernels need them: contiguous, of one dtype. Another one gets a copy, which is written back.
#pragma once

#include <ATen/ATen.h>

#include "types.h"

namespace prograd {

inline Storage storage_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble: return Storage::float64;
    case at::kFloat: return Storage::float32;
    case at::kBFloat16: return Storage::bfloat16;
    case at::kHalf: return Storage::float16;
    default: TORCH_CHECK_TYPE(false, "expected float64, float32, bfloat16 or float16, got ", dtype, ".");
  }
}

// `Accumulation` for a dtype that is known at run time.
inline at::ScalarType accumulation_dtype(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

// dtype if the tensors share it, else the accumulation dtype of the widest: mixed operands are copied, and rounded once
// when they are written back.
template <typename... Tensors>
at::ScalarType common_dtype(const at::Tensor& first, const Tensors&... others) {
  const bool same = (... && (others.scalar_type() == first.scalar_type()));
  at::ScalarType widest = first.scalar_type();
  ((widest = at::promote_types(widest, others.scalar_type())), ...);
  return same ? widest : accumulation_dtype(widest);
}

inline at::Tensor contiguous(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype && tensor.is_contiguous() ? tensor : tensor.to(dtype).contiguous();
}

inline const void* data_of(const at::Tensor& tensor) { return tensor.const_data_ptr(); }

// The elements of a contiguous tensor of float32 or float64, one by one. The tensor is asked for its memory and its
// dtype once.
class Numbers {
 public:
  explicit Numbers(const at::Tensor& tensor)
      : data_(data_of(tensor)), is_double_(tensor.scalar_type() == at::kDouble) {}
  double operator[](int64_t i) const {
    return is_double_ ? static_cast<const double*>(data_)[i] : static_cast<const float*>(data_)[i];
  }

 private:
  const void* data_;
  bool is_double_;
};
class WrittenNumbers {
 public:
  explicit WrittenNumbers(const at::Tensor& tensor)
      : data_(tensor.mutable_data_ptr()), is_double_(tensor.scalar_type() == at::kDouble) {}
  void set(int64_t i, double value) const {
    if (is_double_) {
      static_cast<double*>(data_)[i] = value;
    } else {
      static_cast<float*>(data_)[i] = float(value);
    }
  }

 private:
  void* data_;
  bool is_double_;
};

// A tensor that a kernel writes to.
class Written {
 public:
  Written() = default;
  Written(const at::Tensor& tensor, at::ScalarType dtype) : given_(tensor), used_(contiguous(tensor, dtype)) {}

  const at::Tensor& tensor() const { return used_; }
  char* data() const { return used_.defined() ? static_cast<char*>(used_.mutable_data_ptr()) : nullptr; }
  void write_back() const {
    if (!used_.is_same(given_)) given_.copy_(used_);
  }

 private:
  at::Tensor given_, used_;
};

}  // namespace prograd
