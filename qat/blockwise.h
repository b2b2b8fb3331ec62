// Block-wise training: each block alone learns to give the float model's outputs, from
// the inputs that the trained blocks before it make (EfficientQAT, arXiv 2407.11062,
// sec. 3.2). Far cheaper than training the whole, since no pass goes through all blocks
// and no logits are made.
//
//   L_b = mean over batches of sum (f_b(X; W~) - Y)^2 / sum Y^2
//   X   live inputs of block b, by the quantized module so far
//   Y   live outputs of block b, by the teacher from its own
//
// AdamW over the block's weights, norms, scales and zero points, `epochs` passes over the
// batches in a seeded order, warm-up and cosine within each block (qat/schedule.h). All
// streams are in memory: 2 * batches * live values. A checkpoint after each block: a
// resumed run gives the same bytes. Modules stay in eval().
//
// Throws nibble::Error. invalid_argument (no blocks, no batches), out_of_range (the loss
// is not finite: names the block), cancelled, data_loss as train() does.
#pragma once

#include <torch/types.h>

#include <filesystem>
#include <vector>

#include "ptq/module/program_module.h"
#include "ptq/progress.h"
#include "qat/train_options.h"

namespace nibble {

struct BlockFit {
  int block = 0;
  double before = 0, after = 0;  // L_b
};

// inputs: a batch each, as the module takes them.
std::vector<BlockFit> train_blocks(ProgramModule module, ProgramModule teacher,
                                   const std::vector<torch::Tensor>& inputs,
                                   const TrainOptions& options,
                                   const std::filesystem::path& checkpoint, bool resume,
                                   const Progress& progress);

}  // namespace nibble
