"""Tokenizer files: vocab.txt, or Hugging Face's tokenizer.json, and their settings. Imports no TensorFlow."""

from pathlib import Path
from typing import Any

from config import DataError
from spec import Tokenization, read_json

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_BERT_CLASSES = {f"{family}Tokenizer{fast}" for family in ("Bert", "DistilBert", "Electra") for fast in ("", "Fast")}
_ANY_CLASSES = {"PreTrainedTokenizerFast", "TokenizersBackend"}  # whatever tokenizer.json says
# Keys of tokenizer_config.json -> those of the normalizer in tokenizer.json, and transformers' defaults.
_SETTINGS: dict[str, tuple[str, Any]] = {
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),  # null: as do_lower_case
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}


def read_vocab(path: str | Path) -> list[str]:
    """Reads one token per line; the line's number is its id.

    Of a token that occurs twice only the last id is ever given, as by every reader that fills a dict; earlier places, and
    empty ones, hold a filler that no text can produce.

    Raises:
        DataError: the file cannot be read, or lacks a token that BERT needs.
    """
    try:
        with open(path, encoding="utf-8") as file:
            tokens = [line.removesuffix("\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a vocabulary of one UTF-8 token per line ({error}); get the file again") from None
    return _unambiguous(tokens, path)


def _unambiguous(tokens: list[str], path: str | Path) -> list[str]:
    last = {token: number for number, token in enumerate(tokens)}
    for token in SPECIAL_TOKENS[:4]:
        if token not in last:
            raise DataError(f"{path}: the token {token} is missing; a BERT vocabulary has it")
    # Brackets are words of their own to the tokenizer, so that no text can match the filler.
    return [
        token if token.strip() and last[token] == number else f"[unreachable {number}]"
        for number, token in enumerate(tokens)
    ]


def read_tokenizer(folder: Path, lower_case_first: bool = False) -> tuple[list[str], Tokenization]:
    """Reads the vocabulary and the settings of a Hugging Face tokenizer, as transformers 5 takes them.

    The vocabulary of tokenizer.json goes before vocab.txt. Of the settings tokenizer_config.json decides, unless the class
    that it names is not BERT's own: then tokenizer.json does.

    Args:
        lower_case_first: texts are lower-cased before they reach the tokenizer.

    Raises:
        DataError: files are missing or broken, or the tokenizer is not BERT's WordPiece.
    """
    settings, fast, model = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "tokenizer.json", "config.json")
    )
    settings.setdefault("tokenizer_class", model.get("tokenizer_class"))
    if fast:
        _refuse_other_tokenizers(folder / "tokenizer.json", fast)
        vocab = _fast_vocab(folder / "tokenizer.json", fast)
    elif (folder / "vocab.txt").is_file():
        vocab = read_vocab(folder / "vocab.txt")
    else:
        raise DataError(f"{folder}: neither vocab.txt nor tokenizer.json there; a BERT checkpoint has one of them")
    _refuse_added_tokens(folder, vocab, settings, fast)
    by_fast = settings["tokenizer_class"] in _ANY_CLASSES
    lower_case, strip_accents, split_ideographs = _normalization(folder, settings, fast, by_fast)
    return vocab, Tokenization(
        lower_case=lower_case or lower_case_first,
        strip_accents=lower_case if strip_accents is None else strip_accents,
        split_ideographs=split_ideographs,
        max_word_length=fast.get("model", {}).get("max_input_chars_per_word", 100) if by_fast else 100,
    )


def _normalization(folder: Path, settings: dict[str, Any], fast: dict[str, Any], by_fast: bool) -> list[Any]:
    """Values of the three settings, in the order of _SETTINGS."""
    path, tokenizer = folder / "tokenizer_config.json", settings["tokenizer_class"] or "BertTokenizer"
    if tokenizer not in (_ANY_CLASSES if fast else set()) | _BERT_CLASSES:
        raise DataError(f"{path}: the tokenizer is a {tokenizer}, only BERT's can be mapped exactly")
    if settings.get("do_basic_tokenize") is False or settings.get("never_split"):
        raise DataError(f"{path}: do_basic_tokenize=false and never_split cannot be mapped exactly")
    normalizer, values = fast.get("normalizer") or {}, []
    for key, (fast_key, default) in _SETTINGS.items():
        if by_fast:
            values.append(normalizer.get(fast_key, default))
            continue
        if key not in settings and normalizer.get(fast_key, default) != default:
            raise DataError(
                f"{path}: does not say {key}, and tokenizer.json has {fast_key}={normalizer[fast_key]}, which transformers "
                f"would overrule by {default}: put the {key} that the model was trained with into tokenizer_config.json"
            )
        values.append(settings.get(key, default))
    return values


def _refuse_other_tokenizers(path: Path, fast: dict[str, Any]) -> None:
    parts = {
        "model": ((fast.get("model") or {}).get("type"), "WordPiece"),
        "normalizer": ((fast.get("normalizer") or {}).get("type"), "BertNormalizer"),
        "pre_tokenizer": ((fast.get("pre_tokenizer") or {}).get("type"), "BertPreTokenizer"),
    }
    for part, (found, wanted) in parts.items():
        if found != wanted:
            raise DataError(f"{path}: its {part} is {found}, not BERT's {wanted}; it cannot be mapped exactly")


def _fast_vocab(path: Path, fast: dict[str, Any]) -> list[str]:
    ids: dict[str, int] = {
        **fast["model"]["vocab"],
        **{token["content"]: token["id"] for token in fast.get("added_tokens", [])},
    }
    if sorted(ids.values()) != list(range(len(ids))):
        raise DataError(f"{path}: its ids are not 0 to {len(ids) - 1}, each once; get the file again")
    return _unambiguous(sorted(ids, key=ids.__getitem__), path)


def _refuse_added_tokens(folder: Path, vocab: list[str], settings: dict[str, Any], fast: dict[str, Any]) -> None:
    """Refuses tokens that transformers finds in a text before it splits words."""
    added = {token["content"] for token in fast.get("added_tokens", [])}
    added |= {token["content"] for token in settings.get("added_tokens_decoder", {}).values()}
    if (folder / "added_tokens.json").is_file():
        added |= read_json(folder / "added_tokens.json").keys()
    strange = sorted(added - set(SPECIAL_TOKENS))
    if strange:
        raise DataError(
            f"{folder}: the tokenizer has {len(strange)} added tokens, such as {strange[0]!r}, which cannot be mapped exactly"
        )
    for role, token in zip(("pad", "unk", "cls", "sep"), SPECIAL_TOKENS, strict=False):
        named = settings.get(f"{role}_token", token)
        if (named["content"] if isinstance(named, dict) else named) != token:
            raise DataError(f"{folder / 'tokenizer_config.json'}: {role}_token is {named!r}, BERT's is {token}")
