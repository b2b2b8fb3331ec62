#include "kernels/base/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "tests/kernels/temporary_directory.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Every file and directory below path, relative to it, sorted.
std::vector<std::string> listing(const fs::path& path) {
  std::vector<std::string> names;
  for (const auto& entry : fs::recursive_directory_iterator(path)) {
    names.push_back(fs::relative(entry.path(), path).string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

void put(const fs::path& path, const std::string& text) { std::ofstream(path) << text; }

// Writes fail with EFBIG beyond this many bytes, as they would with ENOSPC on a full
// disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    before_handler_ = ::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    ::signal(SIGXFSZ, before_handler_);
  }

 private:
  rlimit before_{};
  void (*before_handler_)(int) = nullptr;
};

class FileTest : public ::testing::Test {
 protected:
  const fs::path& root() const { return temporary_.path(); }

 private:
  TemporaryDirectory temporary_;
};

TEST_F(FileTest, MapsWhatWasWritten) {
  const std::string contents("a\0b\nc", 5);
  ASSERT_TRUE(write_file_atomically(root() / "x", contents).ok());
  Bytes slice;
  {
    const Result<Bytes> bytes = map_file(root() / "x");
    ASSERT_TRUE(bytes.ok()) << bytes.status().message();
    EXPECT_EQ(bytes->text(), contents);
    slice = bytes->slice(2, 3);
  }
  EXPECT_EQ(slice.text(), "b\nc");  // the mapping lives as long as the slice
  EXPECT_EQ(*read_text_file(root() / "x"), contents);
  EXPECT_THAT(listing(root()), ElementsAre("x"));
}

TEST_F(FileTest, AnEmptyFileIsEmpty) {
  put(root() / "empty", "");
  const Result<Bytes> bytes = map_file(root() / "empty");
  ASSERT_TRUE(bytes.ok());
  EXPECT_EQ(bytes->size(), 0u);
}

TEST_F(FileTest, AMissingFileIsNamed) {
  const Status status = map_file(root() / "absent").status();
  EXPECT_EQ(status.code(), StatusCode::not_found);
  EXPECT_EQ(status.message(), "[file] " + (root() / "absent").string() +
                                  ": cannot open; No such file or directory");
}

TEST_F(FileTest, ADirectoryIsNotAFile) {
  const Status status = map_file(root()).status();
  EXPECT_EQ(status.code(), StatusCode::io_error);
  EXPECT_THAT(status.message(), HasSubstr("must be a regular file; found a directory"));
}

TEST_F(FileTest, ReplacesAFile) {
  put(root() / "x", "old");
  ASSERT_TRUE(write_file_atomically(root() / "x", "new").ok());
  EXPECT_EQ(*read_text_file(root() / "x"), "new");
}

TEST_F(FileTest, AFailedWriteKeepsTheOldFileAndLeavesNothing) {
  put(root() / "x", "old");
  Status status;
  {
    const FileSizeLimit limit(1000);
    status = write_file_atomically(root() / "x", std::string(5000, 'y'));
  }
  EXPECT_EQ(status.code(), StatusCode::io_error);
  EXPECT_THAT(status.message(), HasSubstr("cannot write; File too large"));
  EXPECT_EQ(*read_text_file(root() / "x"), "old");
  EXPECT_THAT(listing(root()), ElementsAre("x"));
}

TEST_F(FileTest, AFullDiskIsReportedAndNothingIsLeft) {
  const fs::path disk = root() / "disk";
  fs::create_directory(disk);
  if (::mount("nibble_test", disk.c_str(), "tmpfs", 0, "size=64k") != 0) {
    GTEST_SKIP() << "mounting a small tmpfs needs root and CAP_SYS_ADMIN";
  }
  std::vector<std::string> left;
  Status file, directory;
  {
    file = write_file_atomically(disk / "x", std::string(1 << 20, 'y'));
    Result<AtomicDirectory> out = AtomicDirectory::create(disk / "out", false);
    if (out.ok()) directory = out->write("big", std::string(1 << 20, 'y'));
  }
  left = listing(disk);
  ::umount(disk.c_str());
  EXPECT_EQ(file.code(), StatusCode::io_error);
  EXPECT_THAT(file.message(), HasSubstr("No space left on device"));
  EXPECT_EQ(directory.code(), StatusCode::io_error);
  EXPECT_THAT(directory.message(), HasSubstr("No space left on device"));
  EXPECT_THAT(left, IsEmpty());
}

TEST_F(FileTest, ADirectoryAppearsOnlyByCommit) {
  {
    Result<AtomicDirectory> out = AtomicDirectory::create(root() / "out", false);
    ASSERT_TRUE(out.ok()) << out.status().message();
    ASSERT_TRUE(out->write("a.txt", "one").ok());
    ASSERT_TRUE(out->write("deep/b.txt", "two").ok());
    EXPECT_FALSE(fs::exists(root() / "out"));
    ASSERT_TRUE(out->commit().ok());
    EXPECT_EQ(out->write("c.txt", "late").code(), StatusCode::failed_precondition);
    EXPECT_EQ(out->commit().code(), StatusCode::failed_precondition);
  }
  EXPECT_THAT(listing(root()),
              ElementsAre("out", "out/a.txt", "out/deep", "out/deep/b.txt"));
}

TEST_F(FileTest, WithoutCommitNothingIsLeftNotEvenTheParents) {
  {
    Result<AtomicDirectory> out =
        AtomicDirectory::create(root() / "new/parents/out/", false);
    ASSERT_TRUE(out.ok()) << out.status().message();
    ASSERT_TRUE(out->write("a.txt", "one").ok());
    AtomicDirectory moved = std::move(*out);
    ASSERT_TRUE(moved.write("b.txt", "two").ok());
    EXPECT_TRUE(fs::exists(moved.staging() / "a.txt"));
  }
  EXPECT_THAT(listing(root()), IsEmpty());
}

TEST_F(FileTest, AnExistingDirectoryIsReplacedOnlyWhenAsked) {
  fs::create_directory(root() / "out");
  put(root() / "out" / "old.txt", "old");
  const Status refused = AtomicDirectory::create(root() / "out", false).status();
  EXPECT_EQ(refused.code(), StatusCode::already_exists);
  EXPECT_EQ(refused.message(),
            "[file] " + (root() / "out").string() +
                ": must not exist; it does; choose another name, or --overwrite");
  Result<AtomicDirectory> out = AtomicDirectory::create(root() / "out", true);
  ASSERT_TRUE(out.ok());
  ASSERT_TRUE(out->write("new.txt", "new").ok());
  EXPECT_TRUE(fs::exists(root() / "out" / "old.txt"));
  ASSERT_TRUE(out->commit().ok());
  EXPECT_THAT(listing(root()), ElementsAre("out", "out/new.txt"));
}

TEST_F(FileTest, OverwriteReplacesNoFile) {
  put(root() / "out", "a file");
  const Status status = AtomicDirectory::create(root() / "out", true).status();
  EXPECT_EQ(status.code(), StatusCode::already_exists);
  EXPECT_THAT(status.message(),
              HasSubstr("only a directory can be replaced; found a file"));
}

TEST_F(FileTest, ADirectoryThatAppearsMeanwhileIsKept) {
  Result<AtomicDirectory> out = AtomicDirectory::create(root() / "out", false);
  ASSERT_TRUE(out.ok());
  ASSERT_TRUE(out->write("mine", "1").ok());
  fs::create_directory(root() / "out");
  put(root() / "out" / "theirs", "2");
  EXPECT_EQ(out->commit().code(), StatusCode::already_exists);
  EXPECT_EQ(*read_text_file(root() / "out" / "theirs"), "2");
}

TEST_F(FileTest, NamesMayNotLeaveTheDirectory) {
  Result<AtomicDirectory> out = AtomicDirectory::create(root() / "out", false);
  ASSERT_TRUE(out.ok());
  for (const char* name : {"../x", "a/../../x", "/tmp/x", ""}) {
    const Status status = out->write(name, "x");
    EXPECT_EQ(status.code(), StatusCode::invalid_argument) << name;
    EXPECT_THAT(status.message(), HasSubstr("a file name must lie inside the directory"));
  }
}

TEST_F(FileTest, AParentThatIsAFileIsReported) {
  put(root() / "file", "x");
  const Status status = AtomicDirectory::create(root() / "file" / "out", false).status();
  EXPECT_EQ(status.code(), StatusCode::io_error);
  EXPECT_THAT(status.message(), HasSubstr("Not a directory"));
  EXPECT_THAT(listing(root()), ElementsAre("file"));
}

TEST_F(FileTest, AFileAppearsWholeOrNotAtAll) {
  const fs::path path = root() / "made" / "a.gguf";
  {
    Result<AtomicFile> out = AtomicFile::create(path, false);
    ASSERT_TRUE(out.ok()) << out.status().message();
    ASSERT_TRUE(out->append("one ").ok());
    EXPECT_FALSE(fs::exists(path));
  }
  EXPECT_THAT(listing(root() / "made"), IsEmpty());
  Result<AtomicFile> out = AtomicFile::create(path, false);
  ASSERT_TRUE(out.ok());
  ASSERT_TRUE(out->append("one ").ok());
  ASSERT_TRUE(out->append("two").ok());
  ASSERT_TRUE(out->sync().ok());
  EXPECT_EQ(*read_text_file(out->staging()), "one two");
  ASSERT_TRUE(out->commit().ok());
  EXPECT_THAT(listing(root() / "made"), ElementsAre("a.gguf"));
  EXPECT_THAT(AtomicFile::create(path, false).status().message(),
              HasSubstr("must not exist; it does; choose another name, or --overwrite"));
  Result<AtomicFile> other = AtomicFile::create(path, true);
  ASSERT_TRUE(other.ok() && other->append("new").ok() && other->sync().ok());
  EXPECT_EQ(*read_text_file(path), "one two");
  ASSERT_TRUE(other->commit().ok());
  EXPECT_EQ(*read_text_file(path), "new");
  EXPECT_EQ(AtomicFile::create(root() / "made", true).status().code(),
            StatusCode::already_exists);
}

TEST_F(FileTest, AFullDiskLeavesNoFile) {
  Result<AtomicFile> out = AtomicFile::create(root() / "big", false);
  ASSERT_TRUE(out.ok());
  {
    const FileSizeLimit limit(1000);
    EXPECT_EQ(out->append(std::string(5000, 'x')).code(), StatusCode::io_error);
  }
  out = AtomicFile::create(root() / "other", false);
  EXPECT_THAT(listing(root()), ElementsAre(testing::StartsWith("other.partial-")));
}

TEST(Sha256, KnownDigests) {  // FIPS 180-4, appendix examples
  EXPECT_EQ(sha256_hex(""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 pieces;
  for (int i = 0; i < 1000000; i += 1000)
    pieces.update(std::string(1000, 'a').data(), 1000);
  EXPECT_EQ(pieces.hex(),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

// The CPU's instructions and OpenSSL, at every length about a block's end, in pieces that
// begin anywhere, and two hashes side by side.
TEST(Sha256, EveryWayGivesTheSameDigest) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += static_cast<char>(i * 131 + i / 7);
  const auto plain = [](std::string_view bytes) {
    Sha256 hash(/*by_cpu=*/false);
    hash.update(bytes.data(), bytes.size());
    return hash.hex();
  };
  EXPECT_EQ(plain("abc"), sha256_hex("abc"));
  for (size_t size = 0; size <= 300; ++size) {
    const std::string_view bytes = std::string_view(text).substr(0, size);
    EXPECT_EQ(sha256_hex(bytes), plain(bytes)) << size;
    Sha256 pieces;
    for (size_t at = 0; at < size; at += 37)
      pieces.update(bytes.data() + at, std::min<size_t>(37, size - at));
    EXPECT_EQ(pieces.hex(), plain(bytes)) << size;
    // The first begins `before` bytes earlier: their blocks end at different places.
    for (const size_t before : {0, 1, 63, 64, 100}) {
      Sha256 a, b;
      a.update(text.data(), before);
      Sha256::update_both(a, text.data() + before, b, bytes.data(), size);
      Sha256::update_both(a, text.data() + before + size, b, text.data() + size, 150);
      EXPECT_EQ(a.hex(), plain(std::string_view(text).substr(0, before + size + 150)));
      EXPECT_EQ(b.hex(), plain(std::string_view(text).substr(0, size + 150)));
    }
  }
  Sha256 a(false), b;
  Sha256::update_both(a, text.data(), b, text.data() + 1, 500);
  EXPECT_EQ(a.hex(), plain(std::string_view(text).substr(0, 500)));
  EXPECT_EQ(b.hex(), plain(std::string_view(text).substr(1, 500)));
}

TEST(PlacedFile, HoldsWhatWasWrittenInPlaces) {
  const fs::path path = fs::temp_directory_path() / cat("nibble_placed_", ::getpid());
  Result<PlacedFile> file = PlacedFile::open(path);
  ASSERT_TRUE(file.ok()) << file.status().message();
  ASSERT_TRUE(file->resize(300'000).ok());
  const std::string long_text(200'000, 'x');
  EXPECT_TRUE(file->write("end", 299'997).ok());
  EXPECT_TRUE(file->write(long_text, 10).ok());
  EXPECT_TRUE(file->sync().ok());
  const auto bytes = [](const std::string& text) {
    return Bytes::copy_of(text.data(), text.size());
  };
  EXPECT_TRUE(*file->holds(bytes(long_text), 10));
  EXPECT_TRUE(*file->holds(bytes("end"), 299'997));
  EXPECT_FALSE(*file->holds(bytes(long_text), 11));
  EXPECT_FALSE(*file->holds(bytes("ends"), 299'997));  // beyond the file
  fs::remove(path);
}

}  // namespace
}  // namespace nibble
