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

// The rows of kHalves matrices, the second ones so many elements behind the first, as keys and values; see stage_rows.
template <int kColumns, int kThreads, int kHalves, typename T>
__device__ __forceinline__ void stage_halves(T* to, int to_second, const T* from, int64_t from_second, int64_t stride,
                                             int valid, int rows, int width, int thread) {
  constexpr int kPacks = kColumns / kVector<T>, kRows = kThreads / kPacks;  // at a time
  const int column = thread % kPacks * kVector<T>, first = thread / kPacks;
  if (column >= width) valid = 0;
  const T* source = valid > 0 ? from + first * stride + column : from;
  to += first * kPitch<kColumns> + column;
#pragma unroll 1
  for (int row = first; row < rows; row += kRows) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      copy_async(to + half * to_second, row < valid ? source + half * from_second : from, row < valid);
    }
    source += kRows * stride;
    to += kRows * kPitch<kColumns>;
  }
}

// Starts to copy `rows` rows to shared memory, those from `valid` on and columns from `width` on as zeros; `thread` is
// one of kThreads that share the work.
template <int kColumns, int kThreads, typename T>
__device__ __forceinline__ void stage_rows(T* to, const T* from, int64_t stride, int valid, int rows, int width,
                                           int thread) {
  stage_halves<kColumns, kThreads, 1>(to, 0, from, 0, stride, valid, rows, width, thread);
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
  const int column = lane % kPacks * kVector<T>;
  if (column >= width) valid = 0;
#pragma unroll 1
  for (int row = lane / kPacks; row < valid; row += kWarp / kPacks) {
    store_pack(to + row * stride + column,
               *reinterpret_cast<const Pack<T>*>(scratch + row * kPitch<kColumns> + column));
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
  int64_t group, first;  // query of the warp
  int valid;             // queries of the warp
  T* scratch;            // of the warp, 16 rows
  HeldRows<T, kColumns> query;

  // Blocks are numbered by group, head, tile of queries.
  __device__ __forceinline__ QueryTile(const Attention& attention, int64_t block)
      : attention(attention), tiles_(dynamic_shared<T>()) {
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    const int64_t tiles = (attention.queries + kTileQueries - 1) / kTileQueries, head_and_group = block / tiles;
    group = head_and_group / attention.heads;
    head = int(head_and_group % attention.heads);
    const int64_t block_first = block % tiles * kTileQueries;
    first = block_first + warp * kMma;
    const int64_t left = attention.queries - first;
    valid = left > kMma ? kMma : left > 0 ? int(left) : 0;
    scratch = tiles_ + (kStages * 2 * kTileKeys<kColumns> + warp * kMma) * kPitch<kColumns>;
    start_rows(attention.query, 0);
    const int64_t block_left = attention.queries - block_first;
    find_keys(block_first + (block_left < kTileQueries ? block_left : kTileQueries), lane);
    finish_rows(query);
  }

  // The queries' rows of a matrix as A; where these are left in shared memory, they are there until the next call.
  template <typename A>
  __device__ __forceinline__ void load(A& rows, const Rows& from, int64_t cotangent) {
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
#pragma unroll 1
    for (int tile = resident_ ? 0 : -kStages; tile < count_; ++tile) {
      if (tile >= 0) {
        if (!resident_) {
          wait_copies<kStages - 1>();
          __syncthreads();
        }
        each_key_of(tile, visit);
      }
      if (!resident_) {
        if (tile + kStages < count_) __syncthreads();  // every warp has read what was there
        start_tile(tile + kStages);
      }
    }
    resident_ = count_ <= kStages;
  }

 private:
  struct Range {
    int begin, end;
  };
  T* tiles_;
  int64_t block_begin_;  // first row of the segments that a query of the block sees; rows are counted from there
  Range own_[2];         // of its segment, by row of a lane
  int of_prefix_[2];
  Range seen_;  // rows of segments, by any query of the warp
  int prefix_seen_;
  int block_end_, block_prefix_;
  int prefix_count_, count_;  // of the block's tiles
  bool resident_ = false;     // all tiles are in shared memory

  template <typename Visit>
  __device__ __forceinline__ void each_key_of(int tile, Visit visit) {
    const bool of_prefix = tile < prefix_count_;
    const int start = start_of(tile), seen_begin = (of_prefix ? 0 : seen_.begin) - start;
    int end = (of_prefix ? prefix_seen_ : seen_.end) - start;
    if (end > kTileKeys<kColumns>) end = kTileKeys<kColumns>;
    const T* keys = keys_of(tile);
#pragma unroll 1
    for (int key = seen_begin > 0 ? seen_begin / kMma * kMma : 0; key < end; key += kMma) {
      Band band;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        band.low[i] = (of_prefix ? 0 : own_[i].begin) - start - key;
        band.length[i] = of_prefix ? of_prefix_[i] : own_[i].end - own_[i].begin;
      }
      visit(keys + key * kPitch<kColumns>, keys + (kTileKeys<kColumns> + key) * kPitch<kColumns>, band);
    }
  }

  __device__ __forceinline__ void find_keys(int64_t block_end, int lane) {
    const int64_t leading = attention.leading, *offsets = attention.offsets;
    PF_SHARED(int64_t, block_begin);
    int64_t row[2];  // of segments, or, with `last`, the number of a segment; negative for those of the prefix
    Span own[2], seen = {0, 0};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int64_t query = first + lane / 4 + 8 * i;
      if (query >= attention.queries) query = attention.queries - 1;
      row[i] = query - leading;
      of_prefix_[i] = int(row[i] < 0 ? query + 1 : attention.prefix_rows);
      own[i] = {0, 0};
    }
    const int64_t end = first + valid - leading;  // of the rows of the warp
    prefix_seen_ = int(valid == 0 ? 0 : end > 0 ? attention.prefix_rows : first + valid);
    if (attention.last && valid > 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) own[i] = {offsets[row[i]], offsets[row[i] + 1]};
      seen = {offsets[first], offsets[end]};
    } else if (valid > 0 && end > 0) {
      const int64_t begin = first > leading ? first - leading : 0;
      RowSegment of[2];
      segments_of_rows(of, attention, begin, row);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (row[i] >= 0) own[i] = {of[i].begin, row[i] + 1};
      }
      seen = {__shfl_sync(kFullMask, of[0].begin, 0), end};
    }
    if (threadIdx.x == 0) block_begin = seen.begin;
    __syncthreads();
    block_begin_ = block_begin;
    const auto from_begin = [&](const Span& span) {
      return Range{int(span.begin - block_begin_), int(span.end - block_begin_)};
    };
#pragma unroll
    for (int i = 0; i < 2; ++i) own_[i] = from_begin(own[i]);
    seen_ = from_begin(seen);
    block_end_ =
        block_end > leading ? int((attention.last ? offsets[block_end] : block_end - leading) - block_begin_) : 0;
    block_prefix_ = int(block_end > leading ? attention.prefix_rows : block_end);
    prefix_count_ = (block_prefix_ + kTileKeys<kColumns> - 1) / kTileKeys<kColumns>;
    count_ = prefix_count_ + (block_end_ + kTileKeys<kColumns> - 1) / kTileKeys<kColumns>;
  }

  __device__ __forceinline__ int start_of(int tile) const {
    return (tile < prefix_count_ ? tile : tile - prefix_count_) * kTileKeys<kColumns>;
  }

  // A tile has its keys, then its values.
  __device__ __forceinline__ T* keys_of(int tile) const {
    return tiles_ + tile % kStages * 2 * kTileKeys<kColumns> * kPitch<kColumns>;
  }

  // Starts to copy a tile, if there is one: a group of copies in any case.
  __device__ __forceinline__ void start_tile(int tile) {
    if (tile < count_) {
      const bool of_prefix = tile < prefix_count_;
      const int start = start_of(tile), left = (of_prefix ? block_prefix_ : block_end_) - start;
      const int keys = left < kTileKeys<kColumns> ? left : kTileKeys<kColumns>;
      const int copied = (keys + kMma - 1) / kMma * kMma;
      const int64_t stride = of_prefix ? attention.prefix.row : attention.key_value.row;
      const T* from = of_prefix ? head_of<const T>(attention.prefix, attention, group, start, head)
                                : head_of<const T>(attention.key_value, attention, group, block_begin_ + start, head);
      stage_halves<kColumns, kTileThreads, 2>(keys_of(tile), kTileKeys<kColumns> * kPitch<kColumns>, from,
                                              to_values(attention), stride, keys, copied, attention.width,
                                              int(threadIdx.x));
    }
    commit_copies();
  }

  __device__ __forceinline__ void start_rows(const Rows& from, int64_t cotangent) {
    __syncwarp();  // scratch may still be read
    stage_rows<kColumns, kWarp>(scratch,
                                head_of<const T>(from, attention, group, valid > 0 ? first : 0, head, cotangent),
                                from.row, valid, kMma, attention.width, int(threadIdx.x) % kWarp);
    commit_copies();
  }

  template <typename A>
  __device__ __forceinline__ void finish_rows(A& rows) {
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
