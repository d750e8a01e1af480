// The normalised focal loss of pictures, each in chunks of a block:
//   focal_weights_kernel      sums of the weights, and how many pixels count
//   focal_cotangents_kernel   the factor of its picture from these; cotangents, and by its last chunk the loss
// What the second reads again comes from the second-level cache as far as it reaches.
#include "normalised_focal.h"

#include "../formulas/normalised_focal.h"
#include "reduce.cuh"
#include "storage.cuh"
#include "vector.cuh"

namespace prograd::cuda {

constexpr int kFocalThreads = 256;
constexpr int64_t kFocalChunk = 8192;  // pixels of a block

template <typename T>
struct FocalArguments {
  using A = Accumulation<T>;
  const T* logits;
  const int64_t* labels;
  int64_t pixels, chunks;  // of a picture
  A alpha, gamma, most, eps;
  A *losses, *cotangents;
  A* weights;         // (pictures, chunks): sums
  A* parts;           // (pictures, chunks): of the losses
  int* counts;        // (pictures, chunks)
  unsigned* tickets;  // (pictures,)
};

// visit(z, label, i) for every pixel of a pack that counts; after(k, begin, end) for every pack. A label that there is
// not brings NaN.
template <typename T, typename Visit, typename After>
__device__ __forceinline__ void each_pixel(const FocalArguments<T>& all, Visit visit, After after) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  const int64_t picture = blockIdx.x / all.chunks, chunk = blockIdx.x % all.chunks;
  const T* start = all.logits + picture * all.pixels;
  const int before = elements_before(start);
  const PackedRow<const T> row(start, before);
  const PackedRow<const int64_t> labels(all.labels + picture * all.pixels, before);
  const int64_t first = chunk * (kFocalChunk / N), stop = first + kFocalChunk / N;
  for (int64_t k = first + threadIdx.x; k < stop && k * N < before + all.pixels; k += blockDim.x) {
    const int begin = k == 0 ? before : 0;
    const int64_t end = before + all.pixels - k * N;
    Pack<T> pack;
    read(pack, row.first + k * N, begin, end, row.aligned);
    int64_t label[N];
    if (labels.aligned && begin == 0 && end >= N) {
#pragma unroll
      for (int i = 0; i < N; i += 2) {
        const Pack<int64_t> pair = load_wide<Pack<int64_t>>(labels.first + k * N + i);
        label[i] = pair.values[0];
        label[i + 1] = pair.values[1];
      }
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) label[i] = i >= begin && i < end ? labels.first[k * N + i] : -1;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const bool known = label[i] == 0 || label[i] == 1;
      const A z = known ? widen(pack.values[i]) : std::numeric_limits<A>::quiet_NaN();
      if (label[i] != -1) visit(z, label[i] == 1, i);
    }
    after(k * N - before, begin, end);
  }
}

template <typename T, int exponent>
__global__ void __launch_bounds__(kFocalThreads) focal_weights_kernel(PF_CONSTANT FocalArguments<T> all) {
  using A = Accumulation<T>;
  Sums<A, 2> sums;  // no block has more pixels than a float counts
  each_pixel(
      all,
      [&](A z, bool object, int) {
        sums.values[0] += focal_power<exponent>(LabelProbability<A>(odds_against(object ? z : -z)).q, all.gamma);
        sums.values[1] += A(1);
      },
      [](int64_t, int, int64_t) {});
  sums = block_sum(sums);
  if (threadIdx.x != 0) return;
  all.weights[blockIdx.x] = sums.values[0];
  all.counts[blockIdx.x] = int(sums.values[1]);
  if (blockIdx.x % all.chunks == 0) all.tickets[blockIdx.x / all.chunks] = 0;  // for the next kernel
}

template <typename T, int exponent>
__global__ void __launch_bounds__(kFocalThreads) focal_cotangents_kernel(PF_CONSTANT FocalArguments<T> all) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  const int64_t picture = blockIdx.x / all.chunks, first = picture * all.chunks;
  Sums<double, 2> totals;
  for (int64_t part = threadIdx.x; part < all.chunks; part += blockDim.x) {
    totals.values[0] += double(all.weights[first + part]);
    totals.values[1] += double(all.counts[first + part]);
  }
  totals = block_sum(totals);
  const double count = totals.values[1];
  const A scale = A(count / (totals.values[0] + double(all.eps))), share = A(1) / A(count > 0 ? count : 1);
  Sums<A, 1> loss;
  A slopes[N] = {};
  A* to = all.cotangents + picture * all.pixels;
  each_pixel(
      all,
      [&](A z, bool object, int i) {
        const A sign = object ? A(1) : A(-1);
        const LabelProbability<A> of_label(odds_against(sign * z));
        const FocalPixel<A> pixel(of_label, all.gamma, all.eps);
        const A weight = scale * focal_power<exponent>(of_label.q, all.gamma);
        const A log_p = FocalPixel<A>::log_p(pixel.rest, pixel.near);
        const bool cut = weight >= all.most;
        const A factor = (object ? all.alpha : A(1) - all.alpha) * (cut ? all.most : weight);
        loss.values[0] -= factor * log_p;
        slopes[i] = -sign * factor * (pixel.of_log + (cut ? A(0) : pixel.of_weight) * log_p) * share;
      },
      [&](int64_t place, int begin, int64_t end) {
        store<N, A>(to + place, slopes, begin, end, uintptr_t(to + place) % 16 == 0);
#pragma unroll
        for (int i = 0; i < N; ++i) slopes[i] = A(0);
      });
  loss = block_sum(loss);
  if (threadIdx.x == 0) all.parts[blockIdx.x] = loss.values[0];
  if (!is_last_block(all.tickets + picture, unsigned(all.chunks))) return;
  Sums<A, 1> total;
  __syncthreads();  // of a picture of one chunk, thread 0 has written
  for (int64_t part = threadIdx.x; part < all.chunks; part += blockDim.x) total.values[0] += all.parts[first + part];
  total = block_sum(total);
  if (threadIdx.x == 0) all.losses[picture] = total.values[0] * share;
}

// The first pack of a picture may begin before it.
inline int64_t focal_chunks(int64_t pixels) { return (pixels + 15) / kFocalChunk + 1; }

template <typename T, int exponent>
void launch_normalised_focal(const FocalArguments<T>& arguments, int64_t pictures, void* stream) {
  const int64_t blocks = pictures * arguments.chunks;
  launch(focal_weights_kernel<T, exponent>, blocks, kFocalThreads, 0, false, stream, arguments);
  launch(focal_cotangents_kernel<T, exponent>, blocks, kFocalThreads, 0, false, stream, arguments);
}

// ---- the operator

size_t normalised_focal_workspace(Storage storage, const Masks& masks) {
  return with_accumulation(storage, [&](auto type) {
    const int64_t blocks = masks.pictures * focal_chunks(masks.pixels);
    return blocks * (2 * sizeof(typename decltype(type)::type) + sizeof(int)) + masks.pictures * sizeof(unsigned);
  });
}

void normalised_focal_loss(Storage storage, const Masks& masks, void* workspace, void* stream) {
  if (masks.pictures == 0) return;
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulation<T>;
    const int64_t chunks = focal_chunks(masks.pixels), blocks = masks.pictures * chunks;
    const A most = masks.max_mult > 0 ? A(masks.max_mult) : std::numeric_limits<A>::infinity();
    A* sums = static_cast<A*>(workspace);
    int* counts = reinterpret_cast<int*>(sums + 2 * blocks);
    const FocalArguments<T> arguments{static_cast<const T*>(masks.logits),
                                      masks.labels,
                                      masks.pixels,
                                      chunks,
                                      A(masks.alpha),
                                      A(masks.gamma),
                                      most,
                                      focal_eps<A>(masks.eps),
                                      static_cast<A*>(masks.losses),
                                      static_cast<A*>(masks.cotangents),
                                      sums,
                                      sums + blocks,
                                      counts,
                                      reinterpret_cast<unsigned*>(counts + blocks)};
    if (masks.gamma == 2) launch_normalised_focal<T, 2>(arguments, masks.pictures, stream);
    else if (masks.gamma == 1) launch_normalised_focal<T, 1>(arguments, masks.pictures, stream);
    else launch_normalised_focal<T, 0>(arguments, masks.pictures, stream);
  });
}

}  // namespace prograd::cuda
