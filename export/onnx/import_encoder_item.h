// What an encoder's import knows of one value of the ONNX graph: a value of the Program,
// or how far it is on the way of a pattern to one.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "export/onnx/symbolic.h"

namespace nibble {

// A table's part of the sum of embeddings.
struct EmbeddingPart {
  enum class Kind { ids, positions, row } kind = Kind::ids;
  std::string table;
  std::string input;  // of ids
  int64_t row = 0;    // of row: the same for every token
};

// What is known of one value of the ONNX graph. x is a value of the Program throughout.
struct EncoderItem {
  enum class Form {
    pending,   // nothing: `why`
    grid,      // of sizes, places or masks
    constant,  // floats
    value,     // x
    parts,     // a sum of embeddings that may grow
    heads,     // x as [batch, sequence, heads, head_dim] in some order, times factor
    scores,    // heads of x times those of keys, times factor
    probabilities,
    is_nan,  // of probabilities
    // layer_norm: mean(x), x - mean, its square, the mean of that, with epsilon, its
    // root, one over it, (x - mean) / root, that times weight
    mean,
    centred,
    square,
    variance,
    shifted,
    deviation,
    inverse,
    normalized,
    weighted,
    // gelu: factor * x, erf(x / sqrt 2) or tanh(..), factor * (1 + that), factor * x * (1
    // + that)
    scaled,
    curve,
    gate,
    gated,
    power2,
    cube,   // factor * x^3
    bent,   // x + 0.044715 x^3
    angle,  // sqrt(2 / pi) times that
    // pooling: x where there is a token, its sum over tokens, their count; the length of
    // x
    masked,
    token_sum,
    token_count,
    length,
  } form = Form::pending;
  std::optional<symbolic::Sizes> dims;  // of the ONNX value
  symbolic::Grid grid;
  std::string x, keys;
  double factor = 1, epsilon = 0;
  std::string weight;   // of weighted, a constant's name
  bool turned = false;  // of a constant: the transpose of `weight`
  bool tanh = false, is_masked = false;
  std::string order;  // of heads: "bshd" in some order; "n": batch and heads as one
  int64_t heads = 0, head_dim = 0;
  std::vector<EmbeddingPart> parts;
  Status why;
};

}  // namespace nibble
