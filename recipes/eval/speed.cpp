#include "recipes/eval/speed.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "kernels/base/cancel.h"
#include "kernels/base/cpu.h"
#include "kernels/base/parallel.h"
#include "kernels/base/splitmix64.h"
#include "kernels/runtime/kv_cache.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kPrompt = 16;    // tokens before the timed decode
constexpr int64_t kSentence = 32;  // tokens
constexpr size_t kSentences = 32;
constexpr uint64_t kSeed = 20261;  // any: the values do not change the work

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::vector<int32_t> random_ids(int64_t count, int64_t vocabulary) {
  SplitMix64 random(kSeed);
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) {
    id = static_cast<int32_t>(random.below(static_cast<uint64_t>(vocabulary)));
  }
  return ids;
}

std::vector<float> random_pixels(int64_t count) {
  SplitMix64 random(kSeed);
  std::vector<float> pixels(static_cast<size_t>(count));
  for (float& pixel : pixels) pixel = static_cast<float>(random.uniform() * 4 - 2);
  return pixels;
}

// Tokens a second of one prefill and one decode run.
Result<std::pair<double, double>> time_text(Executor& model,
                                            const SpeedOptions& options) {
  const Program& program = model.artifact().program;
  const int64_t prefill = std::min(options.prefill_tokens, program.context_length);
  const int64_t prompt = std::min(kPrompt, program.context_length / 2);
  const int64_t decode = std::min(options.decode_tokens, program.context_length - prompt);
  const std::vector<int32_t> ids =
      random_ids(std::max(prefill, prompt + decode), program.vocabulary);
  std::vector<float> logits(static_cast<size_t>(program.vocabulary));
  const MatrixView<float> last(logits.data(), 1, program.vocabulary);
  const std::span<const int32_t> all(ids);

  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<KvCache> cache,
                          model.make_cache(std::max(prefill, prompt + decode)));
  Clock::time_point start = Clock::now();
  NIBBLE_RETURN_IF_ERROR(
      model.forward(all.first(static_cast<size_t>(prefill)), *cache, last));
  const double prefill_seconds = seconds_since(start);

  cache->truncate(0);
  NIBBLE_RETURN_IF_ERROR(
      model.forward(all.first(static_cast<size_t>(prompt)), *cache, last));
  start = Clock::now();
  for (int64_t i = 0; i < decode; ++i) {
    NIBBLE_RETURN_IF_ERROR(
        model.forward(all.subspan(static_cast<size_t>(prompt + i), 1), *cache, last));
  }
  const double decode_seconds = seconds_since(start);
  return std::pair(static_cast<double>(prefill) / prefill_seconds,
                   static_cast<double>(decode) / decode_seconds);
}

// Sentences a second: all of them, `batch` a call. What a call needs is made before the
// clock starts.
Result<double> time_sentences(Executor& model, const SpeedOptions& options) {
  const Program& program = model.artifact().program;
  std::vector<std::vector<int32_t>> sentences = options.sentences;
  if (sentences.empty()) {
    const int64_t length = std::min(kSentence, program.context_length);
    sentences.assign(kSentences, random_ids(length, program.vocabulary));
  }
  struct Call {
    std::vector<int32_t> ids;
    std::vector<int64_t> lengths;
  };
  std::vector<Call> calls;
  int64_t most = 0;
  for (size_t i = 0; i < sentences.size(); ++i) {
    if (i % static_cast<size_t>(options.batch) == 0) calls.emplace_back();
    Call& call = calls.back();
    call.ids.insert(call.ids.end(), sentences[i].begin(), sentences[i].end());
    call.lengths.push_back(static_cast<int64_t>(sentences[i].size()));
    most = std::max(most, model.embedding_rows(call.lengths));
  }
  const int64_t width = model.embedding_features();
  std::vector<float> embeddings(static_cast<size_t>(most * width));
  const Clock::time_point start = Clock::now();
  for (const Call& call : calls) {
    const int64_t rows = model.embedding_rows(call.lengths);
    NIBBLE_RETURN_IF_ERROR(model.encode(call.ids, call.lengths, {},
                                        MatrixView<float>(embeddings.data(), rows, width)));
  }
  return static_cast<double>(sentences.size()) / seconds_since(start);
}

// [channels, height, width] of the program's image input.
Result<std::vector<int64_t>> image_shape(const Program& program) {
  std::vector<int64_t> shape;
  const std::vector<std::string> input =
      program.inputs.empty() ? std::vector<std::string>() : program.inputs[0].shape;
  for (size_t i = 1; i < input.size(); ++i) {
    const int64_t size = std::atoll(input[i].c_str());
    if (size < 1) {
      return error(StatusCode::unsupported, "[speed] ", program.architecture,
                   ": images of a fixed size are required; found ", input[i]);
    }
    shape.push_back(size);
  }
  if (shape.size() != 3) {
    return error(StatusCode::unsupported, "[speed] ", program.architecture,
                 ": an input [batch, channels, height, width] is required; found rank ",
                 input.size());
  }
  return shape;
}

int64_t output_classes(const Program& program) {
  return program.outputs.empty() || program.outputs[0].shape.empty()
             ? 0
             : std::atoll(program.outputs[0].shape.back().c_str());
}

// Rows of a net of several inputs or outputs a second: one at a time, as a stream has them.
Result<double> time_net(Executor& model) {
  constexpr int kCalls = 32;
  const Program& program = model.artifact().program;
  std::vector<std::vector<float>> values;
  std::vector<NetInput> inputs;
  values.reserve(program.inputs.size());
  for (const ProgramValue& input : program.inputs) {
    if (program.consumers(input.name).empty()) continue;
    std::vector<int64_t> shape;
    int64_t count = 1;
    for (const std::string& size : input.shape) {
      shape.push_back(size == "batch" ? 1 : std::atoll(size.c_str()));
      count *= shape.back();
    }
    values.push_back(random_pixels(std::max<int64_t>(count, 0)));
    inputs.push_back({input.name, shape, values.back()});
  }
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < kCalls; ++i)
    NIBBLE_RETURN_IF_ERROR(model.forward_values(inputs).status());
  return kCalls / seconds_since(start);
}

// Images a second of one batch.
Result<double> time_images(Executor& model, const SpeedOptions& options) {
  const Program& program = model.artifact().program;
  if (program.inputs.size() > 1 || program.outputs.size() > 1) return time_net(model);
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int64_t> image, image_shape(program));
  const int64_t batch = options.image_batch;
  const std::vector<int64_t> shape = {batch, image[0], image[1], image[2]};
  const std::vector<float> pixels = random_pixels(batch * image[0] * image[1] * image[2]);
  const int64_t classes = output_classes(program);
  std::vector<float> logits(static_cast<size_t>(batch * classes));
  const Clock::time_point start = Clock::now();
  NIBBLE_RETURN_IF_ERROR(model.forward_images(
      pixels, shape, MatrixView<float>(logits.data(), batch, classes)));
  return static_cast<double>(batch) / seconds_since(start);
}

}  // namespace

std::string cpu_text() {
  const std::vector<std::string> levels = cpu_levels();
  return cat(cpu_info().model, ", ", levels.empty() ? "reference" : levels.front(), ", ",
             thread_count(), thread_count() == 1 ? " thread" : " threads");
}

std::string rate_text(const Rate& rate, double unit) {
  if (rate.repeats == 0) return "-";
  return cat(number_text(rate.median / unit, 4), " [", number_text(rate.low / unit, 4), ", ",
             number_text(rate.high / unit, 4), "]");
}

Result<std::vector<Speed>> measure_speed(const std::vector<Executor*>& models,
                                         const SpeedOptions& options) {
  std::vector<Speed> speeds(models.size());
  std::vector<std::vector<double>> decode(models.size()), prefill(models.size()),
      images(models.size()), sentences(models.size());
  // Repeat 0 warms caches and pages up and is not counted.
  for (int64_t repeat = 0; repeat <= options.repeats; ++repeat) {
    for (size_t i = 0; i < models.size(); ++i) {
      NIBBLE_RETURN_IF_ERROR(check_cancelled("speed"));
      if (models[i]->artifact().program.is_encoder()) {
        NIBBLE_ASSIGN_OR_RETURN(const double rate, time_sentences(*models[i], options));
        if (repeat > 0) sentences[i].push_back(rate);
      } else if (models[i]->artifact().program.is_language_model()) {
        NIBBLE_ASSIGN_OR_RETURN(const auto rates, time_text(*models[i], options));
        if (repeat == 0) continue;
        prefill[i].push_back(rates.first);
        decode[i].push_back(rates.second);
      } else {
        NIBBLE_ASSIGN_OR_RETURN(const double rate, time_images(*models[i], options));
        if (repeat > 0) images[i].push_back(rate);
      }
    }
  }
  for (size_t i = 0; i < models.size(); ++i) {
    speeds[i].decode = rate_of(decode[i]);
    speeds[i].prefill = rate_of(prefill[i]);
    speeds[i].images = rate_of(images[i]);
    speeds[i].sentences = rate_of(sentences[i]);
    for (const auto& [layer, kernel] : models[i]->kernels()) ++speeds[i].kernels[kernel];
    speeds[i].cpu = cpu_text();
  }
  return speeds;
}

Result<Speed> measure_gpu_speed(cuda::Decoder& decoder, const std::string& device,
                                const SpeedOptions& options) {
  const int64_t prefill = std::min(options.prefill_tokens, decoder.capacity());
  const int64_t prompt = std::min(kPrompt, decoder.capacity() / 2);
  const int64_t decode = std::min(options.decode_tokens, decoder.capacity() - prompt);
  const std::vector<int32_t> ids =
      random_ids(std::max(prefill, prompt), decoder.vocabulary());
  const std::span<const int32_t> all(ids);
  std::vector<int32_t> chosen(static_cast<size_t>(decode));
  std::vector<float> logits(static_cast<size_t>(decoder.vocabulary()));
  const MatrixView<float> last(logits.data(), 1, decoder.vocabulary());
  std::vector<double> prefills, decodes;
  for (int64_t repeat = 0; repeat <= options.repeats; ++repeat) {  // the first warms up
    NIBBLE_RETURN_IF_ERROR(check_cancelled("speed"));
    decoder.truncate(0);
    Clock::time_point start = Clock::now();
    NIBBLE_RETURN_IF_ERROR(
        decoder.forward(all.first(static_cast<size_t>(prefill)), last));
    const double prefill_seconds = seconds_since(start);
    decoder.truncate(0);
    NIBBLE_RETURN_IF_ERROR(decoder.forward(all.first(static_cast<size_t>(prompt)), last));
    start = Clock::now();
    NIBBLE_RETURN_IF_ERROR(decoder.continue_greedily(ids[0], chosen));
    const double decode_seconds = seconds_since(start);
    if (repeat == 0) continue;
    prefills.push_back(static_cast<double>(prefill) / prefill_seconds);
    decodes.push_back(static_cast<double>(decode) / decode_seconds);
  }
  Speed speed;
  speed.prefill = rate_of(prefills);
  speed.decode = rate_of(decodes);
  speed.cpu = device;
  for (const auto& [layer, kernel] : decoder.kernels()) ++speed.kernels[kernel];
  return speed;
}

}  // namespace nibble
