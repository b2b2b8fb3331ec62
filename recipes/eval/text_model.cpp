#include "recipes/eval/text_model.h"

#include <charconv>
#include <optional>

#include "kernels/runtime/cuda_device.h"
#include "kernels/runtime/kv_cache.h"

namespace nibble {
namespace {

class CpuTextModel : public TextModel {
 public:
  explicit CpuTextModel(Executor& executor) : executor_(executor) {}
  const Artifact& artifact() const override { return executor_.artifact(); }
  Status open(int64_t positions) override {
    NIBBLE_ASSIGN_OR_RETURN(cache_, executor_.make_cache(positions));
    return ok_status();
  }
  void begin() override { cache_->truncate(0); }
  Status forward(std::span<const int32_t> tokens, MatrixView<float> logits) override {
    return executor_.forward(tokens, *cache_, logits);
  }
  std::map<std::string, std::string> kernels() const override {
    return executor_.kernels();
  }

 private:
  Executor& executor_;
  std::unique_ptr<KvCache> cache_;
};

class GpuTextModel : public TextModel {
 public:
  GpuTextModel(std::shared_ptr<const Artifact> artifact, const std::string& kv,
               std::shared_ptr<cuda::Runner> runner)
      : artifact_(std::move(artifact)), kv_(kv), runner_(std::move(runner)) {}
  const Artifact& artifact() const override { return *artifact_; }
  Status open(int64_t positions) override {
    if (decoder_ && decoder_->capacity() >= positions) {
      begin();
      return ok_status();
    }
    decoder_.reset();
    runner_->clear();
    NIBBLE_ASSIGN_OR_RETURN(
        decoder_,
        cuda::Decoder::create(*artifact_, {.capacity = positions, .kv = kv_}, runner_));
    return ok_status();
  }
  void begin() override { decoder_->truncate(0); }
  Status forward(std::span<const int32_t> tokens, MatrixView<float> logits) override {
    return decoder_->forward(tokens, logits);
  }
  std::map<std::string, std::string> kernels() const override {
    return decoder_ ? decoder_->kernels() : std::map<std::string, std::string>();
  }

 private:
  std::shared_ptr<const Artifact> artifact_;
  std::string kv_;
  std::shared_ptr<cuda::Runner> runner_;
  std::optional<cuda::Decoder> decoder_;
};

}  // namespace

std::unique_ptr<TextModel> text_model(Executor& executor) {
  return std::make_unique<CpuTextModel>(executor);
}
std::unique_ptr<TextModel> text_model(std::shared_ptr<const Artifact> artifact,
                                      const std::string& kv,
                                      std::shared_ptr<cuda::Runner> runner) {
  return std::make_unique<GpuTextModel>(std::move(artifact), kv, std::move(runner));
}

bool is_gpu(const std::string& device) { return !device.empty() && device != "cpu"; }

Result<std::shared_ptr<cuda::Runner>> open_gpu(const std::string& device) {
  int index = 0;
  const std::string prefix = "cuda:";
  if (device != "cuda") {
    const char* const end = device.data() + device.size();
    const char* const first = device.data() + std::min(prefix.size(), device.size());
    const auto [last, failed] = std::from_chars(first, end, index);
    if (device.compare(0, prefix.size(), prefix) != 0 || failed != std::errc() ||
        last != end || index < 0) {
      return error(StatusCode::invalid_argument,
                   "[device] --device: cpu, cuda or cuda:N is required; found \"", device,
                   "\"");
    }
  }
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<cuda::DeviceRunner> runner,
                          cuda::DeviceRunner::create(false, index));
  return std::shared_ptr<cuda::Runner>(std::move(runner));
}

}  // namespace nibble
