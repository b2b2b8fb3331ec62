#include "recipes/models/initialise.h"

#include <cmath>
#include <set>

#include "kernels/base/splitmix64.h"
#include "kernels/program/layers.h"
#include "kernels/program/shape.h"

namespace nibble {
namespace {

uint64_t fnv1a(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : text)
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return hash;
}

// Box and Muller (1958): two normals from two uniforms, in double.
std::vector<float> normals(size_t count, double deviation, uint64_t seed) {
  constexpr double kTwoPi = 6.283185307179586476925286766559;
  SplitMix64 random(seed);
  std::vector<float> values(count);
  for (size_t i = 0; i < count; i += 2) {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - random.uniform()));
    const double angle = kTwoPi * random.uniform();
    values[i] = static_cast<float>(deviation * radius * std::cos(angle));
    if (i + 1 < count)
      values[i + 1] = static_cast<float>(deviation * radius * std::sin(angle));
  }
  return values;
}

}  // namespace

Result<std::map<std::string, Tensor>> initialise(const Program& program,
                                                 double initializer_range,
                                                 uint64_t seed) {
  NIBBLE_ASSIGN_OR_RETURN(const Shapes shapes, parameter_shapes(program));
  std::set<std::string> layers;
  for (const Layer& layer : layers_of(program)) layers.insert(layer.tensor);
  std::map<std::string, Tensor> tensors;
  for (const Node& node : program.nodes) {
    for (const auto& [role, name] : node.parameters) {
      if (tensors.count(name)) continue;  // tied: drawn for its first node
      const std::vector<int64_t>& shape = shapes.at(name);
      int64_t count = 1, fan_in = 1;
      for (size_t i = 0; i < shape.size(); ++i) {
        count *= shape[i];
        if (i > 0) fan_in *= shape[i];
      }
      std::vector<float> values(static_cast<size_t>(count), 0.0f);
      if (layers.count(name)) {
        const double deviation = program.is_language_model()
                                     ? initializer_range
                                     : std::sqrt(2.0 / static_cast<double>(fan_in));
        values = normals(values.size(), deviation, mix64(seed) ^ fnv1a(name));
      } else if (role == "weight" || role == "running_var") {
        values.assign(values.size(), 1.0f);
      }
      tensors[name] = make_tensor(shape, std::span<const float>(values));
    }
  }
  return tensors;
}

}  // namespace nibble
