#include "kernels/ops/kv_attention/kv_attention.h"

namespace nibble {

void kv_attention_reference(const AttentionShape& shape, MatrixView<const float> q,
                            const KvRows& k, const KvRows& v, MatrixView<float> y) {
  const auto floats = [](const KvRows& rows) {
    std::vector<float> all(static_cast<size_t>(rows.length() * rows.width()));
    rows.read(nullptr, 0, 0, {all.data(), rows.length(), rows.width()});
    return all;
  };
  const std::vector<float> keys = floats(k), values = floats(v);
  attention_reference(shape, q, {keys.data(), k.length(), k.width()},
                      {values.data(), v.length(), v.width()}, y);
}

}  // namespace nibble
