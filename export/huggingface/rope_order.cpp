#include "export/huggingface/rope_order.h"

#include <cstring>

#include "export/levels.h"

namespace nibble {
namespace {

// Rows of `bytes` each, moved to their new places.
Bytes moved(const Bytes& from, int64_t rows, int64_t head_dim) {
  std::byte* to = nullptr;
  const Bytes result = Bytes::allocate(from.size(), &to);
  const size_t row = from.size() / static_cast<size_t>(rows);
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(to + static_cast<size_t>(r) * row,
                from.data() + static_cast<size_t>(halves_first_row(r, head_dim)) * row,
                row);
  }
  return result;
}

// Values of a level: one row of them a row of the matrix, or one for all of them.
Status move_level(const std::string& name, const char* who, const Block& block,
                  const PackedTensor& packed, int64_t head_dim, PackedLevel& level) {
  switch (simplified(block, packed.cols).kind) {
    case Block::Kind::tensor:
    case Block::Kind::column:
      return ok_status();
    case Block::Kind::row:
    case Block::Kind::group:
      level.values = moved(level.values, packed.rows, head_dim);
      return ok_status();
    case Block::Kind::flat:
    case Block::Kind::grid:
      break;
  }
  return error(
      StatusCode::unsupported, "[", who, "] ", name,
      ": its rows must move into transformers' order with scales of their own; "
      "found ",
      to_string(packed.scheme),
      ", whose scales several rows share; quantize with a scale a row or a group");
}

Status move_packed(const std::string& name, const char* who, int64_t head_dim,
                   PackedTensor& packed) {
  packed.codes = moved(packed.codes, packed.rows, head_dim);
  for (size_t i = 0; i < packed.scales.size(); ++i) {
    NIBBLE_RETURN_IF_ERROR(move_level(name, who, packed.scheme.scales[i].block, packed,
                                      head_dim, packed.scales[i]));
  }
  for (size_t i = 0; i < packed.offsets.size(); ++i) {
    NIBBLE_RETURN_IF_ERROR(move_level(name, who, packed.scheme.offsets[i].block, packed,
                                      head_dim, packed.offsets[i]));
  }
  return ok_status();
}

}  // namespace

int64_t halves_first_row(int64_t r, int64_t head_dim) {
  const int64_t i = r % head_dim, half = head_dim / 2;
  return r - i + (i < half ? 2 * i : 2 * (i - half) + 1);
}

Result<std::map<std::string, int64_t>> interleaved_tensors(const Program& program,
                                                           const char* who) {
  std::map<std::string, int64_t> tensors;
  for (const Node& node : program.nodes) {
    if (node.op != "rope" || node.integer("interleaved", 0) == 0) continue;
    const Node* producer = program.producer(node.inputs[0]);
    if (producer == nullptr || producer->op != "linear") {
      return error(StatusCode::unsupported, "[", who, "] ", node.name,
                   ": an interleaved rope must read a linear layer, whose rows can "
                   "be put in transformers' order; found ",
                   producer == nullptr ? "a program input" : producer->op,
                   "; export to the nibble format");
    }
    for (const auto& [role, tensor] : producer->parameters) {
      tensors[tensor] = node.integer("head_dim", 0);
    }
  }
  return tensors;
}

Result<Artifact> in_transformers_order(const Artifact& artifact, const char* who) {
  NIBBLE_ASSIGN_OR_RETURN(const auto tensors, interleaved_tensors(artifact.program, who));
  Artifact result = artifact;
  for (const auto& [name, head_dim] : tensors) {
    if (const auto packed = result.packed.find(name); packed != result.packed.end()) {
      NIBBLE_RETURN_IF_ERROR(move_packed(name, who, head_dim, packed->second));
    } else if (const auto plain = result.tensors.find(name);
               plain != result.tensors.end()) {
      Tensor& tensor = plain->second;
      tensor.bytes = moved(tensor.bytes, tensor.shape.at(0), head_dim);
    }
  }
  for (Node& node : result.program.nodes) {
    if (node.op == "rope" && node.integer("interleaved", 0) != 0) {
      node.attributes["interleaved"] = int64_t{0};
    }
  }
  return result;
}

}  // namespace nibble
