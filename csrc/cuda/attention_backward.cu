// The backward of attention with a shared prefix. For 16-bit storage on tensor cores: attention_backward_tiles.cuh.
// Else a launch for one or two cotangents, whose blocks wait for each other between two passes:
//   query_gradients                      for each query the sums of its softmax, and the query's gradients
//   own_key_gradients, prefix_gradients  for each key the sum over the queries that see it. A key of the prefix is seen
//                                        by all queries of its group: each block has some of them, its warps in turn,
//                                        and the last block adds up what the blocks have, in their order
// Weights are computed again in either, not stored: a segment's length is known on the device alone.
#include "attention_backward_tiles.cuh"
#include "storage.cuh"

namespace prograd::cuda {

constexpr int kMaxCotangents = 2;  // of one launch
template <typename T>
constexpr int kBackwardBlocks = sizeof(Accumulation<T>) == 4 ? 2 : 1;  // on a multiprocessor: what fits without spills
constexpr int kAttentionWarps = kAttentionThreads / kWarp;
constexpr int kQueriesOfWarp = 32;  // that give to a key of the prefix
constexpr int kQueriesOfBlock = kAttentionWarps * kQueriesOfWarp;

// What the weights of a query and their gradients need.
template <typename A>
struct alignas(16) Statistics {
  A max, inverse_sum;      // weight = e^(score - max) inverse_sum
  A mean[kMaxCotangents];  // of dO v over the weights
};

template <typename A>
struct AttentionBackward {
  AttentionArguments arguments;
  Rows gradient, d_query, d_key_value, d_prefix;
  Statistics<A>* statistics;  // (groups, heads, queries)
  A* partials;                // (groups, heads, tiles, chunks, 2 * cotangents, kWarp * kSlice)
  unsigned* tickets;          // (groups, heads, tiles): `sums` of them
  int tiles;                  // of the prefix: as many keys as a warp has groups
  int64_t sums;
  int64_t chunks;         // of the queries: kQueriesOfBlock each
  int64_t prefix_blocks;  // of the second pass, the first ones
  int64_t first_blocks, second_blocks;

  __device__ Statistics<A>& of_query(int64_t group, int head, int64_t query) const {
    return statistics[(group * arguments.attention.heads + head) * arguments.attention.queries + query];
  }
};

// With p the weights of a query and e = dO v of its keys: dq = scale sum of p (e - mean) k, mean = sum of p e = dO out.
template <typename T, int kLanes, int kCotangents>
__device__ __forceinline__ void query_gradients(const AttentionBackward<Accumulation<T>>& backward, int64_t block) {
  using A = Accumulation<T>;
  const AttentionArguments& arguments = backward.arguments;
  const Attention& attention = arguments.attention;
  const Query<T, kLanes> query(arguments, (block * blockDim.x + threadIdx.x) / kLanes);
  const Item& item = query.item;
  const Softmax<T, kLanes> softmax(query);

  Statistics<A> statistics = {softmax.max, A(1) / softmax.sum, {}};
  Slice<T, kLanes> d_out[kCotangents], d_query[kCotangents];
#pragma unroll
  for (int k = 0; k < kCotangents; ++k) {
    d_out[k].load_own(head_of<const T>(backward.gradient, attention, item.group, item.row, item.head, k),
                      attention.width, arguments.aligned);
    statistics.mean[k] = d_out[k].dot(softmax.out);
  }
  query.each_key([&](A score, const Slice<T, kLanes>& key, const Slice<T, kLanes>& value) {
    const A weight = exp(score - statistics.max) * statistics.inverse_sum;
#pragma unroll
    for (int k = 0; k < kCotangents; ++k) {
      d_query[k].add(weight * (d_out[k].dot(value) - statistics.mean[k]), key);
    }
  });
  if (item.repeated) return;
#pragma unroll
  for (int k = 0; k < kCotangents; ++k) {
    d_query[k].scale(A(attention.scale));
    d_query[k].store(head_of<T>(backward.d_query, attention, item.group, item.row, item.head, k), attention.width,
                     arguments.aligned);
  }
  if (threadIdx.x % kLanes == 0) backward.of_query(item.group, item.head, item.row) = statistics;
}

// A key of a group of lanes, and its gradients so far.
template <typename T, int kLanes, int kCotangents>
struct Key {
  using A = Accumulation<T>;
  Slice<T, kLanes> key, value;
  Slice<T, kLanes> gradients[2 * kCotangents];  // of the key, then of the value

  __device__ __forceinline__ Key(const AttentionArguments& arguments, const T* head) {
    const Attention& attention = arguments.attention;
    key.load_own(head, attention.width, arguments.aligned);
    value.load_own(head + to_values(attention), attention.width, arguments.aligned);
  }

  // Adds what some queries give: dk = sum of p (e - mean) scale q, dv = sum of p dO. By whole warps: the last query
  // comes again with weight 0, as often as another group of the warp has queries.
  __device__ __forceinline__ void add(const AttentionBackward<A>& backward, int64_t group, int head,
                                      const Span& queries) {
    const AttentionArguments& arguments = backward.arguments;
    const Attention& attention = arguments.attention;
    const int count = queries.size(), steps = warp_max(count);
    for (int i = 0; i < steps; ++i) {
      const int64_t row = i < count ? queries.begin + i : queries.end - 1;
      Slice<T, kLanes> query, d_out[kCotangents];
      query.load(head_of<const T>(attention.query, attention, group, row, head), attention.width, arguments.aligned);
      query.scale(A(attention.scale));
      const Statistics<A> statistics = backward.of_query(group, head, row);
      const A score = query.dot(key);
      const A weight = i < count ? exp(score - statistics.max) * statistics.inverse_sum : A(0);
#pragma unroll
      for (int k = 0; k < kCotangents; ++k) {
        d_out[k].load(head_of<const T>(backward.gradient, attention, group, row, head, k), attention.width,
                      arguments.aligned);
        gradients[k].add(weight * (d_out[k].dot(value) - statistics.mean[k]), query);
        gradients[kCotangents + k].add(weight, d_out[k]);
      }
    }
  }

  // One of the gradients, to where it belongs.
  __device__ __forceinline__ static void store(const Slice<T, kLanes>& gradient, int number, const Rows& to,
                                               const AttentionArguments& arguments, int64_t group, int head,
                                               int64_t row) {
    const Attention& attention = arguments.attention;
    T* at = head_of<T>(to, attention, group, row, head, number % kCotangents);
    gradient.store(number < kCotangents ? at : at + to_values(attention), attention.width, arguments.aligned);
  }
};

// A key of a segment is seen by the rows from its own on, or by the segment's one query.
template <typename T, int kLanes, int kCotangents>
__device__ void own_key_gradients(const AttentionBackward<Accumulation<T>>& backward, int64_t block) {
  const AttentionArguments& arguments = backward.arguments;
  const Attention& attention = arguments.attention;
  const Item item((block * blockDim.x + of_this_turn(int(threadIdx.x))) / kLanes, attention.rows, attention);
  const int64_t segment = segment_of(attention, item.row);
  const int64_t leading = attention.leading;
  const Span queries =
      attention.last ? Span{segment, segment + 1} : Span{leading + item.row, leading + attention.offsets[segment + 1]};
  Key<T, kLanes, kCotangents> key(arguments,
                                  head_of<const T>(attention.key_value, attention, item.group, item.row, item.head));
  key.add(backward, item.group, item.head, queries);
  if (item.repeated) return;
#pragma unroll
  for (int k = 0; k < 2 * kCotangents; ++k) {
    key.store(key.gradients[k], k, backward.d_key_value, arguments, item.group, item.head, item.row);
  }
}

// Blocks are numbered by group, head, chunk of the queries, tile of the prefix.
template <typename T, int kLanes, int kCotangents>
__device__ void prefix_gradients(const AttentionBackward<Accumulation<T>>& backward, int64_t block) {
  using A = Accumulation<T>;
  constexpr int kGroups = kWarp / kLanes;
  constexpr int kTile = kWarp * kSlice;  // a gradient of a tile: one element for each thread of a block
  static_assert(kTile == kAttentionThreads && 2 * kCotangents <= kAttentionWarps, "threads for every sum");
  PF_SHARED(A[kAttentionWarps][kTile], of_warps);
  const AttentionArguments& arguments = backward.arguments;
  const Attention& attention = arguments.attention;
  const int thread = of_this_turn(int(threadIdx.x)), warp = thread / kWarp, lane = thread % kWarp;
  const int tile = int(block % backward.tiles);
  const int64_t chunk = block / backward.tiles % backward.chunks;
  const int64_t head_and_group = block / backward.tiles / backward.chunks;
  const int head = int(head_and_group % attention.heads);
  const int64_t group = head_and_group / attention.heads;
  const int64_t own_row = int64_t(tile) * kGroups + lane / kLanes;
  const bool repeated = own_row >= attention.prefix_rows;
  const int64_t row = repeated ? attention.prefix_rows - 1 : own_row;

  Span queries{chunk * kQueriesOfBlock + warp * kQueriesOfWarp, 0};
  queries.end = queries.begin + kQueriesOfWarp;
  if (queries.end > attention.queries) queries.end = attention.queries;
  if (queries.begin < first_query(attention, row)) queries.begin = first_query(attention, row);
  if (queries.begin > queries.end) queries.begin = queries.end;
  Key<T, kLanes, kCotangents> key(arguments, head_of<const T>(attention.prefix, attention, group, row, head));
  key.add(backward, group, head, queries);

  const int64_t sum = head_and_group * backward.tiles + tile;
  const auto partial = [&](int64_t chunk, int k) {
    return backward.partials + ((sum * backward.chunks + chunk) * 2 * kCotangents + k) * kTile;
  };
#pragma unroll
  for (int k = 0; k < 2 * kCotangents; ++k) {
    __syncthreads();  // of_warps may still be read
#pragma unroll
    for (int i = 0; i < kSlice; ++i) of_warps[warp][lane * kSlice + i] = key.gradients[k].values[i];
    __syncthreads();
    A total = 0;
    for (int w = 0; w < kAttentionWarps; ++w) total += of_warps[w][thread];
    partial(chunk, k)[thread] = total;
  }
  __syncthreads();  // a block that is alone reads what its other threads have written
  if (!is_last_block(backward.tickets + sum, unsigned(backward.chunks)) || warp >= 2 * kCotangents) return;
  Slice<T, kLanes> total;
  for (int64_t c = 0; c < backward.chunks; ++c) {
    A values[kSlice];
    load(values, partial(c, warp) + lane * kSlice, kSlice, true);
#pragma unroll
    for (int i = 0; i < kSlice; ++i) total.values[i] += values[i];
  }
  if (!repeated) key.store(total, warp, backward.d_prefix, arguments, group, head, row);
}

template <typename T, int kLanes, int kCotangents>
__global__ void __launch_bounds__(kAttentionThreads, kBackwardBlocks<T>)
    attention_backward_kernel(PF_CONSTANT AttentionBackward<Accumulation<T>> backward) {
  two_passes(
      backward, [&](int64_t block) { query_gradients<T, kLanes, kCotangents>(backward, block); },
      [&](int64_t block) {
        if (block < backward.prefix_blocks) prefix_gradients<T, kLanes, kCotangents>(backward, block);
        else own_key_gradients<T, kLanes, kCotangents>(backward, block - backward.prefix_blocks);
      });
}

// ---- launching

// Memory: the statistics, the partial sums of the prefix and their tickets.
template <typename A>
struct AttentionWorkspace {
  int tiles;
  int64_t chunks, sums, query_blocks, own_blocks;
  size_t statistics_bytes, partial_bytes, ticket_bytes;

  explicit AttentionWorkspace(const Attention& attention) {
    const int lanes = lanes_of(attention.width), groups = kWarp / lanes;
    const int64_t heads = attention.groups * attention.heads;
    tiles = int((attention.prefix_rows + groups - 1) / groups);
    chunks = std::max<int64_t>((attention.queries + kQueriesOfBlock - 1) / kQueriesOfBlock, 1);
    sums = heads * tiles;
    query_blocks = attention_blocks(heads * attention.queries, lanes);
    own_blocks = attention_blocks(heads * attention.rows, lanes);
    statistics_bytes = sizeof(Statistics<A>) * heads * attention.queries;
    partial_bytes = sizeof(A) * sums * chunks * 2 * kMaxCotangents * kWarp * kSlice;
    ticket_bytes = sizeof(unsigned) * sums;
  }
  size_t bytes() const { return statistics_bytes + partial_bytes + ticket_bytes; }
};

template <typename T, int kCotangents>
void launch_attention_backward(const AttentionBackward<Accumulation<T>>& backward, void* stream) {
  with_lanes(backward.arguments.attention.width, [&](auto lanes) {
    launch_two_passes(attention_backward_kernel<T, lanes.value, kCotangents>, backward, kAttentionThreads, 0, stream);
  });
}

template <typename T>
void launch_attention_backward_tiles(const Attention& attention, int64_t cotangents, const Rows& gradient,
                                     const Rows& d_query, const Rows& d_key_value, const Rows& d_prefix, void* memory,
                                     void* stream) {
  const TileWorkspace workspace(attention, cotangents);
  char* bytes = static_cast<char*>(memory);
  const AttentionTilesBackward backward{
      attention,
      cotangents,
      gradient,
      d_query,
      d_key_value,
      d_prefix,
      reinterpret_cast<TileStatistics*>(bytes),
      reinterpret_cast<float*>(bytes + workspace.statistics_bytes),
      reinterpret_cast<float*>(bytes + workspace.statistics_bytes + workspace.mean_bytes),
      reinterpret_cast<unsigned*>(bytes + workspace.statistics_bytes + workspace.mean_bytes + workspace.partial_bytes),
      workspace.tiles,
      workspace.sums,
      workspace.chunks,
      workspace.chunk_queries,
      workspace.sums * workspace.chunks,
      query_tile_blocks(attention),
      workspace.sums * workspace.chunks + workspace.own_blocks,
  };
  with_tile_columns(attention.width, [&](auto columns) {
    constexpr int kColumns = decltype(columns)::value;
    launch_two_passes(attention_backward_tiles_kernel<T, kColumns>, backward, kTileThreads,
                      kBackwardTileBytes<kColumns>, stream);
  });
}

template <typename T>
Rows from_cotangent(Rows rows, int64_t cotangent) {
  rows.data = static_cast<T*>(rows.data) + cotangent * rows.cotangent;
  return rows;
}

template <typename T>
void launch_attention_backward(const Attention& attention, int64_t cotangents, const Rows& gradient,
                               const Rows& d_query, const Rows& d_key_value, const Rows& d_prefix, void* memory,
                               void* stream) {
  using A = Accumulation<T>;
  const AttentionArguments arguments = make_arguments<T>(attention, gradient, d_query, d_key_value, d_prefix);
  if constexpr (kHasTiles<T>) {
    if (arguments.aligned && backward_tile_bytes(attention.width) <= max_shared_bytes()) {
      return launch_attention_backward_tiles<T>(attention, cotangents, gradient, d_query, d_key_value, d_prefix, memory,
                                                stream);
    }
  }
  const AttentionWorkspace<A> workspace(attention);
  char* bytes = static_cast<char*>(memory);
  for (int64_t first = 0; first < cotangents; first += kMaxCotangents) {
    const AttentionBackward<A> backward{
        arguments,
        from_cotangent<T>(gradient, first),
        from_cotangent<T>(d_query, first),
        from_cotangent<T>(d_key_value, first),
        from_cotangent<T>(d_prefix, first),
        reinterpret_cast<Statistics<A>*>(bytes),
        reinterpret_cast<A*>(bytes + workspace.statistics_bytes),
        reinterpret_cast<unsigned*>(bytes + workspace.statistics_bytes + workspace.partial_bytes),
        workspace.tiles,
        workspace.sums,
        workspace.chunks,
        workspace.sums * workspace.chunks,
        workspace.query_blocks,
        workspace.sums * workspace.chunks + workspace.own_blocks,
    };
    if (cotangents - first == 1) launch_attention_backward<T, 1>(backward, stream);
    else launch_attention_backward<T, 2>(backward, stream);
  }
}

// ---- the operator

size_t shared_prefix_attention_backward_workspace(Storage storage, const Attention& attention, int64_t cotangents) {
  const size_t bytes = with_accumulation(
      storage, [&](auto type) { return AttentionWorkspace<typename decltype(type)::type>(attention).bytes(); });
  const bool has_tiles = storage == Storage::bfloat16 || storage == Storage::float16;
  return has_tiles ? std::max(bytes, TileWorkspace(attention, cotangents).bytes()) : bytes;
}

void shared_prefix_attention_backward(Storage storage, const Attention& attention, int64_t cotangents,
                                      const Rows& gradient, const Rows& d_query, const Rows& d_key_value,
                                      const Rows& d_prefix, void* workspace, void* stream) {
  with_storage(storage, [&](auto type) {
    launch_attention_backward<typename decltype(type)::type>(attention, cotangents, gradient, d_query, d_key_value,
                                                             d_prefix, workspace, stream);
  });
}

}  // namespace prograd::cuda
