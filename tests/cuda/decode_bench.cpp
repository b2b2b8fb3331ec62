// Whole-model decode on this GPU: Llamas of random 4-bit weights, a token at a time from
// one CUDA graph, beside the read bandwidth measured in the same run.
//
//   decode_bench [NAME]   the models whose name holds NAME; a table in Markdown
#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/base/splitmix64.h"
#include "kernels/packing/packed_tensor.h"
#include "kernels/runtime/cuda_decoder.h"
#include "kernels/runtime/cuda_device.h"
#include "timing.h"

namespace nibble::cuda {
namespace {

struct Shape {
  const char* name;
  int64_t vocabulary, hidden, heads, kv_heads, head_dim, intermediate, layers;
};

constexpr int64_t kGroup = 128;
constexpr const char* kScheme = "int4/g128@f16";

// Random codes under equal scales; blocks share them on the host, not on the GPU.
PackedTensor random_weight(const QuantScheme& scheme, int64_t rows, int64_t cols) {
  SplitMix64 random(1);
  CodedMatrix q;
  q.scheme = scheme;
  q.rows = rows;
  q.cols = cols;
  q.codes.resize(static_cast<size_t>(rows * cols));
  for (size_t i = 0; i < q.codes.size(); i += 8) {
    const uint64_t word = random.next();
    for (size_t b = 0; b < 8 && i + b < q.codes.size(); ++b)
      q.codes[i + b] = static_cast<uint8_t>(static_cast<int>(word >> (8 * b) & 15) - 8);
  }
  const int64_t groups = (cols + kGroup - 1) / kGroup;
  q.scales = {
      {rows, groups, std::vector<float>(static_cast<size_t>(rows * groups), 0x1p-9f)}};
  return require(pack(q, {rows, cols}));
}

Artifact random_llama(const Shape& size) {
  Artifact artifact;
  Program& program = artifact.program;
  program.architecture = "LlamaForCausalLM";
  program.context_length = 32768;
  program.vocabulary = size.vocabulary;
  program.inputs = {{"input_ids", DType::i64, {"batch", "sequence"}}};
  program.outputs = {
      {"logits", DType::f32, {"batch", "sequence", std::to_string(size.vocabulary)}}};
  const QuantScheme scheme = require(parse_scheme(kScheme));
  std::map<std::pair<int64_t, int64_t>, PackedTensor> made;
  const auto linear = [&](int block, const std::string& name, const std::string& x,
                          int64_t rows, int64_t cols) {
    const auto [at, is_new] = made.try_emplace({rows, cols});
    if (is_new) at->second = random_weight(scheme, rows, cols);
    artifact.packed[name + ".weight"] = at->second;
    artifact.layers[name + ".weight"].weight = scheme;
    program.nodes.push_back(
        {"linear", name, block, {x}, {name}, {{"weight", name + ".weight"}}, {}});
    return name;
  };
  const auto norm = [&](int block, const std::string& name, const std::string& x) {
    artifact.tensors[name + ".weight"] = make_tensor(
        {size.hidden}, std::vector<float>(static_cast<size_t>(size.hidden), 1.0f));
    program.nodes.push_back({"rms_norm",
                             name,
                             block,
                             {x},
                             {name},
                             {{"weight", name + ".weight"}},
                             {{"epsilon", 1e-5}}});
    return name;
  };
  std::byte* table = nullptr;
  const size_t bytes = static_cast<size_t>(size.vocabulary * size.hidden * 2);
  const Bytes embedding = Bytes::allocate(bytes, &table);
  SplitMix64 random(2);
  for (size_t i = 0; i + 8 <= bytes; i += 8) {
    const uint64_t word = random.next() & 0xbf7fbf7fbf7fbf7full;  // bf16 below 1
    std::memcpy(table + i, &word, 8);
  }
  artifact.tensors["embed.weight"] = {
      DType::bf16, {size.vocabulary, size.hidden}, embedding};
  program.nodes.push_back({"embedding",
                           "embed",
                           kFirstBlock,
                           {"input_ids"},
                           {"x.0"},
                           {{"weight", "embed.weight"}},
                           {}});
  std::string x = "x.0";
  for (int block = 0; block < size.layers; ++block) {
    const std::string p = std::to_string(block) + ".";
    const int64_t q_width = size.heads * size.head_dim,
                  kv_width = size.kv_heads * size.head_dim;
    program.states.push_back({p + "cache", size.kv_heads, size.head_dim});
    const std::string n = norm(block, p + "norm", x);
    for (const char* which : {"q", "k"}) {
      linear(block, p + which, n, *which == 'q' ? q_width : kv_width, size.hidden);
      program.nodes.push_back({"rope",
                               p + which + "r",
                               block,
                               {p + which},
                               {p + which + "r"},
                               {},
                               {{"head_dim", size.head_dim}, {"theta", 500000.0}}});
    }
    linear(block, p + "v", n, kv_width, size.hidden);
    program.nodes.push_back({"attention",
                             p + "a",
                             block,
                             {p + "qr", p + "kr", p + "v"},
                             {p + "a"},
                             {},
                             {{"heads", size.heads},
                              {"kv_heads", size.kv_heads},
                              {"head_dim", size.head_dim},
                              {"scale", 0.08},
                              {"state", p + "cache"}}});
    linear(block, p + "o", p + "a", size.hidden, q_width);
    program.nodes.push_back({"add", p + "r", block, {x, p + "o"}, {p + "r"}, {}, {}});
    const std::string m = norm(block, p + "norm2", p + "r");
    linear(block, p + "gate", m, size.intermediate, size.hidden);
    linear(block, p + "up", m, size.intermediate, size.hidden);
    program.nodes.push_back(
        {"silu_mul", p + "act", block, {p + "gate", p + "up"}, {p + "act"}, {}, {}});
    linear(block, p + "down", p + "act", size.hidden, size.intermediate);
    x = "x." + std::to_string(block + 1);
    program.nodes.push_back(
        {"add", p + "out", block, {p + "r", p + "down"}, {x}, {}, {}});
  }
  norm(kLastBlock, "norm", x);
  linear(kLastBlock, "logits", "norm", size.vocabulary, size.hidden);
  return artifact;
}

void bench_model(const Shape& size, const char* kv, int64_t capacity, double read,
                 const std::shared_ptr<DeviceRunner>& runner) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kPrompt = 512, kTokens = 64;
  runner->clear();
  Decoder decoder = require(
      Decoder::create(random_llama(size), {.capacity = capacity, .kv = kv}, runner));
  std::vector<int32_t> prompt(kPrompt), chosen(kTokens);
  SplitMix64 random(3);
  for (int32_t& id : prompt)
    id = static_cast<int32_t>(random.next() % static_cast<uint64_t>(size.vocabulary));
  std::vector<float> logits(static_cast<size_t>(size.vocabulary));
  const MatrixView<float> last(logits.data(), 1, size.vocabulary);
  std::vector<double> prefill, decode;
  for (int round = 0; round < 8; ++round) {
    decoder.truncate(0);
    Clock::time_point start = Clock::now();
    require(decoder.forward(prompt, last));
    const double prompt_seconds =
        std::chrono::duration<double>(Clock::now() - start).count();
    start = Clock::now();
    require(decoder.continue_greedily(1, chosen));
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (round < 2) continue;  // the graph is made in the first
    prefill.push_back(prompt_seconds);
    decode.push_back(seconds);
  }
  std::sort(prefill.begin(), prefill.end());
  std::sort(decode.begin(), decode.end());
  const double token = decode[decode.size() / 2] / kTokens * 1e6;
  const double bytes = static_cast<double>(decoder.weight_bytes()) +
                       static_cast<double>(decoder.cache_bytes(kPrompt + kTokens / 2));
  std::printf("| %s | %s | %s, %lld | %.2f | %.1f | %.0f | %.0f | %.2f | %.0f |\n",
              size.name, kScheme, kv, static_cast<long long>(capacity), bytes / 1e9,
              token, 1e6 / token, bytes / token / 1000, bytes / token / read,
              kPrompt / prefill[prefill.size() / 2]);
  std::fflush(stdout);
}

int bench(const char* only) {
  Result<std::unique_ptr<DeviceRunner>> made = DeviceRunner::create();
  if (!made.ok()) {
    std::printf("skipped: %s\n", made.status().message().c_str());
    return 77;
  }
  const std::shared_ptr<DeviceRunner> runner = std::move(*made);
  const double read = read_bandwidth(runner->multiprocessors());
  std::printf("%s, read %.0f GB/s, 64 tokens after a prompt of 512\n\n",
              runner->info().name.c_str(), read / 1000);
  std::printf(
      "| model | weights | KV cache, room | GB a token | us a token | tokens/s | GB/s | "
      "of read | prefill tokens/s |\n|---|---|---|---|---|---|---|---|---|\n");
  for (const Shape& size : {Shape{"1.5 B", 151936, 1536, 12, 2, 128, 8960, 28},
                            Shape{"8 B", 128256, 4096, 32, 8, 128, 14336, 32}}) {
    if (std::strstr(size.name, only) == nullptr) continue;
    for (const char* kv : {"f16", "int8"}) bench_model(size, kv, 1024, read, runner);
    // What a short sequence pays for a long cache.
    bench_model(size, "f16", 32768, read, runner);
  }
  return 0;
}

}  // namespace
}  // namespace nibble::cuda

int main(int argc, char** argv) { return nibble::cuda::bench(argc > 1 ? argv[1] : ""); }
