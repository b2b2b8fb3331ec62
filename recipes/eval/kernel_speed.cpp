#include "recipes/eval/kernel_speed.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>

#include "kernels/base/parallel.h"
#include "kernels/base/splitmix64.h"
#include "kernels/ops/linear/linear.h"
#include "kernels/ops/linear/linear_bf16.h"
#include "kernels/scheme/element_codec.h"
#include "recipes/eval/prepared_copy.h"
#include "recipes/eval/speed.h"
#include "recipes/eval/timed_case.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

// One of each family of weights: plain, integers per channel and in groups, tables of 16
// values with and without nested scales, FP8.
constexpr const char* kSchemes[] = {
    "bf16",        "int8n/r@f32",   "int4/g128@f16",       "int4/g32@f16", "nf4/f64@f32",
    "fp4/f64@f32", "e2m1/g32@e8m0", "e2m1/g16@e4m3/t@f32", "e4m3/r@f32"};
constexpr int64_t kTokens[] = {1, 8, 512};
// Where rows pass from one regime to the next.
constexpr const char* kSweepSchemes[] = {"int4/g128@f16", "int8n/r@f32"};
constexpr int64_t kSweepTokens[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64};
constexpr LinearActivation kActivations[] = {
    LinearActivation::f32, LinearActivation::bf16, LinearActivation::s8};
// Weights of random codes; the others of a working set are copies whose codes are turned,
// so that no two are equal.
constexpr int64_t kDifferent = 4;
constexpr int64_t kTurn = 64;      // bytes: whole vectors of any layout
constexpr uint64_t kSeed = 20261;  // any: the values do not change the work

const char* activation_name(LinearActivation activation) {
  switch (activation) {
    case LinearActivation::f32:
      return "f32";
    case LinearActivation::bf16:
      return "bf16";
    case LinearActivation::s8:
      return "s8";
  }
  return "";
}

// A table of the codes that stand for numbers.
std::vector<uint8_t> codes_of(const QuantScheme& scheme) {
  std::vector<uint8_t> codes;
  const ElementInfo& element = element_info(scheme.code);
  if (element.kind == ElementKind::integer) {
    for (int c = code_lowest(scheme); c <= code_highest(scheme); ++c) {
      codes.push_back(static_cast<uint8_t>(c));
    }
    return codes;
  }
  for (int c = 0; c < 1 << element.bits; ++c) {
    if (std::isfinite(value_of(scheme.code, static_cast<uint8_t>(c)))) {
      codes.push_back(static_cast<uint8_t>(c));
    }
  }
  return codes;
}

// Values of one level: a scale is not 0, a zero point is a code.
CodedLevel random_level(const QuantScheme& scheme, const ScaleLevel& level, bool offset,
                        int64_t rows, int64_t cols, SplitMix64& random) {
  const LevelShape shape = level_shape(level.block, rows, cols);
  CodedLevel values{.rows = shape.rows, .cols = shape.cols, .values = {}};
  values.values.resize(static_cast<size_t>(shape.rows * shape.cols));
  const ElementInfo& element = element_info(level.element);
  for (float& value : values.values) {
    if (offset && scheme.offset == OffsetKind::zero_point) {
      const int codes = code_highest(scheme) - code_lowest(scheme) + 1;
      value = static_cast<float>(
          code_lowest(scheme) +
          static_cast<int>(random.below(static_cast<uint64_t>(codes))));
    } else if (element.kind == ElementKind::integer) {
      value =
          static_cast<float>(1 + random.below(static_cast<uint64_t>(element.highest)));
    } else {
      value =
          round_to_element(level.element, static_cast<float>(0.5 + random.uniform() / 2));
    }
  }
  return values;
}

// Random codes straight into the canonical bits: nothing searches for scales.
Result<LinearWeight> random_weight(const QuantScheme& scheme, int64_t rows, int64_t cols,
                                   uint64_t seed) {
  SplitMix64 random(seed);
  if (scheme.is_float()) {
    Tensor tensor{.dtype = scheme.code == Element::bf16  ? DType::bf16
                           : scheme.code == Element::f16 ? DType::f16
                                                         : DType::f32,
                  .shape = {rows, cols},
                  .bytes = {}};
    const int64_t size = dtype_bytes(tensor.dtype);
    std::byte* data = nullptr;
    tensor.bytes = Bytes::allocate(static_cast<size_t>(rows * cols * size), &data);
    for (int64_t i = 0; i < rows * cols; ++i) {
      const uint32_t bits =
          bits_of_value(scheme.code, static_cast<float>(random.uniform() - 0.5));
      for (int64_t b = 0; b < size; ++b) {  // little-endian
        data[i * size + b] = static_cast<std::byte>(bits >> (8 * b));
      }
    }
    return linear_weight(tensor);
  }
  CodedMatrix q{.scheme = scheme,
                .rows = rows,
                .cols = cols,
                .codes = {},
                .scales = {},
                .offsets = {}};
  const std::vector<uint8_t> codes = codes_of(scheme);
  q.codes.resize(static_cast<size_t>(rows * cols));
  for (size_t i = 0; i < q.codes.size(); i += 4) {  // 16 random bits a code
    uint64_t bits = random.next();
    for (size_t j = i; j < std::min(i + 4, q.codes.size()); ++j, bits >>= 16) {
      q.codes[j] = codes[((bits & 0xffff) * codes.size()) >> 16];
    }
  }
  for (const ScaleLevel& level : scheme.scales) {
    q.scales.push_back(random_level(scheme, level, false, rows, cols, random));
  }
  for (const ScaleLevel& level : scheme.offsets) {
    q.offsets.push_back(random_level(scheme, level, true, rows, cols, random));
  }
  NIBBLE_ASSIGN_OR_RETURN(const PackedTensor packed, pack(q, {rows, cols}));
  return linear_weight(packed);
}

// The same codes, `by` bytes further on.
Bytes turned(const Bytes& bytes, size_t by) {
  if (bytes.size() == 0) return bytes;
  std::byte* data = nullptr;
  Bytes result = Bytes::allocate(bytes.size(), &data);
  by %= bytes.size();
  std::memcpy(data, bytes.data() + by, bytes.size() - by);
  std::memcpy(data + bytes.size() - by, bytes.data(), by);
  return result;
}

Result<std::vector<PreparedLinear>> prepare(const LinearKernel& kernel,
                                            const std::vector<LinearWeight>& sources,
                                            int64_t count) {
  std::vector<PreparedLinear> weights(static_cast<size_t>(count));
  const int64_t different =
      std::min<int64_t>(count, static_cast<int64_t>(sources.size()));
  for (int64_t i = 0; i < different; ++i) {
    const size_t at = static_cast<size_t>(i);
    NIBBLE_ASSIGN_OR_RETURN(weights[at], prepare_linear(kernel, sources[at]));
  }
  std::vector<size_t> copied(weights.size(), 0);
  parallel_for(count - different, [&](int64_t i) {
    const size_t at = static_cast<size_t>(different + i);
    PreparedLinear& weight = weights[at];
    weight = copy_of(weights[static_cast<size_t>(i % different)], &copied[at]);
    const size_t by = static_cast<size_t>((i / different + 1) * kTurn);
    for (Bytes* codes :
         {&weight.codes, &weight.weight.plain.bytes, &weight.weight.packed.codes}) {
      *codes = turned(*codes, by);
    }
  });
  for (size_t i = static_cast<size_t>(different); i < weights.size(); ++i) {
    // A prepared weight holds at least its codes again; if it does not, a layout has
    // gained a part that copy_of shares, and the cache would be timed.
    if (static_cast<double>(copied[i]) < 0.8 * static_cast<double>(sources[0].bytes())) {
      return error(StatusCode::internal, "[bench] ", kernel.name,
                   ": a copy of a weight of ", static_cast<double>(sources[0].bytes()),
                   " bytes holds ", copied[i], "; copy what PreparedLinear gained");
    }
  }
  return weights;
}

double error_of(const std::vector<float>& y, const std::vector<float>& reference) {
  double worst = 0, largest = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(y[i]) - reference[i]));
    largest = std::max(largest, std::abs(static_cast<double>(reference[i])));
  }
  return largest > 0 ? worst / largest : worst;
}

// A row that leaves its best regimes out, one after the other: digits, what is straight
// from the codes, tile products.
struct OtherRow {
  LinearKernel kernel;
  LinearIsa isa = {};
  LinearBf16Isa bf16 = {};
};
constexpr int kLeftOut = 3;
std::unique_ptr<OtherRow> without(const LinearKernel& kernel, int left_out) {
  auto other = std::make_unique<OtherRow>(OtherRow{.kernel = kernel});
  if (kernel.isa != nullptr) {
    other->isa = *kernel.isa;
    if (left_out >= 1) other->isa.digit_tokens = 0;
    if (left_out >= 2) other->isa.direct_tokens = other->isa.direct_s8_tokens = 0;
    other->kernel.isa = &other->isa;
  }
  if (kernel.bf16 != nullptr) {
    other->bf16 = *kernel.bf16;
    if (left_out >= 2) other->bf16.direct_tokens = 0;
    other->kernel.bf16 = &other->bf16;
  }
  if (left_out >= 3) other->kernel.tiles = nullptr;
  return other;
}

// The weights of one scheme and activation, and what runs through them.
struct Weights {
  std::vector<PreparedLinear> all, one;         // one: of prefill
  std::vector<std::unique_ptr<OtherRow>> rows;  // of the sweep
  size_t next = 0;
  std::vector<float> x, y;
};

struct Part {  // of the table: one scheme and activation
  std::string group;
  QuantScheme scheme;
  const LinearKernel* kernel = nullptr;
  std::vector<int64_t> tokens;
};

Result<std::vector<LinearWeight>> random_weights(const QuantScheme& scheme, int64_t rows,
                                                 int64_t cols) {
  std::vector<LinearWeight> weights(kDifferent);
  std::vector<Status> made(kDifferent);
  parallel_for(kDifferent, [&](int64_t w) {
    const size_t at = static_cast<size_t>(w);
    Result<LinearWeight> weight = random_weight(scheme, rows, cols, mix64(kSeed + at));
    if (weight.ok()) weights[at] = *weight;
    made[at] = weight.status();
  });
  for (const Status& one : made) NIBBLE_RETURN_IF_ERROR(one);
  return weights;
}

// The cases of one scheme and activation: `part.tokens` of them, in the sweep by every
// regime.
Result<std::vector<TimedCase>> linear_cases(const Bench& bench, const Part& part,
                                            const std::vector<LinearWeight>& sources) {
  const KernelSpeedOptions& options = bench.options;
  const LinearKernel& kernel = *part.kernel;
  const double weight_bytes = static_cast<double>(sources[0].bytes());
  const bool sweep = part.group == "sweep";
  const bool decodes = sweep || part.tokens.front() <= kDecodeTokens;
  const int64_t count = decodes ? bench.operands(weight_bytes) : 1;
  use_threads(*std::max_element(bench.threads.begin(), bench.threads.end()));
  const auto weights = std::make_shared<Weights>();
  NIBBLE_ASSIGN_OR_RETURN(weights->all, prepare(kernel, sources, count));
  weights->one.push_back(weights->all[0]);
  SplitMix64 random(kSeed);
  weights->x.resize(static_cast<size_t>(part.tokens.back() * options.cols));
  for (float& value : weights->x) value = static_cast<float>(random.uniform() * 2 - 1);
  weights->y.resize(static_cast<size_t>(part.tokens.back() * options.rows));
  std::vector<float> reference(static_cast<size_t>(options.rows));
  NIBBLE_RETURN_IF_ERROR(
      linear_reference(sources[0], LinearActivation::f32,
                       MatrixView<const float>(weights->x.data(), 1, options.cols),
                       nullptr, MatrixView<float>(reference.data(), 1, options.rows)));

  std::vector<TimedCase> cases;
  for (const int64_t n : part.tokens) {
    const bool decode = sweep || n <= kDecodeTokens;
    const MatrixView<const float> x(weights->x.data(), n, options.cols);
    const MatrixView<float> y(weights->y.data(), n, options.rows);
    const auto add = [&](const LinearKernel& row, bool chosen) {
      PreparedLinear first = weights->all[0];
      first.kernel = &row;
      const LinearLimit limit = linear_limit(first, n);
      if (!chosen && limit.regime == cases.back().speed.regime) return;
      run_linear(first, x, nullptr, y);
      const double work = static_cast<double>(options.rows) *
                          static_cast<double>(options.cols) * static_cast<double>(n);
      TimedCase timed{.speed = {.group = part.group,
                                .scheme = to_string(part.scheme),
                                .activation = activation_name(kernel.activation),
                                .tokens = n,
                                .kernel = kernel.name,
                                .regime = limit.regime,
                                .chosen = chosen,
                                .weight_bytes = weight_bytes,
                                .weights = decode ? count : 1,
                                .error = error_of(weights->y, reference)},
                      .call =
                          [weights, decode, x, y] {
                            std::vector<PreparedLinear>& all =
                                decode ? weights->all : weights->one;
                            size_t only = 0;
                            size_t& next = decode ? weights->next : only;
                            run_linear(all[next], x, nullptr, y);
                            next = (next + 1) % all.size();
                          },
                      .by_memory = decode,
                      .operations = 2 * work,
                      .peak_operations = limit.operations * work,
                      .peak = limit.peak};
      if (sweep) {
        timed.begin = [weights, at = &row] {
          for (PreparedLinear& weight : weights->all) weight.kernel = at;
        };
      }
      cases.push_back(std::move(timed));
    };
    add(kernel, true);
    for (int i = 1; sweep && i <= kLeftOut; ++i) {
      weights->rows.push_back(without(kernel, i));
      add(weights->rows.back()->kernel, false);
    }
  }
  return cases;
}

bool has_group(const KernelSpeedOptions& options, const std::string& group) {
  return std::find(options.groups.begin(), options.groups.end(), group) !=
         options.groups.end();
}

Result<std::vector<Part>> linear_parts(const KernelSpeedOptions& options,
                                       std::vector<std::string>* all) {
  std::vector<Part> parts;
  const auto add = [&](const char* group, const char* text,
                       const auto& tokens) -> Status {
    NIBBLE_ASSIGN_OR_RETURN(const QuantScheme scheme, parse_scheme(text));
    for (const LinearActivation activation : kActivations) {
      Part part{.group = group,
                .scheme = scheme,
                .kernel = select_linear(scheme, options.cols, activation),
                .tokens = {}};
      if (part.kernel == nullptr) continue;
      const bool slow =
          activation == LinearActivation::bf16 && part.kernel->bf16 == nullptr;
      if (slow) continue;
      for (const int64_t n : tokens) {
        const std::string name =
            kernel_case_text({.group = group,
                              .scheme = text,
                              .activation = activation_name(activation),
                              .tokens = n});
        all->push_back(name);
        if (name.find(options.filter) != std::string::npos) part.tokens.push_back(n);
      }
      if (!part.tokens.empty()) parts.push_back(std::move(part));
    }
    return ok_status();
  };
  if (has_group(options, "linear")) {
    for (const char* text : kSchemes) {
      NIBBLE_RETURN_IF_ERROR(add("linear", text, kTokens));
    }
  }
  if (has_group(options, "sweep")) {
    for (const char* text : kSweepSchemes) {
      NIBBLE_RETURN_IF_ERROR(add("sweep", text, kSweepTokens));
    }
  }
  return parts;
}

Result<std::vector<TimedPart>> parts_of(const KernelSpeedOptions& options) {
  std::string groups;
  for (const char* group : kKernelGroups)
    groups += cat(groups.empty() ? "" : ", ", group);
  for (const std::string& group : options.groups) {
    if (std::find(std::begin(kKernelGroups), std::end(kKernelGroups), group) ==
        std::end(kKernelGroups)) {
      return error(StatusCode::invalid_argument, "[bench] --cases: some of ", groups,
                   " are required; found \"", group,
                   "\"; name groups with commas between");
    }
  }
  std::vector<std::string> all;
  std::vector<TimedPart> parts;
  // Of the last part: those of the same scheme follow each other.
  const auto sources = std::make_shared<std::vector<LinearWeight>>();
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Part> linear, linear_parts(options, &all));
  for (const Part& part : linear) {
    const auto make = [part, sources](Bench& bench) -> Result<std::vector<TimedCase>> {
      if (sources->empty() || !(sources->front().scheme == part.scheme)) {
        NIBBLE_ASSIGN_OR_RETURN(*sources, random_weights(part.scheme, bench.options.rows,
                                                         bench.options.cols));
      }
      return linear_cases(bench, part, *sources);
    };
    parts.push_back({.what = cat(part.group == "linear" ? "" : part.group + " ",
                                 to_string(part.scheme), " ",
                                 activation_name(part.kernel->activation)),
                     .make = make});
  }
  NIBBLE_ASSIGN_OR_RETURN(std::vector<TimedPart> others, operation_parts(options, &all));
  for (TimedPart& part : others) parts.push_back(std::move(part));
  if (parts.empty()) {
    std::string names;
    for (const std::string& name : all) names += cat(names.empty() ? "" : ", ", name);
    return error(StatusCode::invalid_argument,
                 "[bench] --filter: a part of a case's name is required; found \"",
                 options.filter, "\"; the cases are ", names);
  }
  return parts;
}

}  // namespace

std::string kernel_case_text(const KernelSpeed& speed) {
  return cat(speed.group == "linear" ? "" : speed.group + " ", speed.scheme, " ",
             speed.activation, " ", speed.tokens,
             speed.chosen ? "" : " by " + speed.regime);
}

Result<KernelSpeeds> measure_kernels(const KernelSpeedOptions& options) {
  if (options.rows < 1 || options.cols < 1 || options.rows > (1 << 20) ||
      options.cols > (1 << 20)) {
    return error(StatusCode::invalid_argument,
                 "[bench] --shape: 1 to 1048576 rows and columns are required; found ",
                 options.rows, "x", options.cols, "; give ROWSxCOLS, as 4096x4096");
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<TimedPart> parts, parts_of(options));
  Bench bench{.options = options,
              .threads = options.threads,
              .limit_seconds = std::min(options.seconds, kTimingSeconds)};
  const ThreadsKept kept;
  if (bench.threads.empty()) bench.threads = {1, kept.count};
  if (bench.threads.size() == 2 && bench.threads[0] == bench.threads[1]) {
    bench.threads.pop_back();
  }
  const Machine machine = this_machine();
  std::string note;
  bench.working_set =
      options.working_set > 0 ? options.working_set : memory_working_set(machine, &note);
  // The weights, a read buffer as large, and as much again for what made them.
  if (machine.available > 0 && bench.working_set > machine.available / 3) {
    return error(StatusCode::resource_exhausted, "[bench] --working-set: at most ",
                 machine.available / 3,
                 " bytes, a third of the memory that is available, "
                 "are required; found ",
                 bench.working_set, "; give less");
  }
  KernelSpeeds result{
      .rows = options.rows, .cols = options.cols, .working_set = bench.working_set};
  const auto report = [&](size_t done, const std::string& what) {
    if (options.progress) {
      options.progress(static_cast<int64_t>(done), static_cast<int64_t>(parts.size()),
                       what);
    }
  };
  report(0, "limits");
  NIBBLE_ASSIGN_OR_RETURN(result.limits, probe({.threads = bench.threads,
                                                .repeats = options.repeats,
                                                .seconds = bench.limit_seconds,
                                                .memory_bytes = bench.working_set}));
  result.limits.note = note;
  NIBBLE_ASSIGN_OR_RETURN(ReadBuffer buffer, ReadBuffer::create(bench.working_set));
  bench.read = &buffer;
  std::optional<WriteBuffer> written;
  if (std::any_of(parts.begin(), parts.end(),
                  [](const TimedPart& part) { return part.writes; })) {
    // Still twice the largest cache: the read buffer has the rest of the memory.
    written.emplace(bench.working_set / 2);
    bench.write = &*written;
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    report(i, parts[i].what);
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<TimedCase> cases, parts[i].make(bench));
    NIBBLE_RETURN_IF_ERROR(measure_cases(bench, cases, &result.cases));
  }
  report(parts.size(), "done");
  return result;
}

std::vector<std::vector<std::string>> kernel_speed_rows(const KernelSpeeds& speeds) {
  std::vector<std::vector<std::string>> rows = {
      {"case", "x", "n", "threads", "kernel", "regime", "us", "GB/s", "GFLOP/s",
       "of memory", "of peak", "instruction", "error"}};
  for (const KernelSpeed& s : speeds.cases) {
    const bool memory = s.of_read.repeats > 0;
    rows.push_back(
        {cat(s.group == "linear" ? "" : s.group + " ", s.scheme), s.activation,
         cat(s.tokens), cat(s.threads, s.others > kDisturbed ? " *" : ""), s.kernel,
         s.regime.empty() ? "-"
         : s.chosen       ? s.regime
                          : "(" + s.regime + ")",
         number_text(s.seconds.median * 1e6, 4), memory ? rate_text(s.bytes, 1e9) : "-",
         s.operations.repeats > 0 ? rate_text(s.operations, 1e9) : "-",
         memory ? number_text(s.of_read.median, 3) : "-",
         s.of_peak.repeats > 0 ? number_text(s.of_peak.median, 3) : "-",
         s.instruction.empty() ? "none" : s.instruction,
         s.error < 0 ? "-" : number_text(s.error, 2)});
  }
  return rows;
}

std::vector<std::vector<std::string>> limit_rows(const Probe& limits) {
  std::vector<std::vector<std::string>> rows = {{"limit", "threads", "unit", "a second"}};
  for (const BandwidthLimit& limit : limits.bandwidths) {
    rows.push_back({cat("read ", limit.level, ", ", limit.bytes >> 10, " KiB"),
                    cat(limit.threads), "GB", rate_text(limit.rate, 1e9)});
  }
  for (const PeakLimit& limit : limits.peaks) {
    if (!limit.refused.empty()) continue;
    rows.push_back({cat(numbers_name(limit.row->numbers), " ", limit.row->name),
                    cat(limit.threads),
                    limit.row->numbers == Numbers::lookup ? "G" : "GFLOP",
                    rate_text(limit.rate, 1e9)});
  }
  return rows;
}

std::string kernel_speed_heading(const KernelSpeeds& speeds) {
  const Machine& machine = speeds.limits.machine;
  std::string text = cat(machine.text(), ", ", machine.levels.front(), ", ", machine.cpus,
                         machine.cpus == 1 ? " CPU" : " CPUs", ", huge pages ",
                         machine.huge_pages, "\n");
  for (const Cache& cache : machine.caches) {
    text += cat(cache.level == 1 ? "" : ", ", "L", cache.level, " ", cache.bytes >> 10,
                " KiB", cache.shared_by > 1 ? cat(" of ", cache.shared_by, " CPUs") : "");
  }
  text += cat("\nweights ", speeds.rows, "x", speeds.cols, ", decode over ",
              bytes_text(speeds.working_set), " of them\n");
  int64_t disturbed = 0;
  for (const KernelSpeed& s : speeds.cases) disturbed += s.others > kDisturbed ? 1 : 0;
  if (disturbed > 0) {
    text += cat("note: ", disturbed,
                " cases, marked *, were measured while other processes "
                "kept cores busy; do not trust them\n");
  }
  if (!speeds.limits.note.empty()) text += cat("note: ", speeds.limits.note, "\n");
  return text;
}

}  // namespace nibble
