// Attention of packed segments with a shared prefix, one head of one group.
//
// Blocks of whole segments pass through tiles of the accumulation dtype in the second-level cache, their rows filled up
// with zeros to whole registers. A tile of weights has one row for each query of the block and one column for each row
// of the prefix, then of the query's own segment. With it everything is one of three products, each with the prefix for
// all queries of the block at once, and with each segment's own rows.
#include "../attention.h"

#include "product.h"
#include "table.h"
#include "vector.h"

namespace prograd::cpu {
namespace {

constexpr std::int64_t block_rows = 64;  // of a block, unless one segment is longer

template <typename T>
std::int64_t padded(std::int64_t n) {
  return (n + lanes<T> - 1) / lanes<T> * lanes<T>;
}

// Tiles one after the other; without memory it only counts.
template <typename T>
class Scratch {
 public:
  explicit Scratch(void* memory) : memory_(static_cast<T*>(memory)) {}
  T* tile(std::int64_t rows, std::int64_t columns) {
    T* tile = memory_ ? memory_ + size_ : nullptr;
    size_ += rows * columns;
    return tile;
  }
  std::int64_t size() const { return size_; }

 private:
  T* memory_;
  std::int64_t size_ = 0;
};

template <typename S>
class AttentionHead {
 public:
  using T = Accumulation<S>;

  // count: cotangents, 0 for the forward
  AttentionHead(const Attention& all, std::int64_t count, void* memory)
      : all_(all),
        width_(padded<T>(all.width)),
        prefix_columns_(padded<T>(all.prefix)),
        columns_(padded<T>(all.prefix + all.longest)),
        scratch_(memory) {
    const std::int64_t rows = all.longest > block_rows ? all.longest : block_rows;
    prefix_keys_ = {scratch_.tile(all.prefix, width_), scratch_.tile(width_, prefix_columns_)};
    prefix_values_ = {scratch_.tile(all.prefix, width_), scratch_.tile(width_, prefix_columns_)};
    queries_ = scratch_.tile(rows, width_);
    keys_ = scratch_.tile(rows, width_);
    values_ = scratch_.tile(rows, width_);
    result_ = scratch_.tile(rows, width_);
    weights_ = scratch_.tile(rows, columns_);
    if (count > 0) {
      d_out_ = scratch_.tile(rows, width_);
      d_keys_ = scratch_.tile(rows, width_);
      d_values_ = scratch_.tile(rows, width_);
      d_scores_ = scratch_.tile(rows, columns_);
      d_prefix_ = scratch_.tile(2 * count * all.prefix, width_);
    }
  }

  std::int64_t scratch_size() const { return scratch_.size(); }

  void forward(std::int64_t begin, std::int64_t end, S* out, std::int64_t out_row) {
    read_prefix(all_.prefix_key, prefix_keys_);
    read_prefix(all_.prefix_value, prefix_values_);
    each_block(begin, end, [&] {
      weigh();
      combine(weights_, prefix_values_, values_, result_);
      write(result_, out + first_query() * out_row, out_row, n_queries(), T(1));
    });
  }

  void backward(std::int64_t begin, std::int64_t end, const AttentionGradients& to) {
    read_prefix(all_.prefix_key, prefix_keys_);
    read_prefix(all_.prefix_value, prefix_values_);
    const std::int64_t size = all_.prefix * width_;  // of one prefix gradient
    for (std::int64_t i = 0; i < 2 * to.count * size; ++i) d_prefix_[i] = 0;
    each_block(begin, end, [&] {
      weigh();
      for (std::int64_t k = 0; k < to.count; ++k) {
        read(static_cast<const S*>(to.gradient) + k * to.gradient_next + first_query() * to.gradient_row,
             to.gradient_row, n_queries(), d_out_, T(1));
        compare(d_out_, prefix_values_, values_, d_scores_, T(0));
        each_query([&](std::int64_t query, std::int64_t, std::int64_t, std::int64_t length) {
          softmax_backward(weights_ + query * columns_, d_scores_ + query * columns_, length);
        });
        combine(d_scores_, prefix_keys_, keys_, result_);
        spread(d_scores_, queries_, d_prefix_ + 2 * k * size, d_keys_);
        spread(weights_, d_out_, d_prefix_ + (2 * k + 1) * size, d_values_);
        // the queries of the tile have the scale in them, and so have d_keys_
        write(result_, static_cast<S*>(to.d_query) + k * to.d_query_next + first_query() * to.d_query_row,
              to.d_query_row, n_queries(), T(all_.scale));
        const std::int64_t at = k * to.d_key_next + first_row() * to.d_key_row;
        write(d_keys_, static_cast<S*>(to.d_key) + at, to.d_key_row, n_rows(), T(1));
        write(d_values_, static_cast<S*>(to.d_value) + at, to.d_key_row, n_rows(), T(1));
      }
    });
    for (std::int64_t row = 0; row < 2 * to.count * all_.prefix; ++row) {
      std::memcpy(static_cast<T*>(to.d_prefix) + row * all_.width, d_prefix_ + row * width_, all_.width * sizeof(T));
    }
  }

 private:
  // The prefix's keys or values, row by row and transposed.
  struct Prefix {
    T *rows, *transposed;
  };

  // ---- blocks, segments, queries

  std::int64_t first_row() const { return all_.offsets[begin_]; }
  std::int64_t n_rows() const { return all_.offsets[end_] - all_.offsets[begin_]; }
  std::int64_t first_query() const { return all_.last ? begin_ : first_row(); }
  std::int64_t n_queries() const { return all_.last ? end_ - begin_ : n_rows(); }

  template <typename Body>
  void each_block(std::int64_t begin, std::int64_t end, const Body& body) {
    while (begin < end) {
      begin_ = begin;
      end_ = begin + 1;
      while (end_ < end && all_.offsets[end_ + 1] - first_row() <= block_rows) ++end_;
      body();
      begin = end_;
    }
  }

  // body(first row, rows, first query, queries) of each segment, counted from the start of the block
  template <typename Body>
  void each_segment(const Body& body) const {
    for (std::int64_t i = begin_; i < end_; ++i) {
      const std::int64_t row = all_.offsets[i] - first_row(), length = all_.offsets[i + 1] - all_.offsets[i];
      all_.last ? body(row, length, i - begin_, 1) : body(row, length, row, length);
    }
  }

  // body(query, first row of its segment, how many of these it sees, how many there are)
  template <typename Body>
  void each_query(const Body& body) const {
    each_segment([&](std::int64_t row, std::int64_t length, std::int64_t query, std::int64_t queries) {
      for (std::int64_t i = 0; i < queries; ++i) body(query + i, row, length - queries + i + 1, length);
    });
  }

  // ---- tensors to tiles and back

  void read(const S* from, std::int64_t from_row, std::int64_t rows, T* tile, T scale) const {
    for (std::int64_t i = 0; i < rows; ++i) {
      const S* s = from + i * from_row;
      T* t = tile + i * width_;
#pragma omp simd
      for (std::int64_t c = 0; c < all_.width; ++c) t[c] = load(s[c]) * scale;
      for (std::int64_t c = all_.width; c < width_; ++c) t[c] = 0;
    }
  }

  void write(const T* tile, S* to, std::int64_t to_row, std::int64_t rows, T scale) const {
    for (std::int64_t i = 0; i < rows; ++i) {
      const T* t = tile + i * width_;
      S* s = to + i * to_row;
#pragma omp simd
      for (std::int64_t c = 0; c < all_.width; ++c) store(s[c], t[c] * scale);
    }
  }

  void read_prefix(const void* from, const Prefix& to) const {
    read(static_cast<const S*>(from), all_.prefix_row, all_.prefix, to.rows, T(1));
    for (std::int64_t c = 0; c < width_; ++c) {
      T* transposed = to.transposed + c * prefix_columns_;
      for (std::int64_t i = 0; i < all_.prefix; ++i) transposed[i] = to.rows[i * width_ + c];
      for (std::int64_t i = all_.prefix; i < prefix_columns_; ++i) transposed[i] = 0;
    }
  }

  // ---- the three products

  // The products of each query's row of `a` with the rows that it sees; what it does not see becomes `unseen`.
  void compare(const T* a, const Prefix& prefix, const T* own, T* to, T unseen) const {
    product<false>(n_queries(), prefix_columns_, width_, a, width_, 1, prefix.transposed, prefix_columns_, to,
                   columns_);
    each_query([&](std::int64_t query, std::int64_t row, std::int64_t seen, std::int64_t length) {
      T* of_own = to + query * columns_ + all_.prefix;
      for (std::int64_t i = 0; i < seen; ++i) of_own[i] = dot(a + query * width_, own + (row + i) * width_);
      for (std::int64_t i = seen; i < padded<T>(all_.prefix + length) - all_.prefix; ++i) of_own[i] = unseen;
    });
  }

  // For each query the sum of the rows that it sees, with the coefficients `a`.
  void combine(const T* a, const Prefix& prefix, const T* own, T* to) const {
    product<false>(n_queries(), width_, all_.prefix, a, columns_, 1, prefix.rows, width_, to, width_);
    each_segment([&](std::int64_t row, std::int64_t length, std::int64_t query, std::int64_t queries) {
      product<true>(queries, width_, length, a + query * columns_ + all_.prefix, columns_, 1, own + row * width_,
                    width_, to + query * width_, width_);
    });
  }

  // For each row the sum of the queries that see it, with the coefficients `a`; those of the prefix are added up.
  void spread(const T* a, const T* queries_tile, T* to_prefix, T* to_own) const {
    product<true>(all_.prefix, width_, n_queries(), a, 1, columns_, queries_tile, width_, to_prefix, width_);
    each_segment([&](std::int64_t row, std::int64_t length, std::int64_t query, std::int64_t queries) {
      product<false>(length, width_, queries, a + query * columns_ + all_.prefix, 1, columns_,
                     queries_tile + query * width_, width_, to_own + row * width_, width_);
    });
  }

  T dot(const T* a, const T* b) const {
    Vector<T> sum{};
    for (std::int64_t c = 0; c < width_; c += lanes<T>) sum = multiply_add(vector_at(a + c), vector_at(b + c), sum);
    return sum_of<T>(sum);
  }

  // ---- weights

  void weigh() const {
    read(static_cast<const S*>(all_.query) + first_query() * all_.query_row, all_.query_row, n_queries(), queries_,
         T(all_.scale));
    read(static_cast<const S*>(all_.key) + first_row() * all_.key_row, all_.key_row, n_rows(), keys_, T(1));
    read(static_cast<const S*>(all_.value) + first_row() * all_.key_row, all_.key_row, n_rows(), values_, T(1));
    compare(queries_, prefix_keys_, keys_, weights_, -std::numeric_limits<T>::infinity());
    each_query([&](std::int64_t query, std::int64_t, std::int64_t, std::int64_t length) {
      softmax(weights_ + query * columns_, length);
    });
  }

  void softmax(T* row, std::int64_t length) const {
    const std::int64_t n = padded<T>(all_.prefix + length);
    Vector<T> maxima = vector_at(row);
    for (std::int64_t i = lanes<T>; i < n; i += lanes<T>) {
      const Vector<T> x = vector_at(row + i);
      maxima = maxima > x ? maxima : x;
    }
    const T largest = largest_of<T>(maxima);
    Vector<T> sums{};
    for (std::int64_t i = 0; i < n; i += lanes<T>) {
#pragma omp simd
      for (std::int64_t lane = 0; lane < lanes<T>; ++lane) row[i + lane] = exp(row[i + lane] - largest);
      sums += vector_at(row + i);
    }
    const Vector<T> inverse = broadcast(T(1) / sum_of<T>(sums));
    for (std::int64_t i = 0; i < n; i += lanes<T>) put(row + i, vector_at(row + i) * inverse);
  }

  // From the gradients of the weights, in place, those of the scores: p (e - sum p e).
  void softmax_backward(const T* weights, T* row, std::int64_t length) const {
    const std::int64_t n = padded<T>(all_.prefix + length);
    Vector<T> sums{};
    for (std::int64_t i = 0; i < n; i += lanes<T>) {
      sums = multiply_add(vector_at(weights + i), vector_at(row + i), sums);
    }
    const Vector<T> mean = broadcast(sum_of<T>(sums));
    for (std::int64_t i = 0; i < n; i += lanes<T>) put(row + i, vector_at(weights + i) * (vector_at(row + i) - mean));
  }

  const Attention& all_;
  std::int64_t width_, prefix_columns_, columns_;  // of the tiles
  Scratch<T> scratch_;
  Prefix prefix_keys_, prefix_values_;
  T *queries_, *keys_, *values_, *result_, *weights_, *d_out_, *d_keys_, *d_values_, *d_scores_, *d_prefix_;
  std::int64_t begin_ = 0, end_ = 0;  // the block's segments
};

template <typename S>
struct SharedPrefixAttention {
  static std::int64_t scratch(const Attention& all, std::int64_t count) {
    return AttentionHead<S>(all, count, nullptr).scratch_size();
  }

  static void forward(const Attention& all, std::int64_t begin, std::int64_t end, void* out, std::int64_t out_row,
                      void* scratch) {
    AttentionHead<S>(all, 0, scratch).forward(begin, end, static_cast<S*>(out), out_row);
  }

  static void backward(const Attention& all, const AttentionGradients& to, std::int64_t begin, std::int64_t end,
                       void* scratch) {
    AttentionHead<S>(all, to.count, scratch).backward(begin, end, to);
  }

  static void sum(const void* arrays, std::int64_t count, std::int64_t stride, std::int64_t n, void* out, bool add) {
    const auto* from = static_cast<const Accumulation<S>*>(arrays);
    auto* to = static_cast<S*>(out);
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
      Accumulation<S> sum = 0;
      for (std::int64_t k = 0; k < count; ++k) sum += from[k * stride + i];
      store(to[i], add ? load(to[i]) + sum : sum);
    }
  }

  static constexpr AttentionKernels kernels{scratch, forward, backward, sum};
};

}  // namespace

template <>
const ByStorage<AttentionKernels> Compiled<AttentionKernels>::PF_ISA = by_storage<SharedPrefixAttention>();

}  // namespace prograd::cpu
