// What a decoder on a GPU must give: the logits of the CPU's executor within what 16-bit
// values lose, for whatever runs it. Each function returns what is wrong, or nothing.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/runtime/cuda_decoder.h"
#include "kernels/runtime/executor.h"
#include "kernels/runtime/kv_cache.h"
#include "tests/export/sample_llama.h"

namespace nibble::cuda {

struct DecoderCase {
  std::string name;
  const char* scheme = "int4/g32@f16";
  Float16 type = Float16::f16;
  const char* kv = "f16";
  sample::LlamaSize size = {.vocabulary = 96,
                            .hidden = 256,
                            .heads = 4,
                            .kv_heads = 2,
                            .head_dim = 64,
                            .intermediate = 160,
                            .layers = 2,
                            .context = 128};
  int prompt = 9;
  const char* inputs = nullptr;  // codes that linear layers read
  float input_scale = 0;         // of static ones
  bool mixed = false;  // q_proj of another scheme, o_proj and lm_head float
  bool other_values = false;  // v_proj alone of another scheme
};

inline std::vector<DecoderCase> decoder_cases() {
  std::vector<DecoderCase> cases(13);
  cases[0].name = "int4";
  cases[1].name = "a prompt of two chunks";
  cases[1].prompt = 70;
  cases[1].size.layers = 1;
  cases[2].name = "bf16, int8 cache, biases";
  cases[2].type = Float16::bf16;
  cases[2].kv = "int8";
  cases[2].size.bias = true;
  cases[2].size.layers = 1;
  cases[2].prompt = 70;
  cases[3].name = "fp8 cache, interleaved, NF4";
  cases[3].scheme = "nf4/g64@f32";
  cases[3].kv = "fp8";
  cases[3].size.interleaved = true;
  cases[4].name = "int8 inputs";
  cases[4].scheme = "int8/r@f32";
  cases[4].inputs = "int8n/r@f32";
  cases[4].size.layers = 1;
  cases[4].prompt = 70;
  cases[5].name = "schemes of all kinds";
  cases[5].mixed = true;
  cases[5].size.tied = false;
  cases[6].name = "minima, which no kernel takes";
  cases[6].scheme = "uint4/g32@f16+m/g32@f16";
  cases[6].size.layers = 1;
  cases[7].name = "biases in a prompt of two chunks";
  cases[7].prompt = 66;
  cases[7].size.layers = 1;
  cases[7].size.bias = true;
  cases[8].name = "norms of heads";
  cases[8].size.head_norms = true;
  cases[9].name = "values of another scheme";
  cases[9].other_values = true;
  cases[9].prompt = 66;
  cases[9].size.layers = 1;
  cases[10].name = "fp8 inputs, in a prompt of two chunks";
  cases[10].scheme = "e4m3/r@f32";
  cases[10].inputs = "e4m3/r@f32";
  cases[10].size.bias = true;
  cases[10].size.layers = 1;
  cases[10].prompt = 70;
  cases[11].name = "static fp8 inputs, bf16";
  cases[11].type = Float16::bf16;
  cases[11].scheme = "e4m3/r@f32";
  cases[11].inputs = "e4m3/t@f32";
  cases[11].input_scale = 0.01f;
  cases[11].prompt = 70;
  cases[11].size.layers = 1;
  cases[12].name = "fp8 inputs of int4 weights";
  cases[12].inputs = "e4m3/r@f32";
  cases[12].prompt = 70;
  cases[12].size.layers = 1;
  return cases;
}

inline Artifact decoder_artifact(const DecoderCase& c) {
  Artifact artifact = sample::llama(c.size, 7);
  if (c.other_values) {
    artifact = sample::quantized(
        std::move(artifact), "int8/g64@f32",
        [](const Node& node) { return node.name.find("v_proj") != std::string::npos; });
    artifact.ledger = {};
  }
  if (c.mixed) {
    const auto is = [](const Node& node, const char* part) {
      return node.name.find(part) != std::string::npos;
    };
    artifact = sample::quantized(std::move(artifact), "int8/g64@f32",
                                 [&](const Node& node) { return is(node, "q_proj"); });
    artifact.ledger = {};
    artifact = sample::quantized(std::move(artifact), c.scheme, [&](const Node& node) {
      return !is(node, "o_proj") && !is(node, "lm_head") && !is(node, "embed");
    });
  } else {
    artifact = sample::quantized(std::move(artifact), c.scheme);
  }
  for (const Node& node : artifact.program.nodes) {
    if (c.inputs == nullptr || node.op != "linear") continue;
    artifact.layers[node.parameter("weight")].input =
        ActivationScheme{.scheme = sample::take(parse_scheme(c.inputs)),
                         .dynamic = c.input_scale == 0,
                         .scale = c.input_scale};
  }
  return artifact;
}

inline size_t largest(const float* logits, size_t count) {
  return static_cast<size_t>(std::max_element(logits, logits + count) - logits);
}

// Of the whole sequence, on the CPU.
inline std::vector<float> executor_logits(const std::shared_ptr<const Artifact>& artifact,
                                          const std::string& kv,
                                          const std::vector<int32_t>& tokens) {
  Executor executor = sample::take(Executor::create(artifact, {.kv = kv}));
  const int64_t n = static_cast<int64_t>(tokens.size());
  const int64_t vocabulary = artifact->program.vocabulary;
  const auto cache = sample::take(executor.make_cache(n));
  std::vector<float> logits(static_cast<size_t>(n * vocabulary));
  sample::take(
      executor.forward(tokens, *cache, MatrixView<float>(logits.data(), n, vocabulary)));
  return logits;
}

// |a - b| / |b|
inline double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    error += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return std::sqrt(error / size);
}

// All logits of a prompt, then a token at a time, then the GPU's own choices.
inline std::string check_decoder(const DecoderCase& c, std::shared_ptr<Runner> runner) {
  const auto artifact = std::make_shared<const Artifact>(decoder_artifact(c));
  const int64_t vocabulary = c.size.vocabulary;
  Result<Decoder> made = Decoder::create(
      *artifact, {.type = c.type, .capacity = 96, .kv = c.kv}, std::move(runner));
  if (!made.ok()) return made.status().message();
  Decoder& decoder = *made;
  SplitMix64 random(3);
  std::vector<int32_t> tokens;
  for (int i = 0; i < c.prompt + 2; ++i)
    tokens.push_back(static_cast<int32_t>(random.next() % 96));
  std::vector<float> found(static_cast<size_t>((c.prompt + 2) * vocabulary));
  int64_t at = 0;
  for (const int64_t n : {int64_t{c.prompt}, int64_t{1}, int64_t{1}}) {
    const Status status =
        decoder.forward({tokens.data() + at, static_cast<size_t>(n)},
                        MatrixView<float>(found.data() + at * vocabulary, n, vocabulary));
    if (!status.ok()) return status.message();
    at += n;
  }
  const std::vector<float> wanted = executor_logits(artifact, c.kv, tokens);
  const double error = distance(found, wanted);
  double allowed = c.type == Float16::bf16 ? 0.02 : 0.003;
  // Codes of inputs and of the cache jump where 16-bit values round to the next one. What
  // it costs to have codes at all is one such rounding; two that know nothing of each
  // other differ by its root of 2.
  DecoderCase exact = c;
  exact.inputs = nullptr;
  allowed +=
      1.42 *
      distance(executor_logits(std::make_shared<const Artifact>(decoder_artifact(exact)),
                               "f16", tokens),
               wanted);
  if (!(error <= allowed))
    return cat("logits are ", error, " off the CPU's, ", allowed, " was allowed");

  // The prompt in one piece, of which the last token alone gets logits.
  decoder.truncate(0);
  std::vector<float> last(static_cast<size_t>(vocabulary));
  Status status = decoder.forward({tokens.data(), static_cast<size_t>(c.prompt)},
                                  MatrixView<float>(last.data(), 1, vocabulary));
  if (!status.ok()) return status.message();
  const double apart = distance(last, {found.data() + (c.prompt - 1) * vocabulary,
                                       found.data() + c.prompt * vocabulary});
  // Whole numbers are summed exactly, whoever sums them.
  const bool whole = c.inputs != nullptr && std::string(c.inputs) == "int8n/r@f32";
  if (!(apart <= (whole ? 0 : allowed)))
    return cat("a prompt in one piece is ", apart, " off the same in chunks");

  // Greedily, against its own logits a token at a time.
  decoder.truncate(c.prompt);
  std::vector<int32_t> chosen(5);
  int32_t token = tokens[static_cast<size_t>(c.prompt)];
  status = decoder.continue_greedily(token, chosen);
  if (!status.ok()) return status.message();
  if (decoder.length() != c.prompt + 5) return "the length after 5 choices is wrong";
  decoder.truncate(c.prompt);
  std::vector<float> logits(static_cast<size_t>(vocabulary));
  for (size_t i = 0; i < chosen.size(); ++i) {
    status =
        decoder.forward({&token, 1}, MatrixView<float>(logits.data(), 1, vocabulary));
    if (!status.ok()) return status.message();
    token = static_cast<int32_t>(largest(logits.data(), logits.size()));
    if (token != chosen[i])
      return cat("choice ", i, " is ", chosen[i], "; the logits' largest is ", token);
  }
  return "";
}

}  // namespace nibble::cuda
