#include "kernels/runtime/value_slots.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace nibble {
namespace {

Node node(const std::string& name, std::vector<std::string> inputs, int block = -1) {
  Node made;
  made.name = name;
  made.op = inputs.size() > 1 ? "add" : "relu";
  made.inputs = std::move(inputs);
  made.outputs = {name};
  made.block = block;
  return made;
}

// x -> a -> b -> c -> d + a -> e -> y, of different widths.
Program chain() {
  Program program;
  program.inputs = {{"x", DType::f32, {"batch", "4"}}};
  program.nodes = {node("a", {"x"}, 0),      node("b", {"a"}, 0), node("c", {"b"}, 1),
                   node("d", {"c", "a"}, 1), node("e", {"d"}, 2), node("y", {"e"}, 2)};
  program.outputs = {{"y", DType::f32, {"batch", "2"}}};
  return program;
}
const std::map<std::string, int64_t> kFeatures = {
    {"x", 4}, {"a", 64}, {"b", 8}, {"c", 60}, {"d", 8}, {"e", 3}, {"y", 2}};

ValueSlots shared(const Program& program) {
  return share_slots(program,
                     [](const std::string& value) { return kFeatures.at(value); });
}

TEST(ValueSlots, NoTwoLiveValuesShareOne) {
  const Program program = chain();
  const ValueSlots slots = shared(program);
  const auto lives = [&](const std::string& value, size_t i) {  // while node i runs
    const auto made = std::find_if(program.nodes.begin(), program.nodes.end(),
                                   [&](const Node& n) { return n.outputs[0] == value; });
    const size_t from =
        value == "x" ? 0 : static_cast<size_t>(made - program.nodes.begin());
    size_t last = value == "y" ? program.nodes.size() : from;
    for (size_t n = 0; n < program.nodes.size(); ++n) {
      for (const std::string& input : program.nodes[n].inputs)
        if (input == value) last = std::max(last, n);
    }
    return i >= from && i <= last;
  };
  for (size_t i = 0; i < program.nodes.size(); ++i) {
    std::set<int> taken;
    for (const auto& [value, features] : kFeatures) {
      if (!lives(value, i)) continue;
      EXPECT_TRUE(taken.insert(slots.slot.at(value)).second) << value << " at node " << i;
      EXPECT_GE(slots.features[static_cast<size_t>(slots.slot.at(value))], features);
    }
  }
}

TEST(ValueSlots, TakesTheFreeSlotThatFits) {
  const ValueSlots slots = shared(chain());
  // a and c are wide at once; x's slot is free for b. d takes b's slot, not one of 60; e,
  // when only a's, b's and c's are free, grows none.
  EXPECT_THAT(slots.features, ::testing::UnorderedElementsAre(8, 60, 64));
  EXPECT_EQ(slots.row_bytes(), 4 * (8 + 60 + 64));
}

TEST(ValueSlots, SaysWhatLivesWhereABlockBegins) {
  const ValueSlots slots = shared(chain());
  ASSERT_EQ(slots.stages.size(), 3u);
  const auto slot = [&](const char* value) {
    return static_cast<size_t>(slots.slot.at(value));
  };
  EXPECT_EQ(slots.stages[1].node, 2u);
  EXPECT_THAT(slots.stages[1].slots,
              ::testing::UnorderedElementsAre(slot("a"), slot("b")));
  EXPECT_EQ(slots.stages[2].node, 4u);
  EXPECT_THAT(slots.stages[2].slots, ::testing::ElementsAre(slot("d")));
}

TEST(ValueSlots, CountsKnownSizesAlone) {
  EXPECT_EQ(features_of({kUnknownSize, 3, 5}), 15);
  EXPECT_EQ(features_of({}), 1);
}

}  // namespace
}  // namespace nibble
