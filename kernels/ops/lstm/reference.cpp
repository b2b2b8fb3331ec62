#include <cmath>

#include "kernels/ops/elementwise/elementwise.h"
#include "kernels/ops/lstm/lstm.h"

namespace nibble {

void lstm_step(const float* gates, int64_t hidden, float* c, float* h) {
  const auto tanh = [](float x) {
    return static_cast<float>(std::tanh(static_cast<double>(x)));
  };
  for (int64_t k = 0; k < hidden; ++k) {
    const float i = sigmoid(gates[k]), o = sigmoid(gates[hidden + k]),
                f = sigmoid(gates[2 * hidden + k]);
    c[k] = f * c[k] + i * tanh(gates[3 * hidden + k]);
    h[k] = o * tanh(c[k]);
  }
}

}  // namespace nibble
