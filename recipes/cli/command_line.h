// One verb's command line: its options, the common ones (--help, --threads, --cpu,
// --json), its positional arguments and its examples, with errors as Status. --help,
// shell completion and the man page are all made from what a verb declares here.
//
// invalid_argument: an unknown option, a missing or malformed value (names verb and
// option).
#pragma once

#include <boost/program_options.hpp>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "kernels/runtime/executor.h"
#include "recipes/data/signals.h"
#include "recipes/eval/text_model.h"
#include "recipes/models/load_model.h"

namespace nibble {

struct OptionDescription {
  std::string name;   // without dashes
  std::string value;  // "FILE", or "" for a flag
  std::string description;
  std::string otherwise;  // the default, or ""
  bool required = false;
};
struct ExampleDescription {
  std::string command;  // "nibble quantize ..."
  std::string purpose;
};
struct VerbDescription {
  std::string name, usage, summary;
  std::vector<std::string> positionals;
  std::vector<OptionDescription> options;  // the verb's own, then the common ones
  std::vector<ExampleDescription> examples;
};

class CommandLine {
 public:
  // usage: "quantize MODEL --recipe NAME|FILE --output DIR"; summary: what the verb does.
  CommandLine(std::string usage, std::string summary);

  void flag(const char* name, const char* description);
  // The required option or argument may be missing where this flag is given.
  void waive(const char* required, const char* flag);
  void text(const char* name, const char* value, const char* description,
            bool required = false);
  void integer(const char* name, const char* description, int64_t otherwise,
               int64_t lowest);
  void number(const char* name, const char* description, double otherwise);
  void list(const char* name, const char* value,
            const char* description);  // may be repeated
  void positional(const char* name, bool required = true);
  void json();           // --json
  void kv_option();      // --kv
  void device_option();  // --device
  void carry_option();   // --carry
  void model_options();  // --tokenizer, --architecture, --size
  // command: all of it, "nibble quantize ..."; a test parses each.
  void example(const char* command, const char* purpose);

  // false: --help was asked for and printed. Applies --threads and --cpu.
  Result<bool> parse(const std::vector<std::string>& arguments);

  bool has(const char* name) const;
  std::string text(const char* name) const;  // "" when absent
  int64_t integer(const char* name) const;
  double number(const char* name) const;
  std::vector<std::string> list(const char* name) const;
  std::filesystem::path path(const char* name) const { return text(name); }
  bool wants_json() const { return has("json"); }
  LoadOptions load_options() const;

 private:
  Status check(const boost::program_options::variables_map& values) const;
  VerbDescription describe(
      const boost::program_options::options_description& visible) const;

  std::string verb_, usage_, summary_;
  boost::program_options::options_description options_;
  std::vector<std::pair<std::string, bool>> positionals_;
  std::vector<std::string> required_;
  std::vector<std::pair<std::string, std::string>> waived_;
  std::vector<std::pair<std::string, int64_t>> lowest_;
  std::vector<ExampleDescription> examples_;
  boost::program_options::variables_map values_;
};

// What a verb's function declares before it parses, or the error of parsing `arguments`
// where some are given; nothing is run.
struct Verb;
Result<VerbDescription> describe_verb(const Verb& verb,
                                      const std::vector<std::string>& arguments = {});

// --kv: checked as far as it can be without a model; "" when absent.
Result<std::string> kv_option(const CommandLine& line);

// --device: null for the CPU. A GPU computes in bf16: no --compute beside it.
Result<std::shared_ptr<cuda::Runner>> device_option(const CommandLine& line,
                                                    const char* verb);

// --carry, of `verb`.
Result<std::vector<Carry>> carry_option(const CommandLine& line, const char* verb);

// --compute: float (default) or int8.
Result<Compute> compute_option(const CommandLine& line);

}  // namespace nibble
