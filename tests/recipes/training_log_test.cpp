#include "recipes/report/training_log.h"

#include <gtest/gtest.h>

#include <cstring>

namespace nibble {
namespace {

const std::vector<LossPoint> kLoss = {{10, 0.5, 0.001, 2.0}, {20, 0.25, 0.0005, 1.0}};
const std::vector<FigurePoint> kFigures = {{15, 0.125}, {20, 0.0625}};

TEST(TrainingLog, CsvHasARowAStepThatHasAnything) {
  EXPECT_EQ(training_csv(kLoss, kFigures),
            "step,loss,learning_rate,gradient_norm,artifact\n"
            "10,0.5,0.001,2,\n"
            "15,,,,0.125\n"
            "20,0.25,0.0005,1,0.0625\n");
}

TEST(TrainingLog, Crc32cIsCastagnolis) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);  // RFC 3720, B.4 and the usual check value
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
}

// A reader of its own: records, then the wire format of event.proto.
struct Wire {
  std::string_view bytes;
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const uint8_t byte = static_cast<uint8_t>(bytes.at(0));
      bytes.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 127) << shift;
      if (byte < 128) return value;
    }
  }
  template <class T>
  T fixed() {
    T value;
    std::memcpy(&value, bytes.data(), sizeof(T));
    bytes.remove_prefix(sizeof(T));
    return value;
  }
  std::string_view block() {
    const uint64_t size = varint();
    const std::string_view part = bytes.substr(0, size);
    bytes.remove_prefix(size);
    return part;
  }
};

TEST(TrainingLog, EventsReadBackByTheFormatsDefinition) {
  const std::string file = tensorboard_events(kLoss, kFigures);
  Wire records{file};
  std::vector<std::string> found;
  while (!records.bytes.empty()) {
    const std::string_view head = records.bytes.substr(0, 8);
    const uint64_t size = records.fixed<uint64_t>();
    auto unmasked = [](uint32_t masked) {
      const uint32_t rotated = masked - 0xa282ead8u;
      return (rotated << 15) | (rotated >> 17);
    };
    EXPECT_EQ(unmasked(records.fixed<uint32_t>()), crc32c(head));
    const std::string_view event = records.bytes.substr(0, size);
    records.bytes.remove_prefix(size);
    EXPECT_EQ(unmasked(records.fixed<uint32_t>()), crc32c(event));
    std::string line;
    for (Wire wire{event}; !wire.bytes.empty();) {
      const uint64_t key = wire.varint();
      if (key == (1 << 3 | 1)) {
        wire.fixed<double>();
      } else if (key == (2 << 3)) {
        line += std::to_string(wire.varint());
      } else if (key == (3 << 3 | 2)) {
        line += std::string(wire.block());
      } else {
        ASSERT_EQ(key, 5u << 3 | 2);
        for (Wire summary{wire.block()}; !summary.bytes.empty();) {
          ASSERT_EQ(summary.varint(), 1u << 3 | 2);
          Wire value{summary.block()};
          ASSERT_EQ(value.varint(), 1u << 3 | 2);
          line += " " + std::string(value.block());
          ASSERT_EQ(value.varint(), 2u << 3 | 5);
          line += "=" + std::to_string(value.fixed<float>());
        }
      }
    }
    found.push_back(line);
  }
  EXPECT_EQ(found, (std::vector<std::string>{
                       "brain.Event:2",
                       "10 loss=0.500000 learning_rate=0.001000 gradient_norm=2.000000",
                       "15 artifact=0.125000",
                       "20 loss=0.250000 learning_rate=0.000500 gradient_norm=1.000000 "
                       "artifact=0.062500"}));
}

}  // namespace
}  // namespace nibble
