// The ledger accounts for every parameter of a model: what became of it, how, and why.
//
// A parameter that is not accounted for is an error, never a silent float.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/program/program.h"

namespace nibble {

// Another tool chose these scales, and nibble took them as they are. They may be negative
// (ggml's carry the sign of the largest value) or 0 (its blocks of zeros), which nibble's
// own never are.
inline constexpr const char* kImported = "imported";

struct LedgerEntry {
  std::string tensor;  // "model.layers.0.self_attn.q_proj.weight"
  std::string scheme;  // the scheme's text, "f32" for what stays float
  std::string method;  // "rtn", "gptq", "lsq", "float", "folded"; "low_rank": a
                       // factor beside a packed weight; "ignored": of the
                       // checkpoint, not of the model (a head that no node reads);
                       // kImported: codes and scales of another tool's file
  std::string reason;  // why it is float, folded or ignored; empty for a quantized layer
  std::string kernel;  // which kernel serves it on the machine that made it
  int64_t parameters = 0;
  double bits = 0;           // stored bits, scales and offsets counted
  int64_t tokens = 0;        // calibration rows its solver saw
  double error = 0;          // relative squared error of the weight: |W - Q|^2 / |W|^2
  double output_error = -1;  // the same of the layer's output on the calibration data;
                             // -1: not known
  // The same two, had the weight that the method was given been rounded to nearest under
  // this scheme and the recipe's scale rule (method rtn); -1: not known.
  double rtn_error = -1;
  double rtn_output_error = -1;
  std::string note;  // "damping 0.01 -> 0.1" and the like
  bool operator==(const LedgerEntry&) const = default;
};

struct Ledger {
  std::vector<LedgerEntry> entries;  // sorted by tensor
  bool operator==(const Ledger&) const = default;
  const LedgerEntry* find(const std::string& tensor) const;
  int64_t parameters() const;
  double bits() const;             // all entries
  double bits_per_weight() const;  // over all parameters
};

// failed_precondition: a tensor that the program names has no entry, or an entry names no
// tensor, or a reason is missing for what stayed float (names the tensor).
Status check_ledger(const Ledger& ledger, const Program& program);

}  // namespace nibble
