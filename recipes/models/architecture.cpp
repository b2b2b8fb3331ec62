#include "recipes/models/architecture.h"

namespace nibble {
namespace {

// Models of an architecture with heads for pretraining, which the architecture ignores by
// name.
struct SameModel {
  const char* name;
  const char* architecture;
};
constexpr SameModel kSame[] = {{"BertForPreTraining", "BertModel"},
                               {"BertForMaskedLM", "BertModel"}};

}  // namespace

const std::vector<ModelArchitecture>& all_architectures() {
  static const std::vector<ModelArchitecture> architectures = {
#define NIBBLE_ARCHITECTURE(architecture, type, prefix) \
  {.name = #architecture,                               \
   .model_type = type,                                  \
   .program = prefix##_program,                         \
   .recognises = prefix##_recognises,                   \
   .config = prefix##_config,                           \
   .ignores = prefix##_ignores},
#include "recipes/models/architectures.inc"
#undef NIBBLE_ARCHITECTURE
  };
  return architectures;
}

Result<const ModelArchitecture*> find_architecture(const std::string& name) {
  std::string known;
  for (const SameModel& same : kSame) {
    if (name == same.name) return find_architecture(same.architecture);
  }
  for (const ModelArchitecture& row : all_architectures()) {
    if (name == row.name || name == row.model_type) return &row;
    known += cat(known.empty() ? "" : ", ", row.name);
  }
  return error(StatusCode::unsupported, "[models] the architecture must be one of ",
               known, "; found ", name.empty() ? "none" : name);
}

}  // namespace nibble
