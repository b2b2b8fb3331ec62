#include "recipes/models/config_reader.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/json.h"

namespace nibble {

using Json = nlohmann::json;

struct ConfigReader::Document {
  Json json;
  // null for an absent field.
  const Json& at(const std::string& path) const {
    static const Json none;
    const Json* value = &json;
    size_t begin = 0;
    while (begin <= path.size()) {
      const size_t end = std::min(path.find('/', begin), path.size());
      if (!value->is_object()) return none;
      const auto found = value->find(path.substr(begin, end - begin));
      if (found == value->end()) return none;
      value = &*found;
      begin = end + 1;
    }
    return *value;
  }
  bool names(const std::string& path) const {
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) return json.contains(path);
    const Json& parent = at(path.substr(0, slash));
    return parent.is_object() && parent.contains(path.substr(slash + 1));
  }
};

ConfigReader::ConfigReader(const std::string& config_json)
    : document_(std::make_unique<Document>()) {
  document_->json = parse_json(config_json);
  if (!document_->json.is_object()) {
    document_->json = Json::object();
    status_ =
        error(StatusCode::data_loss,
              "[models] config.json: must be one JSON object; found something else; the "
              "file is damaged");
  }
}
ConfigReader::~ConfigReader() = default;

bool ConfigReader::has(const std::string& path) const {
  return !document_->at(path).is_null();
}

bool ConfigReader::is_null(const std::string& path) const {
  return document_->names(path) && document_->at(path).is_null();
}

void ConfigReader::wrong(const std::string& path, const std::string& required) {
  if (!status_.ok()) return;
  // Replace: a broken string must not throw from dump.
  const std::string found =
      document_->at(path).dump(-1, ' ', false, Json::error_handler_t::replace);
  status_ = error(StatusCode::invalid_argument, "[models] config.json: ", path,
                  " must be ", required, "; found ", found.substr(0, 80));
}

void ConfigReader::refuse(const std::string& path, const std::string& required,
                          const std::string& found) {
  if (!status_.ok()) return;
  status_ = error(StatusCode::unsupported, "[models] config.json: ", path,
                  ": nibble supports ", required, "; found ", found);
}

int64_t ConfigReader::integer(const std::string& path, int64_t otherwise, int64_t lowest,
                              int64_t highest) {
  const Json& value = document_->at(path);
  if (value.is_null()) return otherwise;
  const bool whole =
      value.is_number_integer() &&
      !(value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX});
  if (!whole || value.get<int64_t>() < lowest || value.get<int64_t>() > highest) {
    wrong(path, cat("an integer from ", lowest, " to ", highest));
    return otherwise;
  }
  return value.get<int64_t>();
}

double ConfigReader::positive(const std::string& path, double otherwise) {
  const Json& value = document_->at(path);
  if (value.is_null()) return otherwise;
  if (!value.is_number() || !(value.get<double>() > 0) ||
      !std::isfinite(value.get<double>())) {
    wrong(path, "a positive number");
    return otherwise;
  }
  return value.get<double>();
}

bool ConfigReader::boolean(const std::string& path, bool otherwise) {
  const Json& value = document_->at(path);
  if (value.is_null()) return otherwise;
  if (!value.is_boolean()) {
    wrong(path, "true or false");
    return otherwise;
  }
  return value.get<bool>();
}

std::string ConfigReader::text(const std::string& path, const std::string& otherwise) {
  const Json& value = document_->at(path);
  if (value.is_null()) return otherwise;
  if (!value.is_string()) {
    wrong(path, "a string");
    return otherwise;
  }
  return value.get<std::string>();
}

std::vector<int64_t> ConfigReader::integers(const std::string& path,
                                            std::vector<int64_t> otherwise) {
  const Json& value = document_->at(path);
  if (value.is_null()) return otherwise;
  std::vector<int64_t> result;
  bool right = value.is_array();
  for (const Json& item : value) {
    right =
        right && item.is_number_unsigned() && item.get<uint64_t>() < (uint64_t{1} << 31);
    if (right) result.push_back(item.get<int64_t>());
  }
  if (!right) {
    wrong(path, "a list of integers from 0 to 2^31 - 1");
    return otherwise;
  }
  return result;
}

std::vector<double> ConfigReader::numbers(const std::string& path,
                                          std::vector<double> otherwise) {
  const Json& value = document_->at(path);
  if (value.is_null()) return otherwise;
  std::vector<double> result;
  bool right = value.is_array();
  for (const Json& item : value) {
    right = right && item.is_number();
    if (right) result.push_back(item.get<double>());
  }
  if (!right) {
    wrong(path, "a list of numbers");
    return otherwise;
  }
  return result;
}

std::vector<std::string> ConfigReader::texts(const std::string& path) {
  const Json& value = document_->at(path);
  std::vector<std::string> result;
  if (value.is_null()) return result;
  bool right = value.is_array();
  for (const Json& item : value) {
    right = right && item.is_string();
    if (right) result.push_back(item.get<std::string>());
  }
  if (!right) wrong(path, "a list of strings");
  return right ? result : std::vector<std::string>();
}

}  // namespace nibble
