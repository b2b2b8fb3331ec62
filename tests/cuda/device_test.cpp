// The CUDA kernels on a GPU: the cases of the emulator's tests, large shapes, and the
// same bits in each run. A program of its own, since a GPU machine may lack GoogleTest.
//
//   device_test [NAME]   the tests whose name holds NAME
//
// Exits 0: all passed, 1: some failed, 77: there is no GPU (says why).
#include <cstdio>
#include <cstring>

#include "kernels/runtime/cuda_device.h"
#include "tests/kernels/cuda_attention_cases.h"
#include "tests/kernels/cuda_decoder_cases.h"
#include "tests/kernels/cuda_linear_cases.h"
#include "tests/kernels/cuda_small_ops_cases.h"

namespace nibble::cuda {
namespace {

constexpr int kSkipped = 77;

std::string run_linear(const std::vector<LinearCase>& cases, Runner& runner) {
  for (const LinearCase& c : cases) {
    Result<LinearData> data = make_linear_data(c);
    if (!data.ok()) return data.status().message();
    std::vector<uint8_t> first;
    for (int i = 0; i < 3; ++i) {
      const std::string wrong = run_linear_case(runner, *data);
      if (!wrong.empty()) return text(c) + ": " + wrong;
      if (i == 0) first = data->y;
      if (first != data->y) return text(c) + ": other bits in another run";
    }
  }
  return "";
}

std::string small_linear(Runner& runner) { return run_linear(linear_cases(), runner); }

std::string large_linear(Runner& runner) {
  const int multiprocessors = runner.multiprocessors();
  std::vector<LinearCase> cases;
  for (const char* scheme : {"int4/g128@f16", "uint4/g64@f16+z/g64@uint4", "nf4/g64@f32",
                             "e2m1/g32@e8m0", "int8/r@f32", "e4m3/b128x128@f32"}) {
    for (const int tokens : {1, 5, 64}) {
      cases.push_back({scheme, 1111, 4096, tokens,
                       tokens == 5 ? Float16::bf16 : Float16::f16, false, multiprocessors,
                       true, tokens == 1 ? Output::f16 : Output::f32});
    }
  }
  cases.push_back({"int4/g128@f16", 4096, 4096, 1, Float16::f16, false, multiprocessors});
  cases.push_back(
      {"int4/g128@f16", 512, 20480, 8, Float16::bf16, false, multiprocessors});
  cases.push_back({"int8/r@f32", 2000, 8192, 3, Float16::f16, true, multiprocessors});
  return run_linear(cases, runner);
}

std::string small_attention(Runner& runner) {
  for (const AttentionCase& c : attention_cases()) {
    AttentionData data = make_attention_data(c, 1);
    const std::string wrong = run_attention_case(runner, data);
    if (!wrong.empty()) return text(c) + ": " + wrong;
  }
  return "";
}

std::string large_attention(Runner& runner) {
  const int multiprocessors = runner.multiprocessors();
  for (const KvForm form : {KvForm::f16, KvForm::int8, KvForm::e4m3}) {
    AttentionCase c = {form, Float16::bf16, 32, 8, 128, {9001, 70, 4096}};
    c.multiprocessors = multiprocessors;
    AttentionData data = make_attention_data(c, 1);
    std::vector<uint8_t> first;
    for (int i = 0; i < 3; ++i) {
      const std::string wrong = run_attention_case(runner, data);
      if (!wrong.empty()) return text(c) + ": " + wrong;
      if (i == 0) first = data.y;
      if (first != data.y) return text(c) + ": other bits in another run";
    }
  }
  return "";
}

std::string small_decoder(Runner& runner) {
  for (const DecoderCase& c : decoder_cases()) {
    runner.clear();
    // The runner outlives the decoder, and is not its own.
    const std::string wrong =
        check_decoder(c, std::shared_ptr<Runner>(&runner, [](Runner*) {}));
    if (!wrong.empty()) return c.name + ": " + wrong;
  }
  return "";
}

struct Test {
  const char* name;
  std::string (*run)(Runner& runner);
};
constexpr Test kTests[] = {{"small_linear", small_linear},
                           {"small_attention", small_attention},
                           {"small_rms_norm", check_rms_norm},
                           {"small_rms_norm_lines", check_rms_norm_lines},
                           {"small_embedding", check_embedding},
                           {"small_pairs", check_pairs},
                           {"small_next_token", check_next_token},
                           {"small_plain_linear", check_plain_linear},
                           {"small_rope", check_rope},
                           {"small_quantize_rows", check_quantize_rows},
                           {"small_store_kv", check_store_kv},
                           {"small_dequantize", check_dequantize},
                           {"small_prefill", check_prefill},
                           {"small_products", check_products},
                           {"small_fake_quantize", check_fake_quantize},
                           {"small_decoder", small_decoder},
                           {"large_linear", large_linear},
                           {"large_attention", large_attention}};

int run_tests(const char* only) {
  const Result<std::unique_ptr<DeviceRunner>> made = DeviceRunner::create(true);
  if (!made.ok()) {
    std::printf("skipped: %s\n", made.status().message().c_str());
    return kSkipped;
  }
  DeviceRunner& runner = **made;
  const DeviceInfo& device = runner.info();
  std::printf("%s, compute capability %d.%d, %d multiprocessors\n", device.name.c_str(),
              device.major, device.minor, device.multiprocessors);
  std::printf("cuBLASLt: %s\n",
              runner.has_products() ? "there" : "missing, its products are not tested");
  int failed = 0, count = 0;
  for (const Test& test : kTests) {
    if (std::strstr(test.name, only) == nullptr) continue;
    ++count;
    runner.clear();
    const std::string wrong = test.run(runner);
    std::printf("%s  %s\n", wrong.empty() ? "ok    " : "FAILED", test.name);
    if (!wrong.empty()) std::printf("%s\n", wrong.c_str());
    std::fflush(stdout);
    failed += !wrong.empty();
  }
  if (count == 0) std::printf("no test has '%s' in its name\n", only);
  return failed > 0 || count == 0 ? 1 : 0;
}

}  // namespace
}  // namespace nibble::cuda

int main(int argc, char** argv) {
  return nibble::cuda::run_tests(argc > 1 ? argv[1] : "");
}
