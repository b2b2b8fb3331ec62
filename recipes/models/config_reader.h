// Reads config.json field by field, with errors that name the field.
//
// Each reader returns `otherwise` for an absent or null field. The first field of a wrong
// type or value is kept as the outcome: read everything, then check status() once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/status.h"

namespace nibble {

class ConfigReader {
 public:
  explicit ConfigReader(const std::string& config_json);
  ~ConfigReader();
  ConfigReader(const ConfigReader&) = delete;
  ConfigReader& operator=(const ConfigReader&) = delete;

  // A path of names, separated by "/": "rope_parameters/rope_theta".
  bool has(const std::string& path) const;
  bool is_null(const std::string& path) const;  // there, and null
  int64_t integer(const std::string& path, int64_t otherwise, int64_t lowest,
                  int64_t highest);
  double positive(const std::string& path, double otherwise);
  bool boolean(const std::string& path, bool otherwise);
  std::string text(const std::string& path, const std::string& otherwise);
  std::vector<int64_t> integers(const std::string& path, std::vector<int64_t> otherwise);
  std::vector<double> numbers(const std::string& path, std::vector<double> otherwise);
  std::vector<std::string> texts(const std::string& path);

  // Something that cannot be done here, named by the caller.
  void refuse(const std::string& path, const std::string& required,
              const std::string& found);
  const Status& status() const { return status_; }

 private:
  struct Document;
  void wrong(const std::string& path, const std::string& required);
  std::unique_ptr<Document> document_;
  Status status_;
};

}  // namespace nibble
