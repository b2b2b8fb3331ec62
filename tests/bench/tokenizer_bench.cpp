// Encoding speed in MB of text a second, one thread, of each tokenizer file named in
// NIBBLE_TOKENIZERS (paths with ':' between) on the text NIBBLE_TEXT; by default those of
// the shared data. The peer's side: tests/bench/tokenizers_peer.py, same arguments.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/tokenizer/tokenizer.h"

namespace nibble {
namespace {

std::string slurp(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

void encode(benchmark::State& state, const std::string& path, const std::string& text) {
  const std::string file = slurp(path);
  const char* name = path.ends_with(".json")    ? "tokenizer.json"
                     : path.ends_with(".model") ? "tokenizer.model"
                                                : "tokenizer.bin";
  const auto tokenizer =
      make_tokenizer({{name, Bytes::copy_of(file.data(), file.size())}}, 1 << 20);
  if (!tokenizer.ok()) return state.SkipWithError(tokenizer.status().message().c_str());
  size_t ids = 0;
  for (auto _ : state) {
    const auto encoded = (*tokenizer)->encode_without_special(text);
    if (!encoded.ok()) return state.SkipWithError(encoded.status().message().c_str());
    ids = encoded->size();
  }
  state.SetBytesProcessed(static_cast<int64_t>(text.size()) * state.iterations());
  state.counters["ids"] = static_cast<double>(ids);
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  const std::string data = "../shared/data/";
  const char* given = std::getenv("NIBBLE_TOKENIZERS");
  const char* text_path = std::getenv("NIBBLE_TEXT");
  const std::string text =
      nibble::slurp(text_path ? text_path : data + "text/tinystories_sample.txt");
  std::istringstream paths(
      given ? given
            : data + "tokenizers/hf_tokenizer_json/gpt2_codegen_tokenizer.json:" + data +
                  "tokenizers/hf_tokenizer_json/phi3_spm_bpe_tokenizer.json:" + data +
                  "models/docs14m/tokenizer.json:" + data +
                  "tokenizers/llama2_tokenizer.model");
  for (std::string path; std::getline(paths, path, ':');)
    benchmark::RegisterBenchmark(path.c_str(), [=](benchmark::State& state) {
      nibble::encode(state, path, text);
    })->Unit(benchmark::kMillisecond);
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
