#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ptq/calibrate.h"
#include "ptq/error.h"
#include "tests/ptq/small_models.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

Calibrated calibrated_decoder() {
  auto model = std::make_shared<Artifact>(testing::small_llama(1));
  Plan plan;
  for (const Node& node : model->program.nodes) {
    if (!find_op(node.op)->is_layer || plan.find(node.parameter("weight"))) continue;
    LayerPlan layer;
    layer.node = node.name;
    layer.tensor = node.parameter("weight");
    layer.method = node.op == "linear" ? "rtn" : "float";
    layer.reason = node.op == "linear" ? "" : "embedding kept float by the recipe";
    // Rows of 16 and 24: groups of 10 leave a remainder in both.
    if (node.op == "linear")
      layer.scheme.weight = parse_scheme("uint4/g10@f16+z/g10@uint4").value();
    plan.layers.push_back(layer);
  }
  return calibrate(model, plan, {}, {});
}

// The model of a Calibrated with something changed.
template <class Change>
Calibrated changed(Calibrated calibrated, Change change) {
  Artifact model = *calibrated.model;
  change(model);
  calibrated.model = std::make_shared<Artifact>(std::move(model));
  return calibrated;
}

std::string failure_of(const Calibrated& calibrated, StatusCode code) {
  try {
    freeze(calibrated, {});
  } catch (const Error& error) {
    EXPECT_EQ(error.status().code(), code);
    return error.what();
  }
  return "freeze accepted it";
}

TEST(Freeze, PacksTheVeryCodesAndAccountsForEveryTensor) {
  const Calibrated calibrated = calibrated_decoder();
  const Provenance provenance{.sources = {{"model.safetensors", "00"}},
                              .recipe = "r",
                              .calibration = "",
                              .tool_version = kToolVersion};
  const Artifact frozen = freeze(calibrated, provenance);
  EXPECT_EQ(frozen.packed.size(), 14u);
  for (const auto& [tensor, packed] : frozen.packed) {
    EXPECT_EQ(unpack(packed).value(), calibrated.weights.at(tensor)) << tensor;
    EXPECT_FALSE(frozen.tensors.count(tensor)) << tensor;
    EXPECT_EQ(frozen.layers.at(tensor).weight, packed.scheme);
    EXPECT_EQ(packed.shape, calibrated.model->tensors.at(tensor).shape);
  }
  EXPECT_TRUE(check_artifact(frozen).ok()) << check_artifact(frozen).message();
  EXPECT_TRUE(check_ledger(frozen.ledger, frozen.program).ok());
  EXPECT_EQ(frozen.ledger.entries.size(), 14u + 1 + 5);  // layers, embedding, norms
  const LedgerEntry* layer = frozen.ledger.find("model.layers.0.mlp.down_proj.weight");
  ASSERT_NE(layer, nullptr);
  EXPECT_EQ(layer->scheme, "uint4/g10@f16+z/g10@uint4");
  EXPECT_EQ(layer->method, "rtn");
  EXPECT_EQ(layer->parameters, 16 * 24);
  // What is stored, bit for bit: codes, scales, zero points.
  EXPECT_DOUBLE_EQ(layer->bits,
                   8.0 * static_cast<double>(frozen.packed.at(layer->tensor).bytes()));
  EXPECT_GE(layer->bits, 16 * (24 * 4 + 3 * 16 + 3 * 4));
  EXPECT_GT(layer->error, 1e-4);
  const LedgerEntry* norm = frozen.ledger.find("model.norm.weight");
  ASSERT_NE(norm, nullptr);
  EXPECT_EQ(norm->reason, "norm");
  EXPECT_EQ(norm->scheme, "f32");
  EXPECT_EQ(frozen.ledger.find("model.embed_tokens.weight")->reason,
            "embedding kept float by the recipe");
  EXPECT_EQ(frozen.provenance.recipe, "r");
}

TEST(Freeze, FloatsKeepTheirDtype) {
  const Artifact frozen = freeze(changed(calibrated_decoder(),
                                         [](Artifact& model) {
                                           Tensor& norm =
                                               model.tensors["model.norm.weight"];
                                           const std::vector<uint16_t> ones(16, 0x3f80);
                                           norm.dtype = DType::bf16;
                                           norm.bytes = Bytes::copy_of(ones.data(), 32);
                                         }),
                                 {});
  EXPECT_EQ(frozen.tensors.at("model.norm.weight").dtype, DType::bf16);
  EXPECT_EQ(frozen.ledger.find("model.norm.weight")->scheme, "bf16");
  EXPECT_EQ(frozen.ledger.find("model.norm.weight")->bits, 16 * 16);
}

TEST(Freeze, RefusesATensorThatNoNodeReads) {
  const Calibrated calibrated = changed(calibrated_decoder(), [](Artifact& model) {
    model.tensors["model.extra.weight"] =
        make_tensor({2, 3}, std::vector<float>(6, 1.0f));
  });
  EXPECT_EQ(failure_of(calibrated, StatusCode::failed_precondition),
            "[freeze] model.extra.weight: every parameter must be accounted for; found "
            "[2, 3] that "
            "no node of the program reads; remove it from the checkpoint");
}

TEST(Freeze, RefusesALayerThatWasNeverPlanned) {
  Calibrated calibrated = calibrated_decoder();
  calibrated.plan.layers.pop_back();
  EXPECT_EQ(failure_of(calibrated, StatusCode::failed_precondition),
            "[freeze] model.layers.1.mlp.down_proj.weight: every parameter must be "
            "accounted for; "
            "found none for the weight of model.layers.1.mlp.down_proj (linear); plan "
            "it, or keep "
            "it float with a reason");
}

TEST(Freeze, RefusesAPlannedLayerWithoutCodes) {
  Calibrated calibrated = calibrated_decoder();
  calibrated.weights.erase("model.layers.0.self_attn.q_proj.weight");
  EXPECT_EQ(
      failure_of(calibrated, StatusCode::failed_precondition),
      "[freeze] model.layers.0.self_attn.q_proj.weight: planned as "
      "uint4/g10@f16+z/g10@uint4 by rtn, so it needs codes; found none; calibrate first");
}

TEST(Freeze, RefusesAStaticActivationWithoutAScale) {
  Calibrated calibrated = calibrated_decoder();
  calibrated.activations["model.norm"] = {.scheme =
                                              parse_scheme(kSignedActivation).value()};
  EXPECT_THAT(
      failure_of(calibrated, StatusCode::failed_precondition),
      HasSubstr(
          "[freeze] model.norm: a static activation needs a finite, positive scale"));
}

TEST(Freeze, FoldedBatchNormsStayInTheLedger) {
  auto model =
      std::make_shared<Artifact>(prepare_for_plan(testing::small_cnn(1), true).value());
  Plan plan;
  for (const Node& node : model->program.nodes) {
    if (!find_op(node.op)->is_layer) continue;
    LayerPlan layer;
    layer.node = node.name;
    layer.tensor = node.parameter("weight");
    layer.scheme.weight = parse_scheme("int8n/r@f32").value();
    layer.method = "rtn";
    plan.layers.push_back(layer);
  }
  const Artifact frozen = freeze(calibrate(model, plan, {}, {}), {});
  const LedgerEntry* folded = frozen.ledger.find("bn1.weight");
  ASSERT_NE(folded, nullptr);
  EXPECT_EQ(folded->method, "folded");
  EXPECT_EQ(folded->bits, 0);
  const LedgerEntry* bias = frozen.ledger.find("conv1.bias");
  ASSERT_NE(bias, nullptr);
  EXPECT_EQ(bias->reason, "bias");
  EXPECT_EQ(frozen.packed.at("layer1.0.conv2.weight").shape,
            (std::vector<int64_t>{8, 8, 3, 3}));
}

}  // namespace
}  // namespace nibble
