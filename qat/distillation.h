// Distillation: the student learns what a teacher says of the same input, not only what
// the data says.
//
//   L = (1 - w) L_data + w T^2 KL(softmax(t / T) || softmax(s / T)) + h H
//       (Hinton, Vinyals, Dean, arXiv 1503.02531, sec. 2)
//   H = mean over blocks of |x_student - x_teacher|^2 / |x_teacher|^2, x a block's output
//
//   s, t  logits [.., classes] of student and teacher; the mean is over positions that
//         have a target
//
// Student and teacher are Programs with equal classes; for h > 0 with blocks whose
// outputs have equal names and shapes. Throws nibble::Error: invalid_argument (they have
// not).
#pragma once

#include <torch/types.h>

#include <map>
#include <string>
#include <vector>

#include "ptq/module/program_module.h"
#include "qat/train_options.h"

namespace nibble {

// T^2 KL(teacher || student), the mean over rows whose target is not -100.
torch::Tensor distillation_loss(const torch::Tensor& student,
                                const torch::Tensor& teacher, const torch::Tensor& target,
                                double temperature);

class Distillation {
 public:
  // teacher: stays in eval(), without gradients; null: no distillation.
  Distillation(ProgramModule student, ProgramModule teacher, const TrainOptions& options);
  ~Distillation();
  Distillation(const Distillation&) = delete;
  Distillation& operator=(const Distillation&) = delete;

  // L_data, which is only computed where it counts, joined with the teacher's parts.
  // logits are the student's for input.
  template <class DataLoss>
  torch::Tensor loss(const torch::Tensor& logits, const torch::Tensor& input,
                     const torch::Tensor& target, DataLoss data_loss) {
    if (!teacher_) return data_loss();
    torch::Tensor total = teacher_part(logits, input, target);
    if (weight_ < 1) total = total + (1 - weight_) * data_loss();
    return total;
  }

 private:
  using Outputs = std::map<std::string, torch::Tensor>;  // of blocks, by value name
  torch::Tensor teacher_part(const torch::Tensor& logits, const torch::Tensor& input,
                             const torch::Tensor& target);

  ProgramModule student_, teacher_;
  double weight_, temperature_, hidden_;
  std::vector<std::string> values_;  // the blocks' outputs
  Outputs student_outputs_, teacher_outputs_;
};

}  // namespace nibble
