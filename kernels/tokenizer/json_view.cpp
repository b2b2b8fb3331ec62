#include "kernels/tokenizer/json_view.h"

#include "kernels/base/json.h"

namespace nibble {
namespace {

using nlohmann::json;

const json& json_of(const void* value) { return *static_cast<const json*>(value); }
JsonView view(const json& value) {
  return value.is_null() ? JsonView() : JsonView(&value);
}

}  // namespace

bool JsonView::is_object() const { return value_ && json_of(value_).is_object(); }
bool JsonView::is_array() const { return value_ && json_of(value_).is_array(); }
bool JsonView::is_string() const { return value_ && json_of(value_).is_string(); }
bool JsonView::is_boolean() const { return value_ && json_of(value_).is_boolean(); }
bool JsonView::is_number() const { return value_ && json_of(value_).is_number(); }

JsonView JsonView::operator[](const char* key) const {
  if (!is_object()) return {};
  const auto found = json_of(value_).find(key);
  return found == json_of(value_).end() ? JsonView() : view(*found);
}

JsonView JsonView::at(size_t index) const {
  return is_array() && index < size() ? view(json_of(value_)[index]) : JsonView();
}

size_t JsonView::size() const {
  return is_array() || is_object() ? json_of(value_).size() : 0;
}

std::vector<JsonView> JsonView::elements() const {
  std::vector<JsonView> out;
  if (is_array())
    for (const json& element : json_of(value_)) out.push_back(view(element));
  return out;
}

std::string_view JsonView::text() const {
  return is_string() ? json_of(value_).get_ref<const std::string&>() : std::string_view();
}

bool JsonView::flag(bool otherwise) const {
  return is_boolean() ? json_of(value_).get<bool>() : otherwise;
}

double JsonView::number(double otherwise) const {
  return is_number() ? json_of(value_).get<double>() : otherwise;
}

int32_t JsonView::id() const {
  if (!value_ || !json_of(value_).is_number_integer()) return -1;
  const json& value = json_of(value_);
  return value >= 0 && value <= INT32_MAX ? value.get<int32_t>() : -1;
}

std::string JsonView::dump() const {
  if (!value_) return "nothing";
  return json_of(value_)
      .dump(-1, ' ', false, json::error_handler_t::replace)
      .substr(0, 60);
}

Status JsonView::for_each_member(
    const std::function<Status(const std::string&, JsonView)>& call) const {
  if (!is_object()) return ok_status();
  for (const auto& [key, value] : json_of(value_).items())
    NIBBLE_RETURN_IF_ERROR(call(key, view(value)));
  return ok_status();
}

Result<JsonFile> JsonFile::parse(std::string name, std::string_view text) {
  auto value = std::make_shared<json>(parse_json(text));
  if (!value->is_object())
    return error(StatusCode::data_loss, "[tokenizer] ", name,
                 ": a JSON object was required; it does not parse as one; the file is "
                 "damaged");
  JsonFile file;
  file.value_ = std::move(value);
  return file;
}

std::string json_escaped(std::string_view text) {
  const std::string quoted =
      json(text).dump(-1, ' ', false, json::error_handler_t::replace);
  return quoted.substr(1, quoted.size() - 2);
}

}  // namespace nibble
