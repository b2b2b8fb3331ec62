// Training a net while its batch norms are still there: statistics of the batch in the
// loop, the artifact's folded weights simulated all the same.
//
//   conv     z = conv(x^, W^),  W^ = FakeQuantize(W) with scales s[o] / |g[o]|, s those
//   of
//            the folded weight
//   norm     y = gamma (z - mean) / sqrt(var + eps) + beta, of the batch while it trains
//   fold     g = gamma / sqrt(running_var + eps):  W' = W g,  s' = s |g|
//
// Codes of W under s are codes of W' under s' (mirrored where g < 0), so the fold at the
// end changes no integer but where a float falls on the other side of a rounding; what
// biases round to is left to the epochs after it (prepare() on the folded net, the norms
// frozen; Krishnamoorthi, arXiv 1806.08342, sec. 3.2.2).
//
// Throws nibble::Error. unsupported: a weight scheme with offsets, or whose scales are
// not one a row or group (names the layer). And what prepare() throws.
#pragma once

#include "qat/prepare.h"

namespace nibble {

// model: with batch norms; calibrated: of the same model, folded.
ProgramModule prepare_with_norms(const Artifact& model, const Calibrated& calibrated,
                                 const QatOptions& options);

// The trained module folded: what prepare() takes.
Calibrated fold_trained(ProgramModule module, const Artifact& model,
                        const Calibrated& before);

}  // namespace nibble
