// A reference to something callable: what a function takes that calls it and keeps
// nothing.
//
//   FunctionRef<R(A...)> f = callable;   f(a...) is callable(a...)
//
// Owns nothing and allocates nothing, where a std::function copies captures of more than
// two words to the heap. What it refers to must outlive it: take it as a parameter, keep
// it only for the length of the call. Copying is two words.
#pragma once

#include <memory>
#include <type_traits>
#include <utility>

namespace nibble {

template <class Signature>
class FunctionRef;

template <class Return, class... Arguments>
class FunctionRef<Return(Arguments...)> {
 public:
  template <class Callable>
    requires(!std::is_same_v<std::remove_cvref_t<Callable>, FunctionRef> &&
             std::is_object_v<std::remove_reference_t<Callable>> &&
             std::is_invocable_r_v<Return, Callable&, Arguments...>)
  FunctionRef(Callable&& callable)  // NOLINT: implicit on purpose
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(callable)))),
        call_([](void* object, Arguments... arguments) -> Return {
          return static_cast<Return>(
              (*static_cast<std::remove_reference_t<Callable>*>(object))(
                  std::forward<Arguments>(arguments)...));
        }) {}

  Return operator()(Arguments... arguments) const {
    return call_(object_, std::forward<Arguments>(arguments)...);
  }

 private:
  void* object_;
  Return (*call_)(void* object, Arguments... arguments);
};

}  // namespace nibble
