// Rows of the dual loss.
#include "../dual_loss.h"

#include "../../formulas/dual_loss.h"
#include "stream.h"
#include "table.h"
#include "vector.h"

namespace prograd::cpu {
namespace {

static_assert(lanes<float> <= widest_register);

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// A row whose sums are known, and whose cotangents are not written yet.
template <typename S>
struct SummedRow {
  using T = Accumulation<S>;
  const DualLossRow* row;
  DualLossSums<T> sums;
  const T *z_exp, *z_exp_t, *t_exp;  // relative to the maxima of their block and those before it:
  const T* maxima;                   // the student's and the teacher's, for each block
};

// Writes one block of a row's cotangents: classes [begin, begin + n).
template <typename S>
class CotangentWriter {
  using T = Accumulation<S>;

 public:
  PF_HOST_DEVICE CotangentWriter(const SummedRow<S>& from, std::int64_t begin, std::int64_t n)
      : z_exp_(from.z_exp + begin),
        z_exp_t_(from.z_exp_t + begin),
        t_exp_(from.t_exp + begin),
        label_(from.row->label - begin),
        n_(n),
        to_(static_cast<T*>(from.row->task_cotangent) + begin),
        task_(to_, n, from.row->stream),
        general_(static_cast<T*>(from.row->general_cotangent) + begin, n, from.row->stream),
        weight_(T(from.row->task_cotangent_weight)) {
    const T* maxima = from.maxima + 2 * (begin / dual_loss_block);
    const T temperature = T(from.row->temperature), inverse = T(1 / from.row->temperature);
    const T general_weight = T(from.row->general_cotangent_weight) * temperature;
    const T dz = maxima[0] - from.sums.student_max, dt = maxima[1] - from.sums.teacher_max;
    task_factor_ = weight_ * exp(dz) / from.sums.student_sum;
    p_factor_ = general_weight * exp(dz * inverse) / from.sums.student_sum_t;
    q_factor_ = general_weight * exp(dt * inverse) / from.sums.teacher_sum;
  }

  PF_HOST_DEVICE void head() const {
    task_.head(task());
    general_.head(general());
  }
  PF_HOST_DEVICE void body(std::int64_t c) const {
    task_.body(c, task());
    general_.body(c, general());
  }
  PF_HOST_DEVICE void tail() const {
    task_.tail(task());
    general_.tail(general());
    correct_label();
  }
  PF_HOST_DEVICE void all() const {
    task_.all(task());
    general_.all(general());
    correct_label();
  }

 private:
  PF_HOST_DEVICE void correct_label() const {
    if (label_ >= 0 && label_ < n_) store(to_[label_], z_exp_[label_] * task_factor_ - weight_);
  }
  PF_HOST_DEVICE auto task() const {
    return [this](std::int64_t c, std::int64_t) { return vector_at(z_exp_ + c) * task_factor_; };
  }
  PF_HOST_DEVICE auto general() const {
    return [this](std::int64_t c, std::int64_t) {
      return vector_at(z_exp_t_ + c) * p_factor_ - vector_at(t_exp_ + c) * q_factor_;
    };
  }

  const T *z_exp_, *z_exp_t_, *t_exp_;
  std::int64_t label_, n_;
  T* to_;
  Writer<T> task_, general_;
  T weight_, task_factor_, p_factor_, q_factor_;
};

struct NoCotangents {  // where no row waits to be written
  PF_HOST_DEVICE void head() const {}
  PF_HOST_DEVICE void body(std::int64_t) const {}
  PF_HOST_DEVICE void tail() const {}
};

// The sums of a row. The cotangents of another one, if there is one, go out meanwhile. The logits of the block after
// the next are asked for register by register: a burst of such requests would queue, and the arithmetic behind it.
template <typename S>
SummedRow<S> summed(const DualLossRow& row, const SummedRow<S>* before, Accumulation<S>* scratch) {
  using T = Accumulation<S>;
  using V = Vector<T>;
  constexpr std::int64_t block = dual_loss_block;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const S* z = static_cast<const S*>(row.student);
  const S* t = static_cast<const S*>(row.teacher);
  const T* offset = static_cast<const T*>(row.teacher_offset);
  const std::int64_t classes = row.classes, padded = (classes + lanes<T> - 1) / lanes<T> * lanes<T>;
  T *z_exp = scratch, *t_exp = z_exp + padded, *z_exp_t = t_exp + padded, *maxima = z_exp_t + padded;
  const T inverse = T(1 / row.temperature);

  DualLossSums<T> sums;
  with_flag(offset != nullptr, [&](auto has_offset) {
    with_flag(row.temperature != 1, [&](auto tempered) {
      const bool soft_ce = row.soft_ce;
      for (std::int64_t begin = 0; begin < classes; begin += block) {
        const std::int64_t n = smaller(block, classes - begin);
        // -inf for classes that there are not: they are no maximum, and have no exponential
        const auto student = [&](std::int64_t c, std::int64_t width) {
          return loaded(z + begin + c, width, -infinity);
        };
        const auto teacher = [&](std::int64_t c, std::int64_t width) {
          V x = loaded(t + begin + c, width, -infinity);
          if constexpr (has_offset()) x += loaded(offset + begin + c, width, T(0));
          return x;
        };
        V z_maxima = broadcast(sums.student_max), t_maxima = broadcast(sums.teacher_max);
        each_vector<T>(n, [&](std::int64_t c, std::int64_t width) {
          z_maxima = larger(student(c, width), z_maxima);
          t_maxima = larger(teacher(c, width), t_maxima);
        });
        const T z_max = largest_of<T>(z_maxima), t_max = largest_of<T>(t_maxima);
        if (z_max > sums.student_max || t_max > sums.teacher_max) {
          sums = sums.relative_to(z_max, t_max, inverse, soft_ce);
        }
        maxima[2 * (begin / block)] = z_max;
        maxima[2 * (begin / block) + 1] = t_max;

        const auto exponentials = [&](const auto& cotangents) {
          V z_sum{}, z_sum_t{}, t_sum{}, cross{};
          cotangents.head();
          each_vector<T>(n, [&](std::int64_t c, std::int64_t width) {
            __builtin_prefetch(z + begin + c + 2 * block, 0, 3);
            __builtin_prefetch(t + begin + c + 2 * block, 0, 3);
            cotangents.body(c);
            V dz = student(c, width) - z_max, dt = teacher(c, width) - t_max;
            const V s = exp(dz);
            if constexpr (tempered()) {
              dz *= inverse;
              dt *= inverse;
            }
            const V e = exp(dt);
            put(z_exp + begin + c, s);
            put(t_exp + begin + c, e);
            z_sum += s;
            t_sum += e;
            if constexpr (tempered()) {
              const V s_t = exp(dz);
              put(z_exp_t + begin + c, s_t);
              z_sum_t += s_t;
            }
            cross += DualLossSums<T>::cross_term(e, dz, dt, soft_ce);
          });
          cotangents.tail();
          const T z_total = sum_of<T>(z_sum);
          sums.student_sum += z_total;
          sums.student_sum_t += tempered() ? sum_of<T>(z_sum_t) : z_total;
          sums.teacher_sum += sum_of<T>(t_sum);
          sums.cross += sum_of<T>(cross);
        };
        before ? exponentials(CotangentWriter<S>(*before, begin, n)) : exponentials(NoCotangents());
      }
    });
  });
  if (!(sums.cross - sums.cross == T(0))) {  // infinite, perhaps only beside maxima that were not yet the largest
    double cross = 0;
    for (std::int64_t c = 0; c < classes; ++c) {
      const T dz = (load(z[c]) - sums.student_max) * inverse;
      const T dt = ((offset ? load(t[c]) + offset[c] : load(t[c])) - sums.teacher_max) * inverse;
      cross += DualLossSums<T>::cross_term(exp(dt), dz, dt, row.soft_ce);
    }
    sums.cross = T(cross);
  }
  return {&row, sums, z_exp, row.temperature == 1 ? z_exp : z_exp_t, t_exp, maxima};
}

// Before the cotangents are written, which may be where the logits are.
template <typename S>
DualLosses losses_of(const SummedRow<S>& summed) {
  using T = Accumulation<S>;
  const DualLossRow& row = *summed.row;
  const DualLossSums<T>& sums = summed.sums;
  const S* z = static_cast<const S*>(row.student);
  const T label_logit = load(z[row.label]);
  bool correct = label_logit == sums.student_max && sums.student_sum == sums.student_sum;  // not with a NaN
  for (std::int64_t c = 0; correct && c < row.label; ++c) correct = load(z[c]) < label_logit;
  return {row.task_weight * sums.task(label_logit), row.general_weight * sums.general(T(row.temperature), row.soft_ce),
          correct};
}

template <typename S>
void write_cotangents(const SummedRow<S>& summed) {
  const std::int64_t classes = summed.row->classes;
  for (std::int64_t begin = 0; begin < classes; begin += dual_loss_block) {
    const std::int64_t n = smaller(dual_loss_block, classes - begin);
    CotangentWriter<S>(summed, begin, n).all();
  }
}

// What goes past the caches takes as long as the arithmetic, so it goes out during the arithmetic of the next row; what
// stays in them is best written while its exponentials are in the first level.
template <typename S>
void dual_loss_rows(const DualLossRow* rows, std::int64_t count, void* scratch, DualLosses* results) {
  using T = Accumulation<S>;
  SummedRow<S> before{};
  for (std::int64_t i = 0; i < count; ++i) {
    const bool later = rows[i].stream;
    T* own = static_cast<T*>(scratch) + (later ? i % 2 : 0) * (dual_loss_scratch(rows[i].classes) / 2);
    before = summed<S>(rows[i], later && i ? &before : nullptr, own);
    results[i] = losses_of(before);
    if (!later || i + 1 == count) write_cotangents(before);
  }
}

template <typename S>
struct DualLoss {
  static constexpr DualLossKernels kernels{dual_loss_rows<S>};
};

}  // namespace

template <>
const ByStorage<DualLossKernels> Compiled<DualLossKernels>::PF_ISA = by_storage<DualLoss>();

}  // namespace prograd::cpu
