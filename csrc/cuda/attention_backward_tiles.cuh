// The backward of attention with a shared prefix on tensor cores, for any number of cotangents in one launch, whose
// blocks wait for each other between two passes:
//   query_tile  for each query its softmax, and its gradients
//   key_tile    for each key and cotangent the sum over the queries that see it: a warp has 16 keys. A row of the
//               prefix is seen by all queries of its group: each block has some of them, its warps in turn, and the
//               last block adds up what the blocks have, in their order
// Weights are computed again in either. The first pass sets the second one's tickets to zero.
#pragma once

#include "attention_tiles.cuh"
#include "passes.cuh"
#include "reduce.cuh"

namespace prograd::cuda {

constexpr int kMaxChunks = 32;                               // of the queries: partial sums of the prefix
constexpr int kChunkQueries = 256;                           // of a chunk at least
constexpr int kKeyWarpRows = 2 * kMma + kStages * 2 * kMma;  // in shared memory: keys, values; queries, cotangents
template <int kColumns>
constexpr int kTileBlocks = kColumns > 64 ? 2 : 3;  // on a multiprocessor: what fits without spills
template <int kColumns>
constexpr size_t kKeyTileBytes = kTileWarps * kKeyWarpRows * kPitch<kColumns> * 2;
template <int kColumns>
constexpr size_t kBackwardTileBytes = std::max(kQueryTileBytes<kColumns>, kKeyTileBytes<kColumns>);

// Of the softmax of a query: weight = 2^(score log2 e - max) inverse_sum.
struct alignas(8) TileStatistics {
  float max, inverse_sum;
};

struct AttentionTilesBackward {
  Attention attention;
  int64_t cotangents;
  Rows gradient, d_query, d_key_value, d_prefix;
  TileStatistics* statistics;  // (groups, heads, queries)
  float* means;                // (cotangents, groups, heads, queries): of dO v over the weights
  float* partials;             // (sums, chunks, 2, 16, columns): of keys, of values
  unsigned* tickets;           // (sums,)
  int64_t tiles;               // of 16 rows of the prefix
  int64_t sums;                // groups, heads, cotangents, tiles
  int64_t chunks, chunk_queries;
  int64_t prefix_blocks;  // of the second pass, the first ones
  int64_t first_blocks, second_blocks;

  __device__ TileStatistics* statistics_of(int64_t group, int head) const {
    return statistics + (group * attention.heads + head) * attention.queries;
  }
  __device__ float* means_of(int64_t group, int head, int64_t cotangent) const {
    return means + ((cotangent * attention.groups + group) * attention.heads + head) * attention.queries;
  }
};

// ---- queries

// With p the weights of a query and e = dO v of its keys: dq = scale sum of p (e - mean) k, mean = sum of p e = dO out.
template <typename T, int kColumns>
__device__ __forceinline__ void query_tile(const AttentionTilesBackward& backward, int64_t block) {
  const Attention& attention = backward.attention;
  QueryTile<T, kColumns> tile(attention, block);
  const float scale = float(attention.scale);
  const int lane = of_this_turn(int(threadIdx.x) % kWarp), cotangents = int(backward.cotangents);
  TileStatistics statistics[2];
  {
    const TileSoftmax<T, kColumns> softmax(tile);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      statistics[i] = {softmax.max[i] * kLog2E, 1.0f / softmax.sum[i]};
      const int row = lane / 4 + 8 * i;
      if (lane % 4 == 0 && row < tile.valid) {
        backward.statistics_of(tile.group, tile.head)[tile.first + row] = statistics[i];
      }
    }
#pragma unroll 1
    for (int k = 0; k < cotangents; ++k) {
      HeldRows<T, kColumns> d_out;
      tile.load(d_out, backward.gradient, k);
      float mean[2] = {};
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float pair[2];
          widen_pair<T>(pair, d_out.values[n / 2][n % 2 * 2 + i]);
          mean[i] = fused(pair[0], softmax.out[n][2 * i], fused(pair[1], softmax.out[n][2 * i + 1], mean[i]));
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        mean[i] = sum_of_row(mean[i]) * statistics[i].inverse_sum;
        const int row = lane / 4 + 8 * i;
        if (lane % 4 == 0 && row < tile.valid) {
          backward.means_of(tile.group, tile.head, k)[tile.first + row] = mean[i];
        }
      }
    }
  }
#pragma unroll 1
  for (int k = 0; k < cotangents; ++k) {
    SharedRows<T, kColumns> d_out;           // for want of registers
    tile.load(d_out, backward.gradient, k);  // waits for the other lanes, which may have written the mean
    float mean[2], d_query[kColumns / 8][4] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = lane / 4 + 8 * i;
      mean[i] = row < tile.valid ? backward.means_of(tile.group, tile.head, k)[tile.first + row] : 0.0f;
    }
    tile.each_key([&](const T* keys, const T* values, const Band& band) {
      float score[2][4], e[2][4];
      multiply_transposed<T>(score, tile.query, keys);
      multiply_transposed<T>(e, d_out, values);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const TileStatistics& of = statistics[i / 2];
          const float weight = fast_exp2(fused(score[n][i] * scale, kLog2E, -of.max)) * of.inverse_sum;
          e[n][i] = band.holds(n, i) ? weight * (e[n][i] - mean[i / 2]) : 0.0f;
        }
      }
      unsigned d_score[4];
      as_fragment<T>(d_score, e);
      multiply_add<T, kColumns>(d_query, d_score, keys);
    });
    tile.store(backward.d_query, k, d_query, {scale, scale});
  }
}

// ---- keys

// The 16 keys of a warp, and their gradients for one cotangent.
template <typename T, int kColumns>
struct KeyTile {
  const AttentionTilesBackward& backward;
  const Attention& attention;
  int64_t group, cotangent;
  int head;
  T* memory;  // of the warp
  float d_key[kColumns / 8][4] = {}, d_value[kColumns / 8][4] = {};

  // `index`: of group, head, cotangent.
  __device__ __forceinline__ KeyTile(const AttentionTilesBackward& backward, unsigned index)
      : backward(backward),
        attention(backward.attention),
        group(index / unsigned(backward.cotangents) / unsigned(attention.heads)),
        cotangent(index % unsigned(backward.cotangents)),
        head(int(index / unsigned(backward.cotangents) % unsigned(attention.heads))),
        memory(dynamic_shared<T>() + int(threadIdx.x) / kWarp * kKeyWarpRows * kPitch<kColumns>) {}

  __device__ __forceinline__ T* rows_at(int row) const { return memory + row * kPitch<kColumns>; }

  // Adds what some queries give to the keys of 16 rows, of which `valid` are there: dk = sum of p (e - mean) scale q,
  // dv = sum of p dO. Row i of a lane is seen by queries begin[i] ... end[i] - 1.
  __device__ __forceinline__ void add(const T* keys, int64_t stride, int valid, const Span& queries,
                                      const int64_t (&begin)[2], const int64_t (&end)[2]) {
    const int lane = of_this_turn(int(threadIdx.x) % kWarp), count = queries.size();
    const float scale = float(attention.scale);
    const Band band = {{int(begin[0] - queries.begin), int(begin[1] - queries.begin)},
                       {int(end[0] - begin[0]), int(end[1] - begin[1])}};
    stage_halves<kColumns, kWarp, 2>(rows_at(0), kMma * kPitch<kColumns>, keys, to_values(attention), stride, valid,
                                     kMma, attention.width, lane);
    const T* query_rows = head_of<const T>(attention.query, attention, group, queries.begin, head);
    const T* d_out_rows = head_of<const T>(backward.gradient, attention, group, queries.begin, head, cotangent);
    // Starts to copy 16 queries and their cotangents, if there are any: a group of copies in any case.
    const auto start = [&](int done) {
      if (done < count) {
        T* to = queries_at(done);
        stage_rows<kColumns, kWarp>(to, query_rows + done * attention.query.row, attention.query.row, count - done,
                                    kMma, attention.width, lane);
        stage_rows<kColumns, kWarp>(to + kMma * kPitch<kColumns>, d_out_rows + done * backward.gradient.row,
                                    backward.gradient.row, count - done, kMma, attention.width, lane);
      }
      commit_copies();
    };
    SharedRows<T, kColumns> key, value;
    key.load(rows_at(0));
    value.load(rows_at(kMma));
    const TileStatistics* statistics = backward.statistics_of(group, head) + queries.begin;
    const float* means = backward.means_of(group, head, cotangent) + queries.begin;
    start(0);
#pragma unroll 1
    for (int done = 0; done < count; done += kMma) {
      start(done + kMma);
      wait_copies<kStages - 1>();
      __syncwarp();
      const T* query = queries_at(done);
      const T* d_out = query + kMma * kPitch<kColumns>;
      float score[2][4], e[2][4];
      multiply_transposed<T>(score, key, query);
      multiply_transposed<T>(e, value, d_out);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = done + n * 8 + lane % 4 * 2 + i, known = at < count ? at : count - 1;
          const TileStatistics of = statistics[known];
          const float mean = means[known];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int j = 2 * half + i;
            const bool seen = unsigned(at - band.low[half]) < unsigned(band.length[half]);
            const float weight = fast_exp2(fused(score[n][j] * scale, kLog2E, -of.max)) * of.inverse_sum;
            score[n][j] = seen ? weight : 0.0f;
            e[n][j] = seen ? weight * (e[n][j] - mean) : 0.0f;
          }
        }
      }
      unsigned weights[4], d_scores[4];
      as_fragment<T>(weights, score);
      as_fragment<T>(d_scores, e);
      multiply_add<T, kColumns>(d_value, weights, d_out);
      multiply_add<T, kColumns>(d_key, d_scores, query);
      __syncwarp();  // all lanes have read the queries
    }
    wait_copies<0>();
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) d_key[n][i] *= scale;
    }
  }

 private:
  // Where 16 queries are copied to, `done` behind the first ones, and behind them their cotangents.
  __device__ __forceinline__ T* queries_at(int done) const {
    return rows_at(2 * kMma + done / kMma % kStages * 2 * kMma);
  }
};

// Adds up what the warps of the blocks of a sum have, for rows of the prefix from `first` on.
template <typename T, int kColumns>
__device__ __forceinline__ void prefix_sums(const KeyTile<T, kColumns>& tile, int64_t sum, int64_t chunk, int64_t first,
                                            int valid) {
  constexpr int N = kVector<T>;
  constexpr int kPacks = 2 * kMma * kColumns / N, kMine = kPacks / kTileThreads;  // of a thread
  static_assert(kPacks % kTileThreads == 0, "threads for every sum");
  constexpr int kWarpFloats = 2 * kMma * kColumns;
  static_assert(kTileWarps * kWarpFloats * sizeof(float) <= kKeyTileBytes<kColumns>, "memory for the warps' sums");
  const AttentionTilesBackward& backward = tile.backward;
  const Attention& attention = backward.attention;
  const int thread = of_this_turn(int(threadIdx.x)), warp = thread / kWarp, lane = thread % kWarp;
  float* of_warps = dynamic_shared<float>();  // (warps, 2, 16, columns)
  __syncthreads();                            // other warps may still read their keys
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float* at = of_warps + warp * kWarpFloats + (lane / 4 + i / 2 * 8) * kColumns + n * 8 + lane % 4 * 2 + i % 2;
      at[0] = tile.d_key[n][i];
      at[kMma * kColumns] = tile.d_value[n][i];
    }
  }
  __syncthreads();
  float total[kMine][N] = {};
  const auto place = [&](int mine) { return (thread + mine * kTileThreads) * N; };
  const auto add = [&](int mine, const float* from) {
    float values[N];
    load(values, from + place(mine), N, true);
#pragma unroll
    for (int i = 0; i < N; ++i) total[mine][i] += values[i];
  };
#pragma unroll
  for (int mine = 0; mine < kMine; ++mine) {
    for (int w = 0; w < kTileWarps; ++w) add(mine, of_warps + w * kWarpFloats);
  }
  if (backward.chunks > 1) {
    float* partials = backward.partials + sum * backward.chunks * kWarpFloats;
#pragma unroll
    for (int mine = 0; mine < kMine; ++mine) {
      store<N, float>(partials + chunk * kWarpFloats + place(mine), total[mine], N, true);
    }
    if (!is_last_block(backward.tickets + sum, unsigned(backward.chunks))) return;
#pragma unroll
    for (int mine = 0; mine < kMine; ++mine) {
#pragma unroll
      for (int i = 0; i < N; ++i) total[mine][i] = 0;
      for (int64_t c = 0; c < backward.chunks; ++c) add(mine, partials + c * kWarpFloats);
    }
  }
#pragma unroll
  for (int mine = 0; mine < kMine; ++mine) {
    const int row = place(mine) / kColumns % kMma, column = place(mine) % kColumns;
    const bool of_value = place(mine) >= kMma * kColumns;
    if (row >= valid || column >= attention.width) continue;
    T* to = head_of<T>(backward.d_prefix, attention, tile.group, first + row, tile.head, tile.cotangent) + column;
    store<N, T>(of_value ? to + to_values(attention) : to, total[mine], N, true);
  }
}

// 64 keys of segments, or 16 of the prefix. A key of a segment is seen by the rows from its own on, or by the segment's
// one query; one of the prefix by a chunk of the queries, a quarter of them for each warp. Blocks for the prefix are
// numbered by group, head, cotangent, tile of the prefix, chunk of the queries, those for segments behind them by
// group, head, cotangent, 64 keys.
template <typename T, int kColumns>
__device__ __forceinline__ void key_tile(const AttentionTilesBackward& backward, unsigned block) {
  const Attention& attention = backward.attention;
  const int warp = of_this_turn(int(threadIdx.x) / kWarp), lane = of_this_turn(int(threadIdx.x) % kWarp);
  const unsigned prefix_blocks = unsigned(backward.prefix_blocks);
  const bool of_prefix = block < prefix_blocks;
  const unsigned tiles = unsigned((attention.rows + kTileQueries - 1) / kTileQueries), own = block - prefix_blocks;
  const unsigned chunk = block % unsigned(backward.chunks), sum = block / unsigned(backward.chunks);
  KeyTile<T, kColumns> tile(backward, of_prefix ? sum / unsigned(backward.tiles) : own / tiles);
  const int64_t first =
      of_prefix ? int64_t(sum % unsigned(backward.tiles)) * kMma : int64_t(own % tiles) * kTileQueries + warp * kMma;
  const int64_t left = (of_prefix ? attention.prefix_rows : attention.rows) - first;
  const int valid = left > kMma ? kMma : left > 0 ? int(left) : 0;

  Span queries{0, 0};
  int64_t begin[2] = {}, end[2] = {};  // queries that see the keys of a lane
  if (of_prefix) {
    const int64_t each = backward.chunk_queries / kTileWarps;
    queries.begin = chunk * backward.chunk_queries + warp * each;
    queries.end = queries.begin + each;
    if (queries.end > attention.queries) queries.end = attention.queries;
    if (queries.begin < first_query(attention, first)) queries.begin = first_query(attention, first);
    if (queries.begin > queries.end) queries.begin = queries.end;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      begin[i] = first_query(attention, first + lane / 4 + 8 * i);
      end[i] = queries.end;
    }
  } else if (valid > 0) {
    int64_t row[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row[i] = first + lane / 4 + 8 * i;
      if (row[i] >= attention.rows) row[i] = attention.rows - 1;
    }
    RowSegment of[2];
    segments_of_rows(of, attention, first, row);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      begin[i] = attention.last ? of[i].number : attention.leading + row[i];
      end[i] = attention.last ? of[i].number + 1 : attention.leading + of[i].end;
    }
    queries = {__shfl_sync(kFullMask, begin[0], 0), __shfl_sync(kFullMask, end[1], kWarp - 1)};
  }
  const T* keys = of_prefix ? head_of<const T>(attention.prefix, attention, tile.group, first, tile.head)
                            : head_of<const T>(attention.key_value, attention, tile.group, first, tile.head);
  tile.add(keys, of_prefix ? attention.prefix.row : attention.key_value.row, valid, queries, begin, end);
  if (of_prefix) return prefix_sums(tile, sum, chunk, first, valid);
  T* to = head_of<T>(backward.d_key_value, attention, tile.group, first, tile.head, tile.cotangent);
  const float one[2] = {1, 1};
  store_rows<T, kColumns>(to, backward.d_key_value.row, valid, attention.width, tile.memory, tile.d_key, one);
  store_rows<T, kColumns>(to + to_values(attention), backward.d_key_value.row, valid, attention.width, tile.memory,
                          tile.d_value, one);
}

template <typename T, int kColumns>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<kColumns>)
    attention_backward_tiles_kernel(PF_CONSTANT AttentionTilesBackward backward) {
  two_passes(
      backward, [&](int64_t block) { query_tile<T, kColumns>(backward, block); },
      [&](unsigned block) { key_tile<T, kColumns>(backward, block); });
}

// ---- launching

// Heads of more than 64 columns need more than blocks of compute capability 8.6, 8.9 and 12 may have.
inline size_t backward_tile_bytes(int width) {
  size_t bytes;
  with_tile_columns(width, [&](auto columns) { bytes = kBackwardTileBytes<decltype(columns)::value>; });
  return bytes;
}

// Memory: statistics and means of the queries, the partial sums of the prefix and their tickets.
struct TileWorkspace {
  int64_t tiles, sums, chunk_queries, chunks, own_blocks;
  size_t statistics_bytes, mean_bytes, partial_bytes, ticket_bytes;

  TileWorkspace(const Attention& attention, int64_t cotangents) {
    const auto over = [](int64_t count, int64_t each) { return (count + each - 1) / each; };
    const int64_t heads = attention.groups * attention.heads;
    const int columns = attention.width > 64 ? 128 : 64;
    tiles = over(attention.prefix_rows, kMma);
    sums = heads * cotangents * tiles;
    chunk_queries =
        std::max<int64_t>(kChunkQueries, over(over(attention.queries, kMaxChunks), kTileQueries) * kTileQueries);
    chunks = std::max<int64_t>(over(attention.queries, chunk_queries), 1);
    own_blocks = heads * cotangents * over(attention.rows, kTileQueries);
    const auto aligned = [&](size_t bytes) { return size_t(over(int64_t(bytes), 16)) * 16; };
    statistics_bytes = aligned(sizeof(TileStatistics) * heads * attention.queries);
    mean_bytes = aligned(sizeof(float) * heads * cotangents * attention.queries);
    partial_bytes = chunks > 1 ? sizeof(float) * sums * chunks * 2 * kMma * columns : 0;
    ticket_bytes = sizeof(unsigned) * sums;
  }
  size_t bytes() const { return statistics_bytes + mean_bytes + partial_bytes + ticket_bytes; }
};

}  // namespace prograd::cuda
