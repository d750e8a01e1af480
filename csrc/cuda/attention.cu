// Attention of packed segments with a shared prefix.
#include "attention.cuh"
#include "storage.cuh"

namespace prograd::cuda {

template <typename T, int kLanes>
__global__ void __launch_bounds__(kAttentionThreads, kAttentionBlocks<T>)
    attention_kernel(PF_CONSTANT AttentionArguments arguments, PF_CONSTANT Rows out) {
  const int64_t index = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kLanes;
  const Query<T, kLanes> query(arguments, index);
  const Softmax<T, kLanes> softmax(query);
  if (query.item.repeated) return;
  softmax.out.store(head_of<T>(out, arguments.attention, query.item.group, query.item.row, query.item.head),
                    arguments.attention.width, arguments.aligned);
}

template <typename T>
void launch_attention(const Attention& attention, const Rows& out, void* stream) {
  const int64_t items = attention.groups * attention.heads * attention.queries;
  if (items == 0) return;
  with_lanes(attention.width, [&](auto lanes) {
    launch(attention_kernel<T, lanes.value>, attention_blocks(items, lanes.value), kAttentionThreads, 0, false, stream,
           make_arguments<T>(attention, out), out);
  });
}

// ---- the operator

void shared_prefix_attention(Storage storage, const Attention& attention, const Rows& out, void* stream) {
  with_storage(storage, [&](auto type) { launch_attention<typename decltype(type)::type>(attention, out, stream); });
}

}  // namespace prograd::cuda
