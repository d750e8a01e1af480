// What the kernels of every family begin with. Included by csrc/cpu/kernels/*.cpp alone.
//
// Each of these files is compiled once for each instruction set, with other compiler flags and another PF_ISA. So that
// the linker cannot mix them up, everything in them is in an anonymous namespace but their one table.
#pragma once

#include <type_traits>

#include "../dispatch.h"
#include "storage.h"

namespace prograd::cpu {
namespace {

// The table of a family: Family<S>::kernels of each storage type S.
template <template <typename> class Family>
constexpr auto by_storage() {
  using Kernels = std::remove_const_t<decltype(Family<float>::kernels)>;
  return ByStorage<Kernels>{
      {Family<double>::kernels, Family<float>::kernels, Family<BFloat16>::kernels, Family<Half>::kernels}};
}

// Calls body with std::true_type or std::false_type, so that a loop inside of it has no branch.
template <typename Body>
inline __attribute__((always_inline)) void with_flag(bool flag, Body body) {
  flag ? body(std::true_type{}) : body(std::false_type{});
}

}  // namespace
}  // namespace prograd::cpu
