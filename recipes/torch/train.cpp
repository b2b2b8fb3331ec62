// nibble train: float checkpoints, quantization in the loop, adapters.
#include <ATen/Parallel.h>

#include "kernels/artifact/safetensors.h"
#include "kernels/base/cancel.h"
#include "kernels/base/file.h"
#include "kernels/base/float_types.h"
#include "kernels/base/json.h"
#include "kernels/base/parallel.h"
#include "kernels/program/edits/low_rank.h"
#include "ptq/calibrate.h"
#include "ptq/distributed/ranks.h"
#include "ptq/module/packed_linear.h"
#include "qat/batch_norm.h"
#include "qat/blockwise.h"
#include "qat/prepare.h"
#include "qat/trainer.h"
#include "recipes/eval/evaluate.h"
#include "recipes/recipe/mixed_costs.h"
#include "recipes/report/training_log.h"
#include "recipes/torch/calibration.h"
#include "recipes/torch/device.h"
#include "recipes/torch/exact_check.h"
#include "recipes/torch/pipeline_error.h"
#include "recipes/torch/run_parts.h"
#include "recipes/torch/training_data.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// Tokens of a training sequence when nothing is said.
constexpr int64_t kLongestDefault = 512;
// What looks at the artifact's own figure during training take out of the training data.
constexpr int64_t kValidationSequences = 16, kValidationImages = 1000;

// f32 values in the dtype of `like`; others as they are.
Tensor cast(const Tensor& values, DType dtype) {
  if (values.dtype != DType::f32 || (dtype != DType::bf16 && dtype != DType::f16))
    return values;
  const std::vector<float> floats = value_or_throw(to_float(values));
  std::byte* bytes = nullptr;
  Tensor result{dtype, values.shape, Bytes::allocate(floats.size() * 2, &bytes)};
  uint16_t* halves = reinterpret_cast<uint16_t*>(bytes);
  for (size_t i = 0; i < floats.size(); ++i) {
    halves[i] =
        dtype == DType::bf16 ? bf16_from_float(floats[i]) : f16_from_float(floats[i]);
  }
  return result;
}

// The dtype that config.json asks for ("dtype" since transformers 5, "torch_dtype"
// before).
DType config_dtype(const std::string& config_json) {
  const nlohmann::json config = parse_json(config_json);
  if (!config.is_object()) return DType::f32;
  for (const char* key : {"dtype", "torch_dtype"}) {
    if (!config.contains(key) || !config[key].is_string()) continue;
    const std::string name = config[key].get<std::string>();
    if (name == "bfloat16") return DType::bf16;
    if (name == "float16") return DType::f16;
  }
  return DType::f32;
}

void set_course(RunReport& report, const std::vector<TrainStep>& history,
                const std::vector<TrainEvaluation>& looks) {
  report.loss.clear();
  report.figures.clear();
  for (const TrainStep& step : history)
    report.loss.push_back({step.step, step.loss, step.learning_rate, step.gradient_norm});
  for (const TrainEvaluation& look : looks)
    report.figures.push_back({look.step, look.figure});
}

// Where an interrupted run continues: beside the output.
fs::path checkpoint_folder(const PipelineRequest& request) {
  fs::path folder = request.output.lexically_normal();
  if (folder.filename().empty()) folder = folder.parent_path();
  folder += ".training";
  return folder;
}

Status check_checkpoint(const PipelineRequest& request) {
  const fs::path folder = checkpoint_folder(request);
  std::error_code ignored;
  if (!fs::exists(folder, ignored) || request.resume) return ok_status();
  if (request.overwrite) {
    fs::remove_all(folder, ignored);
    return ok_status();
  }
  return error(StatusCode::already_exists, "[train] ", folder.string(),
               ": no checkpoint of an earlier run may lie there; found one; continue it "
               "with --resume, "
               "or begin again with --overwrite");
}

void remove_checkpoint(const PipelineRequest& request) {
  if (!is_first_rank()) return;
  std::error_code ignored;
  fs::remove_all(checkpoint_folder(request), ignored);
}

int64_t training_length(const Recipe& recipe, const Artifact& model) {
  const int64_t context = model.program.context_length;
  return recipe.sequence_length > 0 ? recipe.sequence_length
                                    : std::min(context, kLongestDefault);
}

// Training data with the report's held-out part taken out: a twentieth, at most what the
// recipe evaluates on. validation: taken out as well where the run chooses its best
// weights by it, so that the held-out part chooses nothing.
struct LoadedData {
  RunData train, held, validation;
};

RunData take_validation(RunData& data) {
  RunData part;
  const int64_t most = data.is_text() ? kValidationSequences : kValidationImages;
  const int64_t count = std::min(most, data.count() / 10);
  if (data.is_signals()) {
    const int64_t all = parts_in(data.signals), taken = all / 10;
    part.signals = part_of(data.signals, all - taken, taken);
    data.signals = part_of(data.signals, 0, all - taken);
    return part;
  }
  if (data.is_text()) {
    part.sequences.assign(data.sequences.end() - count, data.sequences.end());
    data.sequences.resize(data.sequences.size() - static_cast<size_t>(count));
    return part;
  }
  ImageSet& from = data.images;
  const int64_t size = from.channels * from.height * from.width;
  const int64_t left = from.count - count;
  part.images = from;
  part.images.count = count;
  part.images.pixels.assign(from.pixels.begin() + left * size, from.pixels.end());
  part.images.labels.assign(from.labels.begin() + left, from.labels.end());
  from.count = left;
  from.pixels.resize(static_cast<size_t>(left * size));
  from.labels.resize(static_cast<size_t>(left));
  return part;
}

// Of a net over values the teacher's outputs, and the states that it finds, are data.
Status add_teacher(const PipelineRequest& request, const Artifact& model, RunData& data) {
  const Recipe& recipe = request.recipe;
  const auto wrong = [](const char* key, const char* required) {
    return error(StatusCode::invalid_argument, "[train] ", key, ": ", required,
                 " is required to train a net over values; found more; leave it out");
  };
  if (recipe.train.distill_hidden > 0) return wrong("distill.hidden", "0");
  if (recipe.blocks.epochs > 0) return wrong("qat.blocks.epochs", "0");
  if (recipe.kind != "qat" && recipe.teacher.empty() && data.signals.targets.empty()) {
    return error(StatusCode::failed_precondition, "[train] ", data.description,
                 ": target.<output> tensors are required to train by recipe ",
                 recipe.name, "; found none; add them, or give distill.teacher");
  }
  Artifact teacher = model;
  if (!recipe.teacher.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(teacher, load_model(recipe.teacher, request.load));
  }
  NIBBLE_ASSIGN_OR_RETURN(
      Executor net,
      Executor::create(std::make_shared<const Artifact>(std::move(teacher)), {}));
  NIBBLE_ASSIGN_OR_RETURN(
      data.seen, unroll(net, data.signals, [&request](int64_t done, int64_t total) {
        if (request.progress) request.progress("teacher", "samples", done, total);
      }));
  return ok_status();
}

Result<LoadedData> load_data(const PipelineRequest& request, const Artifact& model) {
  const int64_t length = training_length(request.recipe, model);
  LoadedData split;
  NIBBLE_ASSIGN_OR_RETURN(
      split.train, load_run_data(request, model, request.data, length, Split::train,
                                 request.recipe.data_images));
  const int64_t count = split.train.count();
  int64_t spare = count / 20;
  if (request.recipe.evaluation_sequences > 0) {
    spare = std::min(spare, request.recipe.evaluation_sequences);
  }
  NIBBLE_ASSIGN_OR_RETURN(
      split.held, held_out_data(request, model, split.train, count - spare, length));
  if (request.recipe.train.evaluate_every > 0) {
    split.validation = take_validation(split.train);
    if (split.validation.count() == 0) {
      return error(
          StatusCode::invalid_argument,
          "[train] train.evaluate_every: 10 training sequences, images or samples "
          "were required to keep a tenth for it; found ",
          split.train.count(), "; give more data, or set it to 0");
    }
  }
  if (split.train.is_signals())
    NIBBLE_RETURN_IF_ERROR(add_teacher(request, model, split.train));
  return split;
}

// What the steps of a run are set to: a net over values heard its teacher before them.
TrainOptions options_for(const PipelineRequest& request, const RunData& data) {
  TrainOptions options = request.recipe.train;
  options.device = own_device(request.device);
  if (data.is_signals()) options.distill_weight = 0;
  return options;
}

// The teacher, where the recipe has one: another model, or the float model itself.
Result<ProgramModule> load_teacher(const PipelineRequest& request,
                                   const Artifact& model) {
  const Recipe& recipe = request.recipe;
  if (recipe.train.distill_weight == 0 && recipe.train.distill_hidden == 0) {
    if (recipe.teacher.empty()) return ProgramModule(nullptr);
    return error(StatusCode::invalid_argument,
                 "[train] distill.teacher: distill.weight or distill.hidden above 0 is "
                 "required to hear it; found neither; set one");
  }
  if (recipe.teacher.empty()) return ProgramModule(model);
  NIBBLE_ASSIGN_OR_RETURN(const Artifact teacher,
                          load_model(recipe.teacher, request.load));
  return ProgramModule(teacher);
}

// The course of the run lies beside its checkpoint while it goes on, for those who watch.
TrainResult train_module(const PipelineRequest& request, const Artifact& model,
                         const RunData& data, ProgramModule module, TrainHooks hooks,
                         RunReport& report) {
  const fs::path folder = checkpoint_folder(request);
  hooks.log = [&](const std::vector<TrainStep>& history,
                  const std::vector<TrainEvaluation>& looks) {
    set_course(report, history, looks);
    if (!is_first_rank()) return;
    std::error_code failed;
    fs::create_directories(folder, failed);
    throw_if_error(write_file_atomically(folder / "training.csv",
                                         training_csv(report.loss, report.figures)));
    throw_if_error(write_file_atomically(
        folder / kEventFile, tensorboard_events(report.loss, report.figures)));
  };
  const TrainingData batches =
      make_training_data(model, data, request.recipe.train, request.recipe);
  const TrainResult result = train(module, batches, options_for(request, data), folder,
                                   request.resume, request.progress, hooks);
  set_course(report, result.history, result.evaluations);
  report.training_seconds += result.seconds;
  return result;
}

// What is kept as the best: KL to the float model where there is one, else the loss on
// text; wrong answers on images; squared errors of targets, else of the float model.
double figure_of(const PipelineRequest& request,
                 std::shared_ptr<const Artifact> reference,
                 std::shared_ptr<const Artifact> artifact, const RunData& data) {
  Executor model = value_or_throw(make_executor(request, std::move(artifact)));
  if (data.is_signals()) {
    if (!data.signals.targets.empty())
      return value_or_throw(evaluate_targets(model, data.signals, {})).loss();
    Executor other = value_or_throw(make_executor(request, std::move(reference)));
    return value_or_throw(evaluate_signals(model, other, data.signals, {})).loss();
  }
  if (!data.is_text()) {
    return 1 - value_or_throw(evaluate_images(model, nullptr, data.images, {})).accuracy;
  }
  if (reference == nullptr)
    return value_or_throw(evaluate_text(model, nullptr, data.sequences, {})).nll;
  Executor other = value_or_throw(make_executor(request, std::move(reference)));
  return *value_or_throw(evaluate_text(model, &other, data.sequences, {})).kl;
}

// The epochs with batch norms in place, where the recipe asks for them; leaves the folded
// net in `ready`.
std::string train_with_norms(const PipelineRequest& request, const Artifact& model,
                             const RunData& data, const QatOptions& qat,
                             Calibrated& ready, RunReport& report) {
  const Recipe& recipe = request.recipe;
  if (recipe.norms.epochs == 0) return "";
  TrainOptions options = options_for(request, data);
  options.steps = 0;
  options.epochs = recipe.norms.epochs;
  options.learning_rate = recipe.norms.learning_rate;
  options.scale_learning_rate = recipe.norms.scale_learning_rate;
  options.evaluate_every = 0;
  options.recompute = false;  // running statistics would move twice
  ProgramModule module = prepare_with_norms(model, ready, qat);
  TrainHooks hooks;
  hooks.teacher = value_or_throw(load_teacher(request, model));
  const TrainingData batches = make_training_data(model, data, recipe.train, recipe);
  const TrainResult result =
      train(module, batches, options, checkpoint_folder(request) / "norms",
            request.resume, request.progress, hooks);
  report.training_seconds += result.seconds;
  ready = fold_trained(module, model, ready);
  return cat(result.steps, " steps with batch norms in place; ");
}

// The blocks alone, where the recipe asks for it; what it gained in words.
std::string train_blocks_alone(const PipelineRequest& request, const Artifact& model,
                               const RunData& data, ProgramModule module,
                               ProgramModule teacher) {
  const Recipe& recipe = request.recipe;
  if (recipe.blocks.epochs == 0) return "";
  TrainOptions options = options_for(request, data);
  options.optimizer = "adamw";
  options.steps = 0;
  options.epochs = recipe.blocks.epochs;
  options.learning_rate = recipe.blocks.learning_rate;
  options.scale_learning_rate = recipe.blocks.scale_learning_rate;
  const TrainingData batches = make_training_data(model, data, recipe.train, recipe);
  const int64_t count =
      std::min(batches.batches_per_epoch,
               std::max<int64_t>(1, recipe.blocks_sequences / recipe.train.batch));
  std::vector<torch::Tensor> inputs;
  for (int64_t i = 0; i < count; ++i) inputs.push_back(batches.batch(0, i).input);
  const std::vector<BlockFit> fits = train_blocks(
      std::move(module), std::move(teacher), inputs, options,
      checkpoint_folder(request) / "blocks", request.resume, request.progress);
  double before = 0, after = 0;
  for (const BlockFit& fit : fits) {
    before += fit.before / static_cast<double>(fits.size());
    after += fit.after / static_cast<double>(fits.size());
  }
  return cat(fits.size(), " blocks trained alone on ", count * recipe.train.batch, " ",
             data.unit(), ", mean squared error of their outputs ", before, " -> ", after,
             " of the outputs' squares; ");
}

std::string trained_on(const PipelineRequest& request, const RunData& data,
                       const TrainResult& result) {
  const int64_t batch = std::min(request.recipe.train.batch, data.count());
  std::string text =
      cat("trained ", result.steps, " steps of ", batch * request.recipe.train.accumulate,
          " ",
          data.signals.is_stream()
              ? cat("windows of at most ", request.recipe.data_window, " steps")
              : std::string(data.unit()),
          " on ", data.description);
  if (result.best_step != result.steps)
    text += cat("; the weights of step ", result.best_step, ", the best of ",
                result.evaluations.size(), " looks");
  return text;
}

// --- float: a checkpoint as Hugging Face writes it

Status write_checkpoint(const PipelineRequest& request, const Artifact& trained,
                        const std::map<std::string, std::string>& files) {
  NIBBLE_ASSIGN_OR_RETURN(AtomicDirectory directory,
                          AtomicDirectory::create(request.output, request.overwrite));
  NIBBLE_RETURN_IF_ERROR(directory.write("config.json", trained.config_json));
  for (const auto& [name, bytes] : trained.tokenizer) {
    NIBBLE_RETURN_IF_ERROR(directory.write(name, bytes.text()));
  }
  for (const auto& [name, contents] : files) {
    NIBBLE_RETURN_IF_ERROR(directory.write(name, contents));
  }
  NIBBLE_RETURN_IF_ERROR(write_safetensors(directory.staging() / "model.safetensors",
                                           trained.tensors, {{"format", "pt"}}));
  return directory.commit();
}

Result<RunReport> train_float(const PipelineRequest& request) {
  RunReport report = begin_report(request, "train");
  NIBBLE_RETURN_IF_ERROR(read_compared(request, report));
  NIBBLE_ASSIGN_OR_RETURN(Artifact model, load_float_model(request, "train", true));
  std::error_code ignored;
  const bool from_noise =
      !fs::exists(request.model / "model.safetensors", ignored) &&
      !fs::exists(request.model / "model.safetensors.index.json", ignored) &&
      fs::is_directory(request.model, ignored);
  NIBBLE_ASSIGN_OR_RETURN(const LoadedData data, load_data(request, model));
  const auto start = std::make_shared<const Artifact>(model);

  const DType dtype = config_dtype(model.config_json);
  ProgramModule module(model);
  const auto trained_floats = [&] {
    std::map<std::string, Tensor> tensors = module->tensors();
    for (auto& [name, tensor] : tensors) tensor = cast(tensor, dtype);
    return tensors;
  };
  TrainHooks hooks;
  NIBBLE_ASSIGN_OR_RETURN(hooks.teacher, load_teacher(request, model));
  if (data.validation.count() > 0) {
    hooks.evaluate = [&] {
      auto now = std::make_shared<Artifact>(model);
      now->tensors = trained_floats();
      return figure_of(request, nullptr, std::move(now), data.validation);
    };
  }
  const TrainResult result =
      train_module(request, model, data.train, module, hooks, report);
  if (!is_first_rank()) return report;  // the first one measures and writes
  report.notes.push_back(trained_on(request, data.train, result));
  if (from_noise)
    report.notes.push_back(
        cat("weights initialised from seed ", request.recipe.train.seed));

  model.tensors = trained_floats();
  NIBBLE_RETURN_IF_ERROR(check_artifact(model));
  const auto trained = std::make_shared<const Artifact>(std::move(model));
  NIBBLE_RETURN_IF_ERROR(
      measure_models(request, from_noise ? nullptr : start, trained, data.held, report));
  NIBBLE_RETURN_IF_ERROR(write_checkpoint(request, *trained, report_files(report)));
  return report;
}

// --- quantization in the loop: an artifact

// Embeddings, norms and other floats ship in the dtype that they came in.
std::shared_ptr<const Artifact> in_original_dtypes(const Artifact& trained,
                                                   const Artifact& original) {
  auto result = std::make_shared<Artifact>(trained);
  for (auto& [name, tensor] : result->tensors) {
    const auto found = original.tensors.find(name);
    if (found != original.tensors.end()) tensor = cast(tensor, found->second.dtype);
  }
  return result;
}

Result<RunReport> train_quantized(const PipelineRequest& request) {
  RunReport report = begin_report(request, "train");
  NIBBLE_RETURN_IF_ERROR(read_compared(request, report));
  const Recipe& recipe = request.recipe;
  NIBBLE_ASSIGN_OR_RETURN(Artifact loaded, load_float_model(request, "train", false));
  const auto model = std::make_shared<const Artifact>(std::move(loaded));
  NIBBLE_ASSIGN_OR_RETURN(Artifact folded, prepare_for_recipe(*model, recipe));
  const auto planned = std::make_shared<const Artifact>(std::move(folded));
  NIBBLE_ASSIGN_OR_RETURN(Plan plan, make_plan(recipe, planned->program));
  NIBBLE_RETURN_IF_ERROR(set_mixed_costs(recipe, *planned, plan));
  NIBBLE_ASSIGN_OR_RETURN(const LoadedData data, load_data(request, *model));
  NIBBLE_RETURN_IF_ERROR(check_gate_data(request, *model, data.held, "train"));

  plan.calibration_length =
      std::max(plan.calibration_length, training_length(recipe, *model));
  const CalibrationSplit split =
      split_calibration(recipe, data.train, plan, report.notes);
  CalibrationData calibration;
  if (recipe.needs_calibration())
    calibration = calibration_data(*model, data.train, split);
  report.calibration = calibration.description;
  Calibrated ready = calibrate(planned, plan, calibration, request.progress);
  QatOptions options{.learn_weight_scale = recipe.learn_weight_scale,
                     .learn_zero_point = recipe.learn_zero_point,
                     .learn_activation_scale = recipe.learn_activation_scale,
                     .learn_activation_clip = recipe.learn_activation_scale &&
                                              recipe.activation_estimator == "pact",
                     .squash_weights = recipe.weight_estimator == "dorefa",
                     .trained = recipe.trained == "all"      ? Trained::all
                                : recipe.trained == "layers" ? Trained::layers
                                                             : Trained::scales,
                     .kv = recipe.kv};
  const std::string with_norms =
      train_with_norms(request, *model, data.train, options, ready, report);
  // What was folded is squashed already, each channel by its norm's factor.
  if (!with_norms.empty()) options.squash_weights = false;
  ProgramModule module = prepare(ready, options);
  const auto trained_so_far = [&] {
    Calibrated now = finish(module, ready);
    now.model = in_original_dtypes(*now.model, *planned);
    return now;
  };
  TrainHooks hooks;
  NIBBLE_ASSIGN_OR_RETURN(hooks.teacher, load_teacher(request, *planned));
  if (data.validation.count() > 0) {
    hooks.evaluate = [&] {
      Artifact now = freeze(trained_so_far(), Provenance{});
      throw_if_error(set_kv_schemes(request, now));
      return figure_of(request, model, std::make_shared<const Artifact>(std::move(now)),
                       data.validation);
    };
  }
  const std::string blocks =
      train_blocks_alone(request, *planned, data.train, module,
                         hooks.teacher ? hooks.teacher : ProgramModule(*planned));
  TrainResult result;
  if (recipe.train.steps > 0 || recipe.train.epochs > 0)
    result = train_module(request, *planned, data.train, module, hooks, report);
  if (!is_first_rank()) return report;  // the first one measures and writes
  const std::string training =
      with_norms + blocks + trained_on(request, data.train, result);
  report.notes.push_back(training);

  const Calibrated finished = trained_so_far();
  Provenance provenance = model->provenance;
  provenance.recipe = report.recipe;
  provenance.tool_version = kToolVersion;
  Artifact frozen = freeze(finished, provenance);
  frozen.provenance.calibration +=
      (frozen.provenance.calibration.empty() ? "" : "; ") + training;
  NIBBLE_RETURN_IF_ERROR(set_kv_schemes(request, frozen));
  NIBBLE_RETURN_IF_ERROR(record_kernels(frozen));
  const auto artifact = std::make_shared<const Artifact>(std::move(frozen));
  report.ledger = artifact->ledger;
  if (recipe.static_activations) {
    report.notes.push_back(check_exact(*artifact,
                                       data.held.count() > 0 ? data.held : data.train,
                                       recipe.evaluation_exact_images));
  }
  NIBBLE_RETURN_IF_ERROR(measure_models(request, model, artifact, data.held, report));
  NIBBLE_RETURN_IF_ERROR(finish_artifact(request, *artifact, report));
  return report;
}

// --- adapters over a frozen base, float or quantized (QLoRA)

// The base as the adapters see it: quantized as the recipe's layers say, or as it came.
Result<Artifact> adapter_base(const PipelineRequest& request, const Artifact& model,
                              const LoadedData& data, RunReport& report) {
  const Recipe& recipe = request.recipe;
  if (recipe.layers.empty()) return model;
  NIBBLE_ASSIGN_OR_RETURN(Artifact folded, prepare_for_recipe(model, recipe));
  const auto planned = std::make_shared<const Artifact>(std::move(folded));
  NIBBLE_ASSIGN_OR_RETURN(Plan plan, make_plan(recipe, planned->program));
  NIBBLE_RETURN_IF_ERROR(set_mixed_costs(recipe, *planned, plan));
  const CalibrationSplit split =
      split_calibration(recipe, data.train, plan, report.notes);
  CalibrationData calibration;
  if (recipe.needs_calibration())
    calibration = calibration_data(model, data.train, split);
  report.calibration = calibration.description;
  Provenance provenance = model.provenance;
  provenance.recipe = report.recipe;
  provenance.tool_version = kToolVersion;
  return freeze(calibrate(planned, plan, calibration, request.progress), provenance);
}

Result<std::vector<std::string>> add_adapters(const Recipe& recipe, Artifact& base) {
  WeightShapes shapes;
  for (const auto& [name, tensor] : base.tensors) shapes[name] = tensor.shape;
  for (const auto& [name, packed] : base.packed) shapes[name] = packed.shape;
  return add_low_rank(base.program, base.tensors, shapes,
                      {.pattern = recipe.lora_pattern,
                       .rank = recipe.lora_rank,
                       .seed = recipe.train.seed});
}

// Adapters into the artifact, in the dtype of its floats, each in the ledger.
void set_adapters(Artifact& artifact, const std::vector<std::string>& names,
                  const ProgramModule& module, DType dtype) {
  for (const std::string& name : names) {
    Tensor& tensor = artifact.tensors[name];
    tensor = cast(from_torch(module->parameter(name)), dtype);
    if (artifact.ledger.entries.empty() || artifact.ledger.find(name)) continue;
    LedgerEntry entry;
    entry.tensor = name;
    entry.scheme = dtype == DType::f32 ? "f32" : dtype == DType::bf16 ? "bf16" : "f16";
    entry.method = "float";
    entry.reason = "adapter, trained";
    entry.parameters = tensor.numel();
    entry.bits = static_cast<double>(tensor.numel() * dtype_bytes(dtype) * 8);
    artifact.ledger.entries.push_back(std::move(entry));
  }
  std::sort(
      artifact.ledger.entries.begin(), artifact.ledger.entries.end(),
      [](const LedgerEntry& a, const LedgerEntry& b) { return a.tensor < b.tensor; });
}

// Floats again, the adapters in their weights.
Result<Artifact> merged_model(const Artifact& trained, DType dtype) {
  Artifact merged = trained;
  for (const auto& [name, packed] : merged.packed)
    merged.tensors[name] = cast(from_torch(dequantized(packed)), dtype);
  merged.packed.clear();
  merged.layers.clear();
  merged.activations.clear();
  merged.ledger = {};
  NIBBLE_RETURN_IF_ERROR(merge_low_rank(merged.program, merged.tensors));
  return merged;
}

Result<RunReport> train_adapters(const PipelineRequest& request) {
  RunReport report = begin_report(request, "train");
  NIBBLE_RETURN_IF_ERROR(read_compared(request, report));
  const Recipe& recipe = request.recipe;
  NIBBLE_ASSIGN_OR_RETURN(Artifact loaded, load_float_model(request, "train", false));
  const auto model = std::make_shared<const Artifact>(std::move(loaded));
  NIBBLE_ASSIGN_OR_RETURN(const LoadedData data, load_data(request, *model));
  NIBBLE_RETURN_IF_ERROR(check_gate_data(request, *model, data.held, "train"));
  NIBBLE_ASSIGN_OR_RETURN(Artifact base, adapter_base(request, *model, data, report));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                          add_adapters(recipe, base));
  const DType dtype = config_dtype(model->config_json);

  ProgramModule module(base, PackedWeights::stay);
  for (auto& item : module->named_parameters()) {
    const bool adapter = std::find(names.begin(), names.end(), item.key()) != names.end();
    item.value().set_requires_grad(adapter);
  }
  const auto trained_so_far = [&]() -> Result<Artifact> {
    Artifact now = base;
    set_adapters(now, names, module, dtype);
    if (recipe.lora_merge) return merged_model(now, dtype);
    NIBBLE_RETURN_IF_ERROR(set_kv_schemes(request, now));
    return now;
  };
  TrainHooks hooks;
  NIBBLE_ASSIGN_OR_RETURN(hooks.teacher, load_teacher(request, *model));
  if (data.validation.count() > 0) {
    hooks.evaluate = [&] {
      return figure_of(request, nullptr,
                       std::make_shared<const Artifact>(value_or_throw(trained_so_far())),
                       data.validation);
    };
  }
  const TrainResult result =
      train_module(request, *model, data.train, module, hooks, report);
  if (!is_first_rank()) return report;  // the first one measures and writes
  const std::string training =
      cat(names.size() / 2, " adapters of rank ", recipe.lora_rank, ", ",
          trained_on(request, data.train, result));
  report.notes.push_back(training);

  NIBBLE_ASSIGN_OR_RETURN(Artifact finished, trained_so_far());
  if (recipe.lora_merge) {
    NIBBLE_RETURN_IF_ERROR(check_artifact(finished));
    const auto merged = std::make_shared<const Artifact>(std::move(finished));
    NIBBLE_RETURN_IF_ERROR(measure_models(request, model, merged, data.held, report));
    NIBBLE_RETURN_IF_ERROR(write_checkpoint(request, *merged, report_files(report)));
    return report;
  }
  finished.provenance.calibration +=
      (finished.provenance.calibration.empty() ? "" : "; ") + training;
  NIBBLE_RETURN_IF_ERROR(record_kernels(finished));
  const auto artifact = std::make_shared<const Artifact>(std::move(finished));
  report.ledger = artifact->ledger;
  NIBBLE_RETURN_IF_ERROR(measure_models(request, model, artifact, data.held, report));
  NIBBLE_RETURN_IF_ERROR(finish_artifact(request, *artifact, report));
  return report;
}

}  // namespace

Result<RunReport> run_train(const PipelineRequest& request) {
  return or_all_end(catching("train", [&request]() -> Result<RunReport> {
    Ranks::instance().check();
    NIBBLE_RETURN_IF_ERROR(check_device(request.device, "train"));
    NIBBLE_RETURN_IF_ERROR(check_request(request, "train", {"float", "qat", "lora"}));
    if (is_first_rank()) NIBBLE_RETURN_IF_ERROR(check_checkpoint(request));
    Ranks::instance().barrier();  // what it removes, nobody has written again
    if (request.recipe.data_mixup > 0 && request.recipe.train.distill_weight != 1) {
      return error(
          StatusCode::invalid_argument,
          "[train] data.mixup: distill.weight=1 is required, as mixed images have "
          "no label; found distill.weight=",
          request.recipe.train.distill_weight, "; set one of them");
    }
    at::set_num_threads(thread_count());
    Result<RunReport> report = request.recipe.kind == "float"  ? train_float(request)
                               : request.recipe.kind == "lora" ? train_adapters(request)
                                                               : train_quantized(request);
    if (report.ok()) remove_checkpoint(request);
    return report;
  }));
}

}  // namespace nibble
