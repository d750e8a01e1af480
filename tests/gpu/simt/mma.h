// Matrix products of a warp and what feeds them, as csrc/cuda/mma.cuh has them in PTX; see simt.h.
//
// Layouts after the PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "ldmatrix", with
// group = lane / 4 and pair = lane % 4 * 2; a register holds two neighbouring 16-bit elements, the first in its low half:
//   A (16 x 16)  a[0]: row group,     columns pair, pair + 1      a[2]: the same rows, columns + 8
//                a[1]: row group + 8, columns pair, pair + 1      a[3]: the same rows, columns + 8
//   B (16 x 8)   b[0]: rows pair, pair + 1, column group          b[1]: rows + 8
//   C (16 x 8)   c[0], c[1]: row group, columns pair, pair + 1    c[2], c[3]: row group + 8
#pragma once

#include "scheduler.h"

namespace simt {

inline uint16_t half_of(unsigned pair, int which) { return uint16_t(which ? pair >> 16 : pair); }

// c += a b in float32, by a whole warp; widen(bits) is the value of a 16-bit element.
template <typename Widen>
void mma_m16n8k16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, Widen widen) {
  struct Fragments {
    float* c;
    const unsigned* a;
    unsigned b[2];
  } mine{c, a, {b0, b1}};
  meet_warp(Wait::mma, kFullMask, reinterpret_cast<uint64_t>(&mine), [&](const std::vector<Thread*>& lanes) {
    float a_all[16][16], b_all[16][8];
    const auto of = [&](int lane) { return reinterpret_cast<const Fragments*>(lanes[lane]->sent); };
    for (int lane = 0; lane < kWarp; ++lane) {
      const int group = lane / 4, pair = lane % 4 * 2;
      for (int i = 0; i < 2; ++i) {
        for (int k = 0; k < 4; ++k) a_all[group + k % 2 * 8][pair + i + k / 2 * 8] = widen(half_of(of(lane)->a[k], i));
        for (int k = 0; k < 2; ++k) b_all[pair + i + k * 8][group] = widen(half_of(of(lane)->b[k], i));
      }
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = of(lane)->c[i];
        for (int k = 0; k < 16; ++k) sum += a_all[row][k] * b_all[k][column];
        of(lane)->c[i] = sum;
      }
    }
  });
}

// Four 8 x 8 matrices of 16-bit elements: lane 8 m + r has the address of row r of matrix m, and gets in out[m] the
// elements pair, pair + 1 of row `group`, or transposed those of column `group`.
inline void ldmatrix_x4(unsigned (&out)[4], const void* row, bool transposed) {
  struct Request {
    unsigned* out;
    const unsigned char* row;
  } mine{out, static_cast<const unsigned char*>(row)};
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("misaligned address of an ldmatrix");
  check_in_shared(row, 16);
  meet_warp(Wait::ldmatrix, kFullMask, reinterpret_cast<uint64_t>(&mine), [&](const std::vector<Thread*>& lanes) {
    const auto of = [&](int lane) { return reinterpret_cast<const Request*>(lanes[lane]->sent); };
    for (int lane = 0; lane < kWarp; ++lane) {
      const int group = lane / 4, pair = lane % 4 * 2;
      for (int m = 0; m < 4; ++m) {
        uint16_t two[2];
        for (int i = 0; i < 2; ++i) {
          const int r = transposed ? pair + i : group, column = transposed ? group : pair + i;
          std::memcpy(&two[i], of(8 * m + r)->row + 2 * column, 2);
        }
        of(lane)->out[m] = unsigned(two[0]) | unsigned(two[1]) << 16;
      }
    }
  });
}

// ---- copies from global to shared memory that a thread does not wait for (cp.async)

inline void complete(const AsyncCopy& copy) {
  if (copy.from) std::memcpy(copy.to, copy.from, 16);
  else std::memset(copy.to, 0, 16);
}

// 16 bytes, or zeros without a source. A copy is made at once or when somebody waits for it, by chance: what is read
// before has the old bytes or the new ones.
inline void copy_async(void* to, const void* from) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) {
    fail("misaligned address of an asynchronous copy");
  }
  check_in_shared(to, 16);
  const AsyncCopy copy{to, from};
  if (launch_now->random() % 2) complete(copy);
  else current->uncommitted.push_back(copy);
}

inline void commit_copies() {
  current->committed.push_back(std::move(current->uncommitted));
  current->uncommitted.clear();
}

// Waits for all groups of copies but the last `pending`.
inline void wait_copies(size_t pending) {
  auto& groups = current->committed;
  for (; groups.size() > pending; groups.pop_front())
    for (const AsyncCopy& copy : groups.front()) complete(copy);
}

}  // namespace simt
