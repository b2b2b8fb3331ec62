#include "kernels/tokenizer/post_processor.h"

#include <algorithm>

#include "kernels/tokenizer/sections.h"

namespace nibble {
namespace {

constexpr const char* kWhere = "post_processor";

Result<std::vector<TemplateItem>> read_template(JsonView json, const char* name,
                                                JsonView special) {
  const JsonView list = json[name];
  if (!list.is_array())
    return damaged_json(kWhere, "a list `", name, "` was required; found ", list.dump());
  std::vector<TemplateItem> items;
  bool first = false;
  for (const JsonView entry : list.elements()) {
    TemplateItem item;
    if (const JsonView sequence = entry["Sequence"]; sequence.exists()) {
      const std::string_view id = sequence["id"].text();
      if (id != "A" && id != "B")
        return damaged_json(kWhere, "the sequence A or B was required; found ",
                            sequence.dump());
      item.text = id == "B";
      item.type = std::max(sequence["type_id"].id(), 0);
      first |= item.text == 0;
    } else {
      const JsonView token = entry["SpecialToken"];
      const std::string id(token["id"].text());
      const JsonView ids = special[id.c_str()]["ids"];
      if (!ids.is_array())
        return damaged_json(kWhere, "the ids of special token \"", id,
                            "\" were required; found ", ids.dump());
      for (const JsonView value : ids.elements()) {
        if (value.id() < 0)
          return damaged_json(kWhere, "an id of the vocabulary was required; found ",
                              value.dump());
        item.ids.push_back(value.id());
      }
      item.type = std::max(token["type_id"].id(), 0);
    }
    items.push_back(std::move(item));
  }
  if (!first)
    return damaged_json(kWhere, "the sequence A was required; found ", list.dump());
  return items;
}

Result<PostProcessor> read_templates(JsonView json) {
  PostProcessor out;
  NIBBLE_ASSIGN_OR_RETURN(out.single,
                          read_template(json, "single", json["special_tokens"]));
  for (const TemplateItem& item : out.single)
    if (item.text == 1)
      return damaged_json(kWhere, "the sequence A alone was required in `single`; found ",
                          json["single"].dump());
  if (json["pair"].exists()) {
    NIBBLE_ASSIGN_OR_RETURN(out.pair,
                            read_template(json, "pair", json["special_tokens"]));
  }
  return out;
}

// ["[SEP]", 102]
Result<int32_t> named_id(JsonView json, const char* name) {
  const int32_t id = json[name].at(1).id();
  if (id < 0)
    return damaged_json(kWhere, "`", name, "` with [token, id] was required; found ",
                        json[name].dump());
  return id;
}

Result<PostProcessor> read_around(JsonView json, bool roberta) {
  NIBBLE_ASSIGN_OR_RETURN(const int32_t cls, named_id(json, "cls"));
  NIBBLE_ASSIGN_OR_RETURN(const int32_t sep, named_id(json, "sep"));
  PostProcessor out;
  out.single = {{-1, {cls}, 0}, {0, {}, 0}, {-1, {sep}, 0}};
  out.pair = out.single;
  if (roberta) {  // <s> A </s></s> B </s>, all of type 0
    out.pair.insert(out.pair.end(), {{-1, {sep}, 0}, {1, {}, 0}, {-1, {sep}, 0}});
  } else {
    out.pair.insert(out.pair.end(), {{1, {}, 1}, {-1, {sep}, 1}});
  }
  return out;
}

constexpr SectionRow<PostProcessor> kPostProcessors[] = {
    {"BertProcessing", [](JsonView json) { return read_around(json, false); }},
    {"ByteLevel", [](JsonView) -> Result<PostProcessor> { return PostProcessor(); }},
    {"RobertaProcessing", [](JsonView json) { return read_around(json, true); }},
    {"TemplateProcessing", read_templates}};

bool adds_tokens(const PostProcessor& processor) {
  return processor.single.size() > 1 || processor.pair.size() > 2;
}

}  // namespace

Result<PostProcessor> read_post_processor(JsonView component, int64_t ids) {
  NIBBLE_ASSIGN_OR_RETURN(
      const std::vector<PostProcessor> list,
      read_section<PostProcessor>(component, kWhere, "processors", kPostProcessors));
  PostProcessor out;
  bool found = false;
  for (const PostProcessor& processor : list) {
    if (!adds_tokens(processor)) continue;
    if (found)
      return unknown_json(kWhere,
                          "one component that adds tokens was required; found "
                          "several in a Sequence");
    found = true;
    out = processor;
  }
  for (const auto* items : {&out.single, &out.pair})
    for (const TemplateItem& item : *items)
      for (int32_t id : item.ids)
        if (id >= ids)
          return damaged_json(kWhere, "an id of the vocabulary was required; found ", id);
  return out;
}

}  // namespace nibble
