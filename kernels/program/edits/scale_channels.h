// Moves a factor per channel from the maker of a value to its readers; the model's
// function stays what it is.
//
//   value'[c] = value[c] / s[c]            the maker's row c (a norm's element c) divided
//   W'[:, j] = W[:, j] * s[channel_of_column[j]]       in every reader
//
//   makers             tensors whose first axis makes the channels: a norm's weight and
//                      bias, a linear's or convolution's weight and bias
//   readers            weights [out, in] that read the value
//   channel_of_column  [in]: the channel that a reader's column multiplies (grouped
//                      queries read a value head several times, a convolution a channel
//                      kh * kw times)
//   scale              [channels], finite and positive
//
// In double, rounded once to f32, which is what the changed tensors become. not_found or
// invalid_argument: a tensor is missing or of another size (named); nothing is changed
// then.
#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/tensor.h"

namespace nibble {

struct ChannelScaling {
  std::vector<std::string> makers;
  std::vector<std::string> readers;
  std::vector<int64_t> channel_of_column;
  std::vector<double> scale;
};
Status scale_channels(const ChannelScaling& scaling,
                      std::map<std::string, Tensor>& tensors);

// What scale_channels says before it changes anything.
Status check_scaling(const ChannelScaling& scaling,
                     const std::map<std::string, Tensor>& tensors);
// The same of one tensor's values, whose first axis has a row a channel.
void divide_rows(std::span<float> values, const ChannelScaling& scaling);
// Of a reader's values [out, channel_of_column.size()].
void multiply_columns(std::span<float> values, const ChannelScaling& scaling);

}  // namespace nibble
