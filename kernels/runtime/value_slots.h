// Which buffers the values of a graph share: a value's is free again behind its last
// reader.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kernels/program/program.h"
#include "kernels/program/shape.h"

namespace nibble {

struct ValueSlots {
  // Where a block begins, and the slots that hold a live value there.
  struct Stage {
    size_t node;
    std::vector<size_t> slots;
  };
  std::vector<int64_t> features;  // of each slot: the widest value's, of one row or image
  std::map<std::string, int> slot;  // of each value; token ids have none
  std::vector<Stage> stages;

  // f32 bytes of one row or image.
  int64_t row_bytes() const;
};

// features: of one row or image of a value. The best fitting free slot is taken, so that
// few grow.
ValueSlots share_slots(const Program& program,
                       const std::function<int64_t(const std::string&)>& features);

// Of one row or image: every size that the graph knows.
int64_t features_of(const std::vector<int64_t>& shape);

}  // namespace nibble
