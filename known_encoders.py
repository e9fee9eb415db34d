"""Encoders that people ask for by name, with their sizes. Imports no TensorFlow."""

from typing import Any

from spec import EncoderSpec, full_tokenizer

DEFAULT_ENCODER = "all-MiniLM-L6-v2"
_HUGGING_FACE = {"style": "hugging_face", "max_word_length": 100}


def standard_bert(name: str, layers: int, width: int, vocabulary: int, cased: bool, **others: Any) -> EncoderSpec:
    """BERT as published, of a given depth and width; `others` are fields of the spec that differ."""
    tokenization = full_tokenizer(lower_case=not cased)
    return EncoderSpec.model_validate(
        {
            "family": "bert",
            "source": name,
            "vocab_size": vocabulary,
            "hidden_size": width,
            "num_layers": layers,
            "num_heads": max(1, width // 64),
            "intermediate_size": 4 * width,
            "embedding_size": width,
            "max_positions": 512,
            "type_vocab_size": 2,
            "activation": "gelu",
            "layer_norm_epsilon": 1e-12,
            "hidden_dropout": 0.1,
            "attention_dropout": 0.1,
            "pooler": True,
            "segments": True,
            "tokenization": tokenization.model_copy(update=_HUGGING_FACE) if name.startswith("hf:") else tokenization,
            **others,
        }
    )


KNOWN = {
    spec.source: spec
    for spec in (
        standard_bert(DEFAULT_ENCODER, 6, 384, 30522, cased=False, num_heads=12),
        standard_bert("tensorflow/small_bert/bert_en_uncased_L-2_H-128_A-2/2", 2, 128, 30522, cased=False),
        standard_bert("tensorflow/small_bert/bert_en_uncased_L-4_H-512_A-8/2", 4, 512, 30522, cased=False),
        standard_bert("tensorflow/bert_en_uncased_L-12_H-768_A-12/4", 12, 768, 30522, cased=False),
        standard_bert("tensorflow/bert_en_cased_L-12_H-768_A-12/4", 12, 768, 28996, cased=True),
        standard_bert("tensorflow/bert_multi_cased_L-12_H-768_A-12/4", 12, 768, 119547, cased=True),
        standard_bert("tensorflow/bert_en_uncased_L-24_H-1024_A-16/4", 24, 1024, 30522, cased=False),
        standard_bert("hf:google-bert/bert-base-uncased", 12, 768, 30522, cased=False),
        standard_bert("hf:google-bert/bert-base-cased", 12, 768, 28996, cased=True),
        standard_bert("hf:google-bert/bert-base-multilingual-cased", 12, 768, 119547, cased=True),
        standard_bert("hf:google-bert/bert-base-chinese", 12, 768, 21128, cased=True),
        standard_bert(
            "hf:distilbert/distilbert-base-uncased",
            6,
            768,
            30522,
            cased=False,
            family="distilbert",
            pooler=False,
            segments=False,
        ),
        standard_bert("hf:sentence-transformers/all-MiniLM-L12-v2", 12, 384, 30522, cased=False, num_heads=12),
        standard_bert("hf:BAAI/bge-small-en-v1.5", 12, 384, 30522, cased=False, num_heads=12),
    )
}


def licence_of(name: str) -> str | None:
    """The licence of an encoder's weights, by its publisher's page; None where it is not known here."""
    if name not in KNOWN:
        return None
    return "MIT" if name.startswith("hf:BAAI/") else "Apache-2.0"
