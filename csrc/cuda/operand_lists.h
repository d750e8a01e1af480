// Lists of CUDA tensors as the launchers of csrc/cuda/tensor_lists.h take them.
#pragma once

#include <initializer_list>
#include <vector>

#include "launch.h"
#include "tensor_lists.h"

namespace prograd::cuda {

// The dtype that all tensors of some lists are read in: their own if they share it, else float32 or float64.
inline at::ScalarType common_dtype_of(std::initializer_list<at::TensorList> lists) {
  const at::Tensor* first = nullptr;
  at::ScalarType dtype = at::kFloat;
  for (const at::TensorList list : lists) {
    for (const at::Tensor& tensor : list) {
      dtype = !first ? tensor.scalar_type() : dtype == tensor.scalar_type() ? dtype : common_dtype(*first, tensor);
      if (!first) first = &tensor;
    }
  }
  return dtype;
}

// Lists of tensors as the kernels take them: contiguous, of one dtype, on one device.
class OperandLists {
 public:
  OperandLists(const Launch& launch, at::TensorList task, Scope scope, at::ScalarType dtype)
      : launch_(launch), dtype_(dtype), scope_(scope), tensors_(task.size()) {
    for (size_t i = 0; i < task.size(); ++i) {
      const bool rows = scope_ == Scope::row && task[i].dim() > 0;
      tensors_[i].units = rows ? task[i].size(0) : 1;
      tensors_[i].unit_size = tensors_[i].units ? task[i].numel() / tensors_[i].units : 0;
    }
  }

  // fill(tensor, pointer) for every tensor of the list.
  template <typename Fill>
  void read(at::TensorList list, const char* name, const Fill& fill) {
    for (size_t i = 0; i < list.size(); ++i) {
      operands_.push_back(launch_.operand(list[i], dtype_, name));
      fill(tensors_[i], operands_.back().const_data_ptr());
    }
  }
  template <typename Fill>
  void write(at::TensorList list, at::ScalarType dtype, const char* name, const Fill& fill) {
    for (size_t i = 0; i < list.size(); ++i) {
      launch_.check_device(list[i], name);
      written_.emplace_back(list[i], dtype);
      fill(tensors_[i], written_.back().data());
    }
  }

  void read_gradients(at::TensorList task, at::TensorList general) {
    read(task, "task", [](Tensor& tensor, const void* data) { tensor.task = data; });
    read(general, "general", [](Tensor& tensor, const void* data) { tensor.general = data; });
  }
  void write_state(at::TensorList list, at::ScalarType dtype, const char* name, int k) {
    write(list, dtype, name, [k](Tensor& tensor, void* data) { tensor.state[k] = data; });
  }

  Storage storage() const { return storage_of(dtype_); }
  const Tensor* tensors() const { return tensors_.data(); }
  int count() const { return int(tensors_.size()); }
  Scope scope() const { return scope_; }
  at::Tensor workspace() const { return launch_.workspace(tensors_workspace(storage(), tensors(), count(), scope_)); }
  void write_back() const {
    for (const Written& tensor : written_) tensor.write_back();
  }

 private:
  const Launch& launch_;
  at::ScalarType dtype_;
  Scope scope_;
  std::vector<Tensor> tensors_;
  std::vector<at::Tensor> operands_;
  std::vector<Written> written_;
};

}  // namespace prograd::cuda
