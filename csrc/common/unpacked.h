// Operators with many arguments, which are then the fields of a struct.
#pragma once

namespace prograd {

// Arguments: a struct. Its fields stand in the order of the operator's schema; Arguments::Signature has their types.
template <typename Arguments, typename Signature = typename Arguments::Signature>
struct Unpacked;

template <typename Arguments, typename... Each>
struct Unpacked<Arguments, void(Each...)> {
  // The kernel as the dispatcher calls it.
  template <void (*kernel)(const Arguments&)>
  static void call(Each... each) {
    kernel({each...});
  }
};

}  // namespace prograd
