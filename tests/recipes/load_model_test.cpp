#include "recipes/models/load_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "kernels/artifact/safetensors.h"
#include "kernels/base/file.h"
#include "kernels/program/layers.h"
#include "kernels/program/rope_attributes.h"
#include "kernels/program/shape.h"
#include "recipes/models/architecture.h"
#include "recipes/models/initialise.h"
#include "tests/kernels/temporary_directory.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

fs::path data() { return fs::path(NIBBLE_SOURCE_DIR).parent_path() / "shared" / "data"; }

#define SKIP_WITHOUT_DATA() \
  if (!fs::exists(data())) GTEST_SKIP() << "the real checkpoints are not at " << data()

// Distinct parameters of the program, as people count them.
int64_t parameter_count(const Artifact& artifact) {
  int64_t count = 0;
  const Result<Shapes> shapes = parameter_shapes(artifact.program);
  EXPECT_TRUE(shapes.ok()) << shapes.status().message();
  for (const auto& [name, shape] : *shapes) count += artifact.tensors.at(name).numel();
  EXPECT_EQ(shapes->size(), artifact.tensors.size());
  return count;
}

TEST(LoadModel, Stories260K) {
  SKIP_WITHOUT_DATA();
  const fs::path folder = data() / "models" / "stories260K";
  LoadOptions options;
  options.tokenizer = folder / "tok512.bin";
  const Result<Artifact> model = load_model(folder / "stories260K.bin", options);
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(model->program.architecture, "LlamaForCausalLM");
  // 512*64 + 5 * (2*64 + 64*64*2 + 32*64*2 + 3*172*64) + 64
  EXPECT_EQ(parameter_count(*model), 260032);
  EXPECT_EQ(model->program.context_length, 512);
  EXPECT_EQ(model->program.vocabulary, 512);
  EXPECT_EQ(model->program.block_count(), 5);
  EXPECT_EQ(model->program.states.size(), 5u);
  EXPECT_EQ(model->program.find("lm_head")->parameter("weight"),
            "model.embed_tokens.weight");
  const Node& rope = *model->program.find("model.layers.0.self_attn.q_rope");
  EXPECT_EQ(rope.integer("interleaved", 0), 1);
  EXPECT_EQ(rope.integer("head_dim", 0), 8);
  EXPECT_EQ(model->program.find("model.norm")->number("epsilon", 0), 1e-5);
  ASSERT_EQ(model->tokenizer.count("tokenizer.bin"), 1u);
  EXPECT_EQ(model->tokenizer.at("tokenizer.bin").size(), 6227u);
  EXPECT_EQ(model->provenance.sources.at("stories260K.bin"),
            sha256_hex(map_file(folder / "stories260K.bin")->text()));
  EXPECT_EQ(model->provenance.sources.size(), 2u);
  EXPECT_TRUE(model->ledger.entries.empty());
  EXPECT_THAT(model->config_json, HasSubstr("\"bos_token_id\": 1"));
  // The file's last weights: model.norm lies before the two rope tables of 512 x 4.
  const Bytes file = *map_file(folder / "stories260K.bin");
  EXPECT_EQ(model->tensors.at("model.norm.weight").bytes.text(),
            file.slice(file.size() - 2 * 512 * 4 * 4 - 64 * 4, 64 * 4).text());
}

TEST(LoadModel, Docs14m) {
  SKIP_WITHOUT_DATA();
  const Result<Artifact> model = load_model(data() / "models" / "docs14m", {});
  ASSERT_TRUE(model.ok()) << model.status().message();
  // 4096*384 + 8 * (2*384 + 2*384*384 + 2*128*384 + 3*1024*384) + 384
  EXPECT_EQ(parameter_count(*model), 14162304);
  EXPECT_EQ(model->program.context_length, 1024);
  EXPECT_EQ(model->program.find("model.norm")->number("epsilon", 0), 1e-6);
  const Node& attention = *model->program.find("model.layers.7.self_attn.attention");
  EXPECT_EQ(attention.integer("heads", 0), 6);
  EXPECT_EQ(attention.integer("kv_heads", 0), 2);
  EXPECT_EQ(attention.number("scale", 0), 0.125);
  const Node& rope = *model->program.find("model.layers.7.self_attn.k_rope");
  EXPECT_EQ(rope.integer("interleaved", 1), 0);
  EXPECT_EQ(rope.number("theta", 0), 10000.0);
  EXPECT_EQ(model->tensors.at("model.norm.weight").dtype, DType::bf16);
  EXPECT_EQ(model->tokenizer.size(), 3u);
  EXPECT_EQ(model->provenance.sources.size(), 5u);
}

TEST(LoadModel, CifarResNets) {
  SKIP_WITHOUT_DATA();
  const fs::path folder = data() / "models" / "cifar10_resnet";
  const Result<Artifact> model = load_model(folder / "resnet20_cifar10.safetensors", {});
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(model->program.architecture, "ResNetCIFAR");
  // The published 269,722 trained parameters, and 2 statistics a channel of 19 batch
  // norms.
  EXPECT_EQ(parameter_count(*model), 269722 + 2 * (16 * 7 + 32 * 6 + 64 * 6));
  EXPECT_EQ(model->program.block_count(), 9);
  EXPECT_EQ(model->image_mean, (std::vector<float>{0.485f, 0.456f, 0.406f}));
  EXPECT_EQ(model->image_std, (std::vector<float>{0.229f, 0.224f, 0.225f}));
  const Node& shortcut = *model->program.find("layer2.0.shortcut");
  EXPECT_EQ(shortcut.integer("stride", 0), 2);
  EXPECT_EQ(shortcut.integer("pad_before", 0), 8);
  EXPECT_EQ(shortcut.integer("pad_after", 0), 8);
  EXPECT_EQ(model->program.find("layer1.0.shortcut"), nullptr);
  EXPECT_EQ(model->program.find("layer3.0.conv1")->integers("stride", {}),
            (std::vector<int64_t>{2, 2}));

  const Result<Artifact> deeper = load_model(folder / "resnet32_cifar10.safetensors", {});
  ASSERT_TRUE(deeper.ok()) << deeper.status().message();
  EXPECT_EQ(deeper->program.block_count(), 15);
}

TEST(LoadModel, MnistMlp) {
  SKIP_WITHOUT_DATA();
  const Result<Artifact> model =
      load_model(data() / "models" / "mnist_mlp" / "model.safetensors", {});
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(model->program.architecture, "MLP");
  EXPECT_EQ(parameter_count(*model), 784 * 128 + 128 * 10);
  EXPECT_EQ(model->program.find("l1.leaky_relu")->number("slope", 0), 0.01);
  EXPECT_EQ(model->image_mean, std::vector<float>{0.0f});
  EXPECT_EQ(model->image_std, std::vector<float>{1.0f});
}

// --- llama2.c files made here

// A version 0 or 1 file whose weights are 0, 1, 2 ... / 1024 in file order.
std::string llama2c_file(int version, bool tied) {
  const int dim = 8, hidden = 12, layers = 2, heads = 2, kv_heads = 1, vocabulary = 6,
            context = 4;
  std::string bytes;
  const auto word = [&](int32_t value) {
    bytes.append(reinterpret_cast<const char*>(&value), 4);
  };
  const auto number = [&](float value) {
    bytes.append(reinterpret_cast<const char*>(&value), 4);
  };
  if (version > 0) {
    word(0x616b3432);
    word(version);
  }
  for (const int field : {dim, hidden, layers, heads, kv_heads}) word(field);
  word(version == 0 && !tied ? -vocabulary : vocabulary);
  word(context);
  if (version > 0) {
    bytes += tied ? '\1' : '\0';
    bytes.resize(256, '\0');
  }
  const int head = dim / heads, kv = head * kv_heads;
  const int weights =
      vocabulary * dim + dim +
      layers * (2 * dim + 2 * dim * dim + 2 * kv * dim + 3 * hidden * dim);
  for (int i = 0; i < weights; ++i) number(static_cast<float>(i) / 1024);
  if (version == 0) {
    for (int table = 0; table < 2; ++table) {
      for (int p = 0; p < context; ++p) {
        for (int i = 0; i < head / 2; ++i) {
          const double angle = p * std::pow(10000.0, -2.0 * i / head);
          number(static_cast<float>(table == 0 ? std::cos(angle) : std::sin(angle)));
        }
      }
    }
  }
  if (!tied) {
    for (int i = 0; i < vocabulary * dim; ++i) number(-1);
  }
  return bytes;
}

TEST(LoadModel, Llama2cVersionsAgreeOnNamesAndOrder) {
  TemporaryDirectory directory;
  for (const bool tied : {true, false}) {
    for (const int version : {0, 1}) {
      const fs::path path = directory.path() / "model.bin";
      std::ofstream(path, std::ios::binary) << llama2c_file(version, tied);
      const Result<Artifact> model = load_model(path, {});
      ASSERT_TRUE(model.ok()) << model.status().message();
      const auto first = [&](const std::string& name) {
        return to_float(model->tensors.at(name)).value()[0] * 1024;
      };
      // Version 0: embedding 48, norms 8 a layer, q 64 a layer, k 32, v 32, o 64, norms
      // ...
      EXPECT_EQ(first("model.embed_tokens.weight"), version == 0 ? 0 : 40);
      EXPECT_EQ(first("model.layers.1.input_layernorm.weight"), version == 0 ? 56 : 8);
      EXPECT_EQ(first("model.layers.0.self_attn.q_proj.weight"), version == 0 ? 64 : 88);
      EXPECT_EQ(first("model.layers.1.self_attn.v_proj.weight"),
                version == 0 ? 288 : 312);
      EXPECT_EQ(first("model.layers.0.mlp.gate_proj.weight"), version == 0 ? 464 : 472);
      EXPECT_EQ(first("model.layers.0.mlp.down_proj.weight"), version == 0 ? 656 : 664);
      EXPECT_EQ(first("model.layers.1.mlp.up_proj.weight"), version == 0 ? 944 : 952);
      EXPECT_EQ(model->tensors.count("lm_head.weight"), tied ? 0u : 1u);
      if (!tied) {
        EXPECT_EQ(first("lm_head.weight"), -1024);
      }
    }
  }
}

TEST(LoadModel, Llama2cRefusals) {
  TemporaryDirectory directory;
  const fs::path path = directory.path() / "model.bin";
  const auto message = [&](const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
    return load_model(path, {}).status().message();
  };
  const std::string good = llama2c_file(0, true);
  EXPECT_EQ(
      message(good.substr(0, good.size() - 1)),
      cat("[models] ", path.string(), ": a llama2.c file with this header needs ",
          good.size(), " bytes; found ", good.size() - 1, "; the file is truncated"));
  std::string wrong_rope = good;
  std::memset(wrong_rope.data() + wrong_rope.size() - 4, 0x40, 4);
  EXPECT_THAT(message(wrong_rope), HasSubstr("the rope table must be theta 10000's; at "
                                             "position 3, pair 1 found cos "));
  std::string quantized = llama2c_file(1, true);
  quantized[4] = 2;
  EXPECT_THAT(message(quantized),
              HasSubstr("found version 2, which is quantized already"));
}

// --- Hugging Face directories made here

constexpr const char* kTinyConfig =
    R"({"architectures":["LlamaForCausalLM"],"vocab_size":7,"hidden_size":8,
        "intermediate_size":12,"num_hidden_layers":2,"num_attention_heads":2,
        "num_key_value_heads":1,"max_position_embeddings":16,"eos_token_id":[1,2]})";

std::string with(const std::string& fields) {
  return std::string(kTinyConfig, std::strlen(kTinyConfig) - 1) + "," + fields + "}";
}

TEST(LlamaProgram, ReadsBothFormsOfRope) {
  const auto theta = [](const std::string& fields) {
    const Result<Program> program =
        find_architecture("LlamaForCausalLM").value()->program(with(fields));
    EXPECT_TRUE(program.ok()) << program.status().message();
    return program->find("model.layers.0.self_attn.q_rope")->number("theta", 0);
  };
  EXPECT_EQ(theta("\"a\":1"), 10000.0);
  EXPECT_EQ(theta("\"rope_theta\":500000,\"rope_scaling\":null"), 500000.0);
  EXPECT_EQ(theta("\"rope_parameters\":{\"rope_theta\":250.5,\"rope_type\":\"default\"}"),
            250.5);
}

TEST(LlamaProgram, RefusesWhatItCannotDo) {
  const auto message = [](const std::string& fields) {
    return find_architecture("llama").value()->program(with(fields)).status().message();
  };
  EXPECT_EQ(message("\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}"),
            "[models] config.json: rope_scaling: nibble supports rope_type llama3 with "
            "low_freq_factor; found no low_freq_factor; is config.json complete?");
  EXPECT_EQ(message("\"rope_scaling\":{\"type\":\"linear\"}"),
            "[models] config.json: rope_scaling: nibble supports rope_type linear with "
            "factor; found no factor; is config.json complete?");
  EXPECT_EQ(message("\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":8,"
                    "\"low_freq_factor\":4,\"high_freq_factor\":1}"),
            "[models] config.json: rope_parameters: nibble supports high_freq_factor "
            "above low_freq_factor; found 1 and 4");
  EXPECT_EQ(
      message("\"rope_parameters\":{\"rope_type\":\"yarn\"}"),
      "[models] config.json: rope_parameters: nibble supports rope_type default, linear "
      "or llama3; found rope_type yarn");
  EXPECT_EQ(message("\"final_logit_softcapping\":30.0"),
            "[models] config.json: final_logit_softcapping: nibble supports logits "
            "without a soft cap; found one");
  EXPECT_EQ(message("\"hidden_act\":\"gelu\""),
            "[models] config.json: hidden_act: nibble supports silu; found gelu");
  EXPECT_EQ(
      message("\"quantization_config\":{\"quant_method\":\"gptq\"}"),
      "[models] config.json: quantization_config: nibble supports float checkpoints and "
      "its own artifacts; found quant_method gptq");
  EXPECT_EQ(message("\"rms_norm_eps\":-1"),
            "[models] config.json: rms_norm_eps must be a positive number; found -1");
  EXPECT_EQ(
      message("\"num_key_value_heads\":0"),
      "[models] config.json: num_key_value_heads must be an integer from 1 to 16777216; "
      "found 0");
  EXPECT_EQ(
      message("\"num_attention_heads\":\"2\",\"num_key_value_heads\":1"),
      "[models] config.json: num_attention_heads must be an integer from 1 to 16777216; "
      "found \"2\"");
}

TEST(LlamaProgram, RopeScalingIsReadInBothSpellings) {
  const auto rope = [](const std::string& fields) {
    const Result<Program> program =
        find_architecture("LlamaForCausalLM").value()->program(with(fields));
    EXPECT_TRUE(program.ok()) << program.status().message();
    return rope_shape(*program->find("model.layers.1.self_attn.k_rope"));
  };
  const RopeShape llama3{.head_dim = 4,
                         .theta = 500000,
                         .scaling = "llama3",
                         .factor = 8,
                         .low_frequency_factor = 1,
                         .high_frequency_factor = 4,
                         .original_context = 8192};
  const std::string numbers =
      "\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4.0,"
      "\"original_max_position_embeddings\":8192,\"rope_type\":\"llama3\"";
  EXPECT_EQ(rope("\"rope_theta\":500000.0,\"rope_scaling\":{" + numbers + "}"), llama3);
  EXPECT_EQ(rope("\"rope_parameters\":{\"rope_theta\":500000.0," + numbers + "}"),
            llama3);
  const RopeShape linear{.head_dim = 4, .scaling = "linear", .factor = 2.5};
  EXPECT_EQ(rope("\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.5}"), linear);
  EXPECT_EQ(rope("\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2.5}"),
            linear);
}

// The window of each layer, -1 for a program that is refused.
std::vector<int64_t> windows(const char* architecture, const std::string& fields) {
  const Result<Program> program =
      find_architecture(architecture).value()->program(with(fields));
  EXPECT_TRUE(program.ok()) << program.status().message();
  if (!program.ok()) return {-1};
  std::vector<int64_t> result;
  for (const Node& node : program->nodes) {
    if (node.op == "attention") result.push_back(node.integer("window", 0));
  }
  return result;
}

TEST(DecoderWindows, FollowTheConfig) {
  using List = std::vector<int64_t>;
  EXPECT_EQ(windows("mistral", "\"a\":1"), (List{4096, 4096}));
  EXPECT_EQ(windows("mistral", "\"sliding_window\":null"), (List{0, 0}));
  EXPECT_EQ(windows("mistral", "\"sliding_window\":7"), (List{7, 7}));
  const std::string off = "\"use_sliding_window\":false,\"max_window_layers\":1,";
  const std::string on = "\"use_sliding_window\":true,\"max_window_layers\":1,";
  for (const char* qwen : {"qwen2", "qwen3"}) {
    EXPECT_EQ(windows(qwen, off + "\"sliding_window\":7"), (List{0, 0}));
    EXPECT_EQ(windows(qwen, on + "\"sliding_window\":7"), (List{0, 7}));
    EXPECT_EQ(windows(qwen, on + "\"sliding_window\":null"), (List{0, 0}));
    EXPECT_EQ(windows(qwen, on + "\"sliding_window\":7,\"layer_types\":"
                                 "[\"sliding_attention\",\"full_attention\"]"),
              (List{7, 0}));
  }
  const auto message = [](const std::string& fields) {
    return find_architecture("qwen3").value()->program(with(fields)).status().message();
  };
  EXPECT_EQ(message("\"layer_types\":[\"full_attention\"]"),
            "[models] config.json: layer_types: nibble supports one a layer, 2; found 1");
  EXPECT_EQ(message("\"layer_types\":[\"full_attention\",\"linear_attention\"]"),
            "[models] config.json: layer_types: nibble supports full_attention and "
            "sliding_attention; found linear_attention");
  EXPECT_EQ(message("\"layer_types\":[\"full_attention\",\"sliding_attention\"]"),
            "[models] config.json: layer_types: nibble supports sliding_attention with a "
            "sliding_window; found none");
}

TEST(QwenProgram, HasItsBiasesAndNorms) {
  const Result<Program> two = find_architecture("qwen2").value()->program(kTinyConfig);
  ASSERT_TRUE(two.ok()) << two.status().message();
  const Shapes biases = *parameter_shapes(*two);
  for (const char* with_bias : {"q", "k", "v"}) {
    EXPECT_EQ(biases.count(cat("model.layers.1.self_attn.", with_bias, "_proj.bias")),
              1u);
  }
  EXPECT_EQ(biases.count("model.layers.1.self_attn.o_proj.bias"), 0u);
  EXPECT_EQ(biases.count("model.layers.1.self_attn.q_norm.weight"), 0u);
  const Result<Program> three =
      find_architecture("qwen3").value()->program(with("\"head_dim\":6"));
  ASSERT_TRUE(three.ok()) << three.status().message();
  const Shapes norms = *parameter_shapes(*three);
  EXPECT_EQ(norms.at("model.layers.1.self_attn.q_norm.weight"),
            (std::vector<int64_t>{6}));
  EXPECT_EQ(norms.at("model.layers.1.self_attn.k_proj.weight"),
            (std::vector<int64_t>{6, 8}));
  EXPECT_EQ(norms.count("model.layers.1.self_attn.q_proj.bias"), 0u);
  // config.json silent: Qwen3's heads are of 128, whatever hidden_size says.
  EXPECT_EQ(find_architecture("qwen3")
                .value()
                ->program(kTinyConfig)
                ->find("model.layers.0.self_attn.q_norm")
                ->integer("head_dim", 0),
            128);
}

// Per layer: how many experts, 0 for one MLP.
std::vector<int64_t> experts(const std::string& fields) {
  const Result<Program> program =
      find_architecture("qwen3_moe").value()->program(with(fields));
  EXPECT_TRUE(program.ok()) << program.status().message();
  std::vector<int64_t> result(2, 0);
  if (!program.ok()) return result;
  for (const Node& node : program->nodes) {
    if (node.op == "moe") {
      result[static_cast<size_t>(node.block)] = node.integer("experts", 0);
    }
  }
  return result;
}

TEST(Qwen3MoeProgram, LayersFollowTheConfig) {
  using List = std::vector<int64_t>;
  const std::string four =
      "\"num_experts\":4,\"num_experts_per_tok\":2,"
      "\"moe_intermediate_size\":5";
  EXPECT_EQ(experts(four), (List{4, 4}));
  EXPECT_EQ(experts(four + ",\"decoder_sparse_step\":2"), (List{0, 4}));
  EXPECT_EQ(experts(four + ",\"mlp_only_layers\":[1]"), (List{4, 0}));
  EXPECT_EQ(experts("\"num_local_experts\":8"), (List{8, 8}));
  const Result<Program> program =
      find_architecture("qwen3_moe").value()->program(with(four));
  ASSERT_TRUE(program.ok());
  const Shapes shapes = *parameter_shapes(*program);
  EXPECT_EQ(shapes.at("model.layers.1.mlp.gate.weight"), (List{4, 8}));
  EXPECT_EQ(shapes.at("model.layers.1.mlp.experts.3.up_proj.weight"), (List{5, 8}));
  EXPECT_EQ(shapes.at("model.layers.1.mlp.experts.0.down_proj.weight"), (List{8, 5}));
  // One node, many layers, named as the checkpoint's modules, in order.
  const Node& node = *program->find("model.layers.1.mlp.experts");
  const std::vector<Layer> layers = layers_of(node);
  ASSERT_EQ(layers.size(), 12u);
  EXPECT_EQ(layers[4].name, "model.layers.1.mlp.experts.1.up_proj");
  EXPECT_EQ(layers[4].tensor, "model.layers.1.mlp.experts.1.up_proj.weight");
  // Its text form and back.
  EXPECT_EQ(*parse_program(print_program(*program)), *program);

  const auto message = [&](const std::string& fields) {
    return find_architecture("qwen3_moe")
        .value()
        ->program(with(fields))
        .status()
        .message();
  };
  EXPECT_EQ(message("\"num_experts\":4,\"num_experts_per_tok\":5"),
            "[models] config.json: num_experts_per_tok: nibble supports at most "
            "num_experts, 4; found 5");
}

TEST(Qwen3MoeProgram, DamagedNodesAreRefused) {
  Program program = *find_architecture("qwen3_moe")
                         .value()
                         ->program(with("\"num_experts\":4,\"num_experts_per_tok\":2"));
  Node* node = nullptr;
  for (Node& each : program.nodes) {
    if (each.op == "moe") node = &each;
  }
  const Node good = *node;
  node->parameters.erase("2.up_proj");
  EXPECT_EQ(
      check_program(program).message(),
      "[program] model.layers.1.mlp.experts: moe needs the attribute `experts` and "
      "the parameters <e>.gate_proj, <e>.up_proj and <e>.down_proj of each; found 4 "
      "experts and 11 parameters");
  node->parameters["bias"] = "b";
  EXPECT_EQ(check_program(program).message(),
            "[program] model.layers.1.mlp.experts: moe needs the parameter `2.up_proj`; "
            "found none");
  *node = good;
  node->attributes["experts_per_token"] = int64_t{5};
  EXPECT_EQ(
      parameter_shapes(program).status().message(),
      "[program] model.layers.1.mlp.experts: experts_per_token must be at most the 4 "
      "experts; found 5");
  *node = good;
  node->attributes["experts"] = int64_t{1} << 40;
  EXPECT_FALSE(check_program(program).ok());
}

// As transformers 5 holds them: one tensor for all experts.
TEST(LoadModel, FusedExpertsAreTakenApart) {
  TemporaryDirectory directory;
  std::string config = with(
      "\"num_experts\":3,\"num_experts_per_tok\":2,"
      "\"moe_intermediate_size\":2,\"head_dim\":4");
  config.replace(config.find("LlamaForCausalLM"), 16, "Qwen3MoeForCausalLM");
  std::ofstream(directory.path() / "config.json") << config;
  LoadOptions options;
  options.initialise = true;
  const Result<Artifact> made = load_model(directory.path(), options);
  ASSERT_TRUE(made.ok()) << made.status().message();
  std::map<std::string, Tensor> tensors = made->tensors;
  for (const char* layer :
       {"model.layers.0.mlp.experts.", "model.layers.1.mlp.experts."}) {
    std::vector<float> gate_up, down;
    for (int e = 0; e < 3; ++e) {
      for (const char* part :
           {".gate_proj.weight", ".up_proj.weight", ".down_proj.weight"}) {
        const std::string name = cat(layer, e, part);
        const std::vector<float> values = *to_float(tensors.at(name));
        std::vector<float>& to = std::string(part)[1] == 'd' ? down : gate_up;
        to.insert(to.end(), values.begin(), values.end());
        tensors.erase(name);
      }
    }
    tensors[cat(layer, "gate_up_proj")] =
        make_tensor({3, 4, 8}, std::span<const float>(gate_up));
    tensors[cat(layer, "down_proj")] =
        make_tensor({3, 8, 2}, std::span<const float>(down));
  }
  const fs::path weights = directory.path() / "model.safetensors";
  ASSERT_TRUE(write_safetensors(weights, tensors, {}).ok());
  const Result<Artifact> model = load_model(directory.path(), {});
  ASSERT_TRUE(model.ok()) << model.status().message();
  ASSERT_EQ(model->tensors.size(), made->tensors.size());
  for (const auto& [name, tensor] : made->tensors) {
    EXPECT_EQ(*to_float(model->tensors.at(name)), *to_float(tensor)) << name;
  }
  tensors["model.layers.0.mlp.experts.down_proj"] =
      make_tensor({24, 2}, *to_float(tensors.at("model.layers.0.mlp.experts.down_proj")));
  ASSERT_TRUE(write_safetensors(weights, tensors, {}).ok());
  EXPECT_EQ(load_model(directory.path(), {}).status().message(),
            "[models] model.layers.0.mlp.experts.down_proj: fused experts are [experts, "
            "features, width]; found [24, 2]");
}

TEST(LlamaProgram, BiasesAndHeadDimFollowTheConfig) {
  const Result<Program> program = find_architecture("llama").value()->program(
      with("\"attention_bias\":true,\"mlp_bias\":true,\"head_dim\":6"));
  ASSERT_TRUE(program.ok());
  const Shapes shapes = *parameter_shapes(*program);
  EXPECT_EQ(shapes.at("model.layers.1.self_attn.q_proj.weight"),
            (std::vector<int64_t>{12, 8}));
  EXPECT_EQ(shapes.at("model.layers.1.self_attn.k_proj.bias"), (std::vector<int64_t>{6}));
  EXPECT_EQ(shapes.at("model.layers.1.self_attn.o_proj.bias"), (std::vector<int64_t>{8}));
  EXPECT_EQ(shapes.at("model.layers.1.mlp.down_proj.bias"), (std::vector<int64_t>{8}));
  EXPECT_EQ(shapes.at("lm_head.weight"), (std::vector<int64_t>{7, 8}));
}

TEST(Initialise, IsSeededAndHasTheRightSpread) {
  TemporaryDirectory directory;
  std::string config = kTinyConfig;
  config.replace(config.find("\"vocab_size\":7"), 14, "\"vocab_size\":4000");
  std::ofstream(directory.path() / "config.json") << config;
  EXPECT_THAT(load_model(directory.path(), {}).status().message(),
              HasSubstr("needs model.safetensors or model.safetensors.index.json beside "
                        "config.json; found neither; `nibble train`"));
  LoadOptions options;
  options.initialise = true;
  options.seed = 5;
  const Result<Artifact> a = load_model(directory.path(), options);
  ASSERT_TRUE(a.ok()) << a.status().message();
  const Result<Artifact> b = load_model(directory.path(), options);
  options.seed = 6;
  const Result<Artifact> c = load_model(directory.path(), options);
  const std::string name = "model.embed_tokens.weight";
  EXPECT_EQ(a->tensors.at(name).bytes.text(), b->tensors.at(name).bytes.text());
  EXPECT_NE(a->tensors.at(name).bytes.text(), c->tensors.at(name).bytes.text());
  const std::vector<float> values = *to_float(a->tensors.at(name));
  double sum = 0, squares = 0, fourth = 0;
  for (const double v : values) sum += v, squares += v * v, fourth += v * v * v * v;
  const double n = static_cast<double>(values.size());
  // 32,000 draws: the mean within 4 sigma / sqrt(n), the deviation within 4 / sqrt(2 n).
  EXPECT_NEAR(sum / n, 0, 4 * 0.02 / std::sqrt(n));
  EXPECT_NEAR(std::sqrt(squares / n), 0.02, 0.02 * 4 / std::sqrt(2 * n));
  EXPECT_NEAR(fourth / n / std::pow(squares / n, 2), 3,
              4 * std::sqrt(24 / n));  // a normal's
  EXPECT_EQ(*to_float(a->tensors.at("model.layers.1.input_layernorm.weight")),
            std::vector<float>(8, 1.0f));
}

TEST(Initialise, CifarResNetFromItsConfig) {
  TemporaryDirectory directory;
  std::ofstream(directory.path() / "config.json")
      << R"({"architectures":["ResNetCIFAR"],"depth":8,"image_mean":[0,0,0],"image_std":[1,1,1]})";
  LoadOptions options;
  options.initialise = true;
  const Result<Artifact> model = load_model(directory.path(), options);
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(model->program.block_count(), 3);
  EXPECT_EQ(to_float(model->tensors.at("bn1.running_var")).value()[3], 1.0f);
  EXPECT_EQ(to_float(model->tensors.at("bn1.running_mean")).value()[3], 0.0f);
  double squares = 0;
  const std::vector<float> weight = *to_float(model->tensors.at("layer3.0.conv2.weight"));
  for (const double v : weight) squares += v * v;
  EXPECT_NEAR(squares / static_cast<double>(weight.size()), 2.0 / (64 * 9), 2e-4);
}

// Depth 6 n + 2, widths and classes come from names and shapes alone.
TEST(LoadModel, CifarResNetsOfAnyDepthAreKnownByTheirTensors) {
  TemporaryDirectory directory;
  const fs::path file = directory.path() / "net.safetensors";
  for (const int64_t depth : {8, 20, 26, 32, 38, 44, 50, 56}) {
    const int64_t classes = depth == 56 ? 100 : 10;
    const Result<Program> program =
        find_architecture("ResNetCIFAR")
            .value()
            ->program(cat("{\"depth\":", depth, ",\"num_classes\":", classes, "}"));
    ASSERT_TRUE(program.ok()) << program.status().message();
    std::map<std::string, Tensor> tensors = initialise(*program, 0.02, 1).value();
    const std::vector<int32_t> seen = {7};
    tensors["bn1.num_batches_tracked"] = make_tensor({1}, std::span<const int32_t>(seen));
    ASSERT_TRUE(write_safetensors(file, tensors, {}).ok());
    const Result<Artifact> model = load_model(file, {});
    ASSERT_TRUE(model.ok()) << depth << ": " << model.status().message();
    EXPECT_EQ(model->program, *program) << depth;
    EXPECT_EQ(model->program.block_count(), (depth - 2) / 2) << depth;
    EXPECT_EQ(model->image_mean.size(), 3u);
  }
  // A stage of another length is no such net.
  const Program odd =
      find_architecture("ResNetCIFAR").value()->program("{\"depth\":20}").value();
  std::map<std::string, Tensor> tensors = initialise(odd, 0.02, 1).value();
  for (auto at = tensors.begin(); at != tensors.end();) {
    at = at->first.rfind("layer3.2.", 0) == 0 ? tensors.erase(at) : std::next(at);
  }
  ASSERT_TRUE(write_safetensors(file, tensors, {}).ok());
  EXPECT_THAT(load_model(file, {}).status().message(),
              HasSubstr("the tensors must be those of a known architecture"));
}

TEST(LoadModel, WritesOneConfigForTwoForms) {
  // A Llama saved by its own tensors loads as a directory: what initialise made,
  // reloaded.
  TemporaryDirectory directory;
  std::ofstream(directory.path() / "config.json") << kTinyConfig;
  LoadOptions options;
  options.initialise = true;
  Result<Artifact> made = load_model(directory.path(), options);
  ASSERT_TRUE(made.ok());
  std::map<std::string, Tensor> tensors = made->tensors;
  const std::vector<float> frequencies(2, 1.0f);
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] =
      make_tensor({2}, std::span<const float>(frequencies));  // of old files: ignored
  ASSERT_TRUE(
      write_safetensors(directory.path() / "model.safetensors", tensors, {}).ok());
  const Result<Artifact> model = load_model(directory.path(), {});
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(model->program, made->program);
  EXPECT_EQ(model->tensors.size(), made->tensors.size());

  tensors["model.layers.0.self_attn.q_norm.weight"] =
      make_tensor({2}, std::span<const float>(frequencies));
  ASSERT_TRUE(
      write_safetensors(directory.path() / "model.safetensors", tensors, {}).ok());
  EXPECT_EQ(
      load_model(directory.path(), {}).status().message(),
      "[models] model.layers.0.self_attn.q_norm.weight: LlamaForCausalLM has no such "
      "parameter; found it in the checkpoint, [2]; do config.json and the weights belong "
      "together?");
}

TEST(Architectures, AreFoundByNameOrType) {
  for (const ModelArchitecture& row : all_architectures()) {
    EXPECT_EQ(find_architecture(row.name).value(), &row);
    EXPECT_EQ(find_architecture(row.model_type).value(), &row);
  }
  EXPECT_EQ(
      find_architecture("Mamba").status().message(),
      "[models] the architecture must be one of LlamaForCausalLM, MistralForCausalLM, "
      "Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM, BertModel, "
      "ResNetCIFAR, MLP; found Mamba");
}

}  // namespace
}  // namespace nibble
