// Positions that share scales, from floats to the bytes that a KV cache stores, without
// an allocation.
//
//   pack(quantize(x, choose_scales(x)))     scheme/ and packing/, rule absmax
//   pack(quantize(x, scale))                scale > 0: of every position
//
// in every bit, of schemes whose scale, and whose offset, if any, is one level over the
// same blocks r, gN or bTxC, T being x.rows, and is not shifted nor e8m0.
//
//   x        [1 or T, width]
//   codes    [x.rows, packed_row_bytes(scheme.code, width)]
//   scales   the level's row of packed_level_bytes; not written under a given scale
//   offsets  likewise; not written where the scheme has none
//
// False, with the bytes unspecified: another scheme, or a number that the general
// functions refuse; what they say of it is the answer. Per-thread scratch; safe to call
// from any thread.
#pragma once

#include <cstdint>

#include "kernels/base/matrix_view.h"
#include "kernels/scheme/quant_scheme.h"

namespace nibble {

struct KvPacked {
  uint8_t* codes;
  uint8_t* scales;
  uint8_t* offsets;
};

// Has the scheme the form that pack_kv serves?
bool packs_kv(const QuantScheme& scheme);
bool pack_kv(const QuantScheme& scheme, MatrixView<const float> x, float scale,
             const KvPacked& to);

}  // namespace nibble
