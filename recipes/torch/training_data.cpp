#include "recipes/torch/training_data.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/types.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/base/splitmix64.h"
#include "kernels/program/batch_axis.h"

namespace nibble {
namespace {

constexpr int64_t kShift = 4;       // pixels: the usual augmentation of CIFAR-10
constexpr int64_t kIgnored = -100;  // target of padding, as cross_entropy has it

// Fisher-Yates from a generator that only seed and epoch decide.
std::vector<int64_t> permutation(int64_t count, uint64_t seed, int64_t epoch) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  SplitMix64 random(mix64(seed) ^ mix64(static_cast<uint64_t>(epoch) + 1));
  for (size_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[random.below(i)]);
  return order;
}

class Order {
 public:
  Order(int64_t count, uint64_t seed) : count_(count), seed_(seed) {}
  const std::vector<int64_t>& of(int64_t epoch) {
    if (epoch != epoch_) order_ = permutation(count_, seed_, epoch);
    epoch_ = epoch;
    return order_;
  }

 private:
  int64_t count_;
  uint64_t seed_;
  int64_t epoch_ = -1;
  std::vector<int64_t> order_;
};

TrainingBatch text_batch(const RunData& data, const std::vector<int64_t>& picked) {
  size_t longest = 2;
  for (const int64_t i : picked) {
    longest = std::max(longest, data.sequences[static_cast<size_t>(i)].size());
  }
  const int64_t rows = static_cast<int64_t>(picked.size());
  const int64_t cols = static_cast<int64_t>(longest) - 1;
  TrainingBatch batch;
  batch.input = torch::zeros({rows, cols}, torch::kInt64);
  batch.target = torch::full({rows, cols}, kIgnored, torch::kInt64);
  int64_t* input = batch.input.data_ptr<int64_t>();
  int64_t* target = batch.target.data_ptr<int64_t>();
  for (int64_t r = 0; r < rows; ++r) {
    const std::vector<int32_t>& ids =
        data.sequences[static_cast<size_t>(picked[static_cast<size_t>(r)])];
    for (size_t c = 0; c + 1 < ids.size(); ++c) {
      input[r * cols + static_cast<int64_t>(c)] = ids[c];
      target[r * cols + static_cast<int64_t>(c)] = ids[c + 1];
    }
  }
  return batch;
}

// One image moved by (dy, dx) and mirrored or not; what comes in is black, as zero
// padding.
void augment_image(const uint8_t* from, const ImageSet& images, int64_t dy, int64_t dx,
                   bool mirror, uint8_t* to) {
  const int64_t height = images.height, width = images.width;
  for (int64_t c = 0; c < images.channels; ++c) {
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        const int64_t source_y = y + dy;
        const int64_t source_x = (mirror ? width - 1 - x : x) + dx;
        const bool inside =
            source_y >= 0 && source_y < height && source_x >= 0 && source_x < width;
        to[(c * height + y) * width + x] =
            inside ? from[(c * height + source_y) * width + source_x] : 0;
      }
    }
  }
}

// mixup (Zhang et al., arXiv 1710.09412, sec. 2): image i becomes l a_i + (1 - l) a_i+1,
// rounded to bytes, l of Beta(alpha, alpha) for each, the batch a ring.
void mix_images(ImageSet& batch, double alpha, uint64_t seed) {
  const size_t count = static_cast<size_t>(batch.count);
  const size_t size = batch.pixels.size() / count;
  const at::Generator generator = at::detail::createCPUGenerator(mix64(seed + 0x313));
  const torch::Tensor gammas = at::_standard_gamma(
      torch::full({2, batch.count}, alpha, torch::kFloat64), generator);
  const double* gamma = gammas.const_data_ptr<double>();
  const std::vector<uint8_t> pixels = batch.pixels;
  for (size_t i = 0; i < count; ++i) {
    const double sum = gamma[i] + gamma[count + i];
    const double own = sum > 0 ? gamma[i] / sum : 1;
    const int64_t share = std::lround(own * 256);
    const uint8_t* a = pixels.data() + i * size;
    const uint8_t* b = pixels.data() + (i + 1) % count * size;
    uint8_t* to = batch.pixels.data() + i * size;
    for (size_t p = 0; p < size; ++p)
      to[p] = static_cast<uint8_t>((share * a[p] + (256 - share) * b[p] + 128) >> 8);
  }
}

TrainingBatch images_batch(const Artifact& model, const ImageSet& images,
                           const std::vector<int64_t>& picked, bool augment, double mixup,
                           uint64_t seed) {
  const int64_t size = images.channels * images.height * images.width;
  ImageSet batch;
  batch.count = static_cast<int64_t>(picked.size());
  batch.channels = images.channels;
  batch.height = images.height;
  batch.width = images.width;
  batch.pixels.resize(static_cast<size_t>(batch.count * size));
  std::vector<int64_t> labels;
  for (size_t i = 0; i < picked.size(); ++i) {
    const uint8_t* from = images.pixels.data() + picked[i] * size;
    uint8_t* to = batch.pixels.data() + static_cast<int64_t>(i) * size;
    labels.push_back(images.labels[static_cast<size_t>(picked[i])]);
    if (!augment) {
      std::memcpy(to, from, static_cast<size_t>(size));
      continue;
    }
    // Of its own stream: what happens to an image depends on seed, epoch and image alone.
    SplitMix64 random(seed ^ mix64(static_cast<uint64_t>(picked[i]) + 1));
    const int64_t dy = static_cast<int64_t>(random.below(2 * kShift + 1)) - kShift;
    const int64_t dx = static_cast<int64_t>(random.below(2 * kShift + 1)) - kShift;
    // A mirrored digit is another sign; only colour photographs are mirrored.
    const bool mirror = images.channels == 3 && random.below(2) == 1;
    augment_image(from, images, dy, dx, mirror, to);
  }
  if (mixup > 0)
    mix_images(batch, mixup, seed ^ mix64(static_cast<uint64_t>(picked[0]) + 1));
  TrainingBatch result;
  result.input = torch::empty({batch.count, batch.channels, batch.height, batch.width});
  preprocess(batch, 0, batch.count, model.image_mean, model.image_std,
             result.input.data_ptr<float>());
  result.target = torch::tensor(labels, torch::kInt64);
  return result;
}

// A value's samples, a row each, and how they lie in the program's shape.
struct SignalTensor {
  torch::Tensor rows;  // [samples, row]
  std::vector<int64_t> own_shape;
  int64_t axis = 0;

  SignalTensor(const ProgramValue& value, const std::vector<float>& values)
      : rows(torch::tensor(values).reshape({-1, row_size(value)})),
        own_shape(batch_shape(value, -1)),
        axis(batch_axis(value)) {}

  torch::Tensor batch(const torch::Tensor& picks) const {
    std::vector<int64_t> shape = own_shape;
    shape.erase(shape.begin() + axis);
    shape.insert(shape.begin(), picks.size(0));
    return rows.index_select(0, picks).reshape(shape).movedim(0, axis).contiguous();
  }
};

struct Signals {
  int64_t steps = 1, streams = 0, window = 1;
  std::map<std::string, SignalTensor> inputs, states, targets;
  std::vector<std::pair<std::string, std::string>> carries;
  std::map<std::string, double> squares;
  int64_t windows() const { return (steps / window) * streams; }

  // Window w is of stream w % streams.
  TrainingBatch batch(const std::vector<int64_t>& picked) const {
    SignalBatch result;
    result.carries = carries;
    result.squares = squares;
    result.samples = window * static_cast<int64_t>(picked.size());
    for (int64_t step = 0; step < window; ++step) {
      std::vector<int64_t> samples;
      for (const int64_t w : picked)
        samples.push_back((w / streams * window + step) * streams + w % streams);
      const torch::Tensor picks = torch::tensor(samples, torch::kInt64);
      SignalBatch::Values& given = result.inputs.emplace_back();
      for (const auto& [name, value] : inputs) given[name] = value.batch(picks);
      if (step == 0) {
        for (const auto& [name, value] : states) given[name] = value.batch(picks);
      }
      SignalBatch::Values& wanted = result.targets.emplace_back();
      for (const auto& [name, value] : targets) wanted[name] = value.batch(picks);
    }
    return TrainingBatch{.input = {}, .target = {}, .signals = std::move(result)};
  }
};

TrainingData signal_data(const Artifact& model, const RunData& data,
                         const TrainOptions& options, const Recipe& recipe) {
  const SignalSet& set = data.signals;
  auto signals = std::make_shared<Signals>();
  signals->steps = set.steps;
  signals->streams = set.streams;
  signals->window = std::min(recipe.data_window, set.steps);
  for (const Carry& carry : set.carries)
    signals->carries.emplace_back(carry.output, carry.input);
  for (const ProgramValue& input : model.program.inputs) {
    if (const auto rows = set.inputs.find(input.name); rows != set.inputs.end())
      signals->inputs.emplace(input.name, SignalTensor(input, rows->second));
    if (const auto rows = data.seen.states.find(input.name);
        rows != data.seen.states.end())
      signals->states.emplace(input.name, SignalTensor(input, rows->second));
  }
  const double share = recipe.train.distill_weight;
  for (const ProgramValue& output : model.program.outputs) {
    const auto target = set.targets.find(output.name);
    const auto teacher = data.seen.outputs.find(output.name);
    std::vector<float> wanted;
    if (target != set.targets.end()) wanted = target->second;
    if (target == set.targets.end() && teacher != data.seen.outputs.end())
      wanted = teacher->second;
    if (wanted.empty()) continue;
    if (target != set.targets.end() && share > 0) {
      for (size_t i = 0; i < wanted.size(); ++i)
        wanted[i] =
            static_cast<float>((1 - share) * wanted[i] + share * teacher->second[i]);
    }
    double squares = 0;
    for (const float value : wanted) squares += static_cast<double>(value) * value;
    signals->squares[output.name] = squares / static_cast<double>(wanted.size());
    signals->targets.emplace(output.name, SignalTensor(output, wanted));
  }
  const int64_t count = signals->windows(), batch = std::min(options.batch, count);
  TrainingData result;
  result.batches_per_epoch = std::max<int64_t>(1, count / batch);
  auto order = std::make_shared<Order>(count, options.seed);
  result.batch = [signals, order, count, batch](int64_t epoch, int64_t index) {
    const std::vector<int64_t>& shuffled = order->of(epoch);
    std::vector<int64_t> picked;
    for (int64_t i = 0; i < batch; ++i)
      picked.push_back(shuffled[static_cast<size_t>((index * batch + i) % count)]);
    return signals->batch(picked);
  };
  return result;
}

}  // namespace

TrainingData make_training_data(const Artifact& model, const RunData& data,
                                const TrainOptions& options, const Recipe& recipe) {
  const bool augment = recipe.data_augment;
  const double mixup = recipe.data_mixup;
  if (data.is_signals()) return signal_data(model, data, options, recipe);
  const int64_t count = data.count();
  const int64_t batch = options.batch;
  TrainingData result;
  result.batches_per_epoch = std::max<int64_t>(1, count / batch);
  auto order = std::make_shared<Order>(count, options.seed);
  const uint64_t seed = options.seed;
  result.batch = [&model, &data, order, count, batch, augment, mixup, seed](
                     int64_t epoch, int64_t index) {
    const std::vector<int64_t>& shuffled = order->of(epoch);
    std::vector<int64_t> picked;
    for (int64_t i = 0; i < std::min(batch, count); ++i) {
      picked.push_back(shuffled[static_cast<size_t>((index * batch + i) % count)]);
    }
    if (data.is_text()) return text_batch(data, picked);
    const uint64_t epoch_seed =
        mix64(seed + 0x51ed) ^ mix64(static_cast<uint64_t>(epoch) + 1);
    return images_batch(model, data.images, picked, augment, mixup, epoch_seed);
  };
  return result;
}

}  // namespace nibble
