#include "kernels/program/rope_attributes.h"

#include <cmath>

namespace nibble {

RopeShape rope_shape(const Node& node) {
  RopeShape shape{.head_dim = node.integer("head_dim", 0),
                  .theta = node.number("theta", 10000.0),
                  .scaling = node.text("scaling", "")};
  if (!shape.scaling.empty()) shape.factor = node.number("factor", 1.0);
  if (shape.scaling == "llama3") {
    shape.low_frequency_factor = node.number("low_frequency_factor", 1.0);
    shape.high_frequency_factor = node.number("high_frequency_factor", 4.0);
    shape.original_context = node.integer("original_context", 0);
  }
  return shape;
}

std::map<std::string, Attribute> rope_attributes(const RopeShape& shape) {
  std::map<std::string, Attribute> attributes = {{"head_dim", shape.head_dim},
                                                 {"theta", shape.theta}};
  if (shape.scaling.empty()) return attributes;
  attributes["scaling"] = shape.scaling;
  attributes["factor"] = shape.factor;
  if (shape.scaling == "llama3") {
    attributes["low_frequency_factor"] = shape.low_frequency_factor;
    attributes["high_frequency_factor"] = shape.high_frequency_factor;
    attributes["original_context"] = shape.original_context;
  }
  return attributes;
}

Status check_rope(const Node& node) {
  const auto fail = [&](const std::string& required, const std::string& found) {
    return error(StatusCode::invalid_argument, "[program] ", node.name, ": ", required,
                 "; found ", found);
  };
  const auto above = [&](const char* attribute, double limit) {
    const double value = node.number(attribute, NAN);
    if (value > limit && std::isfinite(value)) return ok_status();
    return fail(cat("rope needs the attribute `", attribute, "` > ", limit),
                cat(node.number(attribute, 0)));
  };
  NIBBLE_RETURN_IF_ERROR(above("theta", 0));
  const std::string scaling = node.text("scaling", "");
  if (scaling.empty() && !node.attributes.count("scaling")) return ok_status();
  if (scaling != "linear" && scaling != "llama3") {
    return fail("rope's attribute `scaling` is linear or llama3", cat("`", scaling, "`"));
  }
  NIBBLE_RETURN_IF_ERROR(above("factor", 0));
  if (scaling == "linear") return ok_status();
  NIBBLE_RETURN_IF_ERROR(above("low_frequency_factor", 0));
  NIBBLE_RETURN_IF_ERROR(
      above("high_frequency_factor", node.number("low_frequency_factor", 0)));
  return above("original_context", 0);
}

}  // namespace nibble
