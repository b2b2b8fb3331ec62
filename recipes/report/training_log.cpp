#include "recipes/report/training_log.h"

#include <array>
#include <bit>
#include <cstring>
#include <map>
#include <optional>
#include <sstream>

namespace nibble {
namespace {

struct Row {
  std::optional<LossPoint> loss;
  std::optional<double> figure;
};

std::map<int64_t, Row> rows_of(const std::vector<LossPoint>& loss,
                               const std::vector<FigurePoint>& figures) {
  std::map<int64_t, Row> rows;
  for (const LossPoint& point : loss) rows[point.step].loss = point;
  for (const FigurePoint& point : figures) rows[point.step].figure = point.figure;
  return rows;
}

template <class T>
void append_little(std::string& out, T value) {
  static_assert(std::endian::native == std::endian::little);
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

// --- protobuf wire format: a key is field << 3 | type

void append_varint(std::string& out, uint64_t value) {
  for (; value >= 128; value >>= 7) out += static_cast<char>(value | 128);
  out += static_cast<char>(value);
}
void append_double(std::string& out, int field, double value) {
  append_varint(out, static_cast<uint64_t>(field) << 3 | 1);
  append_little(out, value);
}
void append_float(std::string& out, int field, float value) {
  append_varint(out, static_cast<uint64_t>(field) << 3 | 5);
  append_little(out, value);
}
void append_bytes(std::string& out, int field, std::string_view bytes) {
  append_varint(out, static_cast<uint64_t>(field) << 3 | 2);
  append_varint(out, bytes.size());
  out += bytes;
}

void append_record(std::string& out, std::string_view event) {
  auto masked = [](std::string_view bytes) {
    const uint32_t crc = crc32c(bytes);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
  };
  std::string length;
  append_little(length, static_cast<uint64_t>(event.size()));
  out += length;
  append_little(out, masked(length));
  out += event;
  append_little(out, masked(event));
}

void append_value(std::string& summary, std::string_view tag, double value) {
  std::string one;
  append_bytes(one, 1, tag);
  append_float(one, 2, static_cast<float>(value));
  append_bytes(summary, 1, one);
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> made{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82f63b78u : 0u);
      made[i] = crc;
    }
    return made;
  }();
  uint32_t crc = ~0u;
  for (const char c : bytes)
    crc = (crc >> 8) ^ table[(crc ^ static_cast<uint8_t>(c)) & 255];
  return ~crc;
}

std::string training_csv(const std::vector<LossPoint>& loss,
                         const std::vector<FigurePoint>& figures) {
  std::ostringstream text;
  text.precision(9);
  text << "step,loss,learning_rate,gradient_norm,artifact\n";
  for (const auto& [step, row] : rows_of(loss, figures)) {
    text << step << ',';
    if (row.loss) {
      text << row.loss->loss << ',' << row.loss->learning_rate << ','
           << row.loss->gradient_norm;
    } else {
      text << ",,";
    }
    text << ',';
    if (row.figure) text << *row.figure;
    text << '\n';
  }
  return text.str();
}

std::string tensorboard_events(const std::vector<LossPoint>& loss,
                               const std::vector<FigurePoint>& figures) {
  std::string out, first;
  append_double(first, 1, 0);
  append_bytes(first, 3, "brain.Event:2");
  append_record(out, first);
  for (const auto& [step, row] : rows_of(loss, figures)) {
    std::string summary, event;
    if (row.loss) {
      append_value(summary, "loss", row.loss->loss);
      append_value(summary, "learning_rate", row.loss->learning_rate);
      append_value(summary, "gradient_norm", row.loss->gradient_norm);
    }
    if (row.figure) append_value(summary, "artifact", *row.figure);
    append_double(event, 1, static_cast<double>(step));
    append_varint(event, 2 << 3);
    append_varint(event, static_cast<uint64_t>(step));
    append_bytes(event, 5, summary);
    append_record(out, event);
  }
  return out;
}

}  // namespace nibble
