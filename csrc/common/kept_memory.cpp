#include "kept_memory.h"

#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>

#include <memory>
#include <mutex>
#include <utility>

#include "large.h"

namespace prograd {
namespace {

constexpr size_t kept_bytes = stream_bytes;  // smaller ones malloc keeps by itself
constexpr int most_pieces = 3;

struct Piece {
  at::DataPtr memory;
  size_t bytes;
};

// Who does not get the lock does without: nothing waits here, and a child that was forked while another thread had it
// finds it locked for ever.
class Waiting {
 public:
  std::unique_ptr<Piece> take(size_t bytes) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    for (std::unique_ptr<Piece>& waiting : pieces_) {
      if (waiting && waiting->bytes == bytes) return std::move(waiting);
    }
    return nullptr;
  }

  // What there is no place for, the oldest one, is freed on return.
  void put(std::unique_ptr<Piece> piece) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return;
    for (std::unique_ptr<Piece>& waiting : pieces_) {
      if (piece) std::swap(piece, waiting);
    }
  }

  void clear() {
    std::unique_ptr<Piece> pieces[most_pieces];
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock) std::swap(pieces, pieces_);
  }

 private:
  std::mutex mutex_;
  std::unique_ptr<Piece> pieces_[most_pieces];  // the newest first
};

// Never destroyed at exit: tensors may still be alive.
Waiting& waiting() {
  static auto* all = new Waiting;
  return *all;
}

void give_back(void* piece) { waiting().put(std::unique_ptr<Piece>(static_cast<Piece*>(piece))); }

}  // namespace

at::Tensor empty_in_kept_memory(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const size_t bytes = c10::multiply_integers(sizes) * options.dtype().itemsize();
  if (bytes < kept_bytes) return at::empty(sizes, options);
  at::Allocator* allocator = c10::GetCPUAllocator();
  std::unique_ptr<Piece> piece = waiting().take(bytes);
  if (!piece) {
    piece = std::make_unique<Piece>(Piece{allocator->allocate(bytes), bytes});
    prefer_huge_pages(static_cast<char*>(piece->memory.get()), int64_t(bytes));
  }
  void* data = piece->memory.get();
  at::DataPtr memory(data, piece.release(), &give_back, at::kCPU);
  c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, std::move(memory), allocator, /*resizable=*/true);
  return at::empty({0}, options).set_(std::move(storage), 0, sizes);
}

void release_kept_memory() { waiting().clear(); }

}  // namespace prograd
