#include "recipes/data/image_folder.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <sstream>

#include "kernels/base/file.h"
#include "kernels/base/parallel.h"
#include "kernels/base/tensor.h"
#include "recipes/data/decode_image.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMostBytes = int64_t{1} << 31;

bool has_image_name(const fs::path& path) {
  std::string end = path.extension().string();
  std::transform(end.begin(), end.end(), end.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return end == ".jpg" || end == ".jpeg" || end == ".png";
}

// Entries that `wanted` takes, sorted by name; none where the folder cannot be read.
template <class Wanted>
std::vector<fs::path> entries(const fs::path& directory, const Wanted& wanted) {
  std::vector<fs::path> found;
  std::error_code failed;
  for (fs::directory_iterator entry(directory, failed), end; !failed && entry != end;
       entry.increment(failed)) {
    if (wanted(*entry)) found.push_back(entry->path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<fs::path> images_in(const fs::path& directory) {
  return entries(directory, [](const fs::directory_entry& entry) {
    return entry.is_regular_file() && has_image_name(entry.path());
  });
}

std::vector<fs::path> classes_in(const fs::path& directory) {
  return entries(directory, [](const fs::directory_entry& entry) {
    return entry.is_directory() && !images_in(entry.path()).empty();
  });
}

// Where the split's class folders are; "" when there are none.
fs::path split_folder(const fs::path& directory, Split split) {
  const std::vector<const char*> names =
      split == Split::train ? std::vector<const char*>{"train"}
                            : std::vector<const char*>{"val", "test"};
  for (const char* name : names) {
    if (!classes_in(directory / name).empty()) return directory / name;
  }
  return classes_in(directory).empty() ? fs::path() : directory;
}

// Class name -> number.
Result<std::map<std::string, int32_t>> numbers_of(const fs::path& directory,
                                                  const std::vector<fs::path>& classes) {
  std::map<std::string, int32_t> numbers;
  const fs::path list = directory / "classes.txt";
  if (!fs::exists(list)) {
    for (const fs::path& path : classes)
      numbers.emplace(path.filename().string(), static_cast<int32_t>(numbers.size()));
    return numbers;
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, read_text_file(list));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (!line.empty()) numbers.emplace(line, static_cast<int32_t>(numbers.size()));
  }
  for (const fs::path& path : classes) {
    if (numbers.count(path.filename().string())) continue;
    return error(StatusCode::not_found, "[images] ", list.string(), ": the class ",
                 path.filename().string(),
                 " was required, whose folder holds images; found ", numbers.size(),
                 " others; add its line");
  }
  return numbers;
}

// Weights of the source pixels that one pixel of a smaller or larger axis is made of.
struct Taps {
  int64_t first = 0;
  std::vector<double> weights;
};
std::vector<Taps> triangle_taps(int64_t from, int64_t to) {
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  const double support = std::max(scale, 1.0);
  std::vector<Taps> taps;
  for (int64_t i = 0; i < to; ++i) {
    const double center = (static_cast<double>(i) + 0.5) * scale;
    const auto first = std::max<int64_t>(
        0, static_cast<int64_t>(std::floor(center - support + 0.5)));
    const auto last = std::min<int64_t>(
        from, static_cast<int64_t>(std::floor(center + support + 0.5)));
    Taps tap{first, {}};
    double sum = 0;
    for (int64_t j = first; j < last; ++j) {
      const double away = std::fabs(static_cast<double>(j) + 0.5 - center) / support;
      tap.weights.push_back(std::max(0.0, 1 - away));
      sum += tap.weights.back();
    }
    for (double& weight : tap.weights) weight /= sum;
    taps.push_back(std::move(tap));
  }
  return taps;
}

// The middle of the image whose shorter side is `side`, in planes.
void fit(const RgbImage& image, int64_t side, const ImageShape& shape, uint8_t* out) {
  const double factor =
      static_cast<double>(side) / static_cast<double>(std::min(image.height, image.width));
  const auto scaled = [&](int64_t size) {
    return std::max(side, static_cast<int64_t>(
                              std::lround(static_cast<double>(size) * factor)));
  };
  const std::vector<Taps> down = triangle_taps(image.height, scaled(image.height));
  const std::vector<Taps> across = triangle_taps(image.width, scaled(image.width));
  const int64_t top = (static_cast<int64_t>(down.size()) - shape.height) / 2;
  const int64_t left = (static_cast<int64_t>(across.size()) - shape.width) / 2;
  // Rows first, of the columns that are kept.
  const Taps& bottom = down[static_cast<size_t>(top + shape.height - 1)];
  const int64_t first_row = down[static_cast<size_t>(top)].first;
  const int64_t rows =
      bottom.first + static_cast<int64_t>(bottom.weights.size()) - first_row;
  std::vector<double> lines(static_cast<size_t>(rows * shape.width * 3));
  for (int64_t y = 0; y < rows; ++y) {
    const uint8_t* row = image.pixels.data() + (first_row + y) * image.width * 3;
    double* to = lines.data() + y * shape.width * 3;
    for (int64_t x = 0; x < shape.width; ++x) {
      const Taps& tap = across[static_cast<size_t>(left + x)];
      for (size_t k = 0; k < tap.weights.size(); ++k) {
        const uint8_t* pixel = row + (tap.first + static_cast<int64_t>(k)) * 3;
        for (int64_t c = 0; c < 3; ++c) to[x * 3 + c] += tap.weights[k] * pixel[c];
      }
    }
  }
  for (int64_t y = 0; y < shape.height; ++y) {
    const Taps& tap = down[static_cast<size_t>(top + y)];
    for (int64_t x = 0; x < shape.width; ++x) {
      double rgb[3] = {0, 0, 0};
      for (size_t k = 0; k < tap.weights.size(); ++k) {
        const double* line =
            lines.data() +
            ((tap.first - first_row + static_cast<int64_t>(k)) * shape.width + x) * 3;
        for (int64_t c = 0; c < 3; ++c) rgb[c] += tap.weights[k] * line[c];
      }
      const int64_t at = y * shape.width + x, plane = shape.height * shape.width;
      if (shape.channels == 1) {  // ITU-R 601, as PIL's "L"
        const double gray = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];
        out[at] = static_cast<uint8_t>(std::lround(gray));
        continue;
      }
      for (int64_t c = 0; c < 3; ++c)
        out[c * plane + at] = static_cast<uint8_t>(std::lround(rgb[c]));
    }
  }
}

}  // namespace

bool is_image_folder(const fs::path& directory) {
  return !split_folder(directory, Split::train).empty() ||
         !split_folder(directory, Split::test).empty();
}

Result<ImageSet> load_image_folder(const fs::path& directory, Split split,
                                   const ImageShape& shape, int64_t limit) {
  if ((shape.channels != 1 && shape.channels != 3) || shape.height < 1 ||
      shape.width < 1) {
    return error(StatusCode::unsupported, "[images] ", directory.string(),
                 ": a model of images of 1 or 3 channels was required; found ",
                 shape.channels, " x ", shape.height, " x ", shape.width);
  }
  const fs::path folder = split_folder(directory, split);
  const std::vector<fs::path> classes = classes_in(folder);
  if (classes.empty()) {
    return error(StatusCode::not_found, "[images] ", directory.string(),
                 ": folders of JPEG or PNG files, one a class, were required",
                 split == Split::test ? " in it, in val or in test" : " in it or in train",
                 "; found none");
  }
  NIBBLE_ASSIGN_OR_RETURN(const auto numbers, numbers_of(directory, classes));
  std::vector<std::vector<fs::path>> files;
  size_t most = 0, total = 0;
  for (const fs::path& path : classes) {
    files.push_back(images_in(path));
    most = std::max(most, files.back().size());
    total += files.back().size();
  }
  const size_t wanted =
      limit > 0 ? std::min(total, static_cast<size_t>(limit)) : total;
  std::vector<std::pair<fs::path, int32_t>> chosen;
  for (size_t turn = 0; turn < most; ++turn) {
    for (size_t c = 0; c < files.size() && chosen.size() < wanted; ++c) {
      if (turn < files[c].size())
        chosen.emplace_back(files[c][turn],
                            numbers.at(classes[c].filename().string()));
    }
  }
  const int64_t size = shape.channels * shape.height * shape.width;
  if (static_cast<int64_t>(chosen.size()) > kMostBytes / size) {
    return error(StatusCode::resource_exhausted, "[images] ", directory.string(),
                 ": at most ", kMostBytes / size, " images of ", shape.height, " x ",
                 shape.width, " fit 2 GiB; found ", chosen.size(),
                 "; take fewer: --set data.images to train on, --limit to evaluate");
  }
  const int64_t shorter = std::min(shape.height, shape.width);
  const int64_t longer = std::max(shape.height, shape.width);
  const int64_t side = shorter < 64 ? longer : (longer * 8 + 3) / 7;
  ImageSet images;
  images.count = static_cast<int64_t>(chosen.size());
  images.channels = shape.channels;
  images.height = shape.height;
  images.width = shape.width;
  images.pixels.resize(static_cast<size_t>(images.count * size));
  std::vector<Status> done(chosen.size(), ok_status());
  std::vector<std::string> hashes(chosen.size());
  parallel_for(images.count, [&](int64_t i) {
    const auto at = static_cast<size_t>(i);
    const auto one = [&]() -> Status {
      const fs::path& path = chosen[at].first;
      NIBBLE_ASSIGN_OR_RETURN(const Bytes bytes, map_file(path));
      NIBBLE_ASSIGN_OR_RETURN(const RgbImage image,
                              decode_image(bytes.span(), path.string()));
      Sha256 hash;
      hash.update(bytes.data(), bytes.size());
      hashes[at] = hash.hex();
      fit(image, side, shape, images.pixels.data() + i * size);
      return ok_status();
    };
    done[at] = one();
  });
  Sha256 hash;
  for (size_t i = 0; i < chosen.size(); ++i) {
    NIBBLE_RETURN_IF_ERROR(done[i]);
    hash.update(hashes[i].data(), hashes[i].size());
    images.labels.push_back(chosen[i].second);
  }
  images.description =
      cat(folder.filename().string(), ": ", images.count, " images of ", classes.size(),
          " folders at ", shape.height, " x ", shape.width, ", sha256 ", hash.hex());
  return images;
}

}  // namespace nibble
