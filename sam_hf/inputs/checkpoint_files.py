"""
The files of a checkpoint in a folder: which one is missing, a pointer of Git LFS, cut short or no JSON.

transformers says this in many ways: a traceback of safetensors, of pickle or of json that does not name the file, or
600 characters on three other causes. Some faults it does not notice. A `vocab.txt` that is a pointer is read as a
vocabulary of three words.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_POINTER = b"version https://git-lfs.github.com/spec/v1"
_CONFIGS = ("config.json", "adapter_config.json", "tokenizer_config.json", "preprocessor_config.json")
# The files of weights: the first one that is there is loaded, and the others are not read
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
# Without a tokenizer.json, a tokenizer is made from these
_VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "*.model", "*.tiktoken")
# The packages that read vocabularies, by the words for them in the errors of transformers
_PACKAGES = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf", "tiktoken": "tiktoken"}


def fault_in_folder(folder: str | Path) -> str | None:
    """Return what is wrong with a file that `from_pretrained` would read, or `None`. The weights are not read."""
    for path in _files_to_read(Path(folder)):
        fault = _fault(path)
        if fault is not None:
            return f"{path} {fault}"
    return None


def fault_of_weights(folder: str | Path) -> str | None:
    """Return what is wrong with the files of the weights, or `None`."""
    return next((f"{path.name} {fault}" for path in _weight_files(Path(folder)) if (fault := _fault(path))), None)


def reason(path: str, error: BaseException) -> str:
    """
    Return in a few words why the checkpoint could not be loaded.

    Args:
        path (`str`): its folder, or its name on the Hub.
        error (`BaseException`): what `from_pretrained` raised.
    """
    folder = Path(path)
    if "Can't load image processor" in str(error) and not (folder / "preprocessor_config.json").is_file():
        return f"the checkpoint {path} has no preprocessor_config.json: it must be one of an image model"
    if not folder.is_dir():
        return f"the checkpoint {path} cannot be loaded: {_short(error)}"
    if not any(folder.iterdir()):
        return f"the folder {path} is empty: a checkpoint has a config.json and weights"
    if not (folder / "config.json").is_file():
        return _without_config(folder)
    unread = _unread_vocabulary(folder, error)
    if unread is not None:
        return unread
    if "no file named" in str(error) and not any((folder / name).is_file() for name in WEIGHTS):
        return f"the folder {path} has no weights: one of {', '.join(WEIGHTS[:4])} must be there"
    return f"the checkpoint {path} cannot be loaded: {_short(error)}"


def without_vocabulary(path: str, tokenizer: Any) -> str | None:
    """
    Return why `tokenizer` knows no word, or `None` if it knows some.

    transformers makes an empty tokenizer for a checkpoint that has no files for one. It then takes every word for
    unknown.
    """
    names = [name for name in getattr(tokenizer, "vocab_files_names", {}).values() if isinstance(name, str)]
    if Path(path).is_dir() and names and not any((Path(path) / name).is_file() for name in names):
        return f"the folder {path} has no files of a tokenizer: {' or '.join(names)} must be there"
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        return f"the tokenizer of {path} has no vocabulary: its files are missing"
    return None


def _files_to_read(folder: Path) -> Iterator[Path]:
    yield from (folder / name for name in _CONFIGS if (folder / name).is_file())
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file():
        yield tokenizer
    else:
        yield from (path for pattern in _VOCABULARIES for path in sorted(folder.glob(pattern)) if path.is_file())
    yield from _weight_files(folder)


def _weight_files(folder: Path) -> Iterator[Path]:
    """Yield the files of the weights, those of shards that are not there too."""
    first = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if first is None:
        return
    yield first
    if first.name.endswith(".index.json") and _fault(first) is None:
        index = json.loads(first.read_text(encoding="utf-8"))
        shards = index.get("weight_map", {}) if isinstance(index, dict) else {}
        yield from (folder / name for name in sorted(set(shards.values())))


def _fault(path: Path) -> str | None:
    """Return what is wrong with a file, or `None`."""
    if not path.is_file():
        return "is missing: the index of the weights names it"
    size = path.stat().st_size
    if size == 0:
        return "is empty"
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
    if start == _POINTER:
        return "is a pointer of Git LFS and not the file itself: run `git lfs pull` in its folder"
    if path.suffix == ".json":
        return _fault_of_json(path)
    if path.suffix == ".safetensors":
        return _fault_of_safetensors(path)
    # Before torch 1.6, torch.save wrote a pickle, which begins with this byte
    if path.suffix == ".bin" and not zipfile.is_zipfile(path) and start[:1] != b"\x80":
        return "is cut short or no file of torch"
    return None


def _fault_of_json(path: Path) -> str | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"is no JSON, so it is cut short or broken ({error})"
    return None if isinstance(content, dict) else f"must hold an object: it holds {json.dumps(content)[:40]}"


def _fault_of_safetensors(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            return None
    except SafetensorError as error:
        return f"is cut short or broken ({_short(error)})"


def _without_config(folder: Path) -> str:
    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        return f"the folder {folder} has no config.json: is it the folder of a checkpoint?"
    base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    return f"the folder {folder} holds an adapter without a config.json: give its base model, which is {base}"


def _unread_vocabulary(folder: Path, error: BaseException) -> str | None:
    """Return which package is missing, if the error speaks of one that reads vocabularies."""
    words = str(error).lower()
    if not any(name in words for name in _PACKAGES):
        return None
    files = [path.name for pattern in reversed(_VOCABULARIES) for path in sorted(folder.glob(pattern))]
    if not files:
        return f"the folder {folder} has no files of a tokenizer"
    needed = ["tiktoken"] if any(name.endswith(".tiktoken") for name in files) else ["sentencepiece", "protobuf"]
    missing = [name for name in needed if not _is_installed(_PACKAGES[name])]
    if not missing:
        return None
    return f"the tokenizer of {folder} ({files[0]}) needs {' and '.join(missing)}: pip install {' '.join(missing)}"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that the module would be in
        return False


def _short(error: BaseException) -> str:
    """Return the first sentences of a message, with the type of the error if it says little."""
    text = " ".join(str(error).split())
    short = text
    while len(short) > 200 and ". " in short:
        short = short.rpartition(". ")[0]
    short = short if len(short) <= 300 else f"{short[:300]} …"
    # The messages of these types are sentences. A KeyError's is only a key
    is_sentence = isinstance(error, OSError | ValueError | ImportError) or type(error).__name__ == "SafetensorError"
    return short.removesuffix(".") if is_sentence else f"{type(error).__name__}: {short}"
