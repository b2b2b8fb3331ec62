// An artifact that is written piece by piece, interrupted and gone on with.
#include "kernels/artifact/artifact_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "kernels/base/file.h"
#include "kernels/base/memory.h"
#include "tests/kernels/random_artifact.h"
#include "tests/kernels/temporary_directory.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

Artifact sample() {
  Result<Artifact> artifact =
      random_artifact(3, {"int4/g32@f16", "", "nf4/f64@dyn8+o/f16384@f32", "int8n/r@f32"});
  EXPECT_TRUE(artifact.ok()) << artifact.status().message();
  return std::move(artifact).value();
}

ArtifactWriter::Outline outline_of(const Artifact& artifact) {
  ArtifactWriter::Outline outline;
  for (const auto& [name, tensor] : artifact.tensors)
    outline.floats[name] = {tensor.dtype, tensor.shape};
  for (const auto& [name, packed] : artifact.packed)
    outline.packed[name] = {packed.scheme, packed.shape};
  return outline;
}

Status add_layer(ArtifactWriter& writer, const Artifact& artifact,
                 const std::string& name) {
  return writer.add(artifact.layers.at(name), *artifact.ledger.find(name),
                    artifact.packed.at(name));
}

std::map<std::string, std::string> contents(const fs::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(directory))
    files[entry.path().filename().string()] = *read_text_file(entry.path());
  return files;
}

// What is missing, then all that write_artifact would write.
void complete(ArtifactWriter& writer, const Artifact& artifact) {
  for (const auto& [name, packed] : artifact.packed) {
    if (!writer.has(name)) {
      ASSERT_TRUE(add_layer(writer, artifact, name).ok());
    }
    ASSERT_TRUE(writer.end_block().ok());
  }
  for (const auto& [name, tensor] : artifact.tensors)
    ASSERT_TRUE(writer.add_float(name, tensor).ok());
  Artifact opened = artifact;
  ASSERT_TRUE(writer.open(opened).ok());
  for (const auto& [name, packed] : artifact.packed)
    EXPECT_EQ(opened.packed.at(name).codes.text(), packed.codes.text());
  const Status finished = writer.finish(opened, {{"report.html", "<p>"}});
  ASSERT_TRUE(finished.ok()) << finished.message();
}

class Streamed : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(
        write_artifact(artifact_, at("whole"), false, {{"report.html", "<p>"}}, 700).ok());
  }
  fs::path at(const char* name) const { return scratch_.path() / name; }
  Result<ArtifactWriter> resume(const std::string& fingerprint) const {
    return ArtifactWriter::resume(at("run"), fingerprint, outline_of(artifact_), 700);
  }
  TemporaryDirectory scratch_;
  Artifact artifact_ = sample();
};

TEST_F(Streamed, GivesTheBytesOfWriteArtifactInAnyOrder) {
  Result<ArtifactWriter> writer = resume("a");
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  EXPECT_EQ(writer->note(), "");
  ASSERT_TRUE(add_layer(*writer, artifact_, artifact_.packed.rbegin()->first).ok());
  complete(*writer, artifact_);
  EXPECT_EQ(contents(at("run") / "artifact"), contents(at("whole")));
}

TEST_F(Streamed, GoesOnAfterTheLastFinishedBlock) {
  const std::string first = artifact_.packed.begin()->first;
  const std::string last = artifact_.packed.rbegin()->first;
  {
    Result<ArtifactWriter> writer = resume("a");
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE(add_layer(*writer, artifact_, first).ok());
    ASSERT_TRUE(writer->end_block().ok());
    ASSERT_TRUE(add_layer(*writer, artifact_, last).ok());  // of a block that never ended
  }
  // A kill tears the journal's line, and leaves files that finish had begun.
  std::ofstream(at("run") / "journal", std::ios::app) << "0123 {\"weight\"";
  std::ofstream(at("run") / "artifact" / "manifest.json.partial-7") << "x";
  Result<ArtifactWriter> writer = resume("a");
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  EXPECT_EQ(writer->note(), "resumes an interrupted run: 1 of 3 layers are there");
  EXPECT_TRUE(writer->has(first));
  EXPECT_FALSE(writer->has(last));
  EXPECT_EQ(writer->entry(first), *artifact_.ledger.find(first));
  const Result<PackedTensor> packed = writer->packed(first);
  ASSERT_TRUE(packed.ok()) << packed.status().message();
  EXPECT_EQ(packed->codes.text(), artifact_.packed.at(first).codes.text());
  complete(*writer, artifact_);
  EXPECT_EQ(contents(at("run") / "artifact"), contents(at("whole")));
}

// All of a block or nothing of it.
TEST_F(Streamed, ABlockWhoseEndIsTornIsNotThere) {
  const std::string first = artifact_.packed.begin()->first;
  const std::string last = artifact_.packed.rbegin()->first;
  {
    Result<ArtifactWriter> writer = resume("a");
    for (const std::string& name : {first, last}) {
      ASSERT_TRUE(add_layer(*writer, artifact_, name).ok());
      ASSERT_TRUE(writer->end_block().ok());
    }
  }
  const auto journal = at("run") / "journal";
  std::filesystem::resize_file(journal, std::filesystem::file_size(journal) - 5);
  Result<ArtifactWriter> writer = resume("a");
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  EXPECT_TRUE(writer->has(first));
  EXPECT_FALSE(writer->has(last));
  complete(*writer, artifact_);
  EXPECT_EQ(contents(at("run") / "artifact"), contents(at("whole")));
}

TEST_F(Streamed, AnotherRequestBeginsAnew) {
  {
    Result<ArtifactWriter> writer = resume("a");
    ASSERT_TRUE(add_layer(*writer, artifact_, artifact_.packed.begin()->first).ok());
    ASSERT_TRUE(writer->end_block().ok());
  }
  Result<ArtifactWriter> writer = resume("b");
  ASSERT_TRUE(writer.ok());
  EXPECT_EQ(writer->note(), "an interrupted run of another request was there: begins anew");
  EXPECT_FALSE(writer->has(artifact_.packed.begin()->first));
  complete(*writer, artifact_);
  EXPECT_EQ(contents(at("run") / "artifact"), contents(at("whole")));
}

TEST_F(Streamed, OneWriterAtATime) {
  const Result<ArtifactWriter> first = resume("a");
  ASSERT_TRUE(first.ok());
  const Result<ArtifactWriter> second = resume("a");
  EXPECT_EQ(second.status().code(), StatusCode::failed_precondition);
  EXPECT_THAT(second.status().message(), HasSubstr("found another at work; wait for it"));
}

TEST_F(Streamed, SaysWhatIsWrong) {
  Result<ArtifactWriter> writer = resume("a");
  ASSERT_TRUE(writer.ok());
  const std::string name = artifact_.packed.begin()->first;
  PackedTensor other = artifact_.packed.at(name);
  other.shape.push_back(1);
  EXPECT_THAT(
      writer->add(artifact_.layers.at(name), *artifact_.ledger.find(name), other).message(),
      HasSubstr(cat("[artifact] ", name, ": a weight of the outline is required; found ")));
  ASSERT_TRUE(add_layer(*writer, artifact_, name).ok());
  EXPECT_THAT(add_layer(*writer, artifact_, name).message(),
              HasSubstr("a tensor of the outline, each once, is required; found it "
                        "written already"));
  EXPECT_THAT(writer->add_float("nothing", artifact_.tensors.begin()->second).message(),
              HasSubstr("[artifact] nothing: a tensor of the outline, each once, is "
                        "required; found none of this name"));
  Artifact opened = artifact_;
  const Status missing = writer->open(opened);
  EXPECT_EQ(missing.code(), StatusCode::failed_precondition);
  EXPECT_THAT(missing.message(), HasSubstr("found this one missing"));
}

TEST_F(Streamed, ADiskThatForgetsIsFound) {
  Result<ArtifactWriter> writer = resume("a");
  ASSERT_TRUE(writer.ok());
  for (const auto& [name, packed] : artifact_.packed)
    ASSERT_TRUE(add_layer(*writer, artifact_, name).ok());
  for (const auto& [name, tensor] : artifact_.tensors)
    ASSERT_TRUE(writer->add_float(name, tensor).ok());
  Artifact opened = artifact_;
  ASSERT_TRUE(writer->open(opened).ok());
  for (const auto& entry : fs::directory_iterator(writer->directory())) {
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-1, std::ios::end);
    const int last = file.peek();
    file.seekp(-1, std::ios::end);
    file.put(static_cast<char>(last ^ 1));
    break;
  }
  const Status status = writer->finish(opened, {});
  EXPECT_EQ(status.code(), StatusCode::io_error);
  EXPECT_THAT(status.message(), HasSubstr("must read back as it was written"));
}

// A mapped file passes through little memory.
TEST(Pages, OfAMappedFileGoBack) {
  if (process_memory().resident == 0) GTEST_SKIP() << "this system has no /proc";
  TemporaryDirectory directory;
  constexpr size_t kBytes = size_t{96} << 20;
  const fs::path path = directory.path() / "large";
  ASSERT_TRUE(write_file_atomically(path, std::string(kBytes, 'x')).ok());
  const Result<Bytes> bytes = map_file(path);
  ASSERT_TRUE(bytes.ok());
  const int64_t before = process_memory().resident;
  int64_t most = 0, count = 0;
  ASSERT_TRUE(for_each_piece(*bytes, [&](const Bytes& piece) {
                for (size_t i = 0; i < piece.size(); i += 4096)
                  count += piece.text()[i] == 'x';
                most = std::max(most, process_memory().resident - before);
                return ok_status();
              }).ok());
  EXPECT_EQ(count, static_cast<int64_t>(kBytes / 4096));
  EXPECT_GT(most, int64_t{8} << 20);   // a piece was there ...
  EXPECT_LT(most, int64_t{40} << 20);  // ... and never the file
  EXPECT_LT(process_memory().resident - before, int64_t{8} << 20);
  EXPECT_EQ(sha256_of(*bytes), sha256_hex(bytes->text()));
  // What is owned stays: its contents would be lost.
  const Bytes owned = Bytes::copy_of("abcd", 4);
  owned.release_pages();
  EXPECT_EQ(owned.text(), "abcd");
  EXPECT_EQ(bytes->slice(0, 8192).text(), std::string(8192, 'x'));
}

}  // namespace
}  // namespace nibble
