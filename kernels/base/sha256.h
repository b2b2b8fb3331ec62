// SHA-256 (FIPS 180-4) of bytes, as 64 lower-case hexadecimal digits.
//
// sha256_hex("abc") ==
// "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad". A Sha256 object is
// used by one thread.
//
// A CPU's SHA instructions wait for each other within one hash: update_both takes two
// hashes through them side by side, in little more time than one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

std::string sha256_hex(std::string_view bytes);

// The same over bytes that arrive in pieces.
class Sha256 {
 public:
  // by_cpu: with the SHA instructions of this CPU where it has them; else, and without
  // them, OpenSSL computes.
  explicit Sha256(bool by_cpu = true);
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(const void* data, size_t size);
  // a.update(a_data, size) and b.update(b_data, size); a and b are different objects.
  static void update_both(Sha256& a, const void* a_data, Sha256& b, const void* b_data,
                          size_t size);
  std::string hex();  // ends the computation

 private:
  void fill(const std::byte*& data, size_t& size);

  void* context_ = nullptr;  // EVP_MD_CTX of OpenSSL; null: what follows
  uint32_t state_[8];
  std::byte rest_[64];  // of a block that is not full
  uint64_t total_ = 0;  // bytes so far
};

}  // namespace nibble
