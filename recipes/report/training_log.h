// The course of a training as files: training.csv, and a TensorBoard event file.
//
//   training.csv  step,loss,learning_rate,gradient_norm,artifact   (artifact: the figure
//   of
//                 the artifact where the run looked at it, else nothing)
//   events        TFRecord: u64 length, masked crc32c of it, bytes, masked crc32c of
//   them;
//                 the bytes are an Event (event.proto: wall_time 1, step 2, file_version
//                 3, summary 5) of simple values: loss, learning_rate, gradient_norm,
//                 artifact
//
// Wall times in the events are the steps, not the clock: the same training gives the same
// bytes. No LibTorch here.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "recipes/report/run_report.h"

namespace nibble {

std::string training_csv(const std::vector<LossPoint>& loss,
                         const std::vector<FigurePoint>& figures);
std::string tensorboard_events(const std::vector<LossPoint>& loss,
                               const std::vector<FigurePoint>& figures);

// CRC-32C (Castagnoli, RFC 3720 appendix B.4): "123456789" -> 0xe3069283.
uint32_t crc32c(std::string_view bytes);

// What TensorBoard looks for in a name.
inline constexpr const char* kEventFile = "events.out.tfevents.0.nibble";

}  // namespace nibble
