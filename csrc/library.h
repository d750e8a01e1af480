// Kernels in the dispatcher, by type of device.
#pragma once

namespace prograd {

// Put the kernels of csrc/cpu or csrc/cuda behind torch.ops.prograd_fast.*, or take them out again.
void register_cpu();
void unregister_cpu();
#ifdef PF_CUDA
void register_cuda();
void unregister_cuda();
#endif

}  // namespace prograd
