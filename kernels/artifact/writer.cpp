#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <set>
#include <span>
#include <utility>

#include "kernels/artifact/artifact_writer.h"
#include "kernels/artifact/manifest.h"
#include "kernels/artifact/shards.h"
#include "kernels/artifact/stored_parts.h"
#include "kernels/base/cancel.h"
#include "kernels/base/file.h"
#include "kernels/base/parallel.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kJournalHead = "nibble-journal 2 ";
constexpr std::string_view kBlockEnd = "end of block\n";

bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
}

// One file of weights.
struct WeightFile {
  std::string name;
  SafetensorsLayout layout;
  PlacedFile file;
  bool written = false;  // since the last sync
  std::string sha256;    // of all of it, where that is known before it is read back
};

// The codes of a layer, one a byte, some rows at a time through one small buffer: each
// must stand for a number.
class CodePieces {
 public:
  explicit CodePieces(const PackedTensor& packed)
      : packed_(packed),
        step_(std::max<int64_t>(1, kPiece / packed.cols)),
        codes_(static_cast<size_t>(std::min(step_, packed.rows) * packed.cols)) {}
  // Empty: there are no more.
  Result<std::span<const uint8_t>> next() {
    const int64_t rows = std::min(step_, packed_.rows - row_);
    NIBBLE_RETURN_IF_ERROR(unpack_rows(packed_, row_, rows, codes_.data()));
    row_ += rows;
    return std::span<const uint8_t>(codes_.data(),
                                    static_cast<size_t>(rows * packed_.cols));
  }

 private:
  static constexpr int64_t kPiece = 128 << 10;  // two of them stay in a core's own cache
  const PackedTensor& packed_;
  int64_t step_, row_ = 0;
  std::vector<uint8_t> codes_;
};

// Codes of 8 bits are stored as they are unpacked: their tensor's checksum is theirs.
bool stores_codes(const PackedTensor& packed) {
  return element_info(packed.scheme.code).bits == 8;
}

// Checks the codes of one or two layers, side by side (update_both), and gives their
// checksums: "" where they are their tensor's. second may be null.
Status hash_codes(const PackedTensor& first, const PackedTensor* second, std::string& a,
                  std::string& b) {
  CodePieces pieces(first);
  std::optional<CodePieces> others;
  if (second != nullptr) others.emplace(*second);
  const bool hashes_a = !stores_codes(first);
  const bool hashes_b = others && !stores_codes(*second);
  Sha256 hash, other;
  std::span<const uint8_t> codes, beside;
  for (;;) {
    if (codes.empty()) {
      NIBBLE_ASSIGN_OR_RETURN(codes, pieces.next());
    }
    if (beside.empty() && others) {
      NIBBLE_ASSIGN_OR_RETURN(beside, others->next());
    }
    if (codes.empty() && beside.empty()) break;
    if (hashes_a && hashes_b && !codes.empty() && !beside.empty()) {
      const size_t size = std::min(codes.size(), beside.size());
      Sha256::update_both(hash, codes.data(), other, beside.data(), size);
      codes = codes.subspan(size);
      beside = beside.subspan(size);
      continue;
    }
    if (hashes_a) hash.update(codes.data(), codes.size());
    if (hashes_b) other.update(beside.data(), beside.size());
    codes = beside = {};
  }
  if (hashes_a) a = hash.hex();
  if (hashes_b) b = other.hex();
  return ok_status();
}

}  // namespace

struct ArtifactWriter::Implementation {
  fs::path directory;
  std::string note;
  std::map<std::string, StoredShape> stored;  // every tensor on disk
  std::map<std::string, std::string> sha256;  // of those that are written
  std::vector<Shard> shards;
  std::vector<WeightFile> files;
  std::map<std::string, size_t> file_of;  // stored tensor -> index of files
  std::map<std::string, WeightShape> weights;
  std::map<std::string, JournalEntry> layers;  // that are written
  PlacedFile journal;
  uint64_t journal_bytes = 0;
  bool has_journal = false;
  std::string pending;  // the journal's lines of this block
  Manifest manifest;
  std::set<std::string> claimed;  // file names
  std::map<std::string, Bytes> in_memory;  // stored tensors whose bytes stay until the end

  Status outline(const Outline& outline, int64_t shard_bytes) {
    const auto add = [this](const std::string& name, StoredShape shape) -> Status {
      if (stored.emplace(name, std::move(shape)).second) return ok_status();
      return error(
          StatusCode::invalid_argument, "[artifact] ", name,
          ": stored names must be unique; found another tensor of that name; a packed "
          "weight's parts are called <weight>.codes, .scale, .zero_point, .minimum");
    };
    for (const auto& [name, shape] : outline.floats)
      NIBBLE_RETURN_IF_ERROR(add(name, shape));
    weights = outline.packed;
    for (const auto& [name, weight] : weights) {
      int64_t cols = 1;
      for (size_t i = 1; i < weight.shape.size(); ++i) cols *= weight.shape[i];
      const int64_t rows = weight.shape.empty() ? 1 : weight.shape[0];
      for (const StoredPart& part : stored_parts(name, weight.scheme, rows, cols))
        NIBBLE_RETURN_IF_ERROR(add(part.name, {part.dtype, part.shape}));
    }
    std::map<std::string, int64_t> sizes;
    for (const auto& [name, shape] : stored)
      sizes[name] = static_cast<int64_t>(shape.bytes());
    shards = split_shards(sizes, shard_bytes);
    for (const Shard& shard : shards) {
      std::map<std::string, StoredShape> tensors;
      for (const std::string& name : shard.tensors) {
        tensors[name] = stored.at(name);
        file_of[name] = files.size();
      }
      WeightFile file;
      file.name = shard.file;
      NIBBLE_ASSIGN_OR_RETURN(file.layout,
                              layout_safetensors(tensors, {{"format", "pt"}}));
      files.push_back(std::move(file));
    }
    return ok_status();
  }

  Status open_files() {
    for (WeightFile& file : files) {
      NIBBLE_ASSIGN_OR_RETURN(file.file, PlacedFile::open(directory / file.name));
      NIBBLE_RETURN_IF_ERROR(file.file.resize(file.layout.bytes));
      NIBBLE_RETURN_IF_ERROR(file.file.write(file.layout.head, 0));
    }
    return ok_status();
  }

  // The layers that the journal of an earlier run names; false: it is of another run.
  bool read_journal(const std::string& fingerprint, const fs::path& path) {
    const Result<std::string> text = read_text_file(path);
    const std::string head = cat(kJournalHead, fingerprint, "\n");
    if (!text.ok() || text->compare(0, head.size(), head) != 0) return false;
    for (const WeightFile& file : files) {
      std::error_code failed;
      if (fs::file_size(directory / file.name, failed) != file.layout.bytes || failed)
        return false;
    }
    journal_bytes = head.size();
    std::vector<JournalEntry> block;  // one that a kill has torn counts as not written
    for (size_t at = journal_bytes; at < text->size();) {
      const size_t end = text->find('\n', at);
      if (end == std::string::npos) break;
      const std::string_view line = std::string_view(*text).substr(at, end + 1 - at);
      at = end + 1;
      if (line == kBlockEnd) {
        for (JournalEntry& entry : block) {
          for (const auto& [name, hash] : entry.sha256) sha256[name] = hash;
          layers.insert_or_assign(entry.ledger.tensor, std::move(entry));
        }
        block.clear();
        journal_bytes = at;
        continue;
      }
      Result<JournalEntry> entry = parse_journal_line(line);
      if (!entry.ok()) break;
      const auto weight = weights.find(entry->ledger.tensor);
      if (weight == weights.end() || !(weight->second.scheme == entry->weight.layer.weight))
        return false;
      block.push_back(std::move(*entry));
    }
    return true;
  }

  Status check_place(const std::string& name, const Bytes& bytes) const {
    const auto found = stored.find(name);
    if (found == stored.end() || found->second.bytes() != bytes.size() ||
        sha256.count(name)) {
      return error(StatusCode::invalid_argument, "[artifact] ", name,
                   ": a tensor of the outline, each once, is required; found ",
                   found == stored.end() ? "none of this name"
                   : sha256.count(name)  ? "it written already"
                                         : "another size");
    }
    return ok_status();
  }

  Status check_float(const std::string& name, const Tensor& tensor) const {
    const auto found = stored.find(name);
    if (found == stored.end() ||
        (found->second.dtype == tensor.dtype && found->second.shape == tensor.shape)) {
      return ok_status();
    }
    return error(StatusCode::invalid_argument, "[artifact] ", name,
                 ": the outline's type and shape are required; found ",
                 dtype_name(tensor.dtype), " ", shape_text(tensor.shape));
  }

  // To its place, and its checksum; record() makes it known. Safe from several threads.
  Result<std::string> put(const std::string& name, const Bytes& bytes) const {
    NIBBLE_RETURN_IF_ERROR(check_place(name, bytes));
    const WeightFile& file = files[file_of.at(name)];
    Sha256 hash;
    NIBBLE_RETURN_IF_ERROR(file.file.write(bytes, file.layout.offsets.at(name), &hash));
    return hash.hex();
  }

  void record(const std::string& name, std::string hash) {
    sha256[name] = std::move(hash);
    files[file_of.at(name)].written = true;
  }

  // Everything of a layer's line but its checksums.
  Result<JournalEntry> describe_layer(const LayerScheme& scheme, const LedgerEntry& entry,
                                      const PackedTensor& packed) const {
    const std::string& name = entry.tensor;
    const auto weight = weights.find(name);
    if (weight == weights.end() || !(weight->second.scheme == packed.scheme) ||
        weight->second.shape != packed.shape) {
      return error(StatusCode::invalid_argument, "[artifact] ", name,
                   ": a weight of the outline is required; found ",
                   to_string(packed.scheme), " ", shape_text(packed.shape));
    }
    CodedMatrix levels;
    NIBBLE_RETURN_IF_ERROR(unpack_levels(packed, levels));
    JournalEntry line;
    line.weight = {.layer = scheme,
                   .shape = packed.shape,
                   .rows = packed.rows,
                   .cols = packed.cols,
                   .scale_shift = packed.scales[0].shift,
                   .offset_shift = packed.offsets.empty() ? 0 : packed.offsets[0].shift,
                   .codes_sha256 = ""};
    line.ledger = entry;
    return line;
  }

  static std::string codes_of(const JournalEntry& line) {
    return line.ledger.tensor + ".codes";
  }

  // A layer's parts to their places. Safe from several threads.
  Result<JournalEntry> put_layer(const LayerScheme& scheme, const LedgerEntry& entry,
                                 const PackedTensor& packed,
                                 const std::map<std::string, Tensor>& beside) const {
    NIBBLE_ASSIGN_OR_RETURN(JournalEntry line, describe_layer(scheme, entry, packed));
    std::string none;
    NIBBLE_RETURN_IF_ERROR(hash_codes(packed, nullptr, line.weight.codes_sha256, none));
    for (const StoredPart& part :
         stored_parts(entry.tensor, packed.scheme, packed.rows, packed.cols)) {
      NIBBLE_ASSIGN_OR_RETURN(line.sha256[part.name],
                              put(part.name, part_bytes(packed, part)));
    }
    if (stores_codes(packed)) line.weight.codes_sha256 = line.sha256.at(codes_of(line));
    for (const auto& [name, tensor] : beside) {
      NIBBLE_RETURN_IF_ERROR(check_float(name, tensor));
      NIBBLE_ASSIGN_OR_RETURN(line.sha256[name], put(name, tensor.bytes));
    }
    return line;
  }

  Status record_layer(JournalEntry line) {
    for (const auto& [part, hash] : line.sha256) record(part, hash);
    if (has_journal) {
      NIBBLE_ASSIGN_OR_RETURN(const std::string text, print_journal_line(line));
      pending += text;
    }
    const std::string name = line.ledger.tensor;
    layers[name] = std::move(line);
    return ok_status();
  }

  // Of what is written.
  Result<Tensor> view(const std::string& name) const {
    const WeightFile& file = files[file_of.at(name)];
    const StoredShape& shape = stored.at(name);
    NIBBLE_ASSIGN_OR_RETURN(const Bytes bytes, map_file(directory / file.name));
    return Tensor{shape.dtype, shape.shape,
                  bytes.slice(file.layout.offsets.at(name), shape.bytes())};
  }

  Status sync() {
    for (WeightFile& file : files) {
      if (!file.written) continue;
      NIBBLE_RETURN_IF_ERROR(file.file.sync());
      file.written = false;
    }
    return ok_status();
  }

  // --- finish

  Status claim(const std::string& name) {
    if (is_plain_name(name) && claimed.insert(name).second) return ok_status();
    return error(StatusCode::invalid_argument, "[artifact] ", name,
                 ": a file of an artifact needs a plain name of its own; found one that ",
                 is_plain_name(name) ? "is taken" : "is not");
  }

  Status write_file(const std::string& name, std::string_view contents) {
    NIBBLE_RETURN_IF_ERROR(claim(name));
    return write_file_atomically(directory / name, contents);
  }

  Status write_listed(const std::string& name, std::string_view contents) {
    NIBBLE_RETURN_IF_ERROR(write_file(name, contents));
    manifest.files[name] = {static_cast<int64_t>(contents.size()), sha256_hex(contents)};
    return ok_status();
  }

  // Is this what was written? Against what is still in memory, else by its checksum.
  Result<bool> holds(const WeightFile& file, const std::string& name,
                     const Tensor& read) const {
    const auto source = in_memory.find(name);
    if (source == in_memory.end()) return sha256_of(read.bytes) == sha256.at(name);
    if (source->second.size() != read.bytes.size()) return false;
    return file.file.holds(source->second, file.layout.offsets.at(name));
  }

  // What counts is what the disk holds: every byte is read again and compared.
  Status read_back(const WeightFile& file) {
    const fs::path path = directory / file.name;
    NIBBLE_RETURN_IF_ERROR(claim(file.name));
    NIBBLE_ASSIGN_OR_RETURN(const Bytes bytes, map_file(path));
    NIBBLE_ASSIGN_OR_RETURN(const SafetensorsFile read, read_safetensors(path));
    const std::vector<std::string>& order = file.layout.order;
    ManifestFile whole{static_cast<int64_t>(bytes.size()), file.sha256};
    std::vector<Result<bool>> same(order.size() + 1, Result<bool>(false));
    // The file's own checksum, where nobody knows it yet, beside those of its tensors.
    parallel_for(static_cast<int64_t>(order.size()) + 1, [&](int64_t i) {
      const auto at = static_cast<size_t>(i);
      if (i == 0) {
        if (whole.sha256.empty()) whole.sha256 = sha256_of(bytes);
        const std::string& head = file.layout.head;
        same[0] = bytes.size() == file.layout.bytes &&
                  bytes.slice(0, head.size()).text() == head;
        return;
      }
      const auto found = read.tensors.find(order[at - 1]);
      if (found != read.tensors.end())
        same[at] = holds(file, order[at - 1], found->second);
    });
    manifest.files[file.name] = whole;
    NIBBLE_RETURN_IF_ERROR(check_cancelled("artifact"));
    for (size_t i = 0; i <= order.size(); ++i) {
      const std::string name = i == 0 ? "the header" : cat("tensor ", order[i - 1]);
      if (!same[i].ok()) return same[i].status();
      if (!*same[i]) {
        return error(StatusCode::io_error, "[artifact] ", path.string(), ": ", name,
                     ": must read back as it was written; found other bytes; is the disk "
                     "sound?");
      }
      if (i == 0) continue;
      const std::string& tensor = order[i - 1];
      manifest.tensors[tensor] = {file.name, dtype_name(stored.at(tensor).dtype),
                                  stored.at(tensor).shape, sha256.at(tensor)};
    }
    return ok_status();
  }

  // --- everything at once, from memory

  // The checksum of a file and of each of its tensors, from the tensors in memory.
  void hash_file(WeightFile& file,
                 const std::map<std::string, std::string*>& into) const {
    Sha256 whole;
    whole.update(file.layout.head.data(), file.layout.head.size());
    for (const std::string& name : file.layout.order) {
      Sha256 own;
      (void)for_each_piece(in_memory.at(name), [&](const Bytes& piece) -> Status {
        constexpr size_t kChunk = size_t{16} << 10;  // twice from the nearest cache
        for (size_t done = 0; done < piece.size(); done += kChunk) {
          const std::byte* data = piece.data() + done;
          Sha256::update_both(whole, data, own, data,
                              std::min(kChunk, piece.size() - done));
        }
        return check_cancelled("artifact");
      });
      *into.at(name) = own.hex();
    }
    file.sha256 = whole.hex();
  }

  Status put_all(const Artifact& artifact) {
    std::map<std::string, std::string> hashes;
    for (const auto& [name, tensor] : artifact.tensors) {
      NIBBLE_RETURN_IF_ERROR(check_float(name, tensor));
      NIBBLE_RETURN_IF_ERROR(check_place(name, tensor.bytes));
      in_memory[name] = tensor.bytes;
    }
    std::vector<const PackedTensor*> packed;
    std::vector<const std::string*> names;
    for (const auto& [name, tensor] : artifact.packed) {
      packed.push_back(&tensor);
      names.push_back(&name);
    }
    std::vector<Result<JournalEntry>> described(packed.size(), JournalEntry());
    parallel_for(static_cast<int64_t>(packed.size()), [&](int64_t i) {
      const auto at = static_cast<size_t>(i);
      LedgerEntry entry;
      entry.tensor = *names[at];
      described[at] =
          describe_layer(artifact.layers.at(entry.tensor), entry, *packed[at]);
    });
    std::vector<JournalEntry> lines;
    for (size_t i = 0; i < packed.size(); ++i) {
      NIBBLE_ASSIGN_OR_RETURN(JournalEntry line, std::move(described[i]));
      const PackedTensor& tensor = *packed[i];
      for (const StoredPart& part :
           stored_parts(*names[i], tensor.scheme, tensor.rows, tensor.cols)) {
        in_memory[part.name] = part_bytes(tensor, part);
        NIBBLE_RETURN_IF_ERROR(check_place(part.name, in_memory[part.name]));
        line.sha256[part.name] = "";
      }
      lines.push_back(std::move(line));
    }
    // Writing first, so that the disk works while checksums are computed; then the files'
    // checksums, each one sequence; then the codes', two layers a time.
    std::vector<std::pair<const WeightFile*, const std::string*>> writes;
    std::map<std::string, std::string*> into;
    for (const WeightFile& file : files) {
      for (const std::string& name : file.layout.order) {
        if (!in_memory.count(name)) return missing(name);
        writes.emplace_back(&file, &name);
        into[name] = &hashes[name];
      }
    }
    const size_t first_code = writes.size() + files.size();
    const size_t jobs = first_code + (packed.size() + 1) / 2;
    std::vector<Status> outcomes(jobs);
    parallel_for(static_cast<int64_t>(jobs), [&](int64_t job) {
      const auto at = static_cast<size_t>(job);
      outcomes[at] = check_cancelled("artifact");
      if (!outcomes[at].ok()) return;
      if (at < writes.size()) {
        const auto& [file, name] = writes[at];
        outcomes[at] =
            file->file.write(in_memory.at(*name), file->layout.offsets.at(*name));
      } else if (at < first_code) {
        hash_file(files[at - writes.size()], into);
      } else {
        const size_t i = 2 * (at - first_code);
        const bool two = i + 1 < packed.size();
        std::string none;
        outcomes[at] = hash_codes(*packed[i], two ? packed[i + 1] : nullptr,
                                  lines[i].weight.codes_sha256,
                                  two ? lines[i + 1].weight.codes_sha256 : none);
      }
    });
    for (Status& outcome : outcomes) NIBBLE_RETURN_IF_ERROR(std::move(outcome));
    for (const auto& [name, tensor] : artifact.tensors) record(name, hashes.at(name));
    for (JournalEntry& line : lines) {
      for (auto& [part, hash] : line.sha256) hash = hashes.at(part);
      if (line.weight.codes_sha256.empty())
        line.weight.codes_sha256 = hashes.at(codes_of(line));
      NIBBLE_RETURN_IF_ERROR(record_layer(std::move(line)));
    }
    return ok_status();
  }

  static Status missing(const std::string& name) {
    return error(StatusCode::failed_precondition, "[artifact] ", name,
                 ": every tensor of the outline is required; found this one missing");
  }

  Status check_complete() const {
    for (const auto& [name, shape] : stored) {
      if (!sha256.count(name)) return missing(name);
    }
    return ok_status();
  }
};

ArtifactWriter::ArtifactWriter() : implementation_(std::make_unique<Implementation>()) {}
ArtifactWriter::ArtifactWriter(ArtifactWriter&&) noexcept = default;
ArtifactWriter& ArtifactWriter::operator=(ArtifactWriter&&) noexcept = default;
ArtifactWriter::~ArtifactWriter() = default;

Result<ArtifactWriter> ArtifactWriter::begin(const fs::path& directory,
                                             const Outline& outline,
                                             int64_t shard_bytes) {
  ArtifactWriter writer;
  Implementation& mine = *writer.implementation_;
  mine.directory = directory;
  NIBBLE_RETURN_IF_ERROR(mine.outline(outline, shard_bytes));
  NIBBLE_RETURN_IF_ERROR(mine.open_files());
  return writer;
}

Result<ArtifactWriter> ArtifactWriter::resume(const fs::path& work,
                                              const std::string& fingerprint,
                                              const Outline& outline,
                                              int64_t shard_bytes) {
  ArtifactWriter writer;
  Implementation& mine = *writer.implementation_;
  mine.directory = work / "artifact";
  mine.has_journal = true;
  NIBBLE_RETURN_IF_ERROR(mine.outline(outline, shard_bytes));
  std::error_code failed;
  const fs::path journal = work / "journal";
  const bool earlier = fs::exists(journal, failed);
  fs::create_directories(mine.directory, failed);
  if (failed) {
    return error(StatusCode::io_error, "[artifact] ", mine.directory.string(),
                 ": the directory could not be made: ", failed.message());
  }
  NIBBLE_ASSIGN_OR_RETURN(mine.journal, PlacedFile::open(journal));
  NIBBLE_RETURN_IF_ERROR(mine.journal.lock());
  if (earlier && mine.read_journal(fingerprint, journal)) {
    mine.note = mine.layers.empty()
                    ? "an interrupted run had finished no block: begins anew"
                    : cat("resumes an interrupted run: ", mine.layers.size(), " of ",
                          outline.packed.size(), " layers are there");
  } else {
    if (earlier) mine.note = "an interrupted run of another request was there: begins anew";
    mine.layers.clear();
    mine.sha256.clear();
    for (const auto& entry : fs::directory_iterator(mine.directory, failed))
      fs::remove_all(entry.path(), failed);
    const std::string head = cat(kJournalHead, fingerprint, "\n");
    NIBBLE_RETURN_IF_ERROR(mine.journal.resize(0));
    NIBBLE_RETURN_IF_ERROR(mine.journal.write(head, 0));
    mine.journal_bytes = head.size();
  }
  NIBBLE_RETURN_IF_ERROR(mine.journal.resize(mine.journal_bytes));  // a torn line goes
  // What finish had begun to write is written again.
  for (const auto& entry : fs::directory_iterator(mine.directory, failed)) {
    const std::string name = entry.path().filename().string();
    if (std::none_of(mine.files.begin(), mine.files.end(),
                     [&name](const WeightFile& file) { return file.name == name; })) {
      fs::remove_all(entry.path(), failed);
    }
  }
  NIBBLE_RETURN_IF_ERROR(mine.open_files());
  return writer;
}

Status ArtifactWriter::add(const LayerScheme& scheme, const LedgerEntry& entry,
                           const PackedTensor& packed,
                           const std::map<std::string, Tensor>& beside) {
  NIBBLE_ASSIGN_OR_RETURN(JournalEntry line,
                          implementation_->put_layer(scheme, entry, packed, beside));
  return implementation_->record_layer(std::move(line));
}

Status ArtifactWriter::add_all(const Artifact& artifact) {
  return implementation_->put_all(artifact);
}

Status ArtifactWriter::add_float(const std::string& name, const Tensor& tensor) {
  Implementation& mine = *implementation_;
  NIBBLE_RETURN_IF_ERROR(mine.check_float(name, tensor));
  NIBBLE_ASSIGN_OR_RETURN(std::string hash, mine.put(name, tensor.bytes));
  mine.record(name, std::move(hash));
  return ok_status();
}

Status ArtifactWriter::end_block() {
  Implementation& mine = *implementation_;
  if (!mine.has_journal || mine.pending.empty()) return ok_status();
  mine.pending += kBlockEnd;
  // The weights first: a line of the journal promises that they are there.
  NIBBLE_RETURN_IF_ERROR(mine.sync());
  NIBBLE_RETURN_IF_ERROR(mine.journal.write(mine.pending, mine.journal_bytes));
  mine.journal_bytes += mine.pending.size();
  mine.pending.clear();
  return mine.journal.sync();
}

bool ArtifactWriter::has(const std::string& weight) const {
  return implementation_->layers.count(weight) > 0;
}

const LedgerEntry& ArtifactWriter::entry(const std::string& weight) const {
  return implementation_->layers.at(weight).ledger;
}

Result<PackedTensor> ArtifactWriter::packed(const std::string& weight) const {
  const Implementation& mine = *implementation_;
  const auto layer = mine.layers.find(weight);
  if (layer == mine.layers.end()) {
    return error(StatusCode::not_found, "[artifact] ", weight,
                 ": a layer that was added is required; found none of this name");
  }
  std::map<std::string, Tensor> parts;
  for (const auto& [name, hash] : layer->second.sha256) {
    NIBBLE_ASSIGN_OR_RETURN(parts[name], mine.view(name));
  }
  return take_packed(weight, layer->second.weight, parts);
}

bool ArtifactWriter::has_float(const std::string& name) const {
  return implementation_->sha256.count(name) > 0;
}

Result<Tensor> ArtifactWriter::stored_float(const std::string& name) const {
  if (has_float(name)) return implementation_->view(name);
  return error(StatusCode::not_found, "[artifact] ", name,
               ": a tensor that was added is required; found none of this name");
}

Status ArtifactWriter::open(Artifact& artifact) const {
  const Implementation& mine = *implementation_;
  NIBBLE_RETURN_IF_ERROR(mine.check_complete());
  artifact.tensors.clear();
  artifact.packed.clear();
  artifact.layers.clear();
  for (const WeightFile& file : mine.files) {
    NIBBLE_ASSIGN_OR_RETURN(SafetensorsFile read,
                            read_safetensors(mine.directory / file.name));
    artifact.tensors.merge(read.tensors);
  }
  for (const auto& [name, line] : mine.layers) {
    NIBBLE_ASSIGN_OR_RETURN(artifact.packed[name],
                            take_packed(name, line.weight, artifact.tensors));
    artifact.layers[name] = line.weight.layer;
  }
  return ok_status();
}

Status ArtifactWriter::finish(const Artifact& artifact,
                              const std::map<std::string, std::string>& extra_files) {
  Implementation& mine = *implementation_;
  NIBBLE_RETURN_IF_ERROR(mine.check_complete());
  NIBBLE_RETURN_IF_ERROR(end_block());
  std::map<std::string, int64_t> sizes;
  for (const auto& [name, shape] : mine.stored)
    sizes[name] = static_cast<int64_t>(shape.bytes());
  for (const WeightFile& file : mine.files)
    NIBBLE_RETURN_IF_ERROR(mine.read_back(file));
  NIBBLE_RETURN_IF_ERROR(mine.sync());  // the disk was at it meanwhile
  const std::string index = shard_index(mine.shards, sizes);
  if (!index.empty()) NIBBLE_RETURN_IF_ERROR(mine.write_listed(kShardIndex, index));
  NIBBLE_RETURN_IF_ERROR(mine.write_listed(
      "config.json", artifact.config_json.empty() ? "{}" : artifact.config_json));
  for (const auto& [name, bytes] : artifact.tokenizer) {
    NIBBLE_RETURN_IF_ERROR(mine.write_listed(name, bytes.text()));
    mine.manifest.tokenizer.push_back(name);
  }
  for (const auto& [name, line] : mine.layers)
    mine.manifest.weights[name] = line.weight;
  mine.manifest.tool_version = kToolVersion;
  mine.manifest.program = artifact.program;
  mine.manifest.activations = artifact.activations;
  mine.manifest.image_mean = artifact.image_mean;
  mine.manifest.image_std = artifact.image_std;
  mine.manifest.ledger = artifact.ledger;
  mine.manifest.provenance = artifact.provenance;
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, print_manifest(mine.manifest));
  NIBBLE_RETURN_IF_ERROR(mine.write_file("manifest.json", text));
  for (const auto& [name, contents] : extra_files)
    NIBBLE_RETURN_IF_ERROR(mine.write_file(name, contents));
  return ok_status();
}

const fs::path& ArtifactWriter::directory() const { return implementation_->directory; }
const std::string& ArtifactWriter::note() const { return implementation_->note; }

ArtifactWriter::Outline ArtifactWriter::outline_of(const Artifact& artifact) {
  Outline outline;
  for (const auto& [name, tensor] : artifact.tensors)
    outline.floats[name] = {tensor.dtype, tensor.shape};
  for (const auto& [name, packed] : artifact.packed)
    outline.packed[name] = {packed.scheme, packed.shape};
  return outline;
}

Status write_artifact(const Artifact& artifact, const std::filesystem::path& directory,
                      bool overwrite,
                      const std::map<std::string, std::string>& extra_files,
                      int64_t shard_bytes,
                      const std::function<Status(const fs::path&)>& complete) {
  NIBBLE_RETURN_IF_ERROR(check_artifact(artifact));
  if (artifact.is_quantized()) {
    NIBBLE_RETURN_IF_ERROR(check_ledger(artifact.ledger, artifact.program));
  }
  NIBBLE_ASSIGN_OR_RETURN(AtomicDirectory staged,
                          AtomicDirectory::create(directory, overwrite));
  NIBBLE_ASSIGN_OR_RETURN(
      ArtifactWriter writer,
      ArtifactWriter::begin(staged.staging(), ArtifactWriter::outline_of(artifact),
                            shard_bytes));
  NIBBLE_RETURN_IF_ERROR(writer.add_all(artifact));
  NIBBLE_RETURN_IF_ERROR(writer.finish(artifact, extra_files));
  if (complete) NIBBLE_RETURN_IF_ERROR(complete(staged.staging()));
  return staged.commit();
}

}  // namespace nibble
