// Does simt.h do what a GPU does, and does it notice what a GPU punishes? Prints "ok" or what went wrong.
#include "simt.h"

#include <cmath>
#include <cstdlib>

using simt::Order;

static void expect(bool condition, const char* what) {
  if (condition) return;
  std::printf("self test: %s (order %d, seed %llu)\n", what, int(simt::schedule.order),
              (unsigned long long)simt::schedule.seed);
  std::exit(1);
}

template <typename Run>
static std::string fault_of(Run run) {
  try {
    run();
  } catch (const simt::Fault& fault) {
    return fault.what();
  }
  return "";
}

// ---- kernels

static void block_sum(const int* values, int* sums) {  // shuffles inside warps, shared memory between them
  SIMT_SHARED(int[32], partial);
  int sum = values[blockIdx.x * blockDim.x + threadIdx.x];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(simt::kFullMask, sum, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0)
    for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) sum += partial[warp];
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

template <bool kBarrier>
static void reversed(const float* in, float* out) {  // each thread reads what another wrote to shared memory
  float* shared = reinterpret_cast<float*>(simt::dynamic_shared());
  shared[threadIdx.x] = in[threadIdx.x];
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

static void last_block(int* ticket, int* lasts) {
  if (threadIdx.x != 0) return;
  __threadfence();
  const bool last = atomicAdd(ticket, 1) == int(gridDim.x) - 1;
  __threadfence();
  if (last) atomicAdd(lasts, 1);
}

template <bool kBefore>
static void one_fence(int* ticket) {
  __syncthreads();
  if (kBefore) __threadfence();
  atomicAdd(ticket, 1);
  if (!kBefore) __threadfence();
  __syncthreads();
}

static void grid_sum(int* partial, int* sums) {  // every block needs what every other has written
  if (threadIdx.x == 0) partial[blockIdx.x] = blockIdx.x + 1;
  cooperative_groups::this_grid().sync();
  int sum = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) sum += partial[block];
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

static void votes(unsigned* out) {
  const bool odd = threadIdx.x % 2;
  out[threadIdx.x] =
      __ballot_sync(simt::kFullMask, odd) + __any_sync(simt::kFullMask, odd) + 2 * __all_sync(simt::kFullMask, odd);
  out[threadIdx.x] += __shfl_xor_sync(simt::kFullMask, threadIdx.x, 1) == (threadIdx.x ^ 1u) ? 0 : 1000;
  out[threadIdx.x] += __shfl_sync(simt::kFullMask, threadIdx.x, 7) == 7 ? 0 : 1000;
  out[threadIdx.x] += __shfl_up_sync(simt::kFullMask, threadIdx.x, 1) == (threadIdx.x ? threadIdx.x - 1 : 0) ? 0 : 1000;
}

static void divergent_shuffle(int* out) {
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_down_sync(simt::kFullMask, 1, 1);
  __syncthreads();
}

static void early_return(int*) {
  if (threadIdx.x == 0) return;
  __syncthreads();
}

static void lonely_grid_sync(int*) { cooperative_groups::this_grid().sync(); }

static void overrun(int*) { simt::dynamic_shared()[threadIdx.x == 0 ? 16 : 0] = 1; }

static void read_unwritten(float* out) {
  SIMT_SHARED(float, never);
  out[threadIdx.x] = never;
}

// One product of a warp; where each lane has which element, as the PTX ISA says it for m16n8k16: a0 ... a7, b0 ... b3
// and c0 ... c3, two 16-bit elements in a register.
static void product(const uint16_t (*a)[16], const uint16_t (*b)[8], float (*c)[8]) {
  const int group = threadIdx.x >> 2, in_group = threadIdx.x % 4;
  uint16_t of_a[8], of_b[4];
  float of_c[4];
  for (int i = 0; i < 8; ++i) {
    const int row = (0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8;
    of_a[i] = a[row][in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0)];
  }
  for (int i = 0; i < 4; ++i) of_b[i] = b[in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group];
  for (int i = 0; i < 4; ++i) of_c[i] = c[i < 2 ? group : group + 8][in_group * 2 + (i & 1)];
  unsigned a_registers[4], b_registers[2];
  std::memcpy(a_registers, of_a, sizeof of_a);
  std::memcpy(b_registers, of_b, sizeof of_b);
  simt::mma_m16n8k16(of_c, a_registers, b_registers[0], b_registers[1],
                     [](uint16_t bits) { return __bfloat162float({bits}); });
  for (int i = 0; i < 4; ++i) c[i < 2 ? group : group + 8][in_group * 2 + (i & 1)] = of_c[i];
}

// The four matrices of an ldmatrix, whose rows lie in shared memory in the order 31, 30, ... : element j of row r is
// 8 r + j.
static void matrices(unsigned (*out)[4], bool transposed) {
  uint16_t* shared = reinterpret_cast<uint16_t*>(simt::dynamic_shared());
  for (int j = 0; j < 8; ++j) shared[(31 - threadIdx.x) * 8 + j] = uint16_t(threadIdx.x * 8 + j);
  __syncthreads();
  simt::ldmatrix_x4(out[threadIdx.x], shared + (31 - threadIdx.x) * 8, transposed);
}

template <bool kWait>
static void copied(const unsigned* in, unsigned* out) {  // 16 bytes for each thread, and as many zeros
  unsigned* shared = reinterpret_cast<unsigned*>(simt::dynamic_shared());
  simt::copy_async(shared + threadIdx.x * 8, in + threadIdx.x * 4);
  simt::copy_async(shared + threadIdx.x * 8 + 4, nullptr);
  simt::commit_copies();
  simt::commit_copies();  // an empty group, which need not have come
  if (kWait) simt::wait_copies(1);
  __syncthreads();
  for (int i = 0; i < 8; ++i) out[threadIdx.x * 8 + i] = shared[(threadIdx.x ^ 1) * 8 + i];
}

static void copied_astray(int* out) { simt::copy_async(simt::dynamic_shared() + 8, out - threadIdx.x); }
static void copied_outside(int* out) { simt::copy_async(out, nullptr); }

// ---- checks

static void check_tensor_cores() {
  uint16_t a[16][16], b[16][8];
  float c[16][8], expected[16][8];
  const auto small = [](int seed) { return float(seed * 37 % 23 - 11); };  // whole numbers: sums have no rounding
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) a[i][k] = __float2bfloat16_rn(small(i * 16 + k)).bits;
    for (int j = 0; j < 8; ++j) b[i][j] = __float2bfloat16_rn(small(7 * i + 61 * j + 3)).bits;
    for (int j = 0; j < 8; ++j) expected[i][j] = c[i][j] = small(5 * i + j);
  }
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j)
      for (int k = 0; k < 16; ++k) expected[i][j] += small(i * 16 + k) * small(7 * k + 61 * j + 3);
  simt::launch(product, 1, 32, 0, false, a, b, c);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) expect(c[i][j] == expected[i][j], "mma");

  unsigned out[32][4];
  for (bool transposed : {false, true}) {
    simt::launch(matrices, 1, 32, 512, false, out, transposed);
    for (int lane = 0; lane < 32; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        const int row = lane / 4, pair = lane % 4 * 2;
        const auto at = [&](int r, int j) { return unsigned(64 * matrix + 8 * r + j); };
        const unsigned first = transposed ? at(pair, row) : at(row, pair);
        const unsigned second = transposed ? at(pair + 1, row) : at(row, pair + 1);
        expect(out[lane][matrix] == (first | second << 16), transposed ? "transposed ldmatrix" : "ldmatrix");
      }
    }
  }

  std::vector<unsigned> in(32 * 4), results(32 * 8);
  for (size_t i = 0; i < in.size(); ++i) in[i] = unsigned(i);
  simt::launch(copied<true>, 1, 32, 1024, false, in.data(), results.data());
  for (unsigned i = 0; i < 32 * 8; ++i)
    expect(results[i] == (i % 8 < 4 ? (i / 8 ^ 1) * 4 + i % 8 : 0), "asynchronous copy");
}

// What nobody has waited for may be there or not.
static bool missing_wait_shows() {
  std::vector<unsigned> in(32 * 4), out(32 * 8);
  simt::launch(copied<false>, 1, 32, 1024, false, in.data(), out.data());
  for (unsigned value : out)
    if (value == 0xffffffffu) return true;
  return false;
}

static void check_kernels() {
  std::vector<int> values(4 * 96), sums(4);
  for (size_t i = 0; i < values.size(); ++i) values[i] = int(i);
  simt::launch(block_sum, 4, 96, 0, false, values.data(), sums.data());
  for (int b = 0; b < 4; ++b) expect(sums[b] == 96 * 96 * b + 95 * 96 / 2, "sum of a block");

  std::vector<float> in(64), out(64);
  for (int i = 0; i < 64; ++i) in[i] = float(i);
  simt::launch(reversed<true>, 1, 64, 64 * sizeof(float), false, in.data(), out.data());
  for (int i = 0; i < 64; ++i) expect(out[i] == float(63 - i), "shared memory with a barrier");

  int ticket = 0, lasts = 0;
  simt::launch(last_block, 20, 64, 0, false, &ticket, &lasts);
  expect(ticket == 20 && lasts == 1, "one last block");

  std::vector<int> partial(5), totals(5);
  simt::launch(grid_sum, 5, 32, 0, true, partial.data(), totals.data());
  for (int total : totals) expect(total == 15, "grid sync");

  std::vector<unsigned> ballots(32);
  simt::launch(votes, 1, 32, 0, false, ballots.data());
  for (unsigned ballot : ballots) expect(ballot == 0xaaaaaaaau + 1, "votes and shuffles");

  float poisoned = 0;
  simt::launch(read_unwritten, 1, 1, 0, false, &poisoned);
  expect(std::isnan(poisoned), "poisoned shared memory");
}

static void check_faults() {
  alignas(16) int out[64];
  const auto fault = [&](auto kernel, int grid, int block, int shared, bool cooperative) {
    return fault_of([&] { simt::launch(kernel, grid, block, shared, cooperative, out); });
  };
  expect(fault(divergent_shuffle, 1, 64, 0, false) == "deadlock: block 0: 56 at __syncthreads, 8 at a shuffle",
         "divergent collective");
  expect(fault(early_return, 1, 32, 0, false).find("returned") != std::string::npos, "barrier after a return");
  expect(fault(lonely_grid_sync, 2, 32, 0, false).find("not cooperative") != std::string::npos, "ordinary launch");
  expect(fault(lonely_grid_sync, 100, 32, 0, true).find("too many blocks") != std::string::npos, "grid too large");
  expect(fault(one_fence<true>, 1, 32, 0, false).find("between an atomic and it") != std::string::npos, "fence after");
  expect(fault(one_fence<false>, 1, 32, 0, false).find("between a barrier and it") != std::string::npos,
         "fence before");
  expect(fault(overrun, 1, 32, 16, false).find("outside of shared memory") != std::string::npos, "guard bytes");
  expect(fault(copied_astray, 1, 32, 64, false).find("misaligned") != std::string::npos, "misaligned copy");
  expect(fault(copied_outside, 1, 1, 64, false).find("not in the shared") != std::string::npos, "copy to elsewhere");
  expect(fault(early_return, 1, 2048, 0, false).find("invalid") != std::string::npos, "block too large");
}

// A missing barrier must show in at least one order; a fair one may hide it.
static bool missing_barrier_shows() {
  std::vector<float> in(64, 1.0f), out(64);
  simt::launch(reversed<false>, 1, 64, 64 * sizeof(float), false, in.data(), out.data());
  for (float value : out)
    if (std::isnan(value)) return true;
  return false;
}

static void check_half_floats() {
  for (unsigned bits = 0; bits < 1 << 16; ++bits) {  // every value comes back
    const bool half_nan = (bits & 0x7fff) > 0x7c00, bfloat_nan = (bits & 0x7fff) > 0x7f80;
    const __half h{uint16_t(bits)};
    const __nv_bfloat16 b{uint16_t(bits)};
    if (half_nan) expect(std::isnan(__half2float(h)), "half NaN");
    else expect(__float2half_rn(__half2float(h)).bits == bits, "half there and back");
    if (bfloat_nan) expect(std::isnan(__bfloat162float(b)), "bfloat16 NaN");
    else expect(__float2bfloat16_rn(__bfloat162float(b)).bits == bits, "bfloat16 there and back");
  }
  expect(__float2half_rn(65519.0f).bits == 0x7bff && __float2half_rn(65520.0f).bits == 0x7c00, "half overflow");
  expect(__float2half_rn(1 + 0x1p-11f).bits == 0x3c00 && __float2half_rn(1 + 3 * 0x1p-11f).bits == 0x3c02, "half ties");
  expect(__float2half_rn(0x1p-25f).bits == 0 && __float2half_rn(0x1.8p-25f).bits == 1, "half subnormals");
  expect(__float2bfloat16_rn(1 + 0x1p-8f).bits == 0x3f80 && __float2bfloat16_rn(1 + 3 * 0x1p-8f).bits == 0x3f82,
         "bfloat16 ties");
}

int main() {
  bool shown = false, copy_shown = false;
  for (Order order : {Order::random, Order::greedy, Order::reverse}) {
    for (uint64_t seed = 0; seed < 3; ++seed) {
      simt::schedule = {order, seed, 8};
      check_kernels();
      check_faults();
      check_tensor_cores();
      shown = shown || missing_barrier_shows();
      copy_shown = copy_shown || missing_wait_shows();
    }
  }
  expect(shown, "a missing barrier shows");
  expect(copy_shown, "a missing wait for a copy shows");
  check_half_floats();
  std::puts("ok");
}
