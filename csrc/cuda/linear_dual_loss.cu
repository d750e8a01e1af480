// The dual loss of logits that are never stored: scale * features @ classes^T, for the student's and the teacher's
// classes.
//   linear_sums_kernel        for each row, the sums of both softmaxes over a range of classes
//   linear_rows_kernel        the ranges of each row in order; losses
//   linear_cotangents_kernel  for each range of classes, the logits again, tile by tile, and from them the cotangents
// Products are accumulated in the arithmetic type on the ordinary cores, in the order of the width and of the rows.
// Without a teacher the student is its own: nothing is multiplied for it, and only the task's cotangents come out.
#include "linear_dual_loss.h"

#include "dual_loss_rows.cuh"
#include "storage.cuh"

namespace prograd::cuda {

constexpr int kTileThreads = 256;         // 16 x 16
constexpr int kTileRows = 64;             // 4 for each thread
constexpr int kSplit = 1024;              // classes of one block of linear_sums_kernel
constexpr int kSumClasses = 64;           // of a tile there
constexpr int kOwnClasses = 16;           // of a block of linear_cotangents_kernel
constexpr int kPanel = 2 * kTileThreads;  // columns of a block there: two for each thread

template <typename T>
struct LinearArguments {
  using A = Accumulation<T>;
  Losses<A> losses;
  const T *features, *student, *teacher;  // (rows, width), (classes, width) twice
  A* cotangents;                          // (2, classes, width), or the first half without a teacher
  int width;
  A scale;
  bool aligned;  // every row of the three matrices starts on 16 bytes
  int splits;
  RowPart<A>* parts;  // (splits, rows); the first row of it holds the merged ones in the end
  A* label_logits;    // (rows,)
};

// Logits of 64 rows and kClasses classes, 4 x kClasses / 16 of each for each thread.
template <typename T, int kClasses, bool kTeacher>
struct LogitTile {
  using A = Accumulation<T>;
  static constexpr int kEachClasses = kClasses / 16;
  static constexpr int kDepth = 4 * kVector<T>;  // so that a thread loads one pack of the features
  struct Shared {
    A features[kDepth][kTileRows + 4], student[kDepth][kClasses + 4], teacher[kTeacher ? kDepth : 1][kClasses + 4];
  };
  A student[4][kEachClasses], teacher[4][kEachClasses];

  __device__ static int row() { return int(threadIdx.x) / 16 * 4; }
  __device__ static int first_class() { return int(threadIdx.x) % 16 * kEachClasses; }

  // A run of `count` rows of a matrix from row `first`, columns from `column`, transposed; zero outside.
  template <int kWide>
  __device__ static void load_transposed(A (&to)[kDepth][kWide], const T* matrix, int64_t first, int64_t count,
                                         int size, int column, const LinearArguments<T>& arguments) {
    const int row = int(threadIdx.x) / 4, k = int(threadIdx.x) % 4 * kVector<T>;
    if (row >= size) return;
    Pack<T> pack;
    const T* from = matrix + (first + row) * arguments.width + column + k;
    const int64_t valid = first + row < count ? arguments.width - column - k : 0;
    read(pack, from, 0, valid, arguments.aligned);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) to[k + i][row] = widen(pack.values[i]);
  }

  __device__ void compute(const LinearArguments<T>& arguments, int64_t row_begin, int64_t class_begin, Shared& shared) {
    const Losses<A>& losses = arguments.losses;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < kEachClasses; ++j) student[i][j] = teacher[i][j] = A(0);
    for (int column = 0; column < arguments.width; column += kDepth) {
      __syncthreads();  // the tiles may still be read
      load_transposed(shared.features, arguments.features, row_begin, losses.rows, kTileRows, column, arguments);
      load_transposed(shared.student, arguments.student, class_begin, losses.classes, kClasses, column, arguments);
      if constexpr (kTeacher) {
        load_transposed(shared.teacher, arguments.teacher, class_begin, losses.classes, kClasses, column, arguments);
      }
      __syncthreads();
#pragma unroll 4
      for (int k = 0; k < kDepth; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const A feature = shared.features[k][row() + i];
#pragma unroll
          for (int j = 0; j < kEachClasses; ++j) {
            student[i][j] += feature * shared.student[k][first_class() + j];
            if constexpr (kTeacher) teacher[i][j] += feature * shared.teacher[k][first_class() + j];
          }
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kEachClasses; ++j) {
      const int64_t c = class_begin + first_class() + j;
      const bool present = c < losses.classes;
      const A offset = losses.teacher_offset && present ? losses.teacher_offset[c] : A(0);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        student[i][j] = present ? arguments.scale * student[i][j] : -std::numeric_limits<A>::infinity();
        if constexpr (kTeacher) {
          teacher[i][j] = present ? arguments.scale * teacher[i][j] + offset : -std::numeric_limits<A>::infinity();
        } else {
          teacher[i][j] = student[i][j];
        }
      }
    }
  }
};

template <typename T, bool kTeacher>
__global__ void __launch_bounds__(kTileThreads) linear_sums_kernel(PF_CONSTANT LinearArguments<T> arguments) {
  using A = Accumulation<T>;
  using Tile = LogitTile<T, kSumClasses, kTeacher>;
  PF_SHARED(typename Tile::Shared, shared);
  const Losses<A>& losses = arguments.losses;
  const int64_t row_begin = int64_t(blockIdx.x) / arguments.splits * kTileRows;
  const int64_t split = blockIdx.x % arguments.splits;
  const int64_t class_end = split * kSplit + kSplit < losses.classes ? split * kSplit + kSplit : losses.classes;

  RowPart<A> parts[4];
  int64_t labels[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = row_begin + Tile::row() + i;
    labels[i] = row < losses.rows ? losses.label(row) : -1;
  }
  for (int64_t class_begin = split * kSplit; class_begin < class_end; class_begin += kSumClasses) {
    Tile tile;
    tile.compute(arguments, row_begin, class_begin, shared);
    const int64_t c = class_begin + Tile::first_class();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      parts[i].add(tile.student[i], tile.teacher[i], int(c), losses);
#pragma unroll
      for (int j = 0; j < Tile::kEachClasses; ++j) {
        if (c + j == labels[i]) arguments.label_logits[row_begin + Tile::row() + i] = tile.student[i][j];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) parts[i] = parts[i].merged(parts[i].from_lane(offset), losses);
    const int64_t row = row_begin + Tile::row() + i;
    if (threadIdx.x % 16 == 0 && row < losses.rows) arguments.parts[split * losses.rows + row] = parts[i];
  }
}

// One block for a multiprocessor is enough: asking for no more keeps ptxas from spilling in double.
template <typename T>
__global__ void __launch_bounds__(kTileThreads, 1) linear_rows_kernel(PF_CONSTANT LinearArguments<T> arguments) {
  const auto& losses = arguments.losses;
  const int64_t row = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row < losses.rows) {
    const int64_t label = losses.label(row);  // first: its check is a call, which little should outlive
    RowPart<Accumulation<T>> part = arguments.parts[row];
    for (int split = 1; split < arguments.splits; ++split) {
      part = part.merged(arguments.parts[split * losses.rows + row], losses);
    }
    arguments.parts[row] = part;
    part.write(row, label, arguments.label_logits[row], losses);
  }
  if (is_last_block(losses.ticket, gridDim.x)) finish_batch(losses);
}

template <typename T, bool kTeacher>
__global__ void __launch_bounds__(kTileThreads) linear_cotangents_kernel(PF_CONSTANT LinearArguments<T> arguments) {
  using A = Accumulation<T>;
  using Tile = LogitTile<T, kOwnClasses, kTeacher>;
  struct ByLogit {
    A task[kOwnClasses], general[kOwnClasses];
  };
  PF_SHARED(typename Tile::Shared, shared);
  PF_SHARED(ByLogit[kTileRows], by_logit);
  const Losses<A>& losses = arguments.losses;
  const int panels = (arguments.width + kPanel - 1) / kPanel;
  const int64_t class_begin = int64_t(blockIdx.x) / panels * kOwnClasses;
  const int column = int(blockIdx.x % panels) * kPanel + 2 * threadIdx.x;

  A task[kOwnClasses][2] = {}, general[kOwnClasses][2] = {};
  for (int64_t row_begin = 0; row_begin < losses.rows; row_begin += kTileRows) {
    Tile tile;
    tile.compute(arguments, row_begin, class_begin, shared);
    const int own = Tile::first_class();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = row_begin + Tile::row() + i;
      A of_task = 0, of_general = 0;
      if (row < losses.rows && class_begin + own < losses.classes) {
        const DualLossSums<A> sums = arguments.parts[row].sums;
        of_task = losses.cotangent_weight(losses.task_weight, row) *
                  sums.task_cotangent(tile.student[i][0], class_begin + own == losses.labels[row]);
        if constexpr (kTeacher) {
          of_general = losses.cotangent_weight(losses.general_weight, row) *
                       sums.general_cotangent(tile.student[i][0], tile.teacher[i][0], losses.temperature);
        }
      }
      by_logit[Tile::row() + i].task[own] = of_task;
      by_logit[Tile::row() + i].general[own] = of_general;
    }
    __syncthreads();
    const int rows = losses.rows - row_begin < kTileRows ? int(losses.rows - row_begin) : kTileRows;
    for (int r = 0; r < rows; ++r) {
      const T* features = arguments.features + (row_begin + r) * arguments.width + column;
      const A f0 = column < arguments.width ? widen(features[0]) : A(0);
      const A f1 = column + 1 < arguments.width ? widen(features[1]) : A(0);
#pragma unroll
      for (int c = 0; c < kOwnClasses; ++c) {
        task[c][0] += by_logit[r].task[c] * f0;
        task[c][1] += by_logit[r].task[c] * f1;
        if constexpr (kTeacher) {
          general[c][0] += by_logit[r].general[c] * f0;
          general[c][1] += by_logit[r].general[c] * f1;
        }
      }
    }  // the next tile's first barrier comes before by_logit is written again
  }
#pragma unroll
  for (int c = 0; c < kOwnClasses; ++c) {
    if (class_begin + c >= losses.classes) break;
    A* task_row = arguments.cotangents + (class_begin + c) * arguments.width + column;
    A* general_row = task_row + losses.classes * arguments.width;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (column + i >= arguments.width) break;
      task_row[i] = arguments.scale * task[c][i];
      if constexpr (kTeacher) general_row[i] = arguments.scale * general[c][i];
    }
  }
}

inline int64_t count_splits(int64_t classes) { return (classes + kSplit - 1) / kSplit; }

template <typename A>
size_t linear_workspace(int64_t rows, int64_t classes) {
  return sizeof(RowPart<A>) * count_splits(classes) * rows + sizeof(A) * rows + losses_workspace<A>(rows);
}

template <typename T, bool kTeacher>
void launch_linear_dual_loss(const T* features, const T* student, const T* teacher, int64_t rows, int64_t classes,
                             int64_t width, double scale, const LossOptions& options, void* workspace, void* stream) {
  using A = Accumulation<T>;
  const int splits = int(count_splits(classes));
  auto* parts = static_cast<RowPart<A>*>(workspace);
  A* label_logits = reinterpret_cast<A*>(parts + splits * rows);
  const auto losses = make_losses<A>(options, rows, classes, label_logits + rows);
  const bool aligned =
      width % kVector<T> == 0 && is_aligned(features) && is_aligned(student) && is_aligned(teacher);  // null is
  const LinearArguments<T> arguments{losses,      features, student, teacher, static_cast<A*>(options.cotangents),
                                     int(width),  A(scale), aligned, splits,  parts,
                                     label_logits};
  const int64_t row_tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t row_blocks = std::max<int64_t>((rows + kTileThreads - 1) / kTileThreads, 1);
  const int64_t class_blocks = (classes + kOwnClasses - 1) / kOwnClasses * ((width + kPanel - 1) / kPanel);
  if (row_blocks > 1) fill_zero(losses.ticket, sizeof(unsigned), stream);
  if (rows > 0) launch(linear_sums_kernel<T, kTeacher>, row_tiles * splits, kTileThreads, 0, false, stream, arguments);
  launch(linear_rows_kernel<T>, row_blocks, kTileThreads, 0, false, stream, arguments);
  if (class_blocks > 0) {
    launch(linear_cotangents_kernel<T, kTeacher>, class_blocks, kTileThreads, 0, false, stream, arguments);
  }
}

// ---- the operators

size_t linear_dual_loss_workspace(Storage storage, int64_t rows, int64_t classes) {
  return with_accumulation(storage,
                           [&](auto type) { return linear_workspace<typename decltype(type)::type>(rows, classes); });
}

void linear_dual_loss(Storage storage, const void* features, const void* student, const void* teacher, int64_t rows,
                      int64_t classes, int64_t width, double scale, const LossOptions& options, void* workspace,
                      void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto run = teacher ? launch_linear_dual_loss<T, true> : launch_linear_dual_loss<T, false>;
    run(static_cast<const T*>(features), static_cast<const T*>(student), static_cast<const T*>(teacher), rows, classes,
        width, scale, options, workspace, stream);
  });
}

}  // namespace prograd::cuda
