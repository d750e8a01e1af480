// Both losses of a batch of logits and both cotangents.
//   dual_loss_kernel             a block for each row, which it keeps in shared memory: maxima, sums, cotangents
//   dual_loss_batch_kernel       after it, the rows' losses added up
// Rows that are too long for shared memory, and few long ones, are cut into parts with a block for each:
//   dual_loss_sums_kernel        maxima and sums of each part
//   dual_loss_cotangents_kernel  sums of the row, from those of its parts in a fixed order; cotangents of each part, by
//                                a second read; the last block adds the rows up
#include "dual_loss_rows.cuh"
#include "storage.cuh"
#include "vector.cuh"

namespace prograd::cuda {

// One such block of 20,000 classes has a multiprocessor to itself, or shares it with another.
template <typename T>
constexpr int kRowThreads = sizeof(T) == 4 ? 1024 : 512;
constexpr int kEach = 2;  // pieces for a thread, beside which its part in the reductions of the block is small
// Longer rows, if there are fewer than multiprocessors, are cut into parts.
constexpr int64_t kLongRow = 16384, kFewRows = 128;
constexpr int kPart = 4096, kPartThreads = 256;  // classes of a part

template <typename T>
struct DualLossArguments {
  using A = Accumulation<T>;
  Losses<A> losses;
  const T *student, *teacher;  // (rows, classes)
  A* cotangents;               // (2, rows, classes)
  // of rows in parts
  int64_t count;      // of a row's
  RowPart<A>* parts;  // (rows, count)
  unsigned* ticket;
};

// A row of logits or a part of it, as a block goes over it: in pieces of N classes that start on 16 bytes. What the
// first and the last piece hold of the row, if not all of it is of the row, is "the ends": a class for each thread. N
// is 1 where the tensors are aligned in different ways, or the teacher has an offset.
template <typename T, int N>
class Row {
 public:
  using A = Accumulation<T>;
  static constexpr bool kPacked = N > 1;
  using Kept = std::conditional_t<kPacked, T, A>;  // in shared memory; with the offset, if there is one
  struct alignas(N * sizeof(Kept)) Piece {
    Kept values[N];
  };
  struct Logits {
    A student, teacher;
  };

  static size_t shared_bytes(int64_t classes) { return 2 * sizeof(Piece) * (kPacked ? classes / N + 2 : classes); }

  // label: as it was given
  __device__ Row(const DualLossArguments<T>& arguments, int64_t row, int64_t first, int64_t classes, int64_t label)
      : student_(arguments.student + row * arguments.losses.classes + first),
        teacher_(arguments.teacher + row * arguments.losses.classes + first),
        offset_(arguments.losses.teacher_offset ? arguments.losses.teacher_offset + first : nullptr),
        task_(arguments.cotangents + row * arguments.losses.classes + first),
        general_(task_ + arguments.losses.rows * arguments.losses.classes),
        before_(kPacked ? elements_before(student_) : 0),
        slots_(before_ + int(classes)),
        first_full_(before_ > 0),
        end_full_(slots_ / N) {
    // a label in another part is before or after all classes of this one
    const int64_t own = arguments.losses.known(label) ? label - first : -1;
    label_ = before_ + int(own < 0 ? -1 : own < classes ? own : classes);
    const int begin_tail = N * (end_full_ > first_full_ ? end_full_ : first_full_);
    const int slot = int(threadIdx.x) < N * first_full_ ? threadIdx.x : threadIdx.x - N * first_full_ + begin_tail;
    end_slot_ = kPacked && slot < N * pieces() ? slot : -1;
  }

  // Reads the row into shared memory, with -inf in what is not of the row.
  __device__ RowMaxima<A> read() const {
    RowMaxima<A> maxima;
    if (end_slot_ >= 0) {
      constexpr A nothing = -std::numeric_limits<A>::infinity();
      const bool present = is_present(end_slot_);
      const Logits one = present ? from_memory(end_slot_) : Logits{nothing, nothing};
      narrow(kept_student()[end_slot_ / N].values[end_slot_ % N], one.student);
      narrow(kept_teacher()[end_slot_ / N].values[end_slot_ % N], one.teacher);
      maxima.add(one.student, one.teacher);
      if (end_slot_ / N < label_ / N) maxima.add_before(one.student);
    }
    Piece *const to_student = kept_student(), *const to_teacher = kept_teacher();
#pragma unroll 1
    for (int k = first_full_ + threadIdx.x; k < end_full_; k += blockDim.x) {
      Piece z, t;
      from_memory(k, z, t);
      to_student[k] = z;
      to_teacher[k] = t;
      RowMaxima<A> own{widen(z.values[0]), widen(t.values[0])};
#pragma unroll
      for (int i = 1; i < N; ++i) own.add(widen(z.values[i]), widen(t.values[i]));
      maxima.add(own.student, own.teacher);
      if (k < label_ / N) maxima.add_before(own.student);
    }
    // the label's own piece
    const int slot = label_ / N * N + int(threadIdx.x);
    if (slot < label_ && is_present(slot)) maxima.add_before(widen(student_[slot - before_]));
    return RowMaxima<A>::over_block(maxima);
  }

  template <bool unit_temperature>
  __device__ DualLossSums<A> sums(const RowMaxima<A>& maxima, const Losses<A>& losses) const {
    ClassSums<A, unit_temperature> sums;
    const Piece *const from_student = kept_student(), *const from_teacher = kept_teacher();
#pragma unroll 1
    for (int k = threadIdx.x; k < pieces(); k += blockDim.x) {
      const Piece z = from_student[k], t = from_teacher[k];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        sums.add({widen(z.values[i]), widen(t.values[i]), maxima.student, maxima.teacher, kLog2e, losses.log2_e_t},
                 losses.kl);
      }
    }
    return sums.over_block(maxima);
  }

  // From the row in shared memory, or from a second read.
  template <bool unit_temperature, bool kept>
  __device__ void write_cotangents(int64_t row, const DualLossSums<A>& sums, const Losses<A>& losses) const {
    const A task_factor = losses.task_factor(row), general_factor = losses.general_factor(row);
    const A student_factor = task_factor / sums.student_sum;
    const A student_t_factor = general_factor / sums.student_sum_t, teacher_factor = general_factor / sums.teacher_sum;
    const A student_max = sums.student_max, teacher_max = sums.teacher_max, log2_e_t = losses.log2_e_t;
    const auto cotangents = [&](A z, A t, A& task, A& general) {
      const DualLossClass<A, unit_temperature> one(z, t, student_max, teacher_max, kLog2e, log2_e_t);
      task = one.student * student_factor;
      general = fused(one.student_t, student_t_factor, -(one.teacher * teacher_factor));
    };

    if (end_slot_ >= 0 && is_present(end_slot_)) {
      Logits one;
      if constexpr (kept) {
        one = {widen(kept_student()[end_slot_ / N].values[end_slot_ % N]),
               widen(kept_teacher()[end_slot_ / N].values[end_slot_ % N])};
      } else {
        one = from_memory(end_slot_);
      }
      A task, general;
      cotangents(one.student, one.teacher, task, general);
      task_[end_slot_ - before_] = task;
      general_[end_slot_ - before_] = general;
    }
    const Piece *const from_student = kept_student(), *const from_teacher = kept_teacher();
#pragma unroll 1
    for (int k = first_full_ + threadIdx.x; k < end_full_; k += blockDim.x) {
      Piece z, t;
      if constexpr (kept) {
        z = from_student[k];
        t = from_teacher[k];
      } else {
        from_memory(k, z, t);
      }
      A task[N], general[N];
#pragma unroll
      for (int i = 0; i < N; ++i) cotangents(widen(z.values[i]), widen(t.values[i]), task[i], general[i]);
      if constexpr (kPacked) {
        store<N, A>(task_ + k * N - before_, task, N, true);
        store<N, A>(general_ + k * N - before_, general, N, true);
      } else {
        task_[k] = task[0];
        general_[k] = general[0];
      }
    }
    // by the thread that has just written it
    const int piece = label_ / N;
    const bool inside = piece >= first_full_ && piece < end_full_;
    const bool mine = inside ? (piece - first_full_) % blockDim.x == threadIdx.x : end_slot_ == label_;
    if (mine && is_present(label_)) task_[label_ - before_] -= task_factor;
  }

  // The student's logit of the label; NaN where the label is not in here.
  __device__ A at_label() const {
    return is_present(label_) ? widen(student_[label_ - before_]) : std::numeric_limits<A>::quiet_NaN();
  }

 private:
  static constexpr A kLog2e = A(1.44269504088896340736);

  __device__ int pieces() const { return (slots_ + N - 1) / N; }
  __device__ bool is_present(int slot) const { return slot >= before_ && slot < slots_; }
  __device__ Piece* kept_student() const { return dynamic_shared<Piece>(); }
  __device__ Piece* kept_teacher() const { return dynamic_shared<Piece>() + pieces(); }

  __device__ Logits from_memory(int slot) const {
    const int c = slot - before_;
    const A t = widen(teacher_[c]);
    return {widen(student_[c]), !kPacked && offset_ ? t + offset_[c] : t};
  }
  __device__ void from_memory(int k, Piece& z, Piece& t) const {
    if constexpr (kPacked) {
      z = load_wide<Piece>(student_ + k * N - before_);
      t = load_wide<Piece>(teacher_ + k * N - before_);
    } else {
      const Logits one = from_memory(k);
      z = {{one.student}};
      t = {{one.teacher}};
    }
  }

  const T *student_, *teacher_;
  const A* offset_;
  A *task_, *general_;
  int before_, slots_;         // of the first piece, what is not of the row; that and the classes
  int first_full_, end_full_;  // pieces without the ends
  int label_, end_slot_;       // of this thread; -1: none
};

// ---- a block for each row

template <typename T, int N, bool unit_temperature>
__global__ void __launch_bounds__(kRowThreads<T>, 1) dual_loss_kernel(PF_CONSTANT DualLossArguments<T> arguments) {
  using A = Accumulation<T>;
  const Losses<A>& losses = arguments.losses;
  const int64_t row = blockIdx.x;
  const Row<T, N> logits(arguments, row, 0, losses.classes, losses.labels[row]);
  const A z_label = logits.at_label();  // now: cotangents may come where the logits are
  const RowMaxima<A> maxima = logits.read();
  const DualLossSums<A> sums = logits.template sums<unit_temperature>(maxima, losses);
  if (threadIdx.x == 0) write_row(losses, row, sums, maxima.before, z_label);
  logits.template write_cotangents<unit_temperature, true>(row, sums, losses);
}

template <typename A>
__global__ void __launch_bounds__(kRowThreads<A>, 1) dual_loss_batch_kernel(PF_CONSTANT Losses<A> losses) {
  finish_batch(losses);
}

// ---- several blocks for each row

template <typename T, int N>
__device__ Row<T, N> part_of_row(const DualLossArguments<T>& arguments, int64_t row) {
  const int64_t first = int64_t(blockIdx.x) % arguments.count * kPart, left = arguments.losses.classes - first;
  return {arguments, row, first, left < kPart ? left : kPart, arguments.losses.labels[row]};
}

template <typename T, int N>
__global__ void __launch_bounds__(kPartThreads, 1) dual_loss_sums_kernel(PF_CONSTANT DualLossArguments<T> arguments) {
  using A = Accumulation<T>;
  if (blockIdx.x == 0 && threadIdx.x == 0) *arguments.ticket = 0;  // for the next kernel
  const Row<T, N> logits = part_of_row<T, N>(arguments, int64_t(blockIdx.x) / arguments.count);
  const RowMaxima<A> maxima = logits.read();
  const DualLossSums<A> sums = logits.template sums<false>(maxima, arguments.losses);
  if (threadIdx.x == 0) arguments.parts[blockIdx.x] = {sums, maxima.before, logits.at_label()};
}

template <typename T, int N>
__global__ void __launch_bounds__(kPartThreads, 1)
    dual_loss_cotangents_kernel(PF_CONSTANT DualLossArguments<T> arguments) {
  using A = Accumulation<T>;
  const Losses<A>& losses = arguments.losses;
  const int64_t row = int64_t(blockIdx.x) / arguments.count;
  const RowPart<A>* parts = arguments.parts + row * arguments.count;

  RowMaxima<A> maxima;
#pragma unroll 1
  for (int64_t part = threadIdx.x; part < arguments.count; part += blockDim.x) {
    maxima.add(parts[part].sums.student_max, parts[part].sums.teacher_max);
    maxima.add_before(parts[part].before);
  }
  maxima = RowMaxima<A>::over_block(maxima);
  Sums<A, 4> mine;
#pragma unroll 1
  for (int64_t part = threadIdx.x; part < arguments.count; part += blockDim.x) {
    const DualLossSums<A> moved =
        parts[part].sums.relative_to(maxima.student, maxima.teacher, A(1) / losses.temperature, losses.soft_ce());
    mine.values[0] += moved.student_sum;
    mine.values[1] += moved.student_sum_t;
    mine.values[2] += moved.teacher_sum;
    mine.values[3] += moved.cross;
  }
  mine = block_sum(mine);
  const DualLossSums<A> sums{maxima.student, maxima.teacher, mine.values[0],
                             mine.values[1], mine.values[2], mine.values[3]};
  if (int64_t(blockIdx.x) % arguments.count == 0 && threadIdx.x == 0) {
    const int64_t label = losses.labels[row];
    const A z_label = losses.known(label) ? parts[label / kPart].z_label : std::numeric_limits<A>::quiet_NaN();
    write_row(losses, row, sums, maxima.before, z_label);
  }
  part_of_row<T, N>(arguments, row).template write_cotangents<false, false>(row, sums, losses);
  if (is_last_block(arguments.ticket, gridDim.x)) finish_batch(losses);
}

// ---- the operator

bool in_parts(int64_t rows, int64_t classes, size_t row_bytes) {
  return rows > 0 && (row_bytes > max_shared_bytes() || (classes > kLongRow && rows < kFewRows));
}

int64_t parts_of_row(int64_t classes) { return (classes + kPart - 1) / kPart; }

// Pieces start on 16 bytes in all four matrices, or in none.
template <typename T>
bool fit_together(const T* student, const T* teacher, int64_t rows, int64_t classes, const LossOptions& options) {
  const auto beyond = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16; };
  const size_t size = sizeof(Accumulation<T>), before = beyond(student) / sizeof(T) * size;
  return !options.teacher_offset && beyond(student) == beyond(teacher) &&
         beyond(static_cast<const char*>(options.cotangents) - before) == 0 && rows * classes * size % 16 == 0;
}

template <typename T, int N>
void launch_dual_loss(DualLossArguments<T> arguments, bool unit_temperature, void* stream) {
  using A = Accumulation<T>;
  const Losses<A>& losses = arguments.losses;
  const int64_t rows = losses.rows, classes = losses.classes;
  const size_t row_bytes = Row<T, N>::shared_bytes(classes);
  if (in_parts(rows, classes, row_bytes)) {
    const int64_t blocks = rows * arguments.count;
    const size_t part_bytes = Row<T, N>::shared_bytes(kPart);
    launch(dual_loss_sums_kernel<T, N>, blocks, kPartThreads, part_bytes, false, stream, arguments);
    launch(dual_loss_cotangents_kernel<T, N>, blocks, kPartThreads, 0, false, stream, arguments);
    return;
  }
  const auto threads_for = [](int64_t pieces) {
    return int(std::min<int64_t>((pieces / kEach + kWarp) / kWarp * kWarp, kRowThreads<T>));
  };
  if (rows > 0) {
    constexpr bool has_unit_temperature = sizeof(T) < 8;  // in double another power is not what takes the time
    const auto kernel = has_unit_temperature && unit_temperature ? dual_loss_kernel<T, N, has_unit_temperature>
                                                                 : dual_loss_kernel<T, N, false>;
    launch(kernel, rows, threads_for(classes / N), row_bytes, false, stream, arguments);
  }
  if (rows != 1) launch(dual_loss_batch_kernel<A>, 1, threads_for(rows), 0, false, stream, losses);
}

size_t dual_loss_workspace(Storage storage, int64_t rows, int64_t classes) {
  return with_accumulation(storage, [&](auto type) {
    using A = typename decltype(type)::type;
    return losses_workspace<A>(rows) + sizeof(RowPart<A>) * rows * parts_of_row(classes) + sizeof(unsigned);
  });
}

void dual_loss(Storage storage, const void* student, const void* teacher, int64_t rows, int64_t classes,
               const LossOptions& options, void* workspace, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulation<T>;
    const T *z = static_cast<const T*>(student), *t = static_cast<const T*>(teacher);
    const int64_t count = parts_of_row(classes);
    auto* parts = reinterpret_cast<RowPart<A>*>(static_cast<char*>(workspace) + losses_workspace<A>(rows));
    const DualLossArguments<T> arguments{
        make_losses<A>(options, rows, classes, workspace), z, t, static_cast<A*>(options.cotangents), count, parts,
        reinterpret_cast<unsigned*>(parts + rows * count)};
    const auto run =
        fit_together(z, t, rows, classes, options) ? launch_dual_loss<T, kVector<T>> : launch_dual_loss<T, 1>;
    run(arguments, options.temperature == 1, stream);
  });
}

}  // namespace prograd::cuda
