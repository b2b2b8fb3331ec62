#include "recipes/eval/model_data.h"

#include <algorithm>

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

Result<ImageSet> load_images_for(const Artifact& model,
                                 const std::filesystem::path& directory, Split split,
                                 int64_t limit) {
  if (model.program.is_language_model()) {
    return error(StatusCode::invalid_argument, "[data] ", directory.string(),
                 ": images need an image model; found ", model.program.architecture,
                 ", a language model; give text");
  }
  NIBBLE_ASSIGN_OR_RETURN(ImageSet images, load_images(directory, split));
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
  if (limit > 0 && limit < images.count) {
    const int64_t size = images.channels * images.height * images.width;
    images.count = limit;
    images.pixels.resize(static_cast<size_t>(limit * size));
    images.labels.resize(static_cast<size_t>(limit));
    images.description += cat(", the first ", limit);
  }
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
