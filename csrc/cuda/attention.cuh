// What attention with a shared prefix and its backward have in common.
//
// A group of lanes has one query of one head, each lane some of the head's columns; a score is summed over the group by
// shuffles. The groups of a warp have neighbouring queries of the same head, whose keys are mostly the same rows: these
// come from memory once and from the first cache after that. Nothing is kept in shared memory, so that neither the
// prefix nor a segment has a limit.
#pragma once

#include "../common/math.h"
#include "attention.h"
#include "vector.cuh"

namespace prograd::cuda {

constexpr int kAttentionThreads = 256;
template <typename T>
constexpr int kAttentionBlocks = sizeof(Accumulation<T>) == 4 ? 4 : 1;  // on a multiprocessor: what fits without spills
constexpr int kSlice = 8;  // columns of a lane: a group of 8 lanes has heads of up to 64 columns, one of 16 up to 128
constexpr int kMaxLanes = kMaxHeadWidth / kSlice;

struct AttentionArguments {
  Attention attention;
  bool aligned;  // every head of every row of all matrices starts on 16 bytes
};

template <typename T>
__device__ __forceinline__ T* head_of(const Rows& rows, const Attention& attention, int64_t group, int64_t row,
                                      int head, int64_t cotangent = 0) {
  const int64_t start = cotangent * rows.cotangent + group * rows.group + row * rows.row;
  return static_cast<T*>(rows.data) + start + head * attention.width;
}

// From the keys of a row to its values.
__device__ __forceinline__ int64_t to_values(const Attention& attention) {
  return int64_t(attention.heads) * attention.width;
}

// A row of a head, one for each group of lanes; those of a head follow one another. Groups of lanes behind the last one
// do its work again, since all lanes of a warp shuffle together, and store nothing.
struct Item {
  int64_t group, row;
  int head;
  bool repeated;

  __device__ __forceinline__ Item(int64_t index, int64_t rows, const Attention& attention) {
    const int64_t last = attention.groups * attention.heads * rows - 1;
    repeated = index > last;
    if (repeated) index = last;
    const int64_t head_and_group = index / rows;
    row = index - head_and_group * rows;
    group = head_and_group / attention.heads;
    head = int(head_and_group - group * attention.heads);
  }
};

// Consecutive rows of a group.
struct Span {
  int64_t begin, end;
  __device__ int size() const { return int(end - begin); }
};

__device__ __forceinline__ int64_t segment_of(const Attention& attention, int64_t row) {
  int64_t low = 0, high = attention.segments;  // offsets[low] <= row < offsets[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (attention.offsets[middle] <= row ? low : high) = middle;
  }
  return low;
}

// What a query sees: rows of the prefix, from the first on, and rows of its own segment.
struct Seen {
  int64_t of_prefix;
  Span own;
};

__device__ __forceinline__ Seen seen_by(const Attention& attention, int64_t query) {
  if (query < attention.leading) return {query + 1, {0, 0}};
  query -= attention.leading;
  const int64_t* offsets = attention.offsets;
  if (attention.last) return {attention.prefix_rows, {offsets[query], offsets[query + 1]}};
  return {attention.prefix_rows, {offsets[segment_of(attention, query)], query + 1}};
}

// The first query that sees a row of the prefix; all after it do.
__device__ __forceinline__ int64_t first_query(const Attention& attention, int64_t prefix_row) {
  return attention.leading > 0 ? prefix_row : 0;
}

__device__ __forceinline__ int warp_max(int value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const int other = __shfl_xor_sync(kFullMask, value, offset);
    value = value > other ? value : other;
  }
  return value;
}

// The columns of a head that a lane has: packs of 16 bytes, dealt out to the kLanes lanes of its group in turn. In a
// narrow head the packs of some lanes have no columns.
template <typename T, int kLanes>
struct Slice {
  using A = Accumulation<T>;
  static constexpr int N = kVector<T>;
  A values[kSlice] = {};

  __device__ static int column(int pack) { return (pack * kLanes + int(threadIdx.x) % kLanes) * N; }

  // Packs without columns get values of others: where they meet those of load_own, nothing comes of it.
  __device__ __forceinline__ void load(const T* head, int width, bool aligned) {
    Pack<T> packs[kSlice / N];
    if (aligned) {
#pragma unroll
      for (int k = 0; k < kSlice / N; ++k) {
        const int last = width - N;
        packs[k] = *reinterpret_cast<const Pack<T>*>(head + (column(k) < last ? column(k) : last));
      }
    } else {
#pragma unroll
      for (int k = 0; k < kSlice / N; ++k) read(packs[k], head + column(k), 0, width - column(k), false);
    }
#pragma unroll
    for (int i = 0; i < kSlice; ++i) values[i] = widen(packs[i / N].values[i % N]);
  }

  // Packs without columns get zeros.
  __device__ __forceinline__ void load_own(const T* head, int width, bool aligned) {
    load(head, width, aligned);
#pragma unroll
    for (int i = 0; i < kSlice; ++i) values[i] = column(i / N) < width ? values[i] : A(0);
  }

  __device__ __forceinline__ void store(T* head, int width, bool aligned) const {
#pragma unroll
    for (int k = 0; k < kSlice / N; ++k) {
      if (column(k) >= width) return;
      Pack<T> pack;
#pragma unroll
      for (int i = 0; i < N; ++i) narrow(pack.values[i], values[k * N + i]);
      write(head + column(k), pack, 0, width - column(k), aligned);
    }
  }

  __device__ __forceinline__ void add(A factor, const Slice& other) {
#pragma unroll
    for (int i = 0; i < kSlice; ++i) values[i] = fused(factor, other.values[i], values[i]);
  }

  __device__ __forceinline__ void scale(A factor) {
#pragma unroll
    for (int i = 0; i < kSlice; ++i) values[i] *= factor;
  }

  // Over all columns, in every lane of the group; by whole warps.
  __device__ __forceinline__ A dot(const Slice& other) const {
    A sum = 0;
#pragma unroll
    for (int i = 0; i < kSlice; ++i) sum = fused(values[i], other.values[i], sum);
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullMask, sum, offset);
    return sum;
  }
};

// A query of a group of lanes, times the scale, so that a score is its product with a key; and what it sees.
template <typename T, int kLanes>
struct Query {
  using A = Accumulation<T>;
  const AttentionArguments& arguments;
  Item item;
  Seen seen;
  Slice<T, kLanes> scaled;

  __device__ __forceinline__ Query(const AttentionArguments& arguments, int64_t index)
      : arguments(arguments),
        item(index, arguments.attention.queries, arguments.attention),
        seen(seen_by(arguments.attention, item.row)) {
    const Attention& attention = arguments.attention;
    scaled.load_own(head_of<const T>(attention.query, attention, item.group, item.row, item.head), attention.width,
                    arguments.aligned);
    scaled.scale(A(attention.scale));
  }

  // visit(score, key, value) for the prefix and for its own rows, and then for the last of them with the score -inf, as
  // often as another group of the warp has keys.
  template <typename Visit>
  __device__ __forceinline__ void each_key(Visit visit) const {
    const Attention& attention = arguments.attention;
    const int prefix = int(seen.of_prefix), count = prefix + seen.own.size(), steps = warp_max(count);
    const T* from = head_of<const T>(attention.prefix, attention, item.group, 0, item.head);
    int64_t stride = attention.prefix.row;
    for (int i = 0; i < steps; ++i) {
      if (i == prefix && i < count) {
        from = head_of<const T>(attention.key_value, attention, item.group, seen.own.begin, item.head);
        stride = attention.key_value.row;
      }
      Slice<T, kLanes> key, value;
      key.load(from, attention.width, arguments.aligned);
      value.load(from + to_values(attention), attention.width, arguments.aligned);
      const A score = scaled.dot(key);
      visit(i < count ? score : -std::numeric_limits<A>::infinity(), key, value);
      if (i + 1 < count) from += stride;
    }
  }
};

// Softmax of the scores that have come so far, and the values with its weights.
template <typename T, int kLanes>
struct Softmax {
  using A = Accumulation<T>;
  A max = std::numeric_limits<A>::lowest(), sum = 0;  // of e^(score - max)
  Slice<T, kLanes> out;                               // times sum

  __device__ __forceinline__ explicit Softmax(const Query<T, kLanes>& query) {
    query.each_key([&](A score, const Slice<T, kLanes>&, const Slice<T, kLanes>& value) {
      if (score > max) {  // after a few keys seldom
        const A shrink = exp(max - score);
        sum *= shrink;
        out.scale(shrink);
        max = score;
      }
      const A weight = exp(score - max);
      sum += weight;
      out.add(weight, value);
    });
    out.scale(A(1) / sum);
  }
};

// ---- launching

inline int lanes_of(int width) { return width * 2 > kMaxHeadWidth ? kMaxLanes : kMaxLanes / 2; }

// Calls function(std::integral_constant<int, lanes>{}).
template <typename Function>
void with_lanes(int width, Function function) {
  if (lanes_of(width) == kMaxLanes) function(std::integral_constant<int, kMaxLanes>{});
  else function(std::integral_constant<int, kMaxLanes / 2>{});
}

template <typename T>
bool is_aligned(const Rows& rows) {
  constexpr int N = kVector<T>;
  return is_aligned(rows.data) && rows.cotangent % N == 0 && rows.group % N == 0 && rows.row % N == 0;
}

template <typename T, typename... Others>
AttentionArguments make_arguments(const Attention& attention, const Others&... others) {
  const bool aligned = attention.width % kVector<T> == 0 && is_aligned<T>(attention.query) &&
                       is_aligned<T>(attention.key_value) && is_aligned<T>(attention.prefix) &&
                       (... && is_aligned<T>(others));
  return {attention, aligned};
}

// Blocks for as many groups of lanes.
inline int64_t attention_blocks(int64_t items, int lanes) {
  const int each = kAttentionThreads / lanes;
  return (items + each - 1) / each;
}

}  // namespace prograd::cuda
