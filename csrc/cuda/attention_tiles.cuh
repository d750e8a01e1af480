// Attention of 16-bit storage on tensor cores: what its forward and its backward have in common.
//
// A block has 64 queries of a head, a warp 16 of them. Keys and values come to shared memory in tiles, those of the
// prefix once for the block, then the rows of the segments that the block's queries see; the next tile is on its way
// while one is used. A warp leaves out the keys that none of its queries sees, 16 at a time, and masks the others: a
// segment is a few rows, so that most of what a query does not see is left out. Weights and the gradients of scores are
// rounded to the storage type for their products; sums are float32. A NaN among the values of a segment also reaches
// neighbouring segments, whose weight of it is 0.
//
// Columns beyond the head's width are zeros in shared memory. Heads and rows must start on 16 bytes; where they do not,
// the kernels of attention.cuh are used.
#pragma once

#include "attention.cuh"
#include "mma.cuh"

namespace prograd::cuda {

constexpr int kTileWarps = 4;
constexpr int kTileThreads = kTileWarps * kWarp;
constexpr int kTileQueries = kTileWarps * kMma;
constexpr int kStages = 2;  // tiles of keys in shared memory
// keys of a tile: a prompt's whole prefix, and 64 queries with the beginning of their first segment
template <int kColumns>
constexpr int kTileKeys = kColumns > 64 ? 64 : 80;

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kNoScore = std::numeric_limits<float>::lowest() / 2;  // finite even times log2 e

// Bytes for the tiles of a block that goes through keys, and for 16 rows of each warp.
template <int kColumns>
constexpr size_t kQueryTileBytes = (kStages * 2 * kTileKeys<kColumns> + kTileQueries) * kPitch<kColumns> * 2;

// ---- rows between global and shared memory

// Starts to copy `rows` rows to shared memory, those from `valid` on and columns from `width` on as zeros; `thread` is
// one of `threads` that share the work.
template <int kColumns, typename T>
__device__ __forceinline__ void stage_rows(T* to, const T* from, int64_t stride, int valid, int rows, int width,
                                           int thread, int threads) {
  constexpr int kPacks = kColumns / kVector<T>;
  for (int i = thread; i < rows * kPacks; i += threads) {
    const int row = i / kPacks, column = i % kPacks * kVector<T>;
    const bool wanted = row < valid && column < width;
    copy_async(to + row * kPitch<kColumns> + column, wanted ? from + row * stride + column : from, wanted);
  }
}

// 16 rows of a C, each times its factor, to global memory, by way of shared memory that the warp has to itself.
template <typename T, int kColumns>
__device__ __forceinline__ void store_rows(T* to, int64_t stride, int valid, int width, T* scratch,
                                           const float (&c)[kColumns / 8][4], const float (&factor)[2]) {
  constexpr int kPacks = kColumns / kVector<T>;
  const int lane = int(threadIdx.x) % kWarp;
  __syncwarp();  // scratch may still be read
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const unsigned pair = rounded_pair<T>(c[n][2 * half] * factor[half], c[n][2 * half + 1] * factor[half]);
      memcpy(scratch + (lane / 4 + 8 * half) * kPitch<kColumns> + n * 8 + lane % 4 * 2, &pair, sizeof pair);
    }
  }
  __syncwarp();
  for (int i = lane; i < kMma * kPacks; i += kWarp) {
    const int row = i / kPacks, column = i % kPacks * kVector<T>;
    if (row >= valid || column >= width) continue;
    store_pack(to + row * stride + column, *reinterpret_cast<const Pack<T>*>(scratch + row * kPitch<kColumns> + column));
  }
}

// ---- which keys

// As segment_of, by a whole warp for one row: a step asks 32 segments at a time.
__device__ __forceinline__ int64_t segment_by_warp(const Attention& attention, int64_t row) {
  int64_t low = 0, high = attention.segments;
  while (high - low > 1) {
    const int64_t step = (high - low + kWarp - 1) / kWarp;
    const int64_t asked = low + (int(threadIdx.x) % kWarp + 1) * step;
    const bool begun = asked < high && attention.offsets[asked] <= row;
    low += __popc(__ballot_sync(kFullMask, begun)) * step;
    if (low + step < high) high = low + step;
  }
  return low;
}

// A row that a lane has a part of: where its segment begins and ends, and which segment it is.
struct RowSegment {
  int64_t number, begin, end;
};

// Those of 16 rows from `first` on, by a whole warp: the rows of a lane, `row[i]`, are among them.
__device__ __forceinline__ void segments_of_rows(RowSegment (&of)[2], const Attention& attention, int64_t first,
                                                 const int64_t (&row)[2]) {
  const int64_t segment = segment_by_warp(attention, first);
  const int lane = int(threadIdx.x) % kWarp;
  const int64_t asked = segment + lane < attention.segments ? segment + lane : attention.segments;
  const int64_t offset = attention.offsets[asked];
#pragma unroll
  for (int i = 0; i < 2; ++i) of[i] = {segment, __shfl_sync(kFullMask, offset, 0), 0};
#pragma unroll
  for (int next = 1; next <= kMma; ++next) {
    const int64_t bound = __shfl_sync(kFullMask, offset, next);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (bound <= row[i]) of[i] = {segment + next, bound, 0};
      else if (of[i].end == 0) of[i].end = bound;
    }
  }
}

// The scores that rows of a C have to do with: row i of a lane, columns low[i] ... low[i] + length[i] - 1.
struct Band {
  int low[2], length[2];

  __device__ __forceinline__ bool holds(int tile, int i) const {
    const int column = tile * 8 + int(threadIdx.x) % 4 * 2 + i % 2;
    return unsigned(column - low[i / 2]) < unsigned(length[i / 2]);
  }
};

// The 16 queries of a warp, and the keys that its block goes through.
template <typename T, int kColumns>
class QueryTile {
 public:
  const Attention& attention;
  int head;
  int64_t group, first;      // query of the warp
  int valid;                 // queries of the warp
  T* scratch;                // of the warp, 16 rows
  HeldRows<T, kColumns> query;

  // Blocks are numbered by group, head, tile of queries.
  __device__ __forceinline__ explicit QueryTile(const Attention& attention)
      : attention(attention), tiles_(dynamic_shared<T>()) {
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    const int64_t tiles = (attention.queries + kTileQueries - 1) / kTileQueries, head_and_group = blockIdx.x / tiles;
    group = head_and_group / attention.heads;
    head = int(head_and_group % attention.heads);
    const int64_t block_first = blockIdx.x % tiles * kTileQueries;
    first = block_first + warp * kMma;
    const int64_t left = attention.queries - first;
    valid = left > kMma ? kMma : left > 0 ? int(left) : 0;
    scratch = tiles_ + (kStages * 2 * kTileKeys<kColumns> + warp * kMma) * kPitch<kColumns>;
    start_rows(attention.query, 0);
    const int64_t block_left = attention.queries - block_first;
    find_keys(block_first + (block_left < kTileQueries ? block_left : kTileQueries), lane);
    finish_rows(query);
  }

  // A matrix with a row for each query as A.
  __device__ __forceinline__ void load(HeldRows<T, kColumns>& rows, const Rows& from, int64_t cotangent) {
    start_rows(from, cotangent);
    finish_rows(rows);
  }

  __device__ __forceinline__ void store(const Rows& to, int64_t cotangent, const float (&c)[kColumns / 8][4],
                                        const float (&factor)[2]) {
    store_rows<T, kColumns>(head_of<T>(to, attention, group, first, head, cotangent), to.row, valid, attention.width,
                            scratch, c, factor);
  }

  // visit(keys, values, band) for 16 keys after another, as many as the warp's queries need: by the whole block.
  template <typename Visit>
  __device__ __forceinline__ void each_key(Visit visit) {
    if (!resident_) {
      __syncthreads();  // the last tiles of another time
      for (int tile = 0; tile < kStages; ++tile) start_tile(tile);
    }
    for (int tile = 0; tile < count_; ++tile) {
      if (!resident_) {
        wait_copies<kStages - 1>();
        __syncthreads();
      }
      const bool of_prefix = tile < prefix_count_;
      const int64_t start = start_of(tile);
      const Span seen = of_prefix ? Span{0, prefix_seen_} : seen_;
      const int64_t before = seen.begin - start, behind = seen.end - start;
      const int begin = before > 0 ? int(before < kTileKeys<kColumns> ? before : kTileKeys<kColumns>) / kMma * kMma : 0;
      const int end = behind < kTileKeys<kColumns> ? int(behind) : kTileKeys<kColumns>;
      const T* keys = keys_of(tile);
      for (int key = begin; key < end; key += kMma) {
        Band band;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          band.low[i] = int((of_prefix ? 0 : own_[i].begin) - start) - key;
          band.length[i] = of_prefix ? int(of_prefix_[i]) : own_[i].size();
        }
        visit(keys + key * kPitch<kColumns>, keys + (kTileKeys<kColumns> + key) * kPitch<kColumns>, band);
      }
      if (!resident_) {
        if (tile + kStages < count_) __syncthreads();  // every warp has read the tile
        start_tile(tile + kStages);
      }
    }
    resident_ = count_ <= kStages;
  }

 private:
  T* tiles_;
  Span own_[2];            // of the rows of a lane
  int64_t of_prefix_[2];
  Span seen_, block_seen_;  // rows of segments, by any query of the warp, of the block
  int64_t prefix_seen_, block_prefix_seen_;
  int prefix_count_, count_;  // of the block's tiles
  bool resident_ = false;     // all tiles are in shared memory

  __device__ __forceinline__ void find_keys(int64_t block_end, int lane) {
    const int64_t leading = attention.leading;
    PF_SHARED(int64_t, block_begin);
    int64_t row[2];  // of segments, or, with `last`, the number of a segment; negative for those of the prefix
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int64_t query = first + lane / 4 + 8 * i;
      if (query >= attention.queries) query = attention.queries - 1;
      row[i] = query - leading;
      of_prefix_[i] = row[i] < 0 ? query + 1 : attention.prefix_rows;
      own_[i] = {0, 0};
    }
    const int64_t end = first + valid - leading;  // of the rows of the warp
    seen_ = {0, 0};
    prefix_seen_ = valid == 0 ? 0 : end > 0 ? attention.prefix_rows : first + valid;
    if (attention.last && valid > 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) own_[i] = {attention.offsets[row[i]], attention.offsets[row[i] + 1]};
      seen_ = {attention.offsets[first], attention.offsets[end]};
    } else if (valid > 0 && end > 0) {
      const int64_t begin = first > leading ? first - leading : 0;
      RowSegment of[2];
      segments_of_rows(of, attention, begin, row);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (row[i] >= 0) own_[i] = {of[i].begin, row[i] + 1};
      }
      seen_ = {__shfl_sync(kFullMask, of[0].begin, 0), end};
    }
    if (threadIdx.x == 0) block_begin = seen_.begin;
    __syncthreads();
    block_seen_ = {block_begin, 0};
    if (block_end > leading) block_seen_.end = attention.last ? attention.offsets[block_end] : block_end - leading;
    block_prefix_seen_ = block_end > leading ? attention.prefix_rows : block_end;
    prefix_count_ = int((block_prefix_seen_ + kTileKeys<kColumns> - 1) / kTileKeys<kColumns>);
    count_ = prefix_count_ + (block_seen_.size() + kTileKeys<kColumns> - 1) / kTileKeys<kColumns>;
  }

  __device__ __forceinline__ int64_t start_of(int tile) const {
    if (tile < prefix_count_) return int64_t(tile) * kTileKeys<kColumns>;
    return block_seen_.begin + int64_t(tile - prefix_count_) * kTileKeys<kColumns>;
  }

  // A tile has its keys, then its values.
  __device__ __forceinline__ T* keys_of(int tile) const {
    return tiles_ + tile % kStages * 2 * kTileKeys<kColumns> * kPitch<kColumns>;
  }

  // Starts to copy a tile, if there is one: a group of copies in any case.
  __device__ __forceinline__ void start_tile(int tile) {
    if (tile < count_) {
      const bool of_prefix = tile < prefix_count_;
      const Rows& rows = of_prefix ? attention.prefix : attention.key_value;
      const int64_t start = start_of(tile), left = (of_prefix ? block_prefix_seen_ : block_seen_.end) - start;
      const int keys = left < kTileKeys<kColumns> ? int(left) : kTileKeys<kColumns>;
      const int copied = (keys + kMma - 1) / kMma * kMma;
      const T* from = head_of<const T>(rows, attention, group, start, head);
      T* to = keys_of(tile);
      stage_rows<kColumns>(to, from, rows.row, keys, copied, attention.width, int(threadIdx.x), kTileThreads);
      stage_rows<kColumns>(to + kTileKeys<kColumns> * kPitch<kColumns>, from + to_values(attention), rows.row, keys,
                           copied, attention.width, int(threadIdx.x), kTileThreads);
    }
    commit_copies();
  }

  __device__ __forceinline__ void start_rows(const Rows& from, int64_t cotangent) {
    __syncwarp();  // scratch may still be read
    stage_rows<kColumns>(scratch, head_of<const T>(from, attention, group, valid > 0 ? first : 0, head, cotangent),
                         from.row, valid, kMma, attention.width, int(threadIdx.x) % kWarp, kWarp);
    commit_copies();
  }

  __device__ __forceinline__ void finish_rows(HeldRows<T, kColumns>& rows) {
    wait_copies<0>();
    __syncwarp();
    rows.load(scratch);
  }
};

// Over the four lanes that have the columns of a row of a C.
template <typename Merge>
__device__ __forceinline__ float of_row(float value, Merge merge) {
#pragma unroll
  for (int offset = 1; offset < 4; offset *= 2) value = merge(value, __shfl_xor_sync(kFullMask, value, offset));
  return value;
}

__device__ __forceinline__ float sum_of_row(float value) {
  return of_row(value, [](float a, float b) { return a + b; });
}

// Softmax of the scores of 16 queries, and the values with its weights: those of a lane's two rows.
template <typename T, int kColumns>
struct TileSoftmax {
  float max[2] = {kNoScore, kNoScore}, sum[2] = {};  // of e^(score - max); at first over the columns of a lane
  float out[kColumns / 8][4] = {};                   // times sum

  __device__ __forceinline__ explicit TileSoftmax(QueryTile<T, kColumns>& tile) {
    tile.each_key([&](const T* keys, const T* values, const Band& band) {
      float score[2][4];
      multiply_transposed<T>(score, tile.query, keys);
      add(score, band, float(tile.attention.scale), values);
    });
#pragma unroll
    for (int i = 0; i < 2; ++i) sum[i] = sum_of_row(sum[i]);
  }

 private:
  __device__ __forceinline__ void add(float (&score)[2][4], const Band& band, float scale, const T* values) {
    float highest[2] = {max[0], max[1]}, shrink[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        score[n][i] = band.holds(n, i) ? score[n][i] * scale : -std::numeric_limits<float>::infinity();
        highest[i / 2] = fmaxf(highest[i / 2], score[n][i]);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      highest[i] = of_row(highest[i], [](float a, float b) { return fmaxf(a, b); });
      shrink[i] = fast_exp2((max[i] - highest[i]) * kLog2E);
      max[i] = highest[i];
      sum[i] *= shrink[i];
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        score[n][i] = fast_exp2(fused(score[n][i], kLog2E, -max[i / 2] * kLog2E));
        sum[i / 2] += score[n][i];
      }
    }
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[n][i] *= shrink[i / 2];
    }
    unsigned weights[4];
    as_fragment<T>(weights, score);
    multiply_add<T, kColumns>(out, weights, values);
  }
};

// ---- launching

template <typename T>
constexpr bool kHasTiles = sizeof(T) == 2;

// Calls function(std::integral_constant<int, columns>{}) with what heads are filled up to.
template <typename Function>
void with_tile_columns(int width, Function function) {
  if (width > 64) function(std::integral_constant<int, 128>{});
  else function(std::integral_constant<int, 64>{});
}

inline int64_t query_tile_blocks(const Attention& attention) {
  return attention.groups * attention.heads * ((attention.queries + kTileQueries - 1) / kTileQueries);
}

}  // namespace prograd::cuda
