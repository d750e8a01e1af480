// Where the launchers run their kernels: device, stream, workspace; and tensors as the kernels need them.
//
// A launcher is declared in csrc/cuda/x.h and defined in csrc/cuda/x.cu: plain pointers and sizes, no torch header. All
// pointers are device pointers. Tensors are contiguous; the caller has checked shapes, dtypes and devices. "Arithmetic
// type" means double for Storage::float64, else float. `stream` is a cudaStream_t. Nothing waits for the device.
// `workspace` holds at least the bytes that the *_workspace function of the operator asks for.
#pragma once

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../common/operand.h"

namespace prograd::cuda {

// The device of a tensor and its current stream. Memory that is freed before the kernels have run is theirs until then:
// the allocator orders it by the stream.
class Launch {
 public:
  explicit Launch(const at::Tensor& tensor)
      : device_(tensor.device()), guard_(device_), stream_(c10::cuda::getCurrentCUDAStream().stream()) {}

  void* stream() const { return stream_; }

  at::Tensor workspace(size_t bytes) const {
    return at::empty({int64_t(bytes)}, at::TensorOptions().dtype(at::kByte).device(device_));
  }

  // A contiguous tensor for a kernel, or an undefined one for none.
  at::Tensor operand(const std::optional<at::Tensor>& tensor, at::ScalarType dtype, const char* name) const {
    if (!tensor) return {};
    check_device(*tensor, name);
    return contiguous(*tensor, dtype);
  }

  void check_device(const at::Tensor& tensor, const char* name) const {
    TORCH_CHECK_VALUE(tensor.device() == device_, name, ": expected a tensor on ", device_, ", got ", tensor.device(),
                      ". Move it there.");
  }

 private:
  c10::Device device_;
  c10::cuda::CUDAGuard guard_;
  void* stream_;
};

template <typename T = void>
const T* pointer_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}

}  // namespace prograd::cuda
