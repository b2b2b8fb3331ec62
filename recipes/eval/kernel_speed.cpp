#include "recipes/eval/kernel_speed.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <thread>

#include "kernels/base/cancel.h"
#include "kernels/base/parallel.h"
#include "kernels/base/splitmix64.h"
#include "kernels/ops/linear/linear.h"
#include "kernels/scheme/element_codec.h"
#include "recipes/eval/prepared_copy.h"
#include "recipes/eval/speed.h"
#include "recipes/report/text_table.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// One of each family of weights: plain, integers per channel and in groups, tables of 16
// values with and without nested scales, FP8.
constexpr const char* kSchemes[] = {
    "bf16",        "int8n/r@f32",   "int4/g128@f16",       "int4/g32@f16", "nf4/f64@f32",
    "fp4/f64@f32", "e2m1/g32@e8m0", "e2m1/g16@e4m3/t@f32", "e4m3/r@f32"};
constexpr int64_t kTokens[] = {1, 8, 512};
// Weights of different codes; the others of a working set are copies. The kernels do not
// look at contents (libraries that share equal weights would be fooled by fewer).
constexpr int64_t kDifferent = 4;
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
    weights[at] = copy_of(weights[static_cast<size_t>(i % different)], &copied[at]);
  });
  for (size_t i = static_cast<size_t>(different); i < weights.size(); ++i) {
    // A prepared weight holds at least its codes again; if it does not, a layout has
    // gained a part that copy_of shares, and the cache would be timed.
    if (static_cast<double>(copied[i]) < 0.8 * static_cast<double>(sources[0].bytes())) {
      return error(StatusCode::internal, "[bench] ", kernel.name,
                   ": a copy of a weight of ", static_cast<double>(sources[0].bytes()), " bytes holds ",
                   copied[i], "; copy what PreparedLinear gained");
    }
  }
  return weights;
}

// Seconds of a call, the weights in turn from *next on, until `seconds` have passed.
double time_calls(const std::vector<PreparedLinear>& weights, size_t* next,
                  MatrixView<const float> x, MatrixView<float> y, double seconds) {
  const int threads = thread_count();
  const double start = work_seconds(threads);
  int64_t calls = 0;
  double taken = 0;
  do {
    run_linear(weights[*next], x, nullptr, y);
    *next = (*next + 1) % weights.size();
    ++calls;
    taken = work_seconds(threads) - start;
  } while (taken < seconds);
  return taken / static_cast<double>(calls);
}

// parallel_for's threads, awake and each bound to a CPU of its own before the clock
// starts (the caller is bound to the first).
void use_threads(int threads) {
  set_thread_count(threads);
  std::atomic<int> arrived{0};
  const Clock::time_point start = Clock::now();
  parallel_for(threads, [&](int64_t) {
    // Nobody leaves before all are here, so that each takes one part; not for ever, as
    // the pool may be in other hands.
    arrived.fetch_add(1);
    while (arrived.load() < threads && Clock::now() - start < std::chrono::seconds(1)) {
      std::this_thread::yield();
    }
  });
}

const PeakRow* peak_of(const LinearKernel& kernel) {
  if (kernel.activation == LinearActivation::s8) {
    return best_peak(Numbers::int8, kernel.flags);
  }
  const bool bf16 = kernel.bf16 != nullptr;
  return best_peak(bf16 ? Numbers::bf16 : Numbers::f32, kernel.flags);
}

// Cores that others may use of a round that counts: less is what an idle system does. The
// system counts in ticks of 10 ms, so that short rounds cannot be judged.
constexpr double kDisturbed = 0.06, kLeastJudged = 0.1;  // cores, seconds

// How many cores other processes kept busy since it was made; negative: unknown.
class OthersLoad {
 public:
  double seconds() const {
    return std::chrono::duration<double>(Clock::now() - start_).count();
  }
  double cores() const {
    const double busy = busy_seconds(), own = own_seconds();
    if (busy < 0 || own < 0 || busy_ < 0 || own_ < 0) return -1;
    return std::max(0.0, (busy - busy_ - (own - own_)) / seconds());
  }

 private:
  const Clock::time_point start_ = Clock::now();
  const double busy_ = busy_seconds(), own_ = own_seconds();
};

// parallel_for's thread count as it was, on every way out.
struct ThreadsKept {
  const int count = thread_count();
  ~ThreadsKept() { set_thread_count(count); }
};

struct Samples {
  std::vector<double> bytes, operations, read, peak, of_read, of_peak;
};

// What every case shares.
struct Bench {
  const KernelSpeedOptions& options;
  std::vector<int> threads;
  double limit_seconds = 0;  // of one timing of a limit
  int64_t working_set = 0;
  ReadBuffer* buffer = nullptr;
  std::vector<float> x = {};  // [most tokens, cols]
  std::vector<float> y = {};  // [most tokens, rows]

  MatrixView<const float> input(int64_t tokens) const {
    return {x.data(), tokens, options.cols};
  }
  MatrixView<float> output(int64_t tokens) { return {y.data(), tokens, options.rows}; }
};

double error_of(const std::vector<float>& y, const std::vector<float>& reference) {
  double worst = 0, largest = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(y[i]) - reference[i]));
    largest = std::max(largest, std::abs(static_cast<double>(reference[i])));
  }
  return largest > 0 ? worst / largest : worst;
}

// The cases of one scheme and activation: `tokens` of them, each at every thread count.
Status measure_one(Bench& bench, const LinearKernel& kernel,
                   const std::vector<LinearWeight>& sources,
                   const std::vector<int64_t>& tokens,
                   const std::vector<float>& reference,
                   std::vector<KernelSpeed>* result) {
  const KernelSpeedOptions& options = bench.options;
  const double weight_bytes = static_cast<double>(sources[0].bytes());
  const bool decodes = tokens.front() <= kDecodeTokens;
  const int64_t count =
      decodes ? std::max<int64_t>(
                    1, static_cast<int64_t>(std::ceil(
                           static_cast<double>(bench.working_set) / weight_bytes)))
              : 1;
  use_threads(*std::max_element(bench.threads.begin(), bench.threads.end()));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<PreparedLinear> weights,
                          prepare(kernel, sources, count));
  std::vector<PreparedLinear> one;
  one.push_back(weights[0]);
  const PeakRow* const peak_row = peak_of(kernel);

  std::vector<KernelSpeed> speeds;
  for (const int64_t n : tokens) {
    run_linear(weights[0], bench.input(n), nullptr, bench.output(n));
    const double wrong = error_of(bench.y, reference);
    for (const int threads : bench.threads) {
      speeds.push_back({.scheme = to_string(sources[0].scheme),
                        .activation = activation_name(kernel.activation),
                        .tokens = n,
                        .threads = threads,
                        .kernel = kernel.name,
                        .instruction = peak_row != nullptr ? peak_row->name : "",
                        .weight_bytes = weight_bytes,
                        .weights = n <= kDecodeTokens ? count : 1,
                        .error = wrong});
    }
  }
  std::vector<Samples> samples(speeds.size());
  size_t next = 0, only = 0;
  double disturbed = 0;
  for (int64_t repeat = 0, again = 0; repeat <= options.repeats;) {  // the first warms up
    const std::vector<Samples> before = samples;
    const OthersLoad others;
    for (size_t t = 0; t < bench.threads.size(); ++t) {
      const int threads = bench.threads[t];
      NIBBLE_RETURN_IF_ERROR(check_cancelled("bench"));
      double read = 0, peak_rate = 0;
      if (decodes) {
        NIBBLE_ASSIGN_OR_RETURN(read,
                                read_bandwidth(*bench.buffer, threads, bench.working_set,
                                               bench.limit_seconds));
      }
      if (peak_row != nullptr) {
        NIBBLE_ASSIGN_OR_RETURN(peak_rate, peak(*peak_row, threads, bench.limit_seconds));
      }
      use_threads(threads);
      for (size_t i = 0; i < tokens.size(); ++i) {
        const int64_t n = tokens[i];
        const bool decode = n <= kDecodeTokens;
        const double seconds =
            time_calls(decode ? weights : one, decode ? &next : &only, bench.input(n),
                       bench.output(n), options.seconds);
        if (repeat == 0) continue;
        Samples& s = samples[i * bench.threads.size() + t];
        const double operations = 2.0 * static_cast<double>(options.rows) *
                                  static_cast<double>(options.cols) *
                                  static_cast<double>(n) / seconds;
        s.bytes.push_back(weight_bytes / seconds);
        s.operations.push_back(operations);
        if (decode) {
          s.read.push_back(read);
          s.of_read.push_back(weight_bytes / seconds / read);
        }
        if (peak_row != nullptr) {
          s.peak.push_back(peak_rate);
          s.of_peak.push_back(operations / peak_rate);
        }
      }
    }
    // Another process had a core meanwhile: once more, but not for ever.
    const double load = others.seconds() < kLeastJudged ? 0 : others.cores();
    if (load > kDisturbed && again < options.repeats) {
      samples = before;
      ++again;
      continue;
    }
    if (repeat > 0)
      disturbed += std::max(load, 0.0) / static_cast<double>(options.repeats);
    ++repeat;
  }
  for (size_t i = 0; i < speeds.size(); ++i) {
    Samples& s = samples[i];
    speeds[i].others = disturbed;
    speeds[i].bytes = rate_of(std::move(s.bytes));
    speeds[i].operations = rate_of(std::move(s.operations));
    speeds[i].read = rate_of(std::move(s.read));
    speeds[i].peak = rate_of(std::move(s.peak));
    speeds[i].of_read = rate_of(std::move(s.of_read));
    speeds[i].of_peak = rate_of(std::move(s.of_peak));
    result->push_back(std::move(speeds[i]));
  }
  return ok_status();
}

struct Part {  // of the table: one scheme and activation
  QuantScheme scheme;
  const LinearKernel* kernel = nullptr;
  std::vector<int64_t> tokens;
};

Result<std::vector<Part>> parts_of(const KernelSpeedOptions& options) {
  std::vector<Part> parts;
  std::string all;
  for (const char* text : kSchemes) {
    NIBBLE_ASSIGN_OR_RETURN(const QuantScheme scheme, parse_scheme(text));
    for (const LinearActivation activation :
         {LinearActivation::f32, LinearActivation::bf16, LinearActivation::s8}) {
      Part part{.scheme = scheme,
                .kernel = select_linear(scheme, options.cols, activation),
                .tokens = {}};
      const bool slow =
          activation == LinearActivation::bf16 && part.kernel->bf16 == nullptr;
      if (part.kernel == nullptr || slow) continue;
      for (const int64_t n : kTokens) {
        const std::string name = kernel_case_text(
            {.scheme = text, .activation = activation_name(activation), .tokens = n});
        all += (all.empty() ? "" : ", ") + name;
        if (name.find(options.filter) != std::string::npos) part.tokens.push_back(n);
      }
      if (!part.tokens.empty()) parts.push_back(std::move(part));
    }
  }
  if (parts.empty()) {
    return error(StatusCode::invalid_argument,
                 "[bench] --filter: a part of a case's name is required; found \"",
                 options.filter, "\"; the cases are ", all);
  }
  return parts;
}

}  // namespace

std::string kernel_case_text(const KernelSpeed& speed) {
  return cat(speed.scheme, " ", speed.activation, " ", speed.tokens);
}

Result<KernelSpeeds> measure_kernels(const KernelSpeedOptions& options) {
  if (options.rows < 1 || options.cols < 1 || options.rows > (1 << 20) ||
      options.cols > (1 << 20)) {
    return error(StatusCode::invalid_argument,
                 "[bench] --shape: 1 to 1048576 rows and columns are required; found ",
                 options.rows, "x", options.cols, "; give ROWSxCOLS, as 4096x4096");
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Part> parts, parts_of(options));
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
  bench.buffer = &buffer;
  int64_t most = 1;
  for (const Part& part : parts) most = std::max(most, part.tokens.back());
  SplitMix64 random(kSeed);
  bench.x.resize(static_cast<size_t>(most * options.cols));
  for (float& value : bench.x) value = static_cast<float>(random.uniform() * 2 - 1);
  bench.y.resize(static_cast<size_t>(most * options.rows));

  std::vector<LinearWeight> sources;
  std::vector<float> reference(static_cast<size_t>(options.rows));
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    report(i, cat(to_string(part.scheme), " ", activation_name(part.kernel->activation)));
    if (sources.empty() || !(sources[0].scheme == part.scheme)) {
      sources.assign(kDifferent, {});
      std::vector<Status> made(kDifferent);
      parallel_for(kDifferent, [&](int64_t w) {
        const size_t at = static_cast<size_t>(w);
        Result<LinearWeight> weight =
            random_weight(part.scheme, options.rows, options.cols, mix64(kSeed + at));
        if (weight.ok()) sources[at] = *weight;
        made[at] = weight.status();
      });
      for (const Status& one : made) NIBBLE_RETURN_IF_ERROR(one);
      NIBBLE_RETURN_IF_ERROR(
          linear_reference(sources[0], LinearActivation::f32, bench.input(1), nullptr,
                           MatrixView<float>(reference.data(), 1, options.rows)));
    }
    NIBBLE_RETURN_IF_ERROR(
        measure_one(bench, *part.kernel, sources, part.tokens, reference, &result.cases));
  }
  report(parts.size(), "done");
  return result;
}

std::vector<std::vector<std::string>> kernel_speed_rows(const KernelSpeeds& speeds) {
  std::vector<std::vector<std::string>> rows = {{"scheme", "x", "n", "threads", "kernel",
                                                 "GB/s", "GFLOP/s", "of read", "of peak",
                                                 "instruction", "error"}};
  for (const KernelSpeed& s : speeds.cases) {
    rows.push_back({s.scheme, s.activation, cat(s.tokens),
                    cat(s.threads, s.others > kDisturbed ? " *" : ""), s.kernel,
                    s.of_read.repeats > 0 ? rate_text(s.bytes, 1e9) : "-",
                    rate_text(s.operations, 1e9),
                    s.of_read.repeats > 0 ? number_text(s.of_read.median, 3) : "-",
                    s.of_peak.repeats > 0 ? number_text(s.of_peak.median, 3) : "-",
                    s.instruction.empty() ? "none" : s.instruction,
                    number_text(s.error, 2)});
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
