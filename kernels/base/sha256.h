// SHA-256 (FIPS 180-4) of bytes, as 64 lower-case hexadecimal digits.
//
// sha256_hex("abc") ==
// "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad". A Sha256 object is
// used by one thread.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace nibble {

std::string sha256_hex(std::string_view bytes);

// The same over bytes that arrive in pieces.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(const void* data, size_t size);
  std::string hex();  // ends the computation

 private:
  void* context_;  // EVP_MD_CTX; OpenSSL's header stays in the .cpp
};

}  // namespace nibble
