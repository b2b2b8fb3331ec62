#include "ptq/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/ptq/small_models.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

// Every layer of a program by rtn, what two nodes share once.
Plan plan_for(const Program& program, const char* scheme) {
  Plan plan;
  for (const Node& node : program.nodes) {
    if (!find_op(node.op)->is_layer || plan.find(node.parameter("weight"))) continue;
    LayerPlan layer;
    layer.node = node.name;
    layer.tensor = node.parameter("weight");
    layer.scheme.weight = parse_scheme(scheme).value();
    layer.method = "rtn";
    plan.layers.push_back(layer);
  }
  return plan;
}

struct Wrong {
  const char* name;
  void (*spoil)(Plan& plan);
  const char* message;
};

class WrongPlan : public ::testing::TestWithParam<Wrong> {};

TEST_P(WrongPlan, IsNamed) {
  const Artifact model = testing::small_llama(1);
  Plan plan = plan_for(model.program, "int4/g8@f16");
  ASSERT_TRUE(check_plan(plan, model.program).ok())
      << check_plan(plan, model.program).message();
  GetParam().spoil(plan);
  const Status status = check_plan(plan, model.program);
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_EQ(status.message(), GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(
    Plans, WrongPlan,
    ::testing::Values(
        Wrong{"method", [](Plan& p) { p.layers[1].method = "magic"; },
              "[plan] model.layers.0.self_attn.q_proj: no method is called `magic`; "
              "there are "
              "rtn, gptq, imatrix, awq, hqq, autoround, adaround, float"},
        Wrong{"missing", [](Plan& p) { p.layers.pop_back(); },
              "[plan] model.layers.1.mlp.down_proj: every layer needs a row; "
              "model.layers.1.mlp.down_proj.weight has none; give it a method, or float "
              "with a "
              "reason"},
        Wrong{"twice", [](Plan& p) { p.layers.push_back(p.layers[1]); },
              "[plan] model.layers.0.self_attn.q_proj: "
              "model.layers.0.self_attn.q_proj.weight is "
              "planned twice"},
        Wrong{"unknown", [](Plan& p) { p.layers[1].node = "model.norm"; },
              "[plan] model.norm: the program has no such layer with weight "
              "model.layers.0.self_attn.q_proj.weight"},
        Wrong{"reason",
              [](Plan& p) {
                p.layers[0].method = "float";
                p.layers[0].scheme.weight = {};
              },
              "[plan] model.embed_tokens: a layer that stays float needs a reason; found "
              "none"},
        Wrong{"float_scheme", [](Plan& p) { p.layers[0].method = "float"; },
              "[plan] model.embed_tokens: method float keeps a layer as it is; found "
              "scheme "
              "int4/g8@f16; name a method or remove the scheme"},
        Wrong{"float_method", [](Plan& p) { p.layers[1].scheme.weight = {}; },
              "[plan] model.layers.0.self_attn.q_proj: method rtn needs a quantized "
              "scheme; found "
              "f32; use method float"},
        Wrong{"embedding", [](Plan& p) { p.layers[0].method = "gptq"; },
              "[plan] model.embed_tokens: method gptq solves linear layers and "
              "convolutions of one group; "
              "model.embed_tokens "
              "reads model.embed_tokens.weight as embedding; use rtn for it"},
        Wrong{"act_order",
              [](Plan& p) {
                p.layers[1].method = "gptq";
                p.gptq.static_groups = false;
              },
              "[plan] model.layers.0.self_attn.q_proj: act_order needs static_groups "
              "(groups are "
              "stored in the order of the columns); found static_groups false; set it "
              "or group_aware true, or act_order false"},
        Wrong{"late_groups",
              [](Plan& p) {
                p.layers[1].method = "gptq";
                p.layers[1].scheme.weight = parse_scheme("int4/r@f32").value();
                p.gptq.static_groups = p.gptq.act_order = false;
              },
              "[plan] model.layers.0.self_attn.q_proj: static_groups false needs one "
              "scale a "
              "group; found int4/r@f32; set static_groups true"},
        Wrong{"damping", [](Plan& p) { p.gptq.damping = 0; },
              "[plan] gptq: damping must be positive and damping_attempts at least 1; "
              "found 0 and "
              "5"},
        Wrong{"observer", [](Plan& p) { p.observer = "median"; },
              "[plan] observer: no observer is called `median`; there are minmax, mse, "
              "percentile, kl"},
        Wrong{"sequences", [](Plan& p) { p.calibration_sequences = 0; },
              "[plan] calibration: sequences and length must be at least 1; found 0 and "
              "512"},
        Wrong{"rule", [](Plan& p) { p.layers[2].rule.mse_lowest = 2; },
              "[plan] model.layers.0.self_attn.k_proj: scale rule needs 0 < mse_lowest "
              "<= 1, "
              "mse_steps >= 1, mse_norm > 0; found 2, 50, 2"},
        Wrong{"value",
              [](Plan& p) {
                p.activations["no.such"] = {.scheme = parse_scheme("int8/t@f32").value()};
              },
              "[plan] no.such: the program has no such value"},
        Wrong{"activation",
              [](Plan& p) {
                p.activations["model.norm"] = {.scheme =
                                                   parse_scheme("int8/r@f32").value()};
              },
              "[plan] model.norm: a static activation must have one scale and no offset; "
              "found "
              "int8/r@f32; use int8/t@f32 or uint8/t@f32, or make it dynamic"},
        Wrong{"input",
              [](Plan& p) {
                p.layers[1].scheme.input =
                    ActivationScheme{.scheme = parse_scheme("e4m3/t@f32").value()};
              },
              "[plan] model.layers.0.self_attn.q_proj input: an activation scheme must "
              "have "
              "integer codes; found e4m3/t@f32; use int8/t@f32 or uint8/t@f32"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(IntegerActivations, FollowTheRulesOfTheIntegerPath) {
  const QuantScheme s = parse_scheme("int8/t@f32").value(),
                    u = parse_scheme("uint8/t@f32").value();
  const Artifact model = prepare_for_plan(testing::small_cnn(1), true).value();
  const auto schemes = integer_activations(model.program, s, u).value();
  std::map<std::string, QuantScheme> found;
  for (const auto& [value, activation] : schemes) found[value] = activation.scheme;
  // A convolution that only a ReLU reads has none, nor has the logits' layer; the folded
  // convolution before the sum makes its batch norm's value.
  const std::map<std::string, QuantScheme> expected = {{"image", s},
                                                       {"relu1", u},
                                                       {"layer1.0.relu1", u},
                                                       {"layer1.0.bn2", s},
                                                       {"layer1.0.shortcut", u},
                                                       {"layer1.0.relu2", u},
                                                       {"pool", u}};
  EXPECT_EQ(found, expected);
}

TEST(IntegerActivations, RefuseWhatHasNoIntegerForm) {
  const QuantScheme s = parse_scheme("int8/t@f32").value(),
                    u = parse_scheme("uint8/t@f32").value();
  const Status batch_norm =
      integer_activations(testing::small_cnn(1).program, s, u).status();
  EXPECT_EQ(batch_norm.code(), StatusCode::failed_precondition);
  EXPECT_THAT(batch_norm.message(),
              HasSubstr("[plan] bn1: the integer path has no batch norm"));
  const Status decoder =
      integer_activations(testing::small_llama(1).program, s, u).status();
  EXPECT_EQ(decoder.code(), StatusCode::unsupported);
  EXPECT_THAT(decoder.message(),
              HasSubstr("model.embed_tokens: embedding has no integer form"));
}

TEST(PrepareForPlan, SaysWhereFoldedTensorsWent) {
  const Artifact before = testing::small_cnn(1);
  const Artifact folded = prepare_for_plan(before, true).value();
  EXPECT_EQ(folded.program.find("bn1"), nullptr);
  bool found = false;
  for (const LedgerEntry& entry : folded.ledger.entries) {
    found = found || (entry.tensor == "bn1.running_var" && entry.method == "folded" &&
                      entry.reason.find("conv1") != std::string::npos);
  }
  EXPECT_TRUE(found);
  EXPECT_EQ(prepare_for_plan(before, false).value().program, before.program);
}

}  // namespace
}  // namespace nibble
