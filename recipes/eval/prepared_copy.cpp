#include "recipes/eval/prepared_copy.h"

namespace nibble {

PreparedLinear copy_of(const PreparedLinear& source, size_t* copied) {
  PreparedLinear copy = source;
  const auto own = [copied](Bytes& bytes) {
    if (bytes.size() == 0) return;
    bytes = Bytes::copy_of(bytes.data(), bytes.size());
    if (copied != nullptr) *copied += bytes.size();
  };
  for (Bytes* bytes :
       {&copy.codes, &copy.values, &copy.scales.bytes, &copy.zeros.bytes,
        &copy.minima.bytes, &copy.weight.plain.bytes, &copy.weight.packed.codes}) {
    own(*bytes);
  }
  for (PackedLevel& level : copy.weight.packed.scales) own(level.values);
  for (PackedLevel& level : copy.weight.packed.offsets) own(level.values);
  return copy;
}

}  // namespace nibble
