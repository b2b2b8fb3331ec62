#include "recipes/data/images.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "kernels/base/file.h"
#include "kernels/base/parallel.h"
#include "kernels/base/tensor.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr size_t kCifarPixels = 3 * 32 * 32;
constexpr size_t kCifarRecord = 1 + kCifarPixels;
constexpr int kCifarClasses = 10;
constexpr uint32_t kIdxImages = 0x803,
                   kIdxLabels = 0x801;          // unsigned bytes, 3 and 1 dimensions
constexpr size_t kMostBytes = size_t{1} << 30;  // unpacked: full MNIST is 47 MB

bool starts_with(const std::string& text, const char* prefix) {
  return text.rfind(prefix, 0) == 0;
}

// The names in the folder that `wanted` accepts, sorted; empty when it cannot be read.
template <class Wanted>
std::vector<std::string> names_in(const fs::path& directory, const Wanted& wanted) {
  std::vector<std::string> names;
  std::error_code failed;
  for (fs::directory_iterator entry(directory, failed), end; !failed && entry != end;
       entry.increment(failed)) {
    const std::string name = entry->path().filename().string();
    if (wanted(name)) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> cifar_files(const fs::path& directory, Split split) {
  return names_in(directory, [&](const std::string& name) {
    if (fs::path(name).extension() != ".bin") return false;
    return split == Split::test
               ? name == "test_batch.bin"
               : starts_with(name, "train") || starts_with(name, "data_batch");
  });
}

// "train-images-idx3-ubyte" or the same with .gz; "" when the folder has neither.
std::string idx_file(const fs::path& directory, const std::string& stem) {
  const auto names = names_in(directory, [&](const std::string& name) {
    return name == stem || name == stem + ".gz";
  });
  return names.empty() ? "" : names.front();
}

Result<ImageSet> load_cifar(const fs::path& directory,
                            const std::vector<std::string>& names) {
  ImageSet images;
  images.channels = 3, images.height = 32, images.width = 32;
  Sha256 hash;
  size_t all = 0;  // a vector that grows holds its images twice
  for (const std::string& name : names) {
    std::error_code unknown;
    const uintmax_t size = fs::file_size(directory / name, unknown);
    if (!unknown) all += size;
  }
  images.pixels.reserve(all);
  for (const std::string& name : names) {
    const fs::path path = directory / name;
    NIBBLE_ASSIGN_OR_RETURN(const Bytes bytes, map_file(path));
    if (bytes.size() == 0 || bytes.size() % kCifarRecord != 0)
      return error(StatusCode::data_loss, "[images] ", path.string(),
                   ": whole records of ", kCifarRecord, " bytes were required; found ",
                   bytes.size(), " bytes; the file is truncated or not CIFAR-10");
    hash.update(bytes.data(), bytes.size());
    const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
    for (size_t at = 0; at < bytes.size(); at += kCifarRecord) {
      if (data[at] >= kCifarClasses)
        return error(StatusCode::data_loss, "[images] ", path.string(), " image ",
                     at / kCifarRecord, ": a label below ", kCifarClasses,
                     " was required; found ", static_cast<int>(data[at]),
                     "; the file is damaged or not CIFAR-10");
      images.labels.push_back(data[at]);
      images.pixels.insert(images.pixels.end(), data + at + 1, data + at + kCifarRecord);
    }
  }
  images.count = static_cast<int64_t>(images.labels.size());
  images.description =
      cat("CIFAR-10 ", names.front(), names.size() > 1 ? " ... " + names.back() : "",
          ", ", images.count, " images, sha256 ", hash.hex());
  return images;
}

// The file's bytes, unpacked when it is gzip.
Result<std::vector<uint8_t>> read_unpacked(const fs::path& path) {
  gzFile file = gzopen(path.c_str(), "rb");
  if (!file)
    return error(
        StatusCode::io_error, "[images] ", path.string(),
        ": a readable file was required; it cannot be opened; check its permissions");
  std::vector<uint8_t> out;
  std::array<uint8_t, 65536> chunk;
  int read = 0;
  while ((read = gzread(file, chunk.data(), chunk.size())) > 0 && out.size() < kMostBytes)
    out.insert(out.end(), chunk.begin(), chunk.begin() + read);
  int code = Z_OK;
  const std::string message = gzerror(file, &code);  // a truncated gzip shows only here
  gzclose(file);
  if (read != 0 || code != Z_OK)
    return error(StatusCode::data_loss, "[images] ", path.string(),
                 ": a whole gzip or plain file below 1 GiB was required; found ",
                 message.empty() ? "more" : message, "; the file is damaged");
  return out;
}

// An IDX file: big-endian u32 magic, dimensions, then bytes.
struct Idx {
  std::vector<uint8_t> bytes;
  std::vector<int64_t> shape;
  size_t header = 0;
};
Result<Idx> read_idx(const fs::path& path, uint32_t magic) {
  Idx idx;
  NIBBLE_ASSIGN_OR_RETURN(idx.bytes, read_unpacked(path));
  const size_t dimensions = magic & 0xff;
  idx.header = 4 + 4 * dimensions;
  const auto word = [&](size_t at) {
    return static_cast<uint32_t>(idx.bytes[at]) << 24 |
           static_cast<uint32_t>(idx.bytes[at + 1]) << 16 |
           static_cast<uint32_t>(idx.bytes[at + 2]) << 8 | idx.bytes[at + 3];
  };
  if (idx.bytes.size() < idx.header || word(0) != magic)
    return error(StatusCode::data_loss, "[images] ", path.string(),
                 ": an IDX file of bytes in ", dimensions,
                 " dimensions was required; found another header; the file is damaged or "
                 "not MNIST");
  // In floating point no product of 32-bit numbers overflows.
  double needed = static_cast<double>(idx.header), elements = 1;
  for (size_t d = 0; d < dimensions; ++d) {
    idx.shape.push_back(word(4 + 4 * d));
    elements *= static_cast<double>(idx.shape.back());
  }
  needed += elements;
  if (needed != static_cast<double>(idx.bytes.size()))
    return error(StatusCode::data_loss, "[images] ", path.string(), ": ",
                 shape_text(idx.shape), " bytes after the header were required; found ",
                 idx.bytes.size() - idx.header, "; the file is truncated or damaged");
  return idx;
}

Result<ImageSet> load_mnist(const fs::path& directory, Split split) {
  const std::string prefix = split == Split::train ? "train" : "t10k";
  const std::string pixels = idx_file(directory, prefix + "-images-idx3-ubyte");
  const std::string labels = idx_file(directory, prefix + "-labels-idx1-ubyte");
  if (pixels.empty() || labels.empty())
    return error(
        StatusCode::not_found, "[images] ", directory.string(), ": ", prefix,
        "-images-idx3-ubyte and ", prefix, "-labels-idx1-ubyte (or .gz) were required; ",
        pixels.empty() ? "the images are" : "the labels are", " missing; add the file");
  NIBBLE_ASSIGN_OR_RETURN(const Idx images, read_idx(directory / pixels, kIdxImages));
  NIBBLE_ASSIGN_OR_RETURN(const Idx classes, read_idx(directory / labels, kIdxLabels));
  if (images.shape[0] != classes.shape[0])
    return error(StatusCode::data_loss, "[images] ", (directory / labels).string(), ": ",
                 images.shape[0], " labels, one an image, were required; found ",
                 classes.shape[0], "; the two files do not belong together");
  ImageSet out;
  out.count = images.shape[0], out.channels = 1;
  out.height = images.shape[1], out.width = images.shape[2];
  out.pixels.assign(images.bytes.begin() + static_cast<std::ptrdiff_t>(images.header),
                    images.bytes.end());
  out.labels.assign(classes.bytes.begin() + static_cast<std::ptrdiff_t>(classes.header),
                    classes.bytes.end());
  Sha256 hash;
  hash.update(images.bytes.data(), images.bytes.size());
  hash.update(classes.bytes.data(), classes.bytes.size());
  out.description =
      cat("MNIST ", prefix, ", ", out.count, " images, sha256 ", hash.hex());
  return out;
}

}  // namespace

Result<ImageSet> load_images(const fs::path& directory, Split split) {
  const auto cifar = cifar_files(directory, split);
  if (!cifar.empty()) return load_cifar(directory, cifar);
  if (!idx_file(directory, "t10k-images-idx3-ubyte").empty() ||
      !idx_file(directory, "train-images-idx3-ubyte").empty())
    return load_mnist(directory, split);
  const char* wanted =
      split == Split::test
          ? "test_batch.bin or t10k-images-idx3-ubyte[.gz]"
          : "train*.bin, data_batch*.bin or train-images-idx3-ubyte[.gz]";
  return error(StatusCode::not_found, "[images] ", directory.string(), ": ", wanted,
               " was required; found none; give a CIFAR-10 or MNIST folder as they are "
               "distributed, or folders of JPEG or PNG files, one a class");
}

void preprocess(const ImageSet& images, int64_t first, int64_t count,
                const std::vector<float>& mean, const std::vector<float>& std,
                float* out) {
  const int64_t plane = images.height * images.width;
  // A pixel has 256 values: every channel's formula is worked out once for each.
  std::vector<std::array<float, 256>> tables(static_cast<size_t>(images.channels));
  for (size_t c = 0; c < tables.size(); ++c)
    for (size_t value = 0; value < 256; ++value)
      tables[c][value] =
          (static_cast<float>(value) / 255.0f - (c < mean.size() ? mean[c] : 0.0f)) /
          (c < std.size() ? std[c] : 1.0f);
  parallel_for(count, [&](int64_t i) {
    for (int64_t c = 0; c < images.channels; ++c) {
      const uint8_t* from =
          images.pixels.data() + ((first + i) * images.channels + c) * plane;
      float* to = out + (i * images.channels + c) * plane;
      const auto& table = tables[static_cast<size_t>(c)];
      for (int64_t p = 0; p < plane; ++p) to[p] = table[from[p]];
    }
  });
}

}  // namespace nibble
