// Reads SentencePiece's .model, a protobuf message, from its wire format: the few fields
// that are needed are known by number, all others are passed over.
#include <cmath>
#include <cstring>

#include "kernels/tokenizer/sentence_piece.h"

namespace nibble {
namespace {

template <class... Parts>
Status damaged(const Parts&... parts) {
  return error(StatusCode::data_loss, "[tokenizer] tokenizer.model: ", parts...,
               "; the file is damaged or not a SentencePiece model");
}

enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

struct Field {
  uint32_t number = 0;
  uint32_t type = 0;
  uint64_t value = 0;      // of kVarint, kFixed64 and kFixed32 (its bits)
  std::string_view bytes;  // of kBytes

  bool flag() const { return value != 0; }
  int32_t number32() const { return static_cast<int32_t>(value); }
};

// The fields of one message, in the order of the file.
class Message {
 public:
  Message(std::string_view bytes, size_t offset) : bytes_(bytes), offset_(offset) {}

  bool ended() const { return at_ >= bytes_.size(); }
  // Where the contents of the last field begin, in the file.
  size_t place(const Field& field) const {
    return offset_ + static_cast<size_t>(field.bytes.data() - bytes_.data());
  }

  Result<Field> next() {
    const size_t start = at_;
    Field field;
    uint64_t tag = 0, size = 0;
    bool good = varint(tag);
    field.number = static_cast<uint32_t>(tag >> 3);
    field.type = static_cast<uint32_t>(tag & 7);
    if (good && field.type == kVarint) {
      good = varint(field.value);
    } else if (good && field.type == kBytes) {
      good = varint(size) && size <= bytes_.size() - at_;
      if (good) field.bytes = bytes_.substr(at_, size);
      if (good) at_ += size;
    } else if (good && (field.type == kFixed32 || field.type == kFixed64)) {
      size = field.type == kFixed32 ? 4 : 8;
      good = size <= bytes_.size() - at_;
      if (good) std::memcpy(&field.value, bytes_.data() + at_, size);
      if (good) at_ += size;
    } else {
      good = false;
    }
    if (!good || field.number == 0)
      return damaged("a protobuf field was required at byte ", offset_ + start, " of ",
                     offset_ + bytes_.size(), "; found none that ends");
    return field;
  }

 private:
  bool varint(uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 64 && at_ < bytes_.size(); shift += 7) {
      const uint8_t byte = static_cast<uint8_t>(bytes_[at_++]);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }

  std::string_view bytes_;
  size_t offset_, at_ = 0;
};

Status read_piece(Message message, size_t index, SentencePiece& piece) {
  uint64_t type = 1;
  while (!message.ended()) {
    NIBBLE_ASSIGN_OR_RETURN(const Field field, message.next());
    if (field.number == 1 && field.type == kBytes) piece.text = field.bytes;
    if (field.number == 2 && field.type == kFixed32) {
      const uint32_t bits = static_cast<uint32_t>(field.value);
      std::memcpy(&piece.score, &bits, sizeof bits);
    }
    if (field.number == 3 && field.type == kVarint) type = field.value;
  }
  if (piece.text.empty() || type < 1 || type > 6 || !std::isfinite(piece.score))
    return damaged("piece ", index,
                   " with a text, a finite score and a type from 1 to 6 was required; "
                   "found \"",
                   piece.text, "\", ", piece.score, " and ", type);
  piece.type = static_cast<PieceType>(type);
  return ok_status();
}

Status read_trainer(Message message, SentencePieceModel& model) {
  int32_t type = 1;
  while (!message.ended()) {
    NIBBLE_ASSIGN_OR_RETURN(const Field field, message.next());
    switch (field.number) {
      case 3:
        type = field.number32();
        break;
      case 24:
        model.whitespace_as_suffix = field.flag();
        break;
      case 35:
        model.byte_fallback = field.flag();
        break;
      case 40:
        model.unknown = field.number32();
        break;
      case 41:
        model.bos = field.number32();
        break;
      case 42:
        model.eos = field.number32();
        break;
      case 44:
        if (field.type == kBytes) model.unknown_surface = field.bytes;
        break;
      default:
        break;
    }
  }
  if (type != 1 && type != 2)
    return error(StatusCode::unsupported,
                 "[tokenizer] tokenizer.model: model_type 1 (Unigram) or 2 (BPE) was "
                 "required; found ",
                 type,
                 type == 3   ? " (words)"
                 : type == 4 ? " (characters)"
                             : "",
                 "; evaluate with token ids from a safetensors file instead");
  model.is_bpe = type == 2;
  return ok_status();
}

Status read_normalizer(Message message, bool denormalizer, SentencePieceModel& model) {
  while (!message.ended()) {
    NIBBLE_ASSIGN_OR_RETURN(const Field field, message.next());
    if (field.number == 2 && field.type == kBytes && !field.bytes.empty()) {
      if (denormalizer)
        return error(StatusCode::unsupported,
                     "[tokenizer] tokenizer.model: a model without denormalizer was "
                     "required; found one with a character map of ",
                     field.bytes.size(),
                     " bytes; evaluate with token ids from a safetensors file instead");
      NIBBLE_ASSIGN_OR_RETURN(
          model.charsmap, Charsmap::from_blob(field.bytes, "tokenizer.model normalizer"));
    }
    if (denormalizer || field.type != kVarint) continue;
    if (field.number == 3) model.add_dummy_prefix = field.flag();
    if (field.number == 4) model.remove_extra_whitespaces = field.flag();
    if (field.number == 5) model.escape_whitespaces = field.flag();
  }
  return ok_status();
}

}  // namespace

Result<SentencePieceModel> read_sentence_piece(std::string_view file) {
  SentencePieceModel model;
  model.is_bpe = false;  // the message's own default
  Message message(file, 0);
  while (!message.ended()) {
    NIBBLE_ASSIGN_OR_RETURN(const Field field, message.next());
    if (field.type != kBytes) continue;
    const Message inner(field.bytes, message.place(field));
    if (field.number == 1) {
      model.pieces.emplace_back();
      NIBBLE_RETURN_IF_ERROR(
          read_piece(inner, model.pieces.size() - 1, model.pieces.back()));
    }
    if (field.number == 2) NIBBLE_RETURN_IF_ERROR(read_trainer(inner, model));
    if (field.number == 3) NIBBLE_RETURN_IF_ERROR(read_normalizer(inner, false, model));
    if (field.number == 5) NIBBLE_RETURN_IF_ERROR(read_normalizer(inner, true, model));
  }
  if (model.pieces.empty()) return damaged("pieces were required; found none");
  const auto type_of = [&](int32_t id) {
    return id >= 0 && static_cast<size_t>(id) < model.pieces.size()
               ? model.pieces[static_cast<size_t>(id)].type
               : PieceType::normal;
  };
  // The pieces' own types decide, as the library has it.
  if (type_of(model.unknown) != PieceType::unknown) {
    model.unknown = -1;
    for (size_t i = 0; i < model.pieces.size() && model.unknown < 0; ++i)
      if (model.pieces[i].type == PieceType::unknown)
        model.unknown = static_cast<int32_t>(i);
  }
  if (model.unknown < 0) return damaged("an unknown piece was required; found none");
  if (type_of(model.bos) != PieceType::control) model.bos = -1;
  if (type_of(model.eos) != PieceType::control) model.eos = -1;
  return model;
}

}  // namespace nibble
