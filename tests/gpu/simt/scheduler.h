// Where threads wait for each other, what they share, and who runs next; see simt.h.
#pragma once

#include "threads.h"

namespace simt {

// ---- collectives

inline void set_ready(Thread& thread, bool ready) {
  unsigned& mask = thread.block->warps[thread.warp].ready;
  mask = ready ? mask | 1u << thread.lane : mask & ~(1u << thread.lane);
}

inline void release(Thread& thread) {
  thread.wait = Wait::none;
  set_ready(thread, true);
}

inline void release_block(Block& block, Wait wait) {
  for (auto& thread : block.threads)
    if (thread->wait == wait) release(*thread);
}

// What the threads of a block wrote, one of them shows to other blocks: a barrier, a fence, an atomic; and the other
// way round what those wrote. x86 would order all of it without a fence, so the fences themselves are looked for.
inline void check_fenced_before() {
  if (!current->fenced) fail("an atomic without a __threadfence between a barrier and it");
}
inline void check_fenced_after(Thread& self) {
  if (self.unfenced) fail("a barrier without a __threadfence between an atomic and it");
  self.fenced = false;
}

inline void wait_at(Wait wait) {
  Thread& self = *current;
  Block& block = *self.block;
  check_fenced_after(self);
  self.wait = wait;
  set_ready(self, false);
  if (block.alive != block.threads.size()) fail(std::string(name(wait)) + " after some threads of the block returned");
  if (wait == Wait::block) {
    if (++block.at_barrier == block.alive) {
      block.at_barrier = 0;
      release_block(block, wait);
    }
  } else {
    if (!launch_now->cooperative) fail("grid sync in a launch that is not cooperative");
    ++block.at_grid;
    for (auto& other : launch_now->running)
      if (other->at_grid != other->threads.size()) return leave();
    for (auto& other : launch_now->running) {
      other->at_grid = 0;
      release_block(*other, wait);
    }
  }
  leave();
}

// Waits until every lane of `mask` is here with a value of its own; the last one calls complete(lanes of the warp)
// before any of them goes on.
template <typename Complete>
void meet_warp(Wait wait, unsigned mask, uint64_t value, Complete complete) {
  Thread& self = *current;
  Warp& warp = self.block->warps[self.warp];
  if (!(mask >> self.lane & 1)) fail(std::string(name(wait)) + " by a lane that is not in the mask");
  self.wait = wait;
  self.mask = mask;
  self.sent = value;
  set_ready(self, false);
  unsigned here = 0;
  for (Thread* lane : warp.lanes)
    if (lane->wait == wait && lane->mask == mask) here |= 1u << lane->lane;
  if (here == mask) {
    complete(warp.lanes);
    for (Thread* lane : warp.lanes)
      if (mask >> lane->lane & 1) release(*lane);
  }
  leave();
}

// The same; then each lane has got the values of all.
inline void meet_warp(Wait wait, unsigned mask, uint64_t value) {
  meet_warp(wait, mask, value, [mask](const std::vector<Thread*>& lanes) {
    for (Thread* lane : lanes) {
      if (!(mask >> lane->lane & 1)) continue;
      std::memset(lane->got, kPoison, sizeof lane->got);
      for (Thread* other : lanes)
        if (mask >> other->lane & 1) lane->got[other->lane] = other->sent;
    }
  });
}

template <typename T>
T exchange(unsigned mask, T value, int source, bool valid) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  meet_warp(Wait::shuffle, mask, bits);
  T result = value;
  if (valid) std::memcpy(&result, &current->got[source], sizeof(T));
  return result;
}

inline unsigned ballot(unsigned mask, bool predicate) {
  meet_warp(Wait::vote, mask, predicate);
  unsigned votes = 0;
  for (int lane = 0; lane < kWarp; ++lane)
    if (mask >> lane & 1 && current->got[lane]) votes |= 1u << lane;
  return votes;
}

// ---- shared memory

inline void poison(std::vector<unsigned char>& bytes, size_t size) {
  bytes.assign(size + 32, kGuard);
  std::memset(bytes.data() + 16, kPoison, size);
}

inline bool intact(const std::vector<unsigned char>& bytes) {
  for (size_t i = 0; i < 16; ++i)
    if (bytes[i] != kGuard || bytes[bytes.size() - 1 - i] != kGuard) return false;
  return true;
}

inline unsigned char* dynamic_shared() { return current->block->dynamic_shared.data() + 16; }

// An access of `size` bytes that only shared memory can serve.
inline void check_in_shared(const void* address, size_t size) {
  const auto* at = static_cast<const unsigned char*>(address);
  const auto holds = [&](const std::vector<unsigned char>& bytes) {
    return at >= bytes.data() + 16 && at + size <= bytes.data() + bytes.size() - 16;
  };
  bool found = holds(current->block->dynamic_shared);
  for (const auto& [site, bytes] : current->block->static_shared) found = found || holds(*bytes);
  if (!found) fail("an address that is not in the shared memory of the block");
}

// The variable that a declaration at `site` stands for in this block.
template <typename T>
T& static_shared(const void* site) {
  auto& bytes = current->block->static_shared[site];
  if (!bytes) {
    bytes = std::make_unique<std::vector<unsigned char>>();
    poison(*bytes, sizeof(T));
  }
  return *reinterpret_cast<T*>(bytes->data() + 16);
}

// Declares `name` of type `type` in the shared memory of the block, uninitialised.
#define SIMT_SHARED(type, name)              \
  auto& name = []() -> simt::Same<type>& {   \
    static char site;                        \
    return simt::static_shared<type>(&site); \
  }()
template <typename T>
using Same = T;

// ---- the scheduler

inline std::unique_ptr<Block> make_block(uint64_t number) {
  const Launch& launch = *launch_now;
  auto block = std::make_unique<Block>();
  block->index =
      dim3(number % launch.grid.x, number / launch.grid.x % launch.grid.y, number / launch.grid.x / launch.grid.y);
  const unsigned size = launch.block.x * launch.block.y * launch.block.z;
  block->alive = size;
  block->warps.resize((size + kWarp - 1) / kWarp);
  poison(block->dynamic_shared, launch.shared_bytes);
  for (unsigned i = 0; i < size; ++i) {
    auto thread = std::make_unique<Thread>();
    thread->index = dim3(i % launch.block.x, i / launch.block.x % launch.block.y, i / launch.block.x / launch.block.y);
    thread->lane = i % kWarp;
    thread->warp = i / kWarp;
    thread->block = block.get();
    thread->stack = take_stack();
    block->warps[thread->warp].lanes.push_back(thread.get());
    block->warps[thread->warp].ready |= 1u << thread->lane;
    block->threads.push_back(std::move(thread));
  }
  return block;
}

// What a launch that cannot go on says: for each block, how many threads wait at what.
inline std::string stuck() {
  std::string text = "deadlock:";
  for (auto& block : launch_now->running) {
    std::map<std::string, int> waiting;
    for (auto& thread : block->threads) ++waiting[thread->done ? "returned" : std::string("at ") + name(thread->wait)];
    text += " block " + std::to_string(block->index.x) + ":";
    for (auto& [where, count] : waiting) text += " " + std::to_string(count) + " " + where + ",";
    text.back() = ';';
  }
  text.pop_back();
  return text;
}

inline Warp* pick_warp(Warp* last) {
  Launch& launch = *launch_now;
  if (schedule.order == Order::greedy && last && last->ready) return last;
  std::vector<Warp*> ready;
  for (auto& block : launch.running)
    for (Warp& warp : block->warps)
      if (warp.ready) ready.push_back(&warp);
  if (ready.empty()) return nullptr;
  return schedule.order == Order::reverse ? ready.back() : ready[launch.random() % ready.size()];
}

inline Thread& pick_lane(Warp& warp) {
  if (schedule.order == Order::reverse) return *warp.lanes[31 - __builtin_clz(warp.ready)];
  unsigned mask = warp.ready;
  for (unsigned skip = launch_now->random() % __builtin_popcount(mask); skip > 0; --skip) mask &= mask - 1;
  return *warp.lanes[__builtin_ctz(mask)];
}

inline void check_shared(const Block& block) {
  bool clean = intact(block.dynamic_shared);
  for (const auto& [site, bytes] : block.static_shared) clean = clean && intact(*bytes);
  if (!clean) throw Fault("write outside of shared memory in block " + std::to_string(block.index.x));
}

inline void run(Launch& launch) {
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  const uint64_t blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
  if (threads == 0 || threads > 1024 || blocks == 0) throw Fault("invalid launch configuration");
  if (launch.shared_bytes > schedule.shared_limit) throw Fault("more shared memory than a block may have");
  if (launch.cooperative && blocks > schedule.resident_blocks) throw Fault("too many blocks for a cooperative launch");
  launch_now = &launch;
  launch.random.seed(schedule.seed);
  const uint64_t left_out = schedule.last_blocks && blocks > schedule.last_blocks ? blocks - schedule.last_blocks : 0;
  uint64_t next = left_out;
  Warp* warp = nullptr;
  while (true) {
    while (next < blocks && launch.running.size() < schedule.resident_blocks) {
      launch.running.push_back(make_block(schedule.order == Order::reverse ? blocks - 1 - (next - left_out) : next));
      ++next;
    }
    if (launch.running.empty()) break;
    warp = pick_warp(warp);
    if (!warp) throw Fault(stuck());
    Thread& thread = pick_lane(*warp);
    resume(thread);
    if (!launch.fault.empty()) throw Fault(launch.fault);
    if (!thread.done) continue;
    set_ready(thread, false);
    Block& block = *thread.block;
    if (--block.alive == 0) {
      check_shared(block);
      warp = nullptr;
      for (auto at = launch.running.begin(); at != launch.running.end(); ++at)
        if (at->get() == &block) {
          launch.running.erase(at);
          break;
        }
    }
  }
}

// Runs kernel(args...) to its end.
template <typename... Parameters, typename... Args>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, bool cooperative, Args... args) {
  Launch launch{grid, block, shared_bytes, cooperative, [&] { kernel(args...); }, {}, {}, {}};
  run(launch);
  ++launches;
}

}  // namespace simt
