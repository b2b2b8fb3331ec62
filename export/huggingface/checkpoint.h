// A quantized Hugging Face directory as a reader meets it: config.json with its
// quantization_config, and every tensor, taken one by one.
//
// What the readers of this family share, and nothing that a writer uses: they prove what
// was written. data_loss: a tensor that is missing, or has another type or shape than the
// format's (named). Safe to call from any thread on different objects.
#pragma once

#include <bit>
#include <cstring>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <vector>

#include "export/huggingface/each_weight.h"
#include "kernels/base/tensor.h"
#include "kernels/scheme/decoded.h"

namespace nibble {

// Of a block's sides: far beyond any tensor, and sums and products of two stay in 64
// bits.
inline constexpr int64_t kMostBlock = int64_t{1} << 30;

class HfCheckpoint {
 public:
  // format: in messages. not_found: no config.json or weights; data_loss: no
  // quantization_config of this quant_method.
  static Result<HfCheckpoint> open(const std::filesystem::path& directory,
                                   const char* format);

  const nlohmann::json& quantization() const { return *quantization_; }
  const std::string& config_json() const { return config_json_; }
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  // The names that end so, without the end: the modules that have such a tensor.
  std::vector<std::string> modules_with(const std::string& suffix) const;
  bool has(const std::string& name) const { return tensors_.count(name) > 0; }

  // Takes a tensor of one of these types and of this shape; -1 stands for any size. Each
  // can be taken once. Safe from several threads.
  Result<Tensor> take(const std::string& name, std::initializer_list<DType> dtypes,
                      const std::vector<int64_t>& shape);
  // Memory for n codes, which a weight before may have used: what it holds is not said.
  // Fresh pages cost more than what is written to them. Safe from several threads.
  std::vector<uint8_t> spare_codes(int64_t n);
  // What nobody took.
  std::map<std::string, Tensor> rest() const;

  // body decodes one of the modules, several at a time; what it found goes to `each`,
  // where there is one, and else to decoded. Gives the first module's failure, and throws
  // what body threw.
  Status read_modules(
      const std::vector<std::string>& modules, const EachWeight& each, Decoded& decoded,
      const std::function<Status(const std::string& module, Decoded& one)>& body);

  template <class... Parts>
  Status damaged(const std::string& where, const Parts&... parts) const {
    return error(StatusCode::data_loss, "[", format_, "] ", where, ": ", parts...);
  }
  template <class... Parts>
  Status unsupported(const std::string& where, const Parts&... parts) const {
    return error(StatusCode::unsupported, "[", format_, "] ", where, ": ", parts...);
  }

 private:
  bool is_taken(const std::string& name) const;

  std::string format_, config_json_;
  std::shared_ptr<const nlohmann::json> quantization_;
  std::map<std::string, Tensor> tensors_;
  std::set<std::string> taken_;              // guarded by *mutex_
  std::vector<std::vector<uint8_t>> spare_;  // guarded by *mutex_
  std::unique_ptr<std::mutex> mutex_ = std::make_unique<std::mutex>();
};

// Element `at` of an I32 tensor, as bits.
inline uint32_t word_at(const Tensor& tensor, int64_t at) {
  uint32_t word;
  std::memcpy(&word, tensor.bytes.data() + 4 * at, sizeof(word));
  return word;
}
// The width bits that begin at `bit` of the stream of words first, first + stride ...
uint32_t stream_bits(const Tensor& words, int64_t first, int64_t stride, int64_t bit,
                     int width);

// The 8 codes of 4 bits of a word, a byte each, with `minus` (0 to 127) taken away.
inline uint64_t spread_4_bits(uint32_t word, uint8_t minus) {
  uint64_t x = word;
  x = (x | x << 16) & 0x0000ffff0000ffff;
  x = (x | x << 8) & 0x00ff00ff00ff00ff;
  x = (x | x << 4) & 0x0f0f0f0f0f0f0f0f;
  // Every byte has its upper bit set before, so that taking away borrows from no
  // neighbour.
  constexpr uint64_t kUpper = 0x8080808080808080;
  return ((x | kUpper) - minus * uint64_t{0x0101010101010101}) ^ kUpper;
}
inline void put_bytes(uint64_t word, uint8_t* bytes) {  // the lowest first
  if constexpr (std::endian::native == std::endian::big) word = __builtin_bswap64(word);
  std::memcpy(bytes, &word, sizeof(word));
}
// The same for n codes from bit `bit` on, each with `minus` taken away as a byte. Codes that
// fill whole words are taken word by word.
void read_stream(const Tensor& words, int64_t first, int64_t stride, int64_t bit, int width,
                 int64_t n, uint8_t minus, uint8_t* codes);

// intB or uintB; bits 2 to 8.
Element integer_element(int64_t bits, bool is_signed);
// f16, bf16 or f32, after the tensor that stores the scales.
Element float_element(const Tensor& tensor);
// Scales of one level, from a tensor in its own order.
Result<CodedLevel> float_level(const Tensor& tensor, LevelShape shape);

// Columns sorted by their group, those of one group in their own order: what act-order's
// g_idx says. Empty: they are in this order already. false: groups of unequal size, which
// no scheme has.
bool columns_by_group(const std::vector<int32_t>& group_of, int64_t group,
                      std::vector<int32_t>& order);
// Column c becomes what column order[c] was.
void put_columns_in(const std::vector<int32_t>& order, CodedMatrix& q);

// uintB codes whose zero points are all 2^(B-1) are intB codes without any.
void make_symmetric(CodedMatrix& q);

}  // namespace nibble
