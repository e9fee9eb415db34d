"""Tokenizer files: vocab.txt, or Hugging Face's tokenizer.json, and their settings. Imports no TensorFlow."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, RootModel

from config import DataError
from spec import LONGEST_WORD, Record, Tokenization, read_record

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_BERT_CLASSES = {f"{family}Tokenizer{fast}" for family in ("Bert", "DistilBert", "Electra") for fast in ("", "Fast")}
_ANY_CLASSES = {"PreTrainedTokenizerFast", "TokenizersBackend"}  # whatever tokenizer.json says
# Keys of tokenizer_config.json -> those of the normalizer in tokenizer.json.
_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


class _Part(BaseModel):
    """What is read of a file; defaults are those of transformers 5."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _Token(_Part):
    content: str


class _SpecialTokens(_Part):
    pad_token: str | _Token | None = None
    unk_token: str | _Token | None = None
    cls_token: str | _Token | None = None
    sep_token: str | _Token | None = None
    additional_special_tokens: list[str | _Token] | None = None
    extra_special_tokens: list[str | _Token] | dict[str, str | _Token] | None = None


class _TokenizerConfig(_SpecialTokens):
    tokenizer_class: str | None = None
    do_lower_case: bool = True
    strip_accents: bool | None = None  # null: as do_lower_case
    tokenize_chinese_chars: bool = True
    do_basic_tokenize: bool = True
    never_split: list[str] | None = None
    added_tokens_decoder: dict[str, _Token] = {}


class _Model(_Part):
    type: str | None = None
    vocab: dict[str, int] = {}
    unk_token: str = "[UNK]"
    continuing_subword_prefix: str = "##"
    max_input_chars_per_word: int = Field(100, ge=1, le=LONGEST_WORD)


class _Normalizer(_Part):
    type: str | None = None
    clean_text: bool = True
    lowercase: bool = True
    strip_accents: bool | None = None
    handle_chinese_chars: bool = True


class _PreTokenizer(_Part):
    type: str | None = None


class _AddedToken(_Token):
    id: int


class _FastTokenizer(_Part):
    model: _Model
    normalizer: _Normalizer | None = None
    pre_tokenizer: _PreTokenizer | None = None
    post_processor: dict[str, Any] | None = None
    added_tokens: list[_AddedToken] = []


class _AddedTokens(RootModel[dict[str, int]]):
    """Tokens and their ids."""


class _ModelConfig(_Part):
    tokenizer_class: str | None = None


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
    settings = _read(folder / "tokenizer_config.json", _TokenizerConfig) or _TokenizerConfig()
    fast = _read(folder / "tokenizer.json", _FastTokenizer)
    model = _read(folder / "config.json", _ModelConfig) or _ModelConfig()
    name = settings.tokenizer_class or model.tokenizer_class or "BertTokenizer"
    by_fast = fast is not None and name in _ANY_CLASSES
    if not by_fast and name not in _BERT_CLASSES:
        raise DataError(f"{folder}: the tokenizer is a {name}, only BERT's can be mapped exactly")
    if fast is not None:
        _refuse_other_models(folder / "tokenizer.json", fast, by_fast)
        vocab = _fast_vocab(folder / "tokenizer.json", fast)
    elif (folder / "vocab.txt").is_file():
        vocab = read_vocab(folder / "vocab.txt")
    else:
        raise DataError(f"{folder}: neither vocab.txt nor tokenizer.json there; a BERT checkpoint has one of them")
    _refuse_other_tokens(folder, settings, fast)
    lower_case, strip_accents, split_ideographs = _normalization(folder, settings, fast, by_fast)
    return vocab, Tokenization(
        style="hugging_face",
        lower_case=lower_case or lower_case_first,
        strip_accents=lower_case if strip_accents is None else strip_accents,
        split_ideographs=split_ideographs,
        max_word_length=fast.model.max_input_chars_per_word if fast and by_fast else 100,
    )


def _read(path: Path, kind: type[Record]) -> Record | None:
    return read_record(path, kind) if path.is_file() else None


def _normalization(
    folder: Path, settings: _TokenizerConfig, fast: _FastTokenizer | None, by_fast: bool
) -> list[bool | None]:
    """Values of the three settings, in the order of _SETTINGS."""
    if not settings.do_basic_tokenize or settings.never_split:
        raise DataError(
            f"{folder / 'tokenizer_config.json'}: do_basic_tokenize=false and never_split cannot be mapped exactly"
        )
    normalizer, values = (fast and fast.normalizer) or _Normalizer(), []
    for key, fast_key in _SETTINGS.items():
        ours, theirs = getattr(settings, key), getattr(normalizer, fast_key)
        if not by_fast and key not in settings.model_fields_set and theirs != ours:
            raise DataError(
                f"{folder / 'tokenizer_config.json'}: does not say {key}, and tokenizer.json has {fast_key}={theirs}, which "
                f"transformers would overrule by {ours}: put the {key} that the model was trained with into it"
            )
        values.append(theirs if by_fast else ours)
    return values


def _refuse_other_models(path: Path, fast: _FastTokenizer, by_fast: bool) -> None:
    found: dict[str, tuple[Any, Any]] = {
        "model": (fast.model.type, "WordPiece"),
        "normalizer": (fast.normalizer and fast.normalizer.type, "BertNormalizer"),
        "pre_tokenizer": (fast.pre_tokenizer and fast.pre_tokenizer.type, "BertPreTokenizer"),
        "unk_token": (fast.model.unk_token, "[UNK]"),
        "continuing_subword_prefix": (fast.model.continuing_subword_prefix, "##"),
    }
    if by_fast:
        found |= {
            "clean_text": (fast.normalizer and fast.normalizer.clean_text, True),
            "post_processor": (fast.post_processor is not None, True),
        }
    for part, (value, wanted) in found.items():
        if value != wanted:
            raise DataError(f"{path}: its {part} is {value}, not BERT's {wanted}; it cannot be mapped exactly")


def _fast_vocab(path: Path, fast: _FastTokenizer) -> list[str]:
    ids = fast.model.vocab | {token.content: token.id for token in fast.added_tokens}
    if sorted(ids.values()) != list(range(len(ids))):
        raise DataError(f"{path}: its ids are not 0 to {len(ids) - 1}, each once; get the file again")
    return _unambiguous(sorted(ids, key=ids.__getitem__), path)


def _refuse_other_tokens(folder: Path, settings: _TokenizerConfig, fast: _FastTokenizer | None) -> None:
    """Refuses tokens that transformers finds in a text before it splits words, and other names for BERT's own."""
    special = [settings, _read(folder / "special_tokens_map.json", _SpecialTokens) or _SpecialTokens()]
    added = {token.content for token in (fast.added_tokens if fast else [])}
    added |= {token.content for token in settings.added_tokens_decoder.values()}
    if (folder / "added_tokens.json").is_file():
        added |= read_record(folder / "added_tokens.json", _AddedTokens).root.keys()
    for tokens in special:
        extra = tokens.extra_special_tokens or []
        extra = list(extra.values()) if isinstance(extra, dict) else extra
        added |= {_content(token) for token in [*extra, *(tokens.additional_special_tokens or [])]}
        for role, token in zip(("pad", "unk", "cls", "sep"), SPECIAL_TOKENS, strict=False):
            named = getattr(tokens, f"{role}_token")
            if named is not None and _content(named) != token:
                raise DataError(f"{folder}: the tokenizer's {role}_token is {_content(named)!r}, BERT's is {token}")
    strange = sorted(added - set(SPECIAL_TOKENS))
    if strange:
        raise DataError(
            f"{folder}: the tokenizer has {len(strange)} added tokens, such as {strange[0]!r}, which cannot be mapped exactly"
        )


def _content(token: str | _Token) -> str:
    return token if isinstance(token, str) else token.content
