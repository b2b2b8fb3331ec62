#include "kernels/base/sha256.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace nibble {
namespace {

constexpr size_t kBlock = 64;  // FIPS 180-4: 512 bits

EVP_MD_CTX* as_context(void* context) { return static_cast<EVP_MD_CTX*>(context); }

// Section 5.3.3: of the square roots of the first 8 primes.
constexpr uint32_t kFirst[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

#if defined(__x86_64__)

// Section 4.2.2: of the cube roots of the first 64 primes.
alignas(16) constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
    0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
    0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
    0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
    0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
    0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
    0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
    0xc67178f2};

bool cpu_has_sha() {
  static const bool has = [] {
    uint32_t a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c >> 19 & 1) != 0 &&  // SSE4.1
           __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b >> 29 & 1) != 0;
  }();
  return has;
}

#define NIBBLE_SHA __attribute__((target("sha,sse4.1")))

// The instructions keep the words a, b, e, f in one register and c, d, g, h in another.
template <int N>
struct Lanes {
  __m128i abef[N], cdgh[N];
};

template <int N>
NIBBLE_SHA inline void load_states(Lanes<N>& lanes, uint32_t* const (&states)[N]) {
  for (int i = 0; i < N; ++i) {
    const auto* words = reinterpret_cast<const __m128i*>(states[i]);
    const __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128(words), 0xb1);
    const __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128(words + 1), 0x1b);
    lanes.abef[i] = _mm_alignr_epi8(badc, hgfe, 8);
    lanes.cdgh[i] = _mm_blend_epi16(hgfe, badc, 0xf0);
  }
}

template <int N>
NIBBLE_SHA inline void store_states(const Lanes<N>& lanes, uint32_t* const (&states)[N]) {
  for (int i = 0; i < N; ++i) {
    const __m128i feba = _mm_shuffle_epi32(lanes.abef[i], 0x1b);
    const __m128i dchg = _mm_shuffle_epi32(lanes.cdgh[i], 0xb1);
    auto* words = reinterpret_cast<__m128i*>(states[i]);
    _mm_storeu_si128(words, _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128(words + 1, _mm_alignr_epi8(dchg, feba, 8));
  }
}

// Section 6.2.2 for N hashes, four of the 64 rounds at a time.
template <int N>
NIBBLE_SHA void sha_blocks(uint32_t* const (&states)[N],
                           const std::byte* const (&data)[N], size_t blocks) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  Lanes<N> now;
  load_states(now, states);
  for (size_t block = 0; block < blocks; ++block) {
    const Lanes<N> before = now;
    __m128i words[N][4];
#pragma GCC unroll 16
    for (int four = 0; four < 16; ++four) {
      const __m128i constants =
          _mm_load_si128(reinterpret_cast<const __m128i*>(kRound + 4 * four));
      for (int i = 0; i < N; ++i) {
        __m128i& w = words[i][four % 4];
        if (four < 4) {
          const auto* from = reinterpret_cast<const __m128i*>(data[i] + kBlock * block);
          w = _mm_shuffle_epi8(_mm_loadu_si128(from + four), big_endian);
        } else {
          const __m128i last = words[i][(four + 3) % 4];
          w = _mm_sha256msg1_epu32(w, words[i][(four + 1) % 4]);
          w = _mm_add_epi32(w, _mm_alignr_epi8(last, words[i][(four + 2) % 4], 4));
          w = _mm_sha256msg2_epu32(w, last);
        }
        const __m128i sum = _mm_add_epi32(w, constants);
        now.cdgh[i] = _mm_sha256rnds2_epu32(now.cdgh[i], now.abef[i], sum);
        now.abef[i] =
            _mm_sha256rnds2_epu32(now.abef[i], now.cdgh[i], _mm_shuffle_epi32(sum, 0x0e));
      }
    }
    for (int i = 0; i < N; ++i) {
      now.abef[i] = _mm_add_epi32(now.abef[i], before.abef[i]);
      now.cdgh[i] = _mm_add_epi32(now.cdgh[i], before.cdgh[i]);
    }
  }
  store_states(now, states);
}

#else

bool cpu_has_sha() { return false; }

template <int N>
void sha_blocks(uint32_t* const (&)[N], const std::byte* const (&)[N], size_t) {}

#endif

}  // namespace

Sha256::Sha256(bool by_cpu) {
  std::copy(kFirst, kFirst + 8, state_);
  if (by_cpu && cpu_has_sha()) return;
  context_ = EVP_MD_CTX_new();
  EVP_DigestInit_ex(as_context(context_), EVP_sha256(), nullptr);
}

Sha256::~Sha256() { EVP_MD_CTX_free(as_context(context_)); }

// Completes a block that was begun, as far as the data go.
void Sha256::fill(const std::byte*& data, size_t& size) {
  const size_t held = total_ % kBlock;
  if (held == 0) return;
  const size_t take = std::min(size, kBlock - held);
  std::memcpy(rest_ + held, data, take);
  data += take;
  size -= take;
  total_ += take;
  if (held + take == kBlock) sha_blocks<1>({state_}, {rest_}, 1);
}

void Sha256::update(const void* data, size_t size) {
  if (context_ != nullptr) {
    EVP_DigestUpdate(as_context(context_), data, size);
    return;
  }
  if (size == 0) return;
  const auto* bytes = static_cast<const std::byte*>(data);
  fill(bytes, size);
  const size_t whole = size / kBlock * kBlock;
  if (whole != 0) sha_blocks<1>({state_}, {bytes}, whole / kBlock);
  if (size != whole) std::memcpy(rest_, bytes + whole, size - whole);
  total_ += size;
}

void Sha256::update_both(Sha256& a, const void* a_data, Sha256& b, const void* b_data,
                         size_t size) {
  const auto* first = static_cast<const std::byte*>(a_data);
  const auto* second = static_cast<const std::byte*>(b_data);
  size_t first_size = size, second_size = size;
  if (a.context_ == nullptr && b.context_ == nullptr && size != 0) {
    a.fill(first, first_size);
    b.fill(second, second_size);
    const size_t whole = std::min(first_size, second_size) / kBlock * kBlock;
    if (whole != 0) sha_blocks<2>({a.state_, b.state_}, {first, second}, whole / kBlock);
    first += whole;
    second += whole;
    first_size -= whole;
    second_size -= whole;
    a.total_ += whole;
    b.total_ += whole;
  }
  a.update(first, first_size);
  b.update(second, second_size);
}

std::string Sha256::hex() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 32;
  if (context_ != nullptr) {
    EVP_DigestFinal_ex(as_context(context_), digest, &size);
  } else {
    // Section 5.1.1: a bit of one, zeros, and the length in bits at a block's end.
    const uint64_t bits = 8 * total_;
    std::byte padding[kBlock + 8] = {std::byte{0x80}};
    const size_t zeros = (2 * kBlock - 8 - 1 - total_ % kBlock) % kBlock;
    for (size_t i = 0; i < 8; ++i)
      padding[1 + zeros + i] = static_cast<std::byte>(bits >> (56 - 8 * i) & 0xff);
    update(padding, 1 + zeros + 8);
    for (size_t i = 0; i < 32; ++i)
      digest[i] = static_cast<unsigned char>(state_[i / 4] >> (24 - 8 * (i % 4)) & 0xff);
  }
  static const char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(2 * size);
  for (unsigned int i = 0; i < size; ++i) {
    text.push_back(kDigits[digest[i] >> 4]);
    text.push_back(kDigits[digest[i] & 15]);
  }
  return text;
}

std::string sha256_hex(std::string_view bytes) {
  Sha256 hash;
  hash.update(bytes.data(), bytes.size());
  return hash.hex();
}

}  // namespace nibble
