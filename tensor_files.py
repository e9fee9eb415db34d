"""Weights from safetensors files, which hold nothing that could run. Imports no TensorFlow."""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from config import DataError
from spec import read_record

_EXACT = ("F32", "F16", "BF16")  # what float32 holds exactly
_OTHER_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")


class _Index(BaseModel):
    weight_map: dict[str, str]


class TensorFiles:
    """The safetensors files of a folder, one or sharded; `shapes` is known at once, `read` reads one tensor.

    Args:
        anchor: a tensor that must occur once under some prefix, such as `bert.`, which `prefix` then is.

    Raises:
        DataError: there are none, or one is corrupt.
    """

    def __init__(self, folder: Path, anchor: str = "") -> None:
        self.folder = folder
        self.files = self._find_files()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._where: dict[str, tuple[Path, str]] = {}
        for path in self.files:
            try:
                with safe_open(path, framework="numpy") as file:
                    for stored in file.keys():  # noqa: SIM118  (not a dict)
                        self._add(path, stored, file.get_slice(stored))
            except (SafetensorError, OSError) as error:
                raise DataError(f"{path}: corrupt or cut short ({error}); get the file again") from None
        found = [name for name in self.shapes if name.endswith(anchor)]
        if anchor and len(found) != 1:
            raise DataError(
                f"{folder}: {len(found)} tensors are named *{anchor}, a BERT checkpoint has one; is it another architecture?"
            )
        self.prefix = found[0].removesuffix(anchor) if anchor else ""

    def _add(self, path: Path, stored: str, tensor: Any) -> None:
        name = stored.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if name in self.shapes:
            raise DataError(f"{path}: the tensor {name} occurs twice; get the files again")
        self.shapes[name] = tuple(tensor.get_shape())
        self._where[name] = path, stored

    def _find_files(self) -> list[Path]:
        single, index = self.folder / "model.safetensors", self.folder / "model.safetensors.index.json"
        if single.is_file():
            return [single]
        if index.is_file():
            names = sorted(set(read_record(index, _Index).weight_map.values()))
            for name in names:
                if Path(name).name != name or not (self.folder / name).is_file():
                    raise DataError(
                        f"{index}: names the file {name!r}, which is not in that folder; get the files again"
                    )
            return [self.folder / name for name in names]
        for name in _OTHER_WEIGHTS:
            if (self.folder / name).is_file():
                raise DataError(
                    f"{self.folder / name}: only safetensors files are read, as others can run code or need their framework; "
                    "where you trust it, load it with transformers and call save_pretrained, which writes model.safetensors"
                )
        raise DataError(
            f"{self.folder}: no model.safetensors there; where the checkpoint has other weights only, load them with "
            "transformers where you trust them and call save_pretrained, which writes it"
        )

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32; half precision is widened, which is exact.

        Raises:
            DataError: it is of another type, or holds numbers that are not finite.
        """
        path, stored = self._where[name]
        with safe_open(path, framework="numpy") as file:
            precision = file.get_slice(stored).get_dtype()
            if precision not in _EXACT:
                raise DataError(
                    f"{path}: the tensor {stored} is {precision}; only {', '.join(_EXACT)} can be mapped exactly"
                )
            tensor: np.ndarray = file.get_tensor(stored).astype(np.float32)
        if not np.isfinite(tensor).all():
            raise DataError(f"{path}: the tensor {stored} holds numbers that are not finite; get the file again")
        return tensor
