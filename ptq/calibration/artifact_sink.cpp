#include "ptq/calibration/artifact_sink.h"

#include "ptq/error.h"
#include "ptq/methods/low_rank.h"

namespace nibble {

LedgerEntry ledger_entry(const LayerPlan& layer, const CodedMatrix& coded,
                         const LayerAccount& account) {
  LedgerEntry entry;
  entry.tensor = layer.tensor;
  entry.scheme = to_string(coded.scheme);
  entry.method = layer.method;
  entry.parameters = coded.rows * coded.cols;
  entry.bits = bits_per_value(coded.scheme, coded.rows, coded.cols) *
               static_cast<double>(coded.rows * coded.cols);
  entry.tokens = account.tokens;
  entry.error = account.error;
  entry.output_error = account.output_error;
  entry.rtn_error = account.rtn_error;
  entry.rtn_output_error = account.rtn_output_error;
  entry.note = account.note;
  if (!layer.input_reason.empty()) {
    entry.note += cat(entry.note.empty() ? "" : "; ",
                      "its input stays float: ", layer.input_reason);
  }
  return entry;
}

void ArtifactSink::put(const LayerPlan& layer, CodedMatrix coded, LayerAccount account,
                       std::optional<LowRankFactors> factors) {
  const LedgerEntry entry = ledger_entry(layer, coded, account);
  const PackedTensor packed =
      value_or_throw(pack(coded, model_.tensors.at(layer.tensor).shape));
  coded = {};  // one code a byte: gone before the writer unpacks to check
  std::map<std::string, Tensor> beside;
  if (factors) {
    beside = {{low_rank_a(layer.node), std::move(factors->a)},
              {low_rank_b(layer.node), std::move(factors->b)}};
  }
  throw_if_error(writer_.add(layer.scheme, entry, packed, beside));
}

std::optional<LowRankFactors> ArtifactSink::factors(const std::string& tensor) const {
  const auto node = node_of_.find(tensor);
  if (node == node_of_.end() || !writer_.has_float(low_rank_a(node->second))) return {};
  return LowRankFactors{value_or_throw(writer_.stored_float(low_rank_a(node->second))),
                        value_or_throw(writer_.stored_float(low_rank_b(node->second)))};
}

void ArtifactSink::read(const std::string& tensor, int64_t first,
                        MatrixView<float> x) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (last_ != tensor) {
    open_ = value_or_throw(writer_.packed(tensor));
    beside_ = factors(tensor);
    last_ = tensor;
  }
  throw_if_error(dequantize_rows(open_, first, x));
  if (beside_) add_factors(*beside_, x, first);
  if (x.rows == open_.rows) open_.release_pages();
}

void ArtifactSink::end_block() { throw_if_error(writer_.end_block()); }

void RankLayers::put(const LayerPlan& layer, CodedMatrix coded, LayerAccount,
                     std::optional<LowRankFactors> factors) {
  packed_[layer.tensor] =
      value_or_throw(pack(coded, model_.tensors.at(layer.tensor).shape));
  if (factors) factors_[layer.tensor] = std::move(*factors);
}

void RankLayers::read(const std::string& tensor, int64_t first,
                      MatrixView<float> x) const {
  throw_if_error(dequantize_rows(packed_.at(tensor), first, x));
  const auto factors = factors_.find(tensor);
  if (factors != factors_.end()) add_factors(factors->second, x, first);
}

void KeptLayers::put(const LayerPlan& layer, CodedMatrix coded, LayerAccount account,
                     std::optional<LowRankFactors> factors) {
  RankLayers::put(layer, coded, account, factors);
  for (LayerPlan& mine : result_.plan.layers) {
    if (mine.tensor == layer.tensor) mine.method = layer.method;
  }
  result_.weights[layer.tensor] = std::move(coded);
  result_.accounts[layer.tensor] = std::move(account);
  if (factors) result_.low_rank[layer.tensor] = std::move(*factors);
}

}  // namespace nibble
