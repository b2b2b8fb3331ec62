// Photographs in folders, a class each, as data sets of one's own usually lie:
//
//   DIR/train/cat/1.jpg  DIR/train/dog/2.png ...       split train
//   DIR/val/cat/9.jpg ...  (or DIR/test)               split test
//   DIR/cat/1.jpg ...      without those folders       both
//
// Classes are numbered by name in byte order, as torchvision's ImageFolder does, or by their
// lines in DIR/classes.txt. JPEG and PNG, told by content; gray becomes RGB, transparency
// goes onto black.
//
// Each image is made smaller or larger until its shorter side is `side`, by the triangle
// filter whose support grows with the reduction (as PIL's BILINEAR), and its middle
// height x width is taken. side: the shape's own, or 8/7 of it (256 for 224) from 64 pixels
// on, which is how nets of ImageNet are evaluated.
//
// Images come in turns, the first of every class, then the second: the first N are of all
// classes alike.
//
// not_found: no such folder, class or image. data_loss: an image that is damaged (names
// file and reason). unsupported: neither JPEG nor PNG, CMYK, over 100 million pixels.
// resource_exhausted: more than 2 GiB of pixels (says how many fit).
#pragma once

#include <filesystem>

#include "recipes/data/images.h"

namespace nibble {

struct ImageShape {
  int64_t channels = 3, height = 0, width = 0;
};

// Are there folders of JPEG and PNG files here?
bool is_image_folder(const std::filesystem::path& directory);
// limit: images at most; 0: all.
Result<ImageSet> load_image_folder(const std::filesystem::path& directory, Split split,
                                   const ImageShape& shape, int64_t limit);

}  // namespace nibble
