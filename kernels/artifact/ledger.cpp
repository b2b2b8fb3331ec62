#include "kernels/artifact/ledger.h"

#include <algorithm>
#include <set>

namespace nibble {

const LedgerEntry* Ledger::find(const std::string& tensor) const {
  const auto found =
      std::lower_bound(entries.begin(), entries.end(), tensor,
                       [](const LedgerEntry& entry, const std::string& name) {
                         return entry.tensor < name;
                       });
  return found != entries.end() && found->tensor == tensor ? &*found : nullptr;
}

int64_t Ledger::parameters() const {
  int64_t total = 0;
  for (const LedgerEntry& entry : entries) total += entry.parameters;
  return total;
}

double Ledger::bits() const {
  double total = 0;
  for (const LedgerEntry& entry : entries) total += entry.bits;
  return total;
}

double Ledger::bits_per_weight() const {
  const int64_t count = parameters();
  return count > 0 ? bits() / static_cast<double>(count) : 0;
}

Status check_ledger(const Ledger& ledger, const Program& program) {
  std::set<std::string> named;
  for (const Node& node : program.nodes) {
    for (const auto& [role, tensor] : node.parameters) named.insert(tensor);
  }
  for (size_t i = 0; i < ledger.entries.size(); ++i) {
    const LedgerEntry& entry = ledger.entries[i];
    if (i > 0 && !(ledger.entries[i - 1].tensor < entry.tensor)) {
      return error(StatusCode::failed_precondition, "[ledger] ", entry.tensor,
                   ": entries must be sorted by tensor, each once; found it after ",
                   ledger.entries[i - 1].tensor);
    }
    // What became of a tensor that the program does not name.
    const bool folded = entry.method == "folded" || entry.method == "ignored";
    if (!named.count(entry.tensor) && !folded) {
      return error(
          StatusCode::failed_precondition, "[ledger] ", entry.tensor,
          ": an entry must name a tensor of the program; found no node that has it");
    }
    if ((folded || entry.method == "float") && entry.reason.empty()) {
      return error(StatusCode::failed_precondition, "[ledger] ", entry.tensor,
                   ": a tensor that is not quantized (method ", entry.method,
                   ") needs a reason; found none");
    }
  }
  for (const std::string& tensor : named) {
    if (ledger.find(tensor) == nullptr) {
      return error(StatusCode::failed_precondition, "[ledger] ", tensor,
                   ": every parameter must be accounted for; found no entry");
    }
  }
  return ok_status();
}

}  // namespace nibble
