// What must not touch memory of the CPU where tensors lie elsewhere: the composed ops
// agree with the fused ones, and a decoder begins on the meta device, which has no memory
// at all.
#include <gtest/gtest.h>

#include "ptq/calibration/sample_stream.h"
#include "ptq/calibration/value_stream.h"
#include "ptq/error.h"
#include "ptq/methods/hessian.h"
#include "ptq/module/fake_quantize_composed.h"
#include "ptq/module/fused_ops.h"
#include "tests/ptq/small_models.h"

namespace nibble {
namespace {

double distance(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

TEST(Device, ComposedOpsGiveWhatFusedOnesGive) {
  at::Generator generator = at::detail::createCPUGenerator(3);
  const at::Tensor x = at::randn({2, 5, 16}, generator, at::kFloat);
  const at::Tensor weight = at::randn({16}, generator, at::kFloat);
  const std::vector<double> frequencies = {1.0, 0.3, 0.1, 0.03};
  EXPECT_LT(distance(rms_norm(x, weight, 1e-5), composed::rms_norm(x, weight, 1e-5)),
            1e-5);
  for (const bool interleaved : {false, true}) {
    EXPECT_LT(distance(rope(x, frequencies, interleaved),
                       composed::rope(x, frequencies, interleaved)),
              1e-5);
  }
  for (const int64_t block : {1, 4, 16})
    EXPECT_LT(distance(hadamard(x, block), composed::hadamard(x, block)), 1e-5);
}

// Forward to the bit; sums in another order.
TEST(Device, ComposedGridGivesWhatTheFusedOneGives) {
  at::Generator generator = at::detail::createCPUGenerator(4);
  for (const char* text : {"int8/t@f32", "int4/r@f32", "int4/g8@f16",
                           "uint4/g8@f16+z/g8@uint4", "uint2/r@f32+z/r@uint2"}) {
    for (const bool rounding_error : {true, false}) {
      const int64_t rows = 5, cols = 20;  // the last group of a row is short
      const at::Tensor x = at::randn({rows, cols}, generator, at::kFloat);
      const at::Tensor dy = at::randn({rows, cols}, generator, at::kFloat);
      CodedMatrix levels =
          value_or_throw(choose_scales({x.const_data_ptr<float>(), rows, cols},
                                       value_or_throw(parse_scheme(text)), ScaleRule{}));
      for (float& scale : levels.scales[0].values) scale *= 0.5f;  // some values are cut
      ScaleGrid grid;
      ASSERT_TRUE(make_grid(levels, 0, &grid)) << text;
      grid.rounding_error = rounding_error;
      at::Tensor y = at::empty_like(x), dx = at::empty_like(x);
      grid_forward(grid, x.const_data_ptr<float>(), y.mutable_data_ptr<float>());
      EXPECT_TRUE(at::equal(composed::grid_forward(grid, x), y)) << text;
      std::vector<CellGradient> cells(grid.scales.size());
      grid_backward(grid, x.const_data_ptr<float>(), dy.const_data_ptr<float>(),
                    dx.mutable_data_ptr<float>(), cells.data());
      EXPECT_FALSE(at::equal(dx, dy)) << text;
      const composed::GridGradients found = composed::grid_backward(grid, x, dy);
      EXPECT_TRUE(at::equal(found.dx, dx)) << text;
      for (size_t i = 0; i < cells.size(); ++i) {
        EXPECT_NEAR(found.scale.const_data_ptr<double>()[i], cells[i].scale, 1e-4);
        EXPECT_NEAR(found.zero.const_data_ptr<double>()[i], cells[i].zero, 1e-4);
      }
    }
  }
}

TEST(Device, ADecoderBeginsWhereThereIsNoMemory) {
  const Artifact model = testing::small_llama(1);
  const auto load = [&](const std::string& name) {
    return to_torch(model.tensors.at(name)).to(at::kMeta);
  };
  const auto rows = [&](const std::string& name, const at::Tensor& ids) {
    return at::empty({ids.size(0), ids.size(1), model.tensors.at(name).cols()},
                     at::device(at::kMeta).dtype(at::kFloat));
  };
  SampleStream stream(model.program,
                      {{{"input_ids", at::zeros({1, 7}, at::kLong).to(at::kMeta)}}}, load,
                      rows);
  // As far as the first attention: torch's own has no meta kernel in C++.
  size_t attention = 0;
  while (model.program.nodes[attention].op != "attention") ++attention;
  stream.run(0, attention, 0, 1);
  for (const std::string& name : model.program.nodes[attention].inputs) {
    const at::Tensor value = stream.value(0, name);
    EXPECT_TRUE(value.is_meta()) << name;
    EXPECT_EQ(value.size(1), 7) << name;
  }

  // The stream that holds every sample, whose parameters it moves itself; after the
  // embedding, of which torch has no meta kernel in C++ either.
  const Node& embedding = model.program.nodes.at(0);
  ASSERT_EQ(embedding.op, "embedding");
  const int64_t width = model.tensors.at(embedding.parameters.at("weight")).cols();
  ValueStream held(
      model.program,
      {{{embedding.outputs.at(0),
         at::empty({1, 7, width}, at::device(at::kMeta).dtype(at::kFloat))}}},
      [&](const std::string& name) { return to_torch(model.tensors.at(name)); }, "meta");
  held.run(1, attention, 0, 1);
  for (const std::string& name : model.program.nodes[attention].inputs)
    EXPECT_TRUE(held.value(0, name).is_meta()) << name;

  Hessian sums(8, at::kMeta);
  const at::Tensor inputs = at::empty({6, 8}, at::device(at::kMeta).dtype(at::kFloat));
  sums.accumulate(inputs, inputs);
  sums.accumulate(at::zeros({2, 8}),
                  at::zeros({2, 8}));  // as they come from samples that wait
  EXPECT_EQ(sums.tokens(), 8);
  EXPECT_TRUE(sums.sums().is_meta() && sums.drift().is_meta());
}

TEST(Device, RoundingGoesThroughMemoryOfTheCpu) {
  const InputRounding plus_one = [](const Node&, size_t, const at::Tensor& x) {
    EXPECT_TRUE(x.is_cpu());
    return x + 1;
  };
  EXPECT_FALSE(rounding_on(at::kCUDA, {}));
  const at::Tensor x = at::zeros({2});
  EXPECT_EQ(rounding_on(at::kCPU, plus_one)(Node(), 0, x).sum().item<float>(), 2);
  EXPECT_EQ(rounding_on(at::kCUDA, plus_one)(Node(), 0, x).sum().item<float>(), 2);
}

}  // namespace
}  // namespace nibble
