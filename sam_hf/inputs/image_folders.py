"""
Folders of images. Each folder in the folder that was given is a class, and its images lie in it at any depth.

Paths are names, never patterns, and links are followed. A file with the ending of an image is not opened here. What is
no image of a class is refused, or counted in one line that names it.
"""

from __future__ import annotations

import csv
import json
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from transformers.utils import logging

from ..errors import UsageError
from .image_kinds import METADATA, begins_like_image, ending, is_leftover, is_readable, is_unreadable

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

_SPLIT_NAME = re.compile(
    r"(train|training|val|valid|validation|validate|dev|development|test|testing|eval|evaluation)"
    r"([ _-]?(set|split|data|images|imgs))?",
    re.IGNORECASE,
)


@dataclass
class _Found:
    """Paths of files that were found, by what they are."""

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)


def load_image_folder(folder: str, needs_classes: bool = True, drop_unlabelled: bool = False) -> Dataset:
    """
    Return the images in the column `image`, sorted by their paths, and their classes in the column `label`. There is
    no column `label` if there are no class folders.

    Args:
        folder (`str`): the folder that holds one folder per class.
        needs_classes (`bool`, *optional*, defaults to `True`):
            If `False`, `folder` itself may hold images. Those beside class folders have no label.
        drop_unlabelled (`bool`, *optional*, defaults to `False`):
            Leave out images beside class folders, where classes are needed. Otherwise they are refused.

    Raises:
        UsageError: the folder is not what it should be. The message names the path.
    """
    found = _Found()
    folders = _class_folders(folder, needs_classes, drop_unlabelled, found)
    label_of: dict[str, str | None] = dict.fromkeys(found.images)
    root = os.path.realpath(folder)
    known = {root: folder}
    for path in folders:
        here = _Found()
        _walk(path, os.path.join(root, os.path.basename(path)), known, here)
        if not here.images:
            raise UsageError(f"the class folder {path} has no image{_instead(here.others)}")
        # The file systems of macOS may decompose accents in names, and those of other systems do not
        label_of.update(dict.fromkeys(here.images, unicodedata.normalize("NFC", os.path.basename(path))))
        for name in ("others", "hidden", "metadata"):
            getattr(found, name).extend(getattr(here, name))
    if not label_of:
        raise UsageError(f"the folder {folder} has no image{_instead(found.others)}")
    if needs_classes:
        label_of = {path: label for path, label in label_of.items() if label is not None}
        _say_left_out(folder, found.images, "Images that lie in no class folder")
    _handle_metadata(folder, found.metadata, bool(folders))
    _say_left_out(folder, found.others, "Files that are no images")
    _say_left_out(folder, found.hidden, "Images and folders whose names begin with a dot")
    return _dataset(label_of, bool(folders))


def _dataset(label_of: dict[str, str | None], has_classes: bool) -> Dataset:
    import pyarrow as pa
    from datasets import ClassLabel, Dataset, Features, Image

    paths = sorted(label_of)
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise UsageError(f"the name {os.fsencode(path)!r} is not in UTF-8: rename it") from None
    features = Features({"image": Image()})
    columns = {"image": pa.array([os.path.abspath(path) for path in paths], pa.string())}
    if has_classes:
        names = sorted({label for label in label_of.values() if label is not None})
        place: dict[str | None, int] = {name: i for i, name in enumerate(names)}
        features["label"] = ClassLabel(names=names)
        columns["label"] = pa.array([place.get(label_of[path]) for path in paths], pa.int64())
    dataset = Dataset.from_dict(columns, features=features)
    # As datasets names what it loads from such a folder. Model cards show it
    dataset.info.builder_name, dataset.info.config_name = "imagefolder", "default"
    return dataset


def _class_folders(folder: str, needs_classes: bool, drop_unlabelled: bool, found: _Found) -> list[str]:
    """Return the class folders, and put the files beside them into `found`."""
    if not os.path.isdir(folder):
        raise UsageError(f"the folder {folder} {'is a file' if os.path.isfile(folder) else 'does not exist'}")
    folders = _list_folder(folder, found)
    if needs_classes and not folders:
        wanted = "it must hold one folder of images per class"
        raise UsageError(f"the folder {folder} has no class folders: {wanted}{_way_out(folder, found.metadata)}")
    _check_level(folder, [os.path.basename(path) for path in folders], needs_classes)
    if needs_classes and found.images and not drop_unlabelled:
        count, first = len(found.images), os.path.basename(found.images[0])
        unlabelled = f"{first} is an image" if count == 1 else f"{count} images, the first is {first}, are"
        raise UsageError(
            f"the folder {folder}: {unlabelled} beside the class folders, without a class: "
            "move what has no class, or give drop_unlabelled"
        )
    return folders


def _check_level(folder: str, names: Sequence[str], needs_classes: bool) -> None:
    """Refuse a folder whose folders are splits, each with class folders of its own or without classes."""
    splits = [name for name in names if _SPLIT_NAME.fullmatch(name)]
    classes = []  # in each of the splits that hold only folders
    for name in splits:
        here = _Found()
        inside = _list_folder(os.path.join(folder, name), here)
        if inside and not here.images:
            classes.append({os.path.basename(path) for path in inside})
    # One split alone can also be a class: "train" among vehicles
    are_all = len(splits) == len(names) and (len(splits) > 1 or classes or not needs_classes)
    if splits and (are_all or (len(classes) > 1 and set.intersection(*classes))):
        example = os.path.join(folder, splits[0])
        raise UsageError(
            f"the folder {folder} holds {' and '.join(splits)}, which are names of splits: give the folder of one "
            f"split, such as {example}, or rename them if they are classes"
        )


def _walk(folder: str, real: str, known: dict[str, str], found: _Found) -> None:
    """Put the files in `folder`, at any depth, into `found`. `known` are folders seen before, by their real paths."""
    waiting = [(folder, real)]
    while waiting:
        folder, real = waiting.pop()
        if os.path.islink(folder):
            real = os.path.realpath(folder)
        if real in known:
            raise UsageError(f"{known[real]} and {folder} are the same folder: its images would be taken twice")
        known[real] = folder
        below = _list_folder(folder, found)
        waiting += [(path, os.path.join(real, os.path.basename(path))) for path in reversed(below)]


def _list_folder(folder: str, found: _Found) -> list[str]:
    """Return the folders in `folder`, and put its files into `found`."""
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be read: {error.strerror}") from error
    folders = []
    for entry in entries:
        if is_leftover(entry.name):
            continue
        if entry.name.startswith("."):
            # Other hidden files hold settings, locks and the like
            if os.path.isdir(entry.path) or is_readable(entry.name):
                found.hidden.append(entry.path)
        elif entry.is_symlink() and not os.path.exists(entry.path):
            raise UsageError(f"{entry.path} is a link to {os.readlink(entry.path)}, which does not exist")
        elif entry.is_dir():
            folders.append(entry.path)
        else:
            _sort_file(entry, found)
    return folders


def _sort_file(entry: os.DirEntry[str], found: _Found) -> None:
    path, name = entry.path, entry.name
    if is_readable(name):
        found.images.append(path)
    elif is_unreadable(name):
        raise UsageError(f"{path} is an image of a kind that this Pillow cannot read: convert it, or remove it")
    elif name in METADATA:
        found.metadata.append(path)
    elif not (entry.is_file() and begins_like_image(path)):
        found.others.append(path)
    elif ending(name):
        raise UsageError(f"{path} is an image, but {ending(name)} is not the ending of one: rename it, or remove it")
    else:
        found.images.append(path)


def _handle_metadata(folder: str, files: Sequence[str], has_classes: bool) -> None:
    """Refuse a metadata file that holds labels beside class folders, and say that any other is not read."""
    for path in files:
        columns = _columns(path)
        label = next((name for name in columns if name in ("label", "labels")), None)
        if label and has_classes:
            two = f"{path} has the column {label}, and the class folders name classes too"
            raise UsageError(f"{two}: move the file to take the folders{_way_out(folder, [path])}")
        logger.warning(f"{path} is not read (its columns: {', '.join(columns) or 'unknown'}).")


def _way_out(folder: str, metadata: Sequence[str]) -> str:
    if not metadata:
        return ""
    saved = f'load_dataset("imagefolder", data_dir="{folder}").save_to_disk(...)'
    return f"; to take {os.path.basename(metadata[0])}, give as dataset_name what {saved} saves"


def _columns(path: str) -> list[str]:
    import pyarrow.parquet

    try:
        if path.endswith(".parquet"):
            return list(pyarrow.parquet.read_schema(path).names)
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
        return next(csv.reader([first])) if path.endswith(".csv") else list(json.loads(first))
    except Exception:  # of Arrow, Python or the operating system: the file is not used, and may hold anything
        return []


def _instead(others: Sequence[str]) -> str:
    return f" ({len(others)} other files, the first is {os.path.basename(others[0])})" if others else ""


def _say_left_out(folder: str, paths: Sequence[str], what: str) -> None:
    if paths:
        first = os.path.relpath(min(paths), folder)
        logger.warning(f"{what} are left out of {folder}: {len(paths)}, the first is {first}.")
