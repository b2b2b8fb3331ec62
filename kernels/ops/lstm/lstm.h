// One step of a long short-term memory, after its two products.
//
// a = W_ih x + W_hh h + bias                         [4 H], four gates of H values:
// i = sigmoid(a_0)  o = sigmoid(a_1)  f = sigmoid(a_2)  g = tanh(a_3)    (ONNX's order)
// c' = f * c + i * g                                 the memory
// h' = o * tanh(c')                                  what the step gives
//
//   gates  [4 H], a
//   c      [H], becomes c'
//   h      [H], becomes h'
//
// sigmoid and tanh in double, each result rounded once. One row for every machine.
// Allocates nothing. Safe to call from any thread.
#pragma once

#include <cstdint>

namespace nibble {

void lstm_step(const float* gates, int64_t hidden, float* c, float* h);

}  // namespace nibble
