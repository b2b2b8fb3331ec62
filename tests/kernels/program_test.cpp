#include "kernels/program/program.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/base/splitmix64.h"
#include "kernels/program/shape.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// embedding -> [norm -> linear -> add] x 2 -> tied head
Program small_program() {
  Program program;
  program.architecture = "Small";
  program.context_length = 16;
  program.vocabulary = 10;
  program.inputs = {{"ids", DType::i64, {"batch", "sequence"}}};
  program.outputs = {{"logits", DType::f32, {"batch", "sequence", "10"}}};
  program.nodes.push_back({"embedding",
                           "embed",
                           kFirstBlock,
                           {"ids"},
                           {"embed"},
                           {{"weight", "embed.weight"}},
                           {{"features", int64_t{6}}}});
  std::string x = "embed";
  for (int i = 0; i < 2; ++i) {
    const std::string b = cat("layers.", i);
    program.nodes.push_back({"rms_norm",
                             b + ".norm",
                             i,
                             {x},
                             {b + ".norm"},
                             {{"weight", b + ".norm.weight"}},
                             {{"epsilon", 1e-5}}});
    program.nodes.push_back({"linear",
                             b + ".proj",
                             i,
                             {b + ".norm"},
                             {b + ".proj"},
                             {{"weight", b + ".proj.weight"}, {"bias", b + ".proj.bias"}},
                             {{"out_features", int64_t{6}}}});
    program.nodes.push_back(
        {"add", b + ".add", i, {x, b + ".proj"}, {b + ".add"}, {}, {}});
    x = b + ".add";
  }
  program.nodes.push_back({"linear",
                           "head",
                           kLastBlock,
                           {x},
                           {"logits"},
                           {{"weight", "embed.weight"}},
                           {{"out_features", int64_t{10}}}});
  return program;
}

TEST(ProgramText, PrintsOneLineAThing) {
  const std::string text = print_program(small_program());
  EXPECT_THAT(text, HasSubstr("nibble-program 1\narchitecture Small\ncontext_length 16\n"
                              "vocabulary 10\ninput ids I64 [batch, sequence]\n"
                              "output logits F32 [batch, sequence, 10]\n"));
  EXPECT_THAT(text, HasSubstr("\nnode 1 linear layers.1.proj (layers.1.norm) -> "
                              "(layers.1.proj) {bias: layers.1.proj.bias, weight: "
                              "layers.1.proj.weight} [out_features = 6]\n"));
  EXPECT_THAT(text, HasSubstr("[epsilon = 1e-05]"));
  const Result<Program> parsed = parse_program(text);
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  EXPECT_EQ(*parsed, small_program());
}

TEST(ProgramText, RoundTripsAnyNameAndAttribute) {
  SplitMix64 random(7);
  const auto text = [&] {
    std::string out;
    const size_t length = random.below(12);
    for (size_t i = 0; i < length; ++i) {
      // Every byte value, with the grammar's own characters favoured.
      const char special[] = "\"\\->(){}[],:= \n\t.0#e";
      out += random.below(2) ? special[random.below(sizeof(special) - 1)]
                             : static_cast<char>(random.below(256));
    }
    return out;
  };
  const auto attribute = [&]() -> Attribute {
    switch (random.below(4)) {
      case 0:
        return static_cast<int64_t>(random.next());
      case 1: {
        double value = 0;
        do {
          const uint64_t bits = random.next();
          std::memcpy(&value, &bits, sizeof(value));
        } while (std::isnan(value));
        return value;
      }
      case 2:
        return text();
      default:
        return std::vector<int64_t>(random.below(4), -3);
    }
  };
  const char* const kCaches[] = {"int4", "f32,int8", "fp8-static,e4m3/t@f32=0.1"};
  for (int i = 0; i < 500; ++i) {
    Program program;
    program.architecture = text();
    program.context_length = static_cast<int64_t>(random.below(1000));
    program.inputs = {{text(), DType::bf16, {text(), "3"}}};
    program.states = {{text(), 3, 4}};
    if (random.below(2) == 0) {
      program.states[0].scheme = *parse_kv_scheme(kCaches[random.below(3)], 3, 4);
    }
    Node node{"any op", text(), static_cast<int>(random.below(5)) - 1, {text()}, {text()},
              {},       {}};
    if (random.below(4) == 0) node.block = kLastBlock;
    for (size_t k = random.below(3); k > 0; --k) node.parameters[text()] = text();
    for (size_t k = random.below(4); k > 0; --k) node.attributes[text()] = attribute();
    program.nodes = {node};
    const std::string printed = print_program(program);
    const Result<Program> parsed = parse_program(printed);
    ASSERT_TRUE(parsed.ok()) << parsed.status().message() << "\n" << printed;
    ASSERT_EQ(*parsed, program) << printed;
  }
}

TEST(ProgramText, StatesSayHowTheyAreStored) {
  Program program;
  program.states = {{"cache", 2, 64}};
  EXPECT_NE(print_program(program).find("state cache kv_heads 2 head_dim 64\n"),
            std::string::npos);
  program.states[0].scheme = *parse_kv_scheme("int8", 2, 64);
  const std::string printed = print_program(program);
  EXPECT_NE(printed.find("head_dim 64 keys \"int8n/g64@f16\" values \"int8n/g64@f16\"\n"),
            std::string::npos)
      << printed;
  Program rounds = program;
  rounds.states[0].scheme = *parse_kv_scheme("int8,int8,fp8", 2, 64);
  const std::string queries = print_program(rounds);
  EXPECT_NE(queries.find("values \"int8n/g64@f16\" queries \"e4m3/g64@f16\"\n"),
            std::string::npos)
      << queries;
  EXPECT_EQ(parse_program(queries)->states, rounds.states);
  std::string wrong = printed;
  wrong.replace(wrong.find("int8n/g64@f16"), 13, "int8n/c@f16");
  const Status status = parse_program(wrong).status();
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_NE(status.message().find("needs every position"), std::string::npos)
      << status.message();
}

TEST(ProgramText, KeepsDoublesExactly) {
  Program program = small_program();
  for (const double value : {0.1, 1.0 / 3, 1e300, 5e-324, 3.0, -0.0,
                             std::numeric_limits<double>::infinity()}) {
    program.nodes[1].attributes["epsilon"] = value;
    const Result<Program> parsed = parse_program(print_program(program));
    ASSERT_TRUE(parsed.ok()) << parsed.status().message();
    const double read = std::get<double>(parsed->nodes[1].attributes.at("epsilon"));
    EXPECT_EQ(read, value);
    EXPECT_EQ(std::signbit(read), std::signbit(value));
  }
}

TEST(ProgramText, ErrorsNameLineAndExpectation) {
  const auto message = [](const std::string& text) {
    const Result<Program> parsed = parse_program(text);
    return parsed.ok() ? std::string("parsed") : parsed.status().message();
  };
  EXPECT_EQ(message(""),
            "[program] line 1: expected `nibble-program 1`; found an empty text");
  EXPECT_EQ(message("nibble-program 2\n"),
            "[program] line 1: expected `nibble-program 1`; found \"nibble-program 2\"");
  EXPECT_EQ(message("nibble-program 1\nstate a kv_heads x\n"),
            "[program] line 2: expected an integer; found \"x\"");
  EXPECT_EQ(message("nibble-program 1\nnode 0 add a (x, y -> (z)\n"),
            "[program] line 2: expected `,`; found \"-> (z)\"");
  EXPECT_EQ(
      message("nibble-program 1\nnode 0 add a (x) -> (z) [k = 1, k = 2]\n"),
      "[program] line 2: expected each attribute once (`k` is repeated); found \"]\"");
  EXPECT_EQ(message("nibble-program 1\nnode 0 add a (x) -> (z) [k = 1z]\n"),
            "[program] line 2: expected an integer, a real, quoted text or `(`; found "
            "\"1z]\"");
  EXPECT_THAT(message("nibble-program 1\nnodes\n"), HasSubstr("instead of `nodes`"));
  EXPECT_EQ(message("nibble-program 1\narchitecture \"a"),
            "[program] line 2: expected `\"`; found the end of the line");
}

TEST(Program, FindsNodesValuesAndAttributes) {
  const Program program = small_program();
  EXPECT_TRUE(check_program(program).ok());
  EXPECT_EQ(program.block_count(), 2);
  EXPECT_EQ(program.find("layers.0.proj")->op, "linear");
  EXPECT_EQ(program.find("nothing"), nullptr);
  EXPECT_EQ(program.producer("layers.0.add")->name, "layers.0.add");
  EXPECT_EQ(program.producer("ids"), nullptr);
  EXPECT_EQ(program.consumers("embed").size(), 2u);
  const Node& norm = *program.find("layers.0.norm");
  EXPECT_EQ(norm.number("epsilon", 0), 1e-5);
  EXPECT_EQ(norm.integer("epsilon", 7), 7);  // of another type
  EXPECT_EQ(norm.text("absent", "otherwise"), "otherwise");
  EXPECT_EQ(norm.integers("absent", {1, 2}), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(norm.parameter("weight"), "layers.0.norm.weight");
  EXPECT_EQ(norm.parameter("bias"), "");
  EXPECT_EQ(program.find("head")->number("out_features", 0), 10.0);
}

TEST(Program, SlicesHaveTheirLiveValues) {
  const Program program = small_program();
  const BlockSlice first = slice(program, kFirstBlock);
  EXPECT_EQ(first.nodes.size(), 1u);
  EXPECT_THAT(first.inputs, ElementsAre("ids"));
  EXPECT_THAT(first.outputs, ElementsAre("embed"));
  const BlockSlice middle = slice(program, 1);
  EXPECT_EQ(middle.nodes.size(), 3u);
  EXPECT_THAT(middle.inputs, ElementsAre("layers.0.add"));
  EXPECT_THAT(middle.outputs, ElementsAre("layers.1.add"));
  const BlockSlice last = slice(program, kLastBlock);
  EXPECT_THAT(last.inputs, ElementsAre("layers.1.add"));
  EXPECT_THAT(last.outputs, ElementsAre("logits"));
  EXPECT_TRUE(slice(program, 2).nodes.empty());
}

TEST(Program, StructureIsChecked) {
  const auto message = [](const auto& change) {
    Program program = small_program();
    change(program);
    const Status status = check_program(program);
    return std::string(status_code_name(status.code())) + ": " + status.message();
  };
  EXPECT_THAT(message([](Program& p) { p.nodes[3].op = "ad"; }),
              HasSubstr("unsupported: [program] layers.0.add: the op must be one of "
                        "embedding, linear, "));
  EXPECT_EQ(message([](Program& p) { p.nodes[3].inputs = {"embed"}; }),
            "invalid_argument: [program] layers.0.add: add reads 2 values; found 1");
  EXPECT_EQ(message([](Program& p) { p.nodes[3].inputs[1] = "logits"; }),
            "invalid_argument: [program] layers.0.add: reads value `logits`, which no "
            "program input or earlier node makes");
  EXPECT_EQ(message([](Program& p) { p.nodes[1].parameters.clear(); }),
            "invalid_argument: [program] layers.0.norm: rms_norm needs the parameter "
            "`weight`; found none");
  EXPECT_EQ(
      message([](Program& p) { p.nodes[1].parameters["gamma"] = "g"; }),
      "invalid_argument: [program] layers.0.norm: rms_norm has no parameter `gamma`; "
      "found it naming tensor `g`");
  EXPECT_EQ(
      message([](Program& p) { p.nodes[4].name = "embed"; }),
      "invalid_argument: [program] embed: node names must be unique; found it twice");
  EXPECT_EQ(message([](Program& p) { p.nodes[4].outputs = {"embed"}; }),
            "invalid_argument: [program] layers.1.norm: makes value `embed`, which is "
            "already made");
  EXPECT_EQ(message([](Program& p) { p.nodes[2].block = 1; }),
            "invalid_argument: [program] layers.0.add: blocks must be in order and none "
            "empty; found block 0 after block 1");
  EXPECT_EQ(message([](Program& p) { p.nodes[1].block = 3; }),
            "invalid_argument: [program] layers.0.norm: blocks must be in order and none "
            "empty; found block 3 after block -1");
  EXPECT_EQ(
      message([](Program& p) { p.outputs[0].name = "scores"; }),
      "invalid_argument: [program] output `scores`: no program input or node makes it");
  EXPECT_EQ(
      message([](Program& p) { p.nodes[1].attributes["state"] = std::string("c"); }),
      "invalid_argument: [program] layers.0.norm: uses state `c`, which the program "
      "does not declare");
}

TEST(Shape, ParameterShapesFollowFromTheGraph) {
  const Result<Shapes> shapes = parameter_shapes(small_program());
  ASSERT_TRUE(shapes.ok()) << shapes.status().message();
  EXPECT_EQ(shapes->size(), 7u);
  EXPECT_EQ(shapes->at("embed.weight"), (std::vector<int64_t>{10, 6}));
  EXPECT_EQ(shapes->at("layers.1.proj.weight"), (std::vector<int64_t>{6, 6}));
  EXPECT_EQ(shapes->at("layers.1.proj.bias"), (std::vector<int64_t>{6}));
  Program program = small_program();
  program.nodes[2].attributes.clear();
  EXPECT_EQ(parameter_shapes(program).status().message(),
            "[program] layers.0.proj: attributes out_features must say the shape of "
            "layers.0.proj.weight; found not all of them");
}

TEST(Shape, TensorsAreCheckedAgainstTheGraph) {
  const Program program = small_program();
  Shapes shapes = *parameter_shapes(program);
  Shapes values;
  EXPECT_TRUE(check_shapes(program, shapes, &values).ok());
  EXPECT_EQ(values.at("layers.1.add"), (std::vector<int64_t>{-1, -1, 6}));

  Shapes wrong = shapes;
  wrong["layers.1.proj.weight"] = {6, 5};
  const Status status = check_shapes(program, wrong);
  EXPECT_EQ(status.code(), StatusCode::invalid_argument);
  EXPECT_EQ(
      status.message(),
      "[program] layers.1.proj.weight: node layers.1.proj needs shape [6, 6]; found "
      "[6, 5]; do config.json and the weights belong together?");
  wrong = shapes;
  wrong.erase("layers.0.norm.weight");
  EXPECT_EQ(check_shapes(program, wrong).code(), StatusCode::not_found);
  EXPECT_EQ(
      check_shapes(program, wrong).message(),
      "[program] layers.0.norm.weight: node layers.0.norm needs this tensor with shape "
      "[6]; the model has none of that name; is the checkpoint complete?");
}

TEST(Shape, SizesComeFromTheTensorsWhereTheGraphIsSilent) {
  Program program = small_program();
  for (Node& node : program.nodes) {
    node.attributes.erase("out_features");
    node.attributes.erase("features");
  }
  Shapes shapes = *parameter_shapes(small_program());
  EXPECT_TRUE(check_shapes(program, shapes).ok());
  shapes["layers.0.proj.weight"] = {7, 6};
  shapes["layers.0.proj.bias"] = {7};
  EXPECT_EQ(check_shapes(program, shapes).message(),
            "[program] layers.0.add: add reads two values of equal shape; found embed "
            "[-1, -1, 6] and layers.0.proj [-1, -1, 7]");
}

TEST(Ops, EveryOpIsFoundByName) {
  for (const OpInfo& op : all_ops()) EXPECT_EQ(find_op(op.name), &op);
  EXPECT_EQ(find_op("Linear"), nullptr);
  EXPECT_EQ(find_op("batch_norm")->required_parameters.size(), 4u);
}

}  // namespace
}  // namespace nibble
