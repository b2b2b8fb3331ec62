// What an instruction set gives attention, beside the panel product: the softmax of a row.
#pragma once

#include <cstdint>

namespace nibble {

struct AttentionIsa {
  // a[j] = e^(a[j] - max a) for j < count; returns their sum. a has whole vectors of room.
  float (*softmax)(float* a, int64_t count);
};

namespace avx2 {
extern const AttentionIsa attention_isa;
}
namespace avx512vnni {
extern const AttentionIsa attention_isa;
}

}  // namespace nibble
