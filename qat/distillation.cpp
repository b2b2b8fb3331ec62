#include "qat/distillation.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace nibble {
namespace {

constexpr int64_t kIgnoredTarget = -100;  // as torch.nn.CrossEntropyLoss

[[noreturn]] void fail(const std::string& text) {
  throw Error(Status(StatusCode::invalid_argument, "[distillation] " + text));
}

// What each block hands to the next, the last block to what follows.
std::vector<std::string> block_outputs(const Program& program) {
  std::vector<std::string> values;
  for (int block = 0; block < program.block_count(); ++block) {
    for (const std::string& name : slice(program, block).outputs) values.push_back(name);
  }
  return values;
}

ProgramModuleImpl::NodeTap keeping(const std::vector<std::string>& values,
                                   std::map<std::string, torch::Tensor>& outputs) {
  return [&values, &outputs](const Node& node, const std::vector<torch::Tensor>&,
                             const torch::Tensor& output) {
    const std::string& name = node.outputs[0];
    if (std::find(values.begin(), values.end(), name) != values.end())
      outputs[name] = output;
  };
}

}  // namespace

torch::Tensor distillation_loss(const torch::Tensor& student,
                                const torch::Tensor& teacher, const torch::Tensor& target,
                                double temperature) {
  const int64_t classes = student.size(-1);
  if (teacher.size(-1) != classes) {
    fail(cat("teacher: ", classes, " classes, as the student has, were required; found ",
             teacher.size(-1), "; give a teacher of the same vocabulary"));
  }
  torch::Tensor s = student.reshape({-1, classes}), t = teacher.reshape({-1, classes});
  const torch::Tensor counted = target.reshape({-1}) != kIgnoredTarget;
  const int64_t rows = counted.sum().item<int64_t>();
  if (rows < counted.numel()) {
    const torch::Tensor index = counted.nonzero().reshape({-1});
    s = s.index_select(0, index);
    t = t.index_select(0, index);
  }
  const torch::Tensor log_s = at::log_softmax(s / temperature, -1);
  const torch::Tensor log_t = at::log_softmax(t / temperature, -1);
  return at::kl_div(log_s, log_t, at::Reduction::Sum, /*log_target=*/true) *
         (temperature * temperature / static_cast<double>(std::max<int64_t>(1, rows)));
}

Distillation::Distillation(ProgramModule student, ProgramModule teacher,
                           const TrainOptions& options)
    : student_(std::move(student)),
      teacher_(std::move(teacher)),
      weight_(options.distill_weight),
      temperature_(options.distill_temperature),
      hidden_(options.distill_hidden) {
  if (weight_ == 0 && hidden_ == 0) teacher_ = ProgramModule(nullptr);
  if (!teacher_) return;
  teacher_->eval();
  if (hidden_ == 0) return;
  values_ = block_outputs(student_->program());
  for (const std::string& value : values_) {
    if (teacher_->program().producer(value) == nullptr) {
      fail(cat("hidden states: a teacher with the value '", value,
               "' was required; it has none; set distill.hidden=0 or give a teacher of "
               "the same architecture"));
    }
  }
  student_->set_tap(keeping(values_, student_outputs_));
  teacher_->set_tap(keeping(values_, teacher_outputs_));
}

Distillation::~Distillation() {
  if (values_.empty()) return;
  student_->set_tap(nullptr);
  teacher_->set_tap(nullptr);
}

torch::Tensor Distillation::teacher_part(const torch::Tensor& logits,
                                         const torch::Tensor& input,
                                         const torch::Tensor& target) {
  torch::Tensor said;
  {
    torch::NoGradGuard no_grad;
    said = teacher_->forward(input);
  }
  torch::Tensor total =
      weight_ == 0 ? at::zeros({}, logits.options())
                   : weight_ * distillation_loss(logits, said, target, temperature_);
  if (hidden_ == 0) return total;
  torch::Tensor sum = at::zeros({}, logits.options());
  for (const std::string& value : values_) {
    const torch::Tensor& wanted = teacher_outputs_.at(value);
    const torch::Tensor& found = student_outputs_.at(value);
    if (found.sizes() != wanted.sizes()) {
      fail(cat("hidden states: '", value, "' of shape ", found.sizes(),
               " was required of the teacher; found ", wanted.sizes(),
               "; set distill.hidden=0"));
    }
    sum = sum + (found - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12);
  }
  student_outputs_.clear();
  teacher_outputs_.clear();
  return total + hidden_ / static_cast<double>(values_.size()) * sum;
}

}  // namespace nibble
