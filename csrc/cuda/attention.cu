// Attention of packed segments with a shared prefix.
#include "attention_tiles.cuh"
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

template <typename T, int kColumns>
__global__ void __launch_bounds__(kTileThreads)
    attention_tiles_kernel(PF_CONSTANT Attention attention, PF_CONSTANT Rows out) {
  QueryTile<T, kColumns> tile(attention, blockIdx.x);
  const TileSoftmax<T, kColumns> softmax(tile);
  tile.store(out, 0, softmax.out, {1.0f / softmax.sum[0], 1.0f / softmax.sum[1]});
}

template <typename T>
void launch_attention(const Attention& attention, const Rows& out, void* stream) {
  const int64_t items = attention.groups * attention.heads * attention.queries;
  if (items == 0) return;
  const AttentionArguments arguments = make_arguments<T>(attention, out);
  if constexpr (kHasTiles<T>) {
    if (arguments.aligned) {
      return with_tile_columns(attention.width, [&](auto columns) {
        launch(attention_tiles_kernel<T, columns.value>, query_tile_blocks(attention), kTileThreads,
               kQueryTileBytes<columns.value>, false, stream, attention, out);
      });
    }
  }
  with_lanes(attention.width, [&](auto lanes) {
    launch(attention_kernel<T, lanes.value>, attention_blocks(items, lanes.value), kAttentionThreads, 0, false, stream,
           arguments, out);
  });
}

// ---- the operator

void shared_prefix_attention(Storage storage, const Attention& attention, const Rows& out, void* stream) {
  with_storage(storage, [&](auto type) { launch_attention<typename decltype(type)::type>(attention, out, stream); });
}

}  // namespace prograd::cuda
