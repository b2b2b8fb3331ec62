#include "kernels/runtime/value_slots.h"

#include <algorithm>
#include <iterator>

namespace nibble {
namespace {

class Sharing {
 public:
  explicit Sharing(ValueSlots& slots) : slots_(slots) {}

  void take(const std::string& value, int64_t features) {
    // Of the free slots that need not grow the narrowest, else the widest; of equals the
    // one that was free last, which caches may still hold.
    const auto better = [&](size_t a, size_t b) {
      const bool a_fits = width(a) >= features, b_fits = width(b) >= features;
      if (a_fits != b_fits) return a_fits;
      return a_fits ? width(a) < width(b) : width(a) > width(b);
    };
    const auto best = std::min_element(free_.rbegin(), free_.rend(), better);
    size_t slot = slots_.features.size();
    if (best == free_.rend()) {
      slots_.features.push_back(0);
    } else {
      slot = *best;
      free_.erase(std::next(best).base());
    }
    slots_.features[slot] = std::max(width(slot), features);
    slots_.slot[value] = static_cast<int>(slot);
    live_[value] = slot;
  }
  void release(const std::string& value) {
    const auto found = live_.find(value);
    if (found == live_.end()) return;
    free_.push_back(found->second);
    live_.erase(found);
  }
  std::vector<size_t> live() const {
    std::vector<size_t> slots;
    for (const auto& [name, slot] : live_) slots.push_back(slot);
    return slots;
  }

 private:
  int64_t width(size_t slot) const { return slots_.features[slot]; }

  ValueSlots& slots_;
  std::vector<size_t> free_;  // the last one freed at the end
  std::map<std::string, size_t> live_;
};

}  // namespace

int64_t ValueSlots::row_bytes() const {
  int64_t bytes = 0;
  for (const int64_t n : features) bytes += n * static_cast<int64_t>(sizeof(float));
  return bytes;
}

int64_t features_of(const std::vector<int64_t>& shape) {
  int64_t features = 1;
  for (const int64_t size : shape) {
    if (size != kUnknownSize) features *= size;
  }
  return features;
}

ValueSlots share_slots(const Program& program,
                       const std::function<int64_t(const std::string&)>& features) {
  ValueSlots slots;
  Sharing sharing(slots);
  std::map<std::string, size_t> last_use;
  for (size_t i = 0; i < program.nodes.size(); ++i) {
    for (const std::string& name : program.nodes[i].inputs) last_use[name] = i;
  }
  for (const ProgramValue& output : program.outputs) last_use[output.name] = SIZE_MAX;
  if (!program.is_language_model()) {
    for (const ProgramValue& input : program.inputs) {
      if (last_use.count(input.name)) sharing.take(input.name, features(input.name));
    }
  }
  for (size_t i = 0; i < program.nodes.size(); ++i) {
    const Node& node = program.nodes[i];
    if (i == 0 || node.block != program.nodes[i - 1].block)
      slots.stages.push_back({i, sharing.live()});
    sharing.take(node.outputs[0], features(node.outputs[0]));
    for (const std::string& name : node.inputs) {
      if (last_use.at(name) == i) sharing.release(name);
    }
    if (!last_use.count(node.outputs[0])) sharing.release(node.outputs[0]);
  }
  return slots;
}

}  // namespace nibble
