// genai_config.json: what ONNX Runtime GenAI needs to generate with a decoder's graph.
//
// Names of the graph's inputs and outputs (lowering.h), heads, sizes and token ids;
// greedy search up to the context's length. Past and present are different buffers, since
// the graph appends. bos, eos and pad come from config.json, else generation_config.json.
//
// "" of what is no decoder with a cache. Allocates its result; safe from any thread.
#pragma once

#include <string>

#include "kernels/artifact/artifact.h"

namespace nibble {

Result<std::string> genai_config(const Artifact& artifact);

}  // namespace nibble
