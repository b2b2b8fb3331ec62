#include "ptq/calibration/artifact_sink.h"

#include "ptq/error.h"

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

void ArtifactSink::put(const LayerPlan& layer, CodedMatrix coded, LayerAccount account) {
  const LedgerEntry entry = ledger_entry(layer, coded, account);
  const PackedTensor packed =
      value_or_throw(pack(coded, model_.tensors.at(layer.tensor).shape));
  coded = {};  // one code a byte: gone before the writer unpacks to check
  throw_if_error(writer_.add(layer.scheme, entry, packed));
}

void ArtifactSink::read(const std::string& tensor, int64_t first,
                        MatrixView<float> x) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (last_ != tensor) {
    open_ = value_or_throw(writer_.packed(tensor));
    last_ = tensor;
  }
  throw_if_error(dequantize_rows(open_, first, x));
  if (x.rows == open_.rows) open_.release_pages();
}

void ArtifactSink::end_block() { throw_if_error(writer_.end_block()); }

void RankLayers::put(const LayerPlan& layer, CodedMatrix coded, LayerAccount) {
  packed_[layer.tensor] =
      value_or_throw(pack(coded, model_.tensors.at(layer.tensor).shape));
}

void RankLayers::read(const std::string& tensor, int64_t first,
                      MatrixView<float> x) const {
  throw_if_error(dequantize_rows(packed_.at(tensor), first, x));
}

}  // namespace nibble
