// The order of q and k rows that transformers' rope reads.
//
// A rope whose pairs lie side by side (x0, y0, x1, y1 ..) is undone by moving rows: those
// of each head become (x0, x1 .., y0, y1 ..), codes with their scales, and the rope is
// told so.
//
// unsupported: a rope that reads no linear layer, or a scale that governs parts of
// several rows (names the layer). Allocates copies of what moves; the rest is shared.
#pragma once

#include "kernels/artifact/artifact.h"

namespace nibble {

// Parameters whose rows must move -> the head_dim of their rows; who: the format, for
// messages.
Result<std::map<std::string, int64_t>> interleaved_tensors(const Program& program,
                                                           const char* who);
// The row that stands at row r afterwards.
int64_t halves_first_row(int64_t r, int64_t head_dim);

// The same model in transformers' order; without an interleaved rope, as it is.
Result<Artifact> in_transformers_order(const Artifact& artifact, const char* who);

}  // namespace nibble
