// How fast artifacts and exports are written, beside a plain write and fsync of the same
// bytes.
//
//   write_speed_bench [FOLDER [MEGABYTES [ROUNDS]]]     default: the temporary folder,
//   1000, 5
//
// For each format in turns, ROUNDS times: the export (everything it does: packing,
// checksums, reading back and comparing, syncing, the rename), then the same files by
// write() of 16 MiB and fsync. Prints the medians, and the ratio plain / export: 1 is as
// fast as the disk takes it. CPU seconds say what it costs beside other work.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <vector>

#include "export/exporter.h"
#include "kernels/base/file.h"
#include "kernels/base/splitmix64.h"
#include "kernels/packing/packed_tensor.h"

namespace {

namespace fs = std::filesystem;
using namespace nibble;

double seconds(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

template <class T>
T take(Result<T> result) {
  if (result.ok()) return std::move(result).value();
  std::fprintf(stderr, "%s\n", result.status().message().c_str());
  std::exit(1);
}

// Random codes under scales of 2^-10 to 2^-6, exact in every element.
PackedTensor random_weight(const QuantScheme& scheme, int64_t size, SplitMix64& random) {
  CodedMatrix q;
  q.scheme = scheme;
  q.rows = q.cols = size;
  q.codes.resize(static_cast<size_t>(size * size));
  const ElementInfo& info = element_info(scheme.code);
  const auto lowest = static_cast<int64_t>(info.lowest);
  for (uint8_t& code : q.codes) {
    const auto any = static_cast<int64_t>(random.below(uint64_t{1} << info.bits));
    code = static_cast<uint8_t>(info.kind == ElementKind::integer ? any + lowest : any);
    if (scheme.code == Element::e4m3 && (code & 0x7f) == 0x7f) code = 0;  // NaN
    if (scheme.narrow && static_cast<int8_t>(code) == lowest) code = 0;
  }
  const auto fill = [&](const std::vector<ScaleLevel>& levels, bool zeros) {
    std::vector<CodedLevel> made;
    for (const ScaleLevel& level : levels) {
      const LevelShape shape = level_shape(level.block, size, size);
      CodedLevel one{shape.rows, shape.cols, {}, 0};
      for (int64_t i = 0; i < shape.rows * shape.cols; ++i) {
        const auto draw = static_cast<int>(random.below(5));
        one.values.push_back(zeros ? static_cast<float>(5 + draw)
                                   : 1.0f / static_cast<float>(64 << draw));
      }
      made.push_back(std::move(one));
    }
    return made;
  };
  q.scales = fill(scheme.scales, false);
  q.offsets = fill(scheme.offsets, true);
  return take(pack(q, {size, size}));
}

Artifact random_model(const std::string& scheme_text, int64_t bytes) {
  constexpr int64_t kSize = 4096;
  SplitMix64 random(1);
  const QuantScheme scheme = take(parse_scheme(scheme_text));
  Artifact artifact;
  artifact.config_json = R"({"architectures":["Chain"],"model_type":"llama"})";
  Program& program = artifact.program;
  program.architecture = "Chain";
  program.vocabulary = 16;
  program.context_length = 8;
  program.inputs = {{"input_ids", DType::i64, {"batch", "sequence"}}};
  program.nodes.push_back({"embedding",
                           "embed",
                           kFirstBlock,
                           {"input_ids"},
                           {"embed"},
                           {{"weight", "embed.weight"}},
                           {{"features", kSize}}});
  artifact.tensors["embed.weight"] =
      make_tensor({16, kSize}, std::vector<float>(16 * kSize, 0.5f));
  std::vector<PackedTensor> weights;  // some, in turns: more than a cache holds
  for (int i = 0; i < 6; ++i) weights.push_back(random_weight(scheme, kSize, random));
  std::string x = "embed";
  int64_t written = 0;
  for (int i = 0; written < bytes; ++i) {
    const std::string name = cat("layers.", i, ".proj"), weight = name + ".weight";
    Node node{"linear", name, i, {x}, {name}, {{"weight", weight}}, {}};
    node.attributes["out_features"] = kSize;
    program.nodes.push_back(node);
    const PackedTensor& packed = weights[static_cast<size_t>(i) % weights.size()];
    artifact.packed[weight] = packed;
    artifact.layers[weight].weight = scheme;
    LedgerEntry entry;
    entry.tensor = weight;
    entry.scheme = scheme_text;
    entry.method = "random";
    entry.parameters = kSize * kSize;
    artifact.ledger.entries.push_back(entry);
    written += packed.bytes();
    x = name;
  }
  LedgerEntry entry;
  entry.tensor = "embed.weight";
  entry.scheme = "f32";
  entry.method = "float";
  entry.reason = "not chosen";
  artifact.ledger.entries.push_back(entry);
  std::sort(
      artifact.ledger.entries.begin(), artifact.ledger.entries.end(),
      [](const LedgerEntry& a, const LedgerEntry& b) { return a.tensor < b.tensor; });
  program.outputs = {{x, DType::f32, {"batch", "sequence", std::to_string(kSize)}}};
  return artifact;
}

// The files' own bytes, from memory.
struct Plain {
  std::vector<std::pair<std::string, std::string>> files;
  int64_t bytes = 0;
};
Plain contents(const fs::path& directory) {
  Plain plain;
  for (const auto& entry : fs::directory_iterator(directory)) {
    plain.files.emplace_back(entry.path().filename().string(),
                             take(read_text_file(entry.path())));
    plain.bytes += static_cast<int64_t>(plain.files.back().second.size());
  }
  return plain;
}

void write_plainly(const Plain& plain, const fs::path& directory) {
  fs::create_directory(directory);
  for (const auto& [name, text] : plain.files) {
    const int file =
        ::open((directory / name).c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    for (size_t at = 0; at < text.size();) {
      const ssize_t n =
          ::write(file, text.data() + at, std::min(text.size() - at, size_t{16} << 20));
      if (n <= 0) std::exit(6);
      at += static_cast<size_t>(n);
    }
    if (::fsync(file) != 0 || ::close(file) != 0) std::exit(6);
  }
}

// Of this process and all its threads, user and system.
double cpu_seconds() {
  rusage used;
  ::getrusage(RUSAGE_SELF, &used);
  const auto in_seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return in_seconds(used.ru_utime) + in_seconds(used.ru_stime);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int count, char** arguments) {
  const fs::path folder = count > 1 ? arguments[1] : fs::temp_directory_path().string();
  const int64_t megabytes = count > 2 ? std::atoll(arguments[2]) : 1000;
  const int rounds = count > 3 ? std::atoi(arguments[3]) : 5;
  const char* only = count > 4 ? arguments[4] : "";
  struct Row {
    const char* format;
    const char* scheme;
  };
  const Row rows[] = {{"nibble", "int4/g128@f16"},
                      {"nibble", "int8n/r@f32"},
                      {"compressed-tensors", "int4/g128@f16"},
                      {"compressed-tensors", "e4m3/r@f32"},
                      {"gptq", "int4/g128@f16"},
                      {"awq", "uint4/g128@f16+z/g128@uint4"},
                      {"bitsandbytes", "nf4/f64@f32"}};
  std::printf("%-20s %-30s %8s %10s %10s %10s %7s\n", "format", "scheme", "MB",
              "export s", "its CPU s", "plain s", "ratio");
  for (const Row& row : rows) {
    if (*only != 0 && std::string_view(only) != row.format) continue;
    const Exporter* exporter = take(find_exporter(row.format));
    const Artifact artifact = random_model(row.scheme, megabytes * 1000000);
    const fs::path directory = folder / cat("nibble_write_speed_", ::getpid());
    const auto plainly = fs::path(directory.string() + "_plain");
    Plain plain;
    std::vector<double> exported, written, computed;
    for (int round = 0; round < rounds; ++round) {
      const double before = cpu_seconds();
      exported.push_back(seconds([&] {
        const Status status = exporter->write(artifact, directory, {});
        if (!status.ok()) take(Result<int>(status));
      }));
      computed.push_back(cpu_seconds() - before);
      if (round == 0) plain = contents(directory);
      fs::remove_all(directory);
      written.push_back(seconds([&] { write_plainly(plain, plainly); }));
      fs::remove_all(plainly);
    }
    std::printf("%-20s %-30s %8.0f %10.2f %10.2f %10.2f %7.2f\n", row.format, row.scheme,
                static_cast<double>(plain.bytes) / 1e6, median(exported),
                median(computed), median(written), median(written) / median(exported));
    std::fflush(stdout);
  }
  return 0;
}
