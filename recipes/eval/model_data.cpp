#include "recipes/eval/model_data.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "kernels/base/parallel.h"
#include "recipes/data/image_folder.h"
#include "recipes/models/config_reader.h"

namespace nibble {
namespace {

constexpr int64_t kLongestDefault = 2048;  // tokens: what the README promises

Status require_language_model(const Artifact& model, const std::filesystem::path& path) {
  if (model.program.is_language_model()) return ok_status();
  return error(StatusCode::invalid_argument, "[data] ", path.string(),
               ": text needs a language model; found ", model.program.architecture,
               "; give images (a CIFAR or MNIST folder)");
}

}  // namespace

int64_t default_sequence_length(const Artifact& model) {
  return std::min(model.program.context_length, kLongestDefault);
}

Result<std::unique_ptr<Tokenizer>> tokenizer_of(const Artifact& model) {
  if (!model.tokenizer.empty())
    return make_tokenizer(model.tokenizer, model.program.vocabulary);
  return error(
      StatusCode::not_found, "[tokenizer] ", model.program.architecture,
      ": a tokenizer is required; found none beside the model; give --tokenizer FILE");
}

namespace {

// What load_text and load_sentences need: checked options, and the model's tokenizer unless
// the file holds ids.
Result<std::unique_ptr<Tokenizer>> prepare_text(const Artifact& model,
                                                const std::filesystem::path& path,
                                                TextOptions& options) {
  NIBBLE_RETURN_IF_ERROR(require_language_model(model, path));
  const int64_t context = model.program.context_length;
  if (options.length == 0) options.length = default_sequence_length(model);
  if (options.length > context) {
    return error(StatusCode::out_of_range, "[data] ", path.string(),
                 ": sequences of at most the model's context, ", context,
                 " tokens, are required; found a length of ", options.length,
                 "; make it shorter");
  }
  if (path.extension() == ".safetensors") return std::unique_ptr<Tokenizer>();
  return tokenizer_of(model);
}

}  // namespace

Result<TextData> load_text_for(const Artifact& model, const std::filesystem::path& path,
                               TextOptions options) {
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                          prepare_text(model, path, options));
  return load_text(path, tokenizer.get(), model.program.vocabulary, options);
}

Result<TextData> load_sentences_for(const Artifact& model,
                                    const std::filesystem::path& path,
                                    TextOptions options) {
  options.length = options.length == 0 ? model.program.context_length : options.length;
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                          prepare_text(model, path, options));
  return load_sentences(path, tokenizer.get(), model.program.vocabulary, options);
}

namespace {

void take_first(int64_t limit, ImageSet& images) {
  if (limit <= 0 || limit >= images.count) return;
  const int64_t size = images.channels * images.height * images.width;
  images.count = limit;
  images.pixels.resize(static_cast<size_t>(limit * size));
  images.labels.resize(static_cast<size_t>(limit));
  images.description += cat(", the first ", limit);
}

ImageShape shape_of(const Artifact& model) {
  const std::vector<std::string>& shape = model.program.inputs.at(0).shape;
  if (shape.size() != 4) return {0, 0, 0};
  return {std::atoll(shape[1].c_str()), std::atoll(shape[2].c_str()),
          std::atoll(shape[3].c_str())};
}

// Of a graph made elsewhere: images enlarged to its size (bilinear, centres aligned), and
// their channels turned round where it wants blue first. Smaller ones are left alone.
Status fit_images(const Artifact& model, const std::filesystem::path& directory,
                  int64_t limit, ImageSet& images) {
  constexpr int64_t kMostBytes = int64_t{1} << 31;
  const auto [channels, height, width] = shape_of(model);
  if (channels != images.channels || height < images.height || width < images.width) {
    return ok_status();  // the caller says what does not fit
  }
  take_first(limit, images);
  const bool blue_first =
      ConfigReader(model.config_json).text("image_channels", "rgb") == "bgr";
  if (height == images.height && width == images.width && !blue_first) return ok_status();
  const int64_t size = images.channels * height * width;
  if (images.count > kMostBytes / size) {
    return error(StatusCode::resource_exhausted, "[data] ", directory.string(),
                 ": at most ", kMostBytes / size, " images of ", height, " x ", width,
                 " fit 2 GiB; found ", images.count,
                 "; take fewer: --set data.images to train on, --limit to evaluate");
  }
  ImageSet fitted = images;
  fitted.height = height, fitted.width = width;
  fitted.pixels.resize(static_cast<size_t>(images.count * size));
  const auto place = [](int64_t i, int64_t from, int64_t to) {
    return std::max(0.0, (static_cast<double>(i) + 0.5) * static_cast<double>(from) /
                                 static_cast<double>(to) -
                             0.5);
  };
  parallel_for(images.count, [&](int64_t i) {
    uint8_t* to = fitted.pixels.data() + i * size;
    for (int64_t c = 0; c < images.channels; ++c) {
      const int64_t source = blue_first ? images.channels - 1 - c : c;
      const uint8_t* plane = images.pixels.data() +
                             (i * images.channels + source) * images.height * images.width;
      for (int64_t y = 0; y < height; ++y) {
        const double v = place(y, images.height, height);
        const auto y0 = static_cast<int64_t>(v);
        const int64_t y1 = std::min(y0 + 1, images.height - 1);
        for (int64_t x = 0; x < width; ++x) {
          const double u = place(x, images.width, width);
          const auto x0 = static_cast<int64_t>(u);
          const int64_t x1 = std::min(x0 + 1, images.width - 1);
          const double a = u - static_cast<double>(x0), b = v - static_cast<double>(y0);
          const auto at = [&](int64_t row, int64_t column) {
            return static_cast<double>(plane[row * images.width + column]);
          };
          const double pixel = (1 - b) * ((1 - a) * at(y0, x0) + a * at(y0, x1)) +
                               b * ((1 - a) * at(y1, x0) + a * at(y1, x1));
          *to++ = static_cast<uint8_t>(std::lround(pixel));
        }
      }
    }
  });
  fitted.description += cat(", enlarged to ", height, " x ", width,
                            blue_first ? ", blue first" : "");
  images = std::move(fitted);
  return ok_status();
}

}  // namespace

Result<ImageSet> load_images_for(const Artifact& model,
                                 const std::filesystem::path& directory, Split split,
                                 int64_t limit) {
  if (model.program.is_language_model()) {
    return error(StatusCode::invalid_argument, "[data] ", directory.string(),
                 ": images need an image model; found ", model.program.architecture,
                 ", a language model; give text");
  }
  NIBBLE_ASSIGN_OR_RETURN(
      ImageSet images, is_image_folder(directory)
                           ? load_image_folder(directory, split, shape_of(model), limit)
                           : load_images(directory, split));
  if (model.program.architecture == "ONNX") {
    NIBBLE_RETURN_IF_ERROR(fit_images(model, directory, limit, images));
  }
  const std::vector<std::string> wanted = {std::to_string(images.channels),
                                           std::to_string(images.height),
                                           std::to_string(images.width)};
  const std::vector<std::string>& shape = model.program.inputs.at(0).shape;
  if (shape.size() != 4 || !std::equal(wanted.begin(), wanted.end(), shape.begin() + 1)) {
    std::string found;
    for (size_t i = 1; i < shape.size(); ++i) found += (i > 1 ? " x " : "") + shape[i];
    return error(StatusCode::invalid_argument, "[data] ", directory.string(),
                 ": images of ", found, " are required by ", model.program.architecture,
                 "; found ", wanted[0], " x ", wanted[1], " x ", wanted[2],
                 "; give the data set that the model was made for");
  }
  take_first(limit, images);
  return images;
}

Tensor image_batch(const Artifact& model, const ImageSet& images, int64_t first,
                   int64_t count) {
  const int64_t size = images.channels * images.height * images.width;
  std::vector<float> pixels(static_cast<size_t>(count * size));
  preprocess(images, first, count, model.image_mean, model.image_std, pixels.data());
  return make_tensor({count, images.channels, images.height, images.width}, pixels);
}

}  // namespace nibble
