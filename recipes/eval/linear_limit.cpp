#include "recipes/eval/linear_limit.h"

#include "kernels/ops/linear/linear_bf16.h"
#include "kernels/ops/linear/linear_tiles.h"
#include "kernels/ops/linear/repack.h"

namespace nibble {
namespace {

constexpr uint32_t kTileFlags = kCpuAmxInt8 | kCpuAmxBf16;
constexpr double kProductAndSum = 2;
constexpr double kDigits = 4;  // of a float activation (linear_isa.h)

// What of a prepared weight decides how it is run.
struct Layout {
  bool is_integer = false;  // codes that int8 products take
  bool has_slices = false;  // runs of columns under activation scales of their own
  int64_t padded_group = 0, padded_cols = 0;
};

bool has_slices(const LinearInput& input, int64_t cols) {
  return input.group > 0 && input.group < cols;
}

bool has_tiles(const LinearKernel& kernel, const Layout& layout, int64_t bytes) {
  return kernel.tiles != nullptr && !layout.has_slices &&
         tile_step(layout.padded_group, layout.padded_cols, bytes) > 0;
}

// As run.cpp decides.
LinearLimit limit_of(const LinearKernel& kernel, const Layout& layout, int64_t tokens) {
  if (kernel.panel == nullptr) return {};
  const auto limit = [&](const char* regime, Numbers numbers, double products = 1) {
    const bool tiles = regime[0] == 't';
    return LinearLimit{
        .regime = regime,
        .peak = best_peak(numbers, tiles ? kernel.flags : kernel.flags & ~kTileFlags),
        .operations = products * kProductAndSum};
  };
  switch (kernel.activation) {
    case LinearActivation::s8:
      if (tokens <= kernel.isa->direct_s8_tokens) return limit("direct", Numbers::int8);
      return limit(has_tiles(kernel, layout, sizeof(int8_t)) ? "tiles" : "panels",
                   Numbers::int8);
    case LinearActivation::bf16:
      if (tokens <= kernel.bf16->direct_tokens) return limit("direct", Numbers::bf16);
      return limit(has_tiles(kernel, layout, sizeof(uint16_t)) ? "tiles" : "panels",
                   Numbers::bf16);
    case LinearActivation::f32:
      break;
  }
  const bool direct = kernel.isa != nullptr && tokens <= kernel.isa->direct_tokens;
  if (direct && layout.is_integer && tokens <= kernel.isa->digit_tokens) {
    return limit("digits", Numbers::int8, kDigits);
  }
  return limit(direct ? "direct" : "panels", Numbers::f32);
}

}  // namespace

LinearLimit linear_limit(const PreparedLinear& weight, int64_t tokens) {
  const LinearKernel& kernel = *weight.kernel;
  Layout layout{.has_slices = has_slices(weight.input, weight.cols),
                .padded_group =
                    weight.groups == 1 ? weight.padded_cols : (weight.group + 7) / 8 * 8,
                .padded_cols = weight.padded_cols};
  if (kernel.isa != nullptr) {
    const PanelForm form = panel_form(weight);
    layout.is_integer = form == PanelForm::int4 || form == PanelForm::int8;
  }
  return limit_of(kernel, layout, tokens);
}

LinearLimit linear_limit(const LinearKernel& kernel, const QuantScheme& scheme,
                         int64_t cols, int64_t tokens, const LinearInput& input) {
  Layout layout{.is_integer = accepts_integer(scheme, cols),
                .has_slices = has_slices(input, cols)};
  const int64_t group = scheme.is_float() ? cols : group_columns(scheme, cols, input);
  if (group > 0) {  // rows that decode at run time have none, and no tiles either
    const int64_t whole = (cols - 1) / group;
    const int64_t last = cols - whole * group;
    layout.padded_cols = whole * ((group + 7) / 8 * 8) + (last + 7) / 8 * 8;
    layout.padded_group = whole == 0 ? layout.padded_cols : (group + 7) / 8 * 8;
  }
  return limit_of(kernel, layout, tokens);
}

}  // namespace nibble
