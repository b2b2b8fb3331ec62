// Reads a section of tokenizer.json, one component or a Sequence of them, from a table of
// the known types.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/tokenizer/json_view.h"

namespace nibble {

template <class Step>
struct SectionRow {
  const char* type;
  Result<Step> (*read)(JsonView component);
};

// The components in order, Sequences opened. `list` is what a Sequence calls its list.
// data_loss: not an object; nested too deep. Nothing gives nothing.
inline Status flatten_section(JsonView component, const char* where, const char* list,
                              std::vector<JsonView>& out, int depth = 0) {
  constexpr int kDeepest = 16;
  if (!component.is_object() || depth > kDeepest)
    return damaged_json(where, "an object was required; found ", component.dump());
  if (component["type"].text() != "Sequence") {
    out.push_back(component);
    return ok_status();
  }
  const JsonView members = component[list];
  if (!members.is_array())
    return damaged_json(where, "a list `", list, "` was required; found ",
                        members.dump());
  for (const JsonView member : members.elements())
    NIBBLE_RETURN_IF_ERROR(flatten_section(member, where, list, out, depth + 1));
  return ok_status();
}

template <class Step, size_t n>
Result<std::vector<Step>> read_section(JsonView component, const char* where,
                                       const char* list,
                                       const SectionRow<Step> (&rows)[n]) {
  std::vector<Step> steps;
  if (!component.exists()) return steps;
  std::vector<JsonView> flat;
  NIBBLE_RETURN_IF_ERROR(flatten_section(component, where, list, flat));
  for (const JsonView element : flat) {
    const std::string_view type = element["type"].text();
    const SectionRow<Step>* found = nullptr;
    for (const SectionRow<Step>& row : rows)
      if (type == row.type) found = &row;
    if (!found) {
      std::string known = "Sequence";
      for (const SectionRow<Step>& row : rows) known += cat(", ", row.type);
      return unknown_json(where, "one of ", known, " was required; found ",
                          type.empty() ? "no type" : type);
    }
    NIBBLE_ASSIGN_OR_RETURN(Step step, found->read(element));
    steps.push_back(std::move(step));
  }
  return steps;
}

// "[tokenizer] WHERE: UTF-8 text was required; byte N is not part of UTF-8; ..."
inline Status not_utf8(const char* where, size_t byte) {
  return error(StatusCode::invalid_argument, "[tokenizer] ", where,
               ": UTF-8 text was required; byte ", byte,
               " is not part of UTF-8; correct the text");
}

}  // namespace nibble
