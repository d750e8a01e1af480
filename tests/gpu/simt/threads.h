// Threads as fibers, in warps and blocks; see simt.h.
#pragma once

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
namespace simt {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;
constexpr size_t kStackBytes = 64 << 10;
constexpr unsigned char kPoison = 0xff;  // a NaN in every float format
constexpr unsigned char kGuard = 0xa5;

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Order { random, greedy, reverse };

// How the next launches are scheduled; the harness sets it.
struct Schedule {
  Order order = Order::random;
  uint64_t seed = 0;
  unsigned resident_blocks = 8;     // how many blocks run at a time, and the most a cooperative launch may have
  unsigned last_blocks = 0;         // run no more than so many blocks at the end of a grid; 0 for all
  size_t shared_limit = 227 << 10;  // what a block may have, here of sm_90
};
inline Schedule schedule;
inline unsigned launches = 0;  // so far

// ---- threads, warps, blocks

enum class Wait { none, block, grid, syncwarp, shuffle, vote, ldmatrix, mma };
inline const char* name(Wait wait) {
  static const char* const names[] = {"",          "__syncthreads", "grid sync",   "__syncwarp",
                                      "a shuffle", "a vote",        "an ldmatrix", "an mma"};
  return names[static_cast<int>(wait)];
}

struct Block;

// 16 bytes on their way from global to shared memory; without a source they are zeros.
struct AsyncCopy {
  void* to;
  const void* from;
};

struct Thread {
  dim3 index;
  int lane = 0, warp = 0;
  Block* block = nullptr;
  Wait wait = Wait::none;
  unsigned mask = 0;                             // of the warp collective it waits at
  uint64_t sent = 0;                             // its value for the collective
  uint64_t got[kWarp];                           // the values of all lanes, once complete
  bool fenced = false;                           // since its last barrier: other blocks see what this one wrote
  bool unfenced = false;                         // since an atomic: this block need not see what others wrote
  std::vector<AsyncCopy> uncommitted;            // copies that belong to no group yet
  std::deque<std::vector<AsyncCopy>> committed;  // groups of copies that nobody has waited for
  bool started = false, done = false;
  char* stack = nullptr;
  ucontext_t context;
  jmp_buf where;
};

struct Warp {
  std::vector<Thread*> lanes;
  unsigned ready = 0;  // lanes that can run
};

struct Block {
  dim3 index;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  unsigned alive = 0, at_barrier = 0, at_grid = 0;
  std::map<const void*, std::unique_ptr<std::vector<unsigned char>>> static_shared;
  std::vector<unsigned char> dynamic_shared;
  ~Block();
};

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  bool cooperative;
  std::function<void()> body;  // what each thread does
  std::vector<std::unique_ptr<Block>> running;
  std::mt19937_64 random;
  std::string fault;  // raised by a thread
};

inline Launch* launch_now = nullptr;
inline Thread* current = nullptr;
inline jmp_buf scheduler;

// ---- fibers: ucontext starts them, setjmp switches them (swapcontext costs a system call each time)

inline std::vector<char*>& free_stacks() {
  static std::vector<char*> stacks;
  return stacks;
}

inline char* take_stack() {
  auto& stacks = free_stacks();
  if (!stacks.empty()) {
    char* stack = stacks.back();
    stacks.pop_back();
    return stack;
  }
  void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) throw Fault("out of memory for the stacks of the threads");
  return static_cast<char*>(stack);
}

inline Block::~Block() {
  for (auto& thread : threads) free_stacks().push_back(thread->stack);
}

inline void leave() {  // back to the scheduler; returns when the thread runs again
  if (_setjmp(current->where) == 0) _longjmp(scheduler, 1);
}

inline void fiber_main() {
  launch_now->body();
  current->done = true;
  _longjmp(scheduler, 1);
}

inline void resume(Thread& thread) {
  current = &thread;
  if (_setjmp(scheduler) == 0) {
    if (thread.started) _longjmp(thread.where, 1);
    thread.started = true;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack;
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, fiber_main, 0);
    setcontext(&thread.context);
  }
  current = nullptr;
}

// A point where another thread may run first.
inline void yield() { leave(); }

// Ends the launch with a message, from inside a kernel.
inline void fail(const std::string& what) {
  launch_now->fault = what;
  leave();
}

}  // namespace simt
