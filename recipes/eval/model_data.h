// The text and images that a person names, ready for one model.
//
// Text is tokenized with the model's own tokenizer; a safetensors file of ids needs none.
// Errors are those of load_text, load_images and make_tokenizer; failed_precondition:
// text for a model without a tokenizer (says to give --tokenizer); invalid_argument: text
// for an image model or images for a language model.
#pragma once

#include <filesystem>
#include <memory>

#include "kernels/artifact/artifact.h"
#include "recipes/data/images.h"
#include "recipes/data/sentences.h"
#include "recipes/data/text.h"

namespace nibble {

// options.length 0: the model's context, at most 2048. Longer than the context:
// out_of_range.
Result<TextData> load_text_for(const Artifact& model, const std::filesystem::path& path,
                               TextOptions options);
// The sentences of a text for an encoder (recipes/data/sentences.h); options.length 0: the
// model's context.
Result<TextData> load_sentences_for(const Artifact& model,
                                    const std::filesystem::path& path,
                                    TextOptions options);
int64_t default_sequence_length(const Artifact& model);

// limit 0: all. The first `limit` otherwise.
Result<ImageSet> load_images_for(const Artifact& model,
                                 const std::filesystem::path& directory, Split split,
                                 int64_t limit);

// The first `count` images from `first` on, preprocessed: f32 [count, channels, height,
// width].
Tensor image_batch(const Artifact& model, const ImageSet& images, int64_t first,
                   int64_t count);

// not_found (with --tokenizer as the way out) when the model carries none.
Result<std::unique_ptr<Tokenizer>> tokenizer_of(const Artifact& model);

}  // namespace nibble
