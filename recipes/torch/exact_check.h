// The end of quantize and train for integer nets: does the artifact's executor give the
// same integers as the exact mode that simulates it?
#pragma once

#include "kernels/artifact/artifact.h"
#include "recipes/data/images.h"

namespace nibble {

// Every value of the net on the first `count` images (0: all), code by code, and the argmax of the logits.
// "8 images: 61 values, 9437184 codes, and the classes equal". internal: the first value
// that differs. Throws nibble::Error.
std::string check_exact(const Artifact& artifact, const ImageSet& images, int64_t count);

}  // namespace nibble
