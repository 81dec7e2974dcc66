"""
What the Hub page says of a run with SAM: tags, a table of what was done and measured, citations, and how to use it.

The card is Trainer's own (or TRL's, or PEFT's). It is read back and completed, so that whatever a trainer writes is
kept, with one exception: the name of a folder on this machine is no name of a model on the Hub, and is taken out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..arguments.checks import schedule_of
from ..arguments.fields import SAMArguments, method_class
from ..arguments.schedules import AUTO_SHARE, rho_of

TAGS = ("sam-hf", "sharpness-aware-minimization")
LAMBDA_MAX = "eval_sharpness_lambda_max"

# Ways to load files, which datasets reports in the place of a data set's name
_LOADERS = {"csv", "json", "pandas", "parquet", "arrow", "text", "xml", "imagefolder", "generator"}
_UNKNOWN = "unknown"
_BEGIN, _END = "<!-- sam_hf -->", "<!-- /sam_hf -->"
_NOT_ON_HUB = "a checkpoint that is not on the Hub"


def complete_card(trainer: Any, path: Path, finetuned_from: str | None = None) -> None:
    """
    Add to the card at `path`, which the trainer has just written, what SAM did; leave out what is private.

    Args:
        trainer ([`SAMMixin`]): what was trained, with its arguments and its log.
        path (`Path`): the card; nothing happens where there is none.
        finetuned_from (`str`, *optional*): name on the Hub of the model that training started from, if it is known
            better than from the model's configuration.
    """
    if not path.is_file():
        return
    keep_local_names_out(path, trainer._sam_local_names, finetuned_from)
    metadata, text = _read(path)
    text = _without_nameless_data(metadata, text)
    if was_used(trainer):
        tags = metadata.get("tags") or []
        tags = [tags] if isinstance(tags, str) else tags
        metadata["tags"] = [*tags, *(tag for tag in TAGS if tag not in tags)]
        text = re.sub(rf"\n*{_BEGIN}.*?{_END}\n*", "\n\n", text, flags=re.DOTALL)
        before, heading, after = text.partition("\n## Training procedure\n")
        text = f"{before.rstrip()}\n\n{_marked(section(trainer))}\n{heading}{after}".rstrip()
        text += f"\n\n{_marked(citations(trainer))}\n"
    _write(path, metadata, text)


def data_arguments(trainer: Any) -> dict[str, str]:
    """
    Arguments of the card for data that have no name on the Hub. Trainer leaves the results out where it has none, and
    writes `null` for data that were made in memory.
    """
    data = trainer.eval_dataset if trainer.eval_dataset is not None else trainer.train_dataset
    loader = getattr(data, "builder_name", None) or _UNKNOWN
    return {"dataset": _UNKNOWN, "dataset_tags": loader} if loader in {*_LOADERS, _UNKNOWN} else {}


def was_used(trainer: Any) -> bool:
    """Whether the model was trained here, with a perturbation or what stands for it."""
    args = trainer.sam_args
    return trainer.state.global_step > 0 and args.sam_method != "none" and args.sam_rho != 0


def section(trainer: Any) -> str:
    """The part of the card on SAM, in Markdown."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts(trainer).items())
    method = method_class(trainer.sam_args)
    return f"""## Sharpness-Aware Minimization

Trained with sam_hf, which looks for flat minima, by {method.title}: {method.summary[0].lower()}{method.summary[1:]}
This SAM is an optimization method, not the Segment Anything Model.

| | |
|---|---|
{rows}

```python
{_snippet(trainer)}
```"""


def _snippet(trainer: Any) -> str:
    """The change from the trainer without SAM: two lines, or the mixin in front of another trainer's classes."""
    from transformers import Seq2SeqTrainer, Trainer, TrainingArguments

    args, method = trainer.sam_args, method_class(trainer.sam_args)
    given = f'"out", sam_method="{args.sam_method}"'
    if schedule_of(args, method) == "auto":
        given += ', sam_rho_schedule="auto"'
    elif method.perturbs:
        given += f", sam_rho={rho_of(args):g}"
    base = next((c for c in type(trainer).__mro__ if issubclass(c, Trainer) and not hasattr(c, "sam_args")), Trainer)
    if base in (Trainer, Seq2SeqTrainer):
        name = base.__name__.removesuffix("Trainer")
        return f"""from sam_hf import SAM{name}Trainer, SAM{name}TrainingArguments
trainer = SAM{name}Trainer(model=model, args=SAM{name}TrainingArguments({given}), train_dataset=dataset)"""
    kinds = type(trainer.args).__mro__
    config = next(c for c in kinds if issubclass(c, TrainingArguments) and not issubclass(c, SAMArguments))
    return f"""from dataclasses import dataclass
from sam_hf import SAMArguments, SAMMixin

class SAM{base.__name__}(SAMMixin, {base.__name__}):
    pass

@dataclass
class SAM{config.__name__}(SAMArguments, {config.__name__}):
    pass

args = SAM{config.__name__}({given})"""


def facts(trainer: Any) -> dict[str, str]:
    """The rows of the table: what was done, and what was measured."""
    args, method = trainer.sam_args, method_class(trainer.sam_args)
    table = {"method": f"[{method.title}]({method.paper}), `{args.sam_method}`"}
    if method.perturbs:
        table["radius ρ"] = _radius(args)
    if method.perturbs and "sam_p" not in method.refuses:
        table["norm p"] = f"{args.sam_p:g}"
    if "sam_ascent_steps" not in method.refuses:
        table["ascent steps k"] = str(args.sam_ascent_steps)
    if "sam_m" not in method.refuses:
        table["m, examples that share a perturbation"] = (
            "all of an update's on a device" if args.sam_m is None else str(args.sam_m)
        )
    table["passes an update (plain training: 1)"] = method.cost.passes
    for name, option in method.options.items():
        table[f"`{name}`"] = str((args.sam_method_kwargs or {}).get(name, option.default))
    table |= {f"`{name}`": f"`{value}`" for name, value in _changed(args).items()}
    table |= _measured(trainer.state.log_history)
    return table | trainer.model_card_facts


def citations(trainer: Any) -> str:
    """BibTeX of SAM, and of the method where it is another."""
    from ..methods import METHODS

    entries = dict.fromkeys([METHODS["sam"].citation, method_class(trainer.sam_args).citation])
    return "## Citation\n\n```bibtex\n" + "\n\n".join(entries) + "\n```"


def base_model_names(model: Any) -> set[str]:
    """What the model, and the adapters on it, say that they were made from: names on the Hub, or folders."""
    config = getattr(model, "config", None)
    names = {getattr(config, "_name_or_path", None), getattr(config, "name_or_path", None)}
    adapters = getattr(model, "peft_config", None) or {}
    names |= {getattr(adapter, "base_model_name_or_path", None) for adapter in adapters.values()}
    return {name for name in names if isinstance(name, str) and name}


def keep_local_names_out(path: Path, local: Iterable[str], finetuned_from: str | None = None) -> None:
    """
    Take folders out of the places of a card where a model on the Hub is named: the Hub refuses such a card.

    Args:
        path (`Path`): the card.
        local (`Iterable[str]`): names that are folders, or were when training started.
        finetuned_from (`str`, *optional*): the name to give in their place.
    """
    metadata, text = _read(path)
    named = metadata.get("base_model")
    names = [name for name in (named if isinstance(named, list) else [named]) if name is not None]
    out = {name for name in [*names, *local, "None"] if not _is_on_hub(name, local)}
    kept = [name for name in names if name not in out] or ([finetuned_from] if finetuned_from else [])
    metadata.pop("base_model", None)
    if kept:
        metadata["base_model"] = kept if isinstance(named, list) else kept[0]
    if isinstance(metadata.get("tags"), list):
        tags = [_renamed(str(tag), out, finetuned_from) for tag in metadata["tags"]]
        metadata["tags"] = [tag for tag in tags if tag is not None]
    for name in out:
        text = text.replace(f"[{name}](https://huggingface.co/{name})", _NOT_ON_HUB)
    # What Trainer writes of a model that was made from a configuration
    text = text.replace("is a fine-tuned version of [](https://huggingface.co/) on", "was trained from scratch on")
    if local and finetuned_from is None:
        text = text.replace("This model was trained from scratch on", f"This model is {_NOT_ON_HUB}, finetuned on")
    if (metadata, text) != _read(path):
        _write(path, metadata, text)


def _renamed(tag: str, out: set[str], name: str | None) -> str | None:
    """`base_model:adapter:NAME`, as PEFT writes it, with another name or not at all."""
    kind, _, of = tag.partition(":adapter:")
    if kind != "base_model" or of not in out:
        return tag
    return None if name is None else f"base_model:adapter:{name}"


def _is_on_hub(name: Any, local: Iterable[str]) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except (HFValidationError, TypeError):
        return False
    return name != "None" and name not in local and not Path(name).is_dir()


def _without_nameless_data(metadata: dict[str, Any], text: str) -> str:
    """Data from files or memory are no data set on the Hub; what they are called stays in the results."""
    nameless = {*_LOADERS, _UNKNOWN}
    named = [name for name in metadata.get("datasets") or [] if isinstance(name, str) and name not in nameless]
    metadata.pop("datasets", None)
    if named:
        metadata["datasets"] = named
    for result in (result for model in metadata.get("model-index") or [] for result in model.get("results") or []):
        data = result.get("dataset") or {}
        if data.get("type") in nameless:
            for key in ("config", "split", "args"):  # of the loader, not of the data
                data.pop(key, None)
    return text.replace(f" on the {_UNKNOWN} dataset.", f" on an {_UNKNOWN} dataset.")


def _radius(args: Any) -> str:
    rho, schedule = f"{rho_of(args):g}", schedule_of(args, method_class(args))
    return {
        "constant": rho,
        "linear": f"{rho}, linear to {args.sam_rho_min:g}",
        "cosine": f"{rho}, cosine to {args.sam_rho_min:g}",
        "lr": f"{rho}, follows the learning rate down to {args.sam_rho_min:g}",
        "warmup": f"{rho}, from 0 over the first {args.sam_rho_warmup_ratio:.0%} of training",
        "auto": f"{AUTO_SHARE:g} of the length of the optimizer's last step",
    }.get(schedule, f"{rho}, {schedule}")


def _changed(args: Any) -> dict[str, Any]:
    """The other arguments, where they are not at their defaults."""
    shown = "sam_method sam_rho sam_rho_schedule sam_rho_min sam_rho_warmup_ratio sam_p sam_ascent_steps sam_m".split()
    shown.append("sam_method_kwargs")
    others = {f.name: f.default for f in fields(SAMArguments) if f.name not in shown}
    changed = {name: getattr(args, name) for name, default in others.items() if getattr(args, name) != default}
    if args.sam_interval is None and method_class(args).default_interval != 1:
        changed["sam_interval"] = method_class(args).default_interval
    return changed


def _measured(history: list[dict[str, Any]]) -> dict[str, str]:
    table = {}
    names = {"sam_sharpness": "sharpness L(w+ε) − L(w), last log", LAMBDA_MAX: "λmax of the Hessian, last evaluation"}
    for key, name in names.items():
        values = [entry[key] for entry in history if key in entry]
        if values and math.isfinite(values[-1]):
            table[name] = f"{values[-1]:.4g}"
    return table


def _marked(text: str) -> str:
    return f"{_BEGIN}\n{text}\n{_END}"


def _read(path: Path) -> tuple[dict[str, Any], str]:
    from huggingface_hub.repocard import REGEX_YAML_BLOCK, metadata_load

    text = path.read_text(encoding="utf-8")
    return metadata_load(path) or {}, REGEX_YAML_BLOCK.sub("", text, count=1)


def _write(path: Path, metadata: dict[str, Any], text: str) -> None:
    from huggingface_hub import metadata_save

    path.write_text(text, encoding="utf-8")
    metadata_save(path, metadata)
