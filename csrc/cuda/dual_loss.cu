// Both losses of a batch of logits and both cotangents: one block for each row. The sums of both softmaxes come from
// one read of the row; the cotangents from shared memory, or from a second read where a row is too long for it.
#include "dual_loss_rows.cuh"
#include "storage.cuh"

namespace prograd::cuda {

template <typename T>
constexpr int kRowThreads = sizeof(T) == 4 ? 1024 : 512;  // as many as the registers allow

template <typename T>
struct DualLossArguments {
  Losses<Accumulation<T>> losses;
  const T *student, *teacher;   // (rows, classes)
  Accumulation<T>* cotangents;  // (2, rows, classes)
  bool kept;                    // a row is kept in shared memory
};

template <typename T>
__global__ void __launch_bounds__(kRowThreads<T>) dual_loss_kernel(PF_CONSTANT DualLossArguments<T> arguments) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  const Losses<A>& losses = arguments.losses;
  const int64_t row = blockIdx.x, classes = losses.classes;
  if (losses.rows == 0) return finish_batch(losses);

  const T* row_start = arguments.student + row * classes;
  const int before = elements_before(row_start);
  const PackedRow<const T> student(row_start, before), teacher(arguments.teacher + row * classes, before);
  const int64_t label = losses.label(row);
  const A z_label = widen(row_start[label]);
  Pack<T>* kept = dynamic_shared<Pack<T>>();  // the student's row, then the teacher's
  const int64_t packs = (before + classes + N - 1) / N;

  // logits of the classes of pack k, -inf where there are none
  const auto logits = [&](int64_t k, const Pack<T>& z_pack, const Pack<T>& t_pack, A(&z)[N], A(&t)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int64_t c = k * N - before + i;
      const bool present = c >= 0 && c < classes;
      z[i] = present ? widen(z_pack.values[i]) : -std::numeric_limits<A>::infinity();
      t[i] = present ? widen(t_pack.values[i]) : -std::numeric_limits<A>::infinity();
      if (losses.teacher_offset && present) t[i] += losses.teacher_offset[c];
    }
  };
  const auto read_packs = [&](int64_t k, Pack<T>& z_pack, Pack<T>& t_pack) {
    const int begin = k == 0 ? before : 0;
    const int64_t end = before + classes - k * N;
    read(z_pack, student.first + k * N, begin, end, student.aligned);
    read(t_pack, teacher.first + k * N, begin, end, teacher.aligned);
  };

  RowPart<A> part;
  for (int64_t k = threadIdx.x; k < packs; k += blockDim.x) {
    Pack<T> z_pack, t_pack;
    read_packs(k, z_pack, t_pack);
    if (arguments.kept) {
      kept[k] = z_pack;
      kept[packs + k] = t_pack;
    }
    A z[N], t[N];
    logits(k, z_pack, t_pack, z, t);
    part.add(z, t, int(k * N - before), losses);
  }
  part = block_reduce(
      part, [](const RowPart<A>& mine, int offset) { return mine.from_lane(offset); },
      [&](const RowPart<A>& a, const RowPart<A>& b) { return a.merged(b, losses); });
  if (threadIdx.x == 0) part.write(row, label, z_label, losses);

  const A task_weight = losses.cotangent_weight(losses.task_weight, row);
  const A general_weight = losses.cotangent_weight(losses.general_weight, row);
  const PackedRow<A> task(arguments.cotangents + row * classes, before);
  const PackedRow<A> general(arguments.cotangents + (losses.rows + row) * classes, before);
  for (int64_t k = threadIdx.x; k < packs; k += blockDim.x) {
    Pack<T> z_pack, t_pack;
    if (arguments.kept) {
      z_pack = kept[k];
      t_pack = kept[packs + k];
    } else {
      read_packs(k, z_pack, t_pack);
    }
    A z[N], t[N];
    logits(k, z_pack, t_pack, z, t);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const A g = part.sums.general_cotangent(z[i], t[i], losses.temperature);
      const A a = part.sums.task_cotangent(z[i], k * N - before + i == label);
      z[i] = task_weight * a;
      t[i] = general_weight * g;
    }
    const int begin = k == 0 ? before : 0;
    const int64_t end = before + classes - k * N;
    store<N, A>(task.first + k * N, z, begin, end, task.aligned);
    store<N, A>(general.first + k * N, t, begin, end, general.aligned);
  }
  if (is_last_block(losses.ticket, gridDim.x)) finish_batch(losses);
}

template <typename T>
void launch_dual_loss(const T* student, const T* teacher, int64_t rows, int64_t classes, const LossOptions& options,
                      void* workspace, void* stream) {
  const auto losses = make_losses<Accumulation<T>>(options, rows, classes, workspace);
  const int64_t packs = classes / kVector<T> + 2;  // the first and the last may be incomplete
  const size_t row_bytes = 2 * sizeof(Pack<T>) * packs;
  const bool kept = row_bytes <= max_shared_bytes();
  const int64_t threads = std::min<int64_t>((packs + kWarp - 1) / kWarp * kWarp, kRowThreads<T>);
  if (rows > 1) fill_zero(losses.ticket, sizeof(unsigned), stream);
  const DualLossArguments<T> arguments{losses, student, teacher, static_cast<Accumulation<T>*>(options.cotangents),
                                       kept};
  launch(dual_loss_kernel<T>, std::max<int64_t>(rows, 1), int(threads), kept ? row_bytes : 0, false, stream, arguments);
}

// ---- the operators

size_t dual_loss_workspace(Storage storage, int64_t rows) {
  return with_accumulation(storage, [&](auto type) { return losses_workspace<typename decltype(type)::type>(rows); });
}

void dual_loss(Storage storage, const void* student, const void* teacher, int64_t rows, int64_t classes,
               const LossOptions& options, void* workspace, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_dual_loss(static_cast<const T*>(student), static_cast<const T*>(teacher), rows, classes, options, workspace,
                     stream);
  });
}

}  // namespace prograd::cuda
