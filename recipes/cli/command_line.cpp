#include "recipes/cli/command_line.h"

#include <algorithm>
#include <iostream>

#include "kernels/base/cpu.h"
#include "kernels/base/parallel.h"
#include "recipes/cli/verb.h"

namespace nibble {

namespace po = boost::program_options;

namespace {

// While set, parse only fills it: how describe_verb reaches the options that a verb's
// function declares on its own stack.
VerbDescription* describing = nullptr;

}  // namespace

CommandLine::CommandLine(std::string usage, std::string summary)
    : verb_(usage.substr(0, usage.find(' '))),
      usage_(std::move(usage)),
      summary_(std::move(summary)),
      options_("Options", 96, 60) {}

void CommandLine::flag(const char* name, const char* description) {
  options_.add_options()(name, po::bool_switch(), description);
}

void CommandLine::waive(const char* required, const char* flag) {
  waived_.emplace_back(required, flag);
}

void CommandLine::text(const char* name, const char* value, const char* description,
                       bool required) {
  options_.add_options()(name, po::value<std::string>()->value_name(value), description);
  if (required) required_.emplace_back(name);
}

void CommandLine::integer(const char* name, const char* description, int64_t otherwise,
                          int64_t lowest) {
  options_.add_options()(
      name, po::value<int64_t>()->value_name("N")->default_value(otherwise), description);
  lowest_.emplace_back(name, lowest);
}

void CommandLine::number(const char* name, const char* description, double otherwise) {
  // The second argument is what --help prints: 0.9, not 0.90000000000000002.
  options_.add_options()(
      name,
      po::value<double>()->value_name("X")->default_value(otherwise, cat(otherwise)),
      description);
}

void CommandLine::list(const char* name, const char* value, const char* description) {
  options_.add_options()(
      name, po::value<std::vector<std::string>>()->composing()->value_name(value),
      description);
}

void CommandLine::positional(const char* name, bool required) {
  positionals_.emplace_back(name, required);
}

void CommandLine::kv_option() {
  text("kv", "SCHEME",
       "what the KV cache is stored as: f32, f16, bf16, int8, fp8, int4, a scheme (one "
       "scale for all: int8/t@f32=0.05), KEYS,VALUES or KEYS,VALUES,QUERIES (default: "
       "what the artifact says, else f32)");
}
void CommandLine::device_option() {
  text("device", "cpu|cuda[:N]",
       "where MODEL runs: a GPU needs a build of the preset `cuda` (default: cpu)");
}
void CommandLine::carry_option() {
  list("carry", "OUTPUT=INPUT", "an output that is an input of the next step");
}
void CommandLine::json() {
  flag("json", "print one JSON object on stdout and nothing else there");
}

void CommandLine::model_options() {
  text("tokenizer", "FILE", "tokenizer of a model file that carries none");
  text("architecture", "NAME", "architecture of a model file that does not say");
  list("size", "NAME=N", "what an open size of a .onnx's inputs is (the batch stays open)");
}

void CommandLine::example(const char* command, const char* purpose) {
  examples_.push_back({command, purpose});
}

VerbDescription CommandLine::describe(const po::options_description& visible) const {
  VerbDescription out{verb_, usage_, summary_, {}, {}, examples_};
  for (const auto& [name, required] : positionals_) out.positionals.push_back(name);
  for (const auto& option : visible.options()) {
    OptionDescription row{option->long_name(), "", option->description(), "", false};
    if (option->semantic()->max_tokens() > 0) {
      // format_parameter is "N (=128)": the value's name and the default.
      const std::string text = option->format_parameter();
      const size_t open = text.find(" (=");
      row.value = text.substr(0, open);
      if (open != std::string::npos)
        row.otherwise = text.substr(open + 3, text.size() - open - 4);
    }
    row.required =
        std::find(required_.begin(), required_.end(), row.name) != required_.end();
    out.options.push_back(std::move(row));
  }
  return out;
}

Result<VerbDescription> describe_verb(const Verb& verb,
                                      const std::vector<std::string>& arguments) {
  VerbDescription now;
  describing = &now;
  const Status status = verb.run(arguments);
  describing = nullptr;
  NIBBLE_RETURN_IF_ERROR(status);
  if (now.name.empty()) {
    return error(StatusCode::internal, "[nibble] ", verb.name,
                 ": a command line was to be parsed; it was not");
  }
  return now;
}

Result<bool> CommandLine::parse(const std::vector<std::string>& arguments) {
  po::options_description common("Everywhere", 96, 60);
  common.add_options()("help,h", "print this page")(
      "threads", po::value<int>()->value_name("N"),
      "threads to use (default: NIBBLE_THREADS, else all)")(
      "cpu", po::value<std::string>()->value_name("LEVEL"),
      ("kernels of at most this level: " + cpu_level_names() +
       " (default: NIBBLE_CPU, else the best)")
          .c_str());
  po::options_description visible;
  visible.add(options_).add(common);

  if (describing != nullptr) *describing = describe(visible);

  po::options_description hidden;
  po::positional_options_description order;
  for (const auto& [name, required] : positionals_) {
    hidden.add_options()(name.c_str(), po::value<std::string>(), "");
    order.add(name.c_str(), 1);
  }
  po::options_description all;
  all.add(visible).add(hidden);

  po::variables_map values;
  if (describing != nullptr && arguments.empty()) return false;
  try {
    // No guessing: --tok must not mean --tokens today and --tokenizer tomorrow.
    const int style =
        po::command_line_style::default_style ^ po::command_line_style::allow_guessing;
    po::store(po::command_line_parser(arguments)
                  .options(all)
                  .positional(order)
                  .style(style)
                  .run(),
              values);
    po::notify(values);
  } catch (const po::too_many_positional_options_error&) {
    return error(StatusCode::invalid_argument, "[", verb_,
                 "] command line: ", positionals_.size(),
                 " argument(s) allowed; found more; see nibble ", verb_, " --help");
  } catch (const po::error& problem) {
    return error(StatusCode::invalid_argument, "[", verb_,
                 "] command line: ", problem.what(), "; see nibble ", verb_, " --help");
  }
  if (values.count("help") > 0) {
    std::cout << "nibble " << usage_ << "\n\n" << summary_ << "\n";
    std::cout << visible;
    if (!examples_.empty()) std::cout << "\nExamples\n";
    for (const ExampleDescription& example : examples_) {
      std::cout << "  " << example.command << "\n      " << example.purpose << "\n";
    }
    return false;
  }
  NIBBLE_RETURN_IF_ERROR(check(values));
  if (describing != nullptr) return false;
  values_ = std::move(values);

  if (values_.count("threads") > 0) {
    const int threads = values_["threads"].as<int>();
    if (threads < 1 || threads > 1024) {
      return error(StatusCode::invalid_argument, "[", verb_,
                   "] --threads: 1 to 1024 required; found ", threads,
                   "; give a number of cores");
    }
    set_thread_count(threads);
  }
  if (values_.count("cpu") > 0) {
    NIBBLE_RETURN_IF_ERROR(force_cpu(values_["cpu"].as<std::string>()));
  } else {
    NIBBLE_RETURN_IF_ERROR(check_cpu_environment());
  }
  return true;
}

Status CommandLine::check(const po::variables_map& values) const {
  const auto is_waived = [&](const std::string& name) {
    return std::any_of(waived_.begin(), waived_.end(), [&](const auto& waiver) {
      const po::variable_value& flag = values[waiver.second];
      return waiver.first == name && flag.as<bool>();
    });
  };
  for (const auto& [name, required] : positionals_) {
    if (required && values.count(name) == 0 && !is_waived(name)) {
      return error(StatusCode::invalid_argument, "[", verb_, "] command line: ", name,
                   " is required; found none; usage: nibble ", usage_);
    }
  }
  for (const std::string& name : required_) {
    if (values.count(name) == 0 && !is_waived(name)) {
      return error(StatusCode::invalid_argument, "[", verb_, "] command line: --", name,
                   " is required; found none; usage: nibble ", usage_);
    }
  }
  for (const auto& [name, lowest] : lowest_) {
    const int64_t found = values[name].as<int64_t>();
    if (found < lowest) {
      return error(StatusCode::invalid_argument, "[", verb_, "] --", name, ": at least ",
                   lowest, " required; found ", found, "; give a larger number");
    }
  }
  return ok_status();
}

bool CommandLine::has(const char* name) const {
  if (values_.count(name) == 0) return false;
  const po::variable_value& value = values_[name];
  if (value.value().type() == typeid(bool)) return value.as<bool>();
  return !value.defaulted();
}

std::string CommandLine::text(const char* name) const {
  return values_.count(name) > 0 ? values_[name].as<std::string>() : std::string();
}
int64_t CommandLine::integer(const char* name) const {
  return values_[name].as<int64_t>();
}
double CommandLine::number(const char* name) const { return values_[name].as<double>(); }

std::vector<std::string> CommandLine::list(const char* name) const {
  if (values_.count(name) == 0) return {};
  return values_[name].as<std::vector<std::string>>();
}

LoadOptions CommandLine::load_options() const {
  LoadOptions options;
  options.tokenizer = path("tokenizer");
  options.architecture = text("architecture");
  options.sizes = list("size");
  return options;
}

Result<std::string> kv_option(const CommandLine& line) {
  const std::string text = line.text("kv");
  if (text.empty()) return text;
  NIBBLE_RETURN_IF_ERROR(parse_kv_scheme(text, 1, 64).status());
  return text;
}

Result<std::shared_ptr<cuda::Runner>> device_option(const CommandLine& line,
                                                    const char* verb) {
  const std::string device = line.text("device");
  if (!is_gpu(device)) return std::shared_ptr<cuda::Runner>();
  if (line.has("compute")) {
    return error(StatusCode::invalid_argument, "[", verb,
                 "] --compute: --device cpu is "
                 "required with it; found ",
                 device, ", where values are bf16; leave one of them out");
  }
  return open_gpu(device);
}

Result<std::vector<Carry>> carry_option(const CommandLine& line, const char* verb) {
  std::vector<Carry> carries;
  for (const std::string& text : line.list("carry")) {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<Carry> more,
                            parse_carries(text, cat("[", verb, "] --carry")));
    carries.insert(carries.end(), more.begin(), more.end());
  }
  return carries;
}

Result<Compute> compute_option(const CommandLine& line) {
  return parse_compute(line.text("compute"));
}

}  // namespace nibble
