"""
What a model card says about SAM: tags, a table of what was done and measured, how to use it, and citations.

Trainer, TRL, sentence-transformers or PEFT writes the card. It is read again, completed and saved, and everything that
they wrote is kept, except names that mean nothing on the Hub (`card_names`). `RepoCard` does this rather than its
subclass `ModelCard`, which parses the results (`model-index`), fails if they are incomplete, and drops fields that it
does not know. The Markdown is in `templates`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import RepoCard
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import Trainer, TrainingArguments

from ..arguments.fields import SAMArguments
from ..arguments.schedules import AUTO_SHARE, method_class, rho_of, schedule_of
from ..methods import METHODS
from .card_names import as_list, remove_local_names, remove_nameless_data

TAGS = ("sam-hf", "sharpness-aware-minimization")

_TEMPLATES = Environment(loader=PackageLoader("sam_hf.hub"), trim_blocks=True, undefined=StrictUndefined)
_OUR_PARTS = re.compile(r"\n*<!-- sam_hf -->.*?<!-- /sam_hf -->\n*", re.DOTALL)  # the marks of the templates
# The arguments that have rows of their own in the table
_SHOWN = {"sam_method", "sam_method_kwargs", "sam_rho", "sam_rho_schedule", "sam_rho_min", "sam_rho_warmup_ratio"}
_SHOWN |= {"sam_p", "sam_ascent_steps", "sam_m"}


@dataclass(frozen=True)
class CardFacts:
    """
    What a card says about SAM, as text, so that it can be kept longer than the trainer.

    Attributes:
        section, citations: the parts to add; `None` if SAM did nothing.
        local_names: names of base models that are folders.
        finetuned_from: the name on the Hub of the model that training started from, if its configuration does not
            give it.
    """

    section: str | None
    citations: str | None
    local_names: frozenset[str]
    finetuned_from: str | None = None

    @classmethod
    def of(cls, trainer: Any, finetuned_from: str | None = None) -> CardFacts:
        """Return the facts of a [`SAMMixin`], from its arguments and its log."""
        names = frozenset(trainer._sam_local_names)
        if not sam_was_used(trainer):
            return cls(None, None, names, finetuned_from)
        return cls(section(trainer), citations(trainer), names, finetuned_from)

    def add_to(self, path: Path) -> None:
        """Add the parts to the card, and remove names that mean nothing on the Hub. Without a card nothing happens."""
        if not path.is_file():
            return
        card = RepoCard.load(path)
        before = card.content
        remove_local_names(card, self.local_names, self.finetuned_from)
        remove_nameless_data(card)
        if self.section is not None:
            card.data["tags"] = list(dict.fromkeys([*as_list(card.data.get("tags")), *TAGS]))
            text, heading, after = _OUR_PARTS.sub("\n\n", card.text).partition("\n## Training procedure")
            text = f"{text.rstrip()}\n\n{self.section}\n{heading}{after}"
            card.text = f"{text.rstrip()}\n\n{self.citations}\n"
        if card.content != before:
            card.save(path)


def complete_card(trainer: Any, path: Path, finetuned_from: str | None = None) -> None:
    """
    Add what SAM did to the card that the trainer has just written, and remove names that mean nothing on the Hub.

    Args:
        trainer ([`SAMMixin`]): the trainer, with its arguments and its log.
        path (`Path`): the card. Nothing happens if there is none.
        finetuned_from (`str`, *optional*): the name on the Hub of the model that training started from, if the
            model's configuration does not give it.
    """
    CardFacts.of(trainer, finetuned_from).add_to(path)


def sam_was_used(trainer: Any) -> bool:
    """Return whether the model was trained here with a method that does something."""
    args = trainer.sam_args
    return trainer.state.global_step > 0 and args.sam_method != "none" and args.sam_rho != 0


def section(trainer: Any) -> str:
    """Return the section on SAM: the method, the table, and the lines that use SAM with this trainer's classes."""
    args = trainer.sam_args
    base = next(c for c in type(trainer).__mro__ if issubclass(c, Trainer) and not hasattr(c, "sam_args"))
    kinds = type(trainer.args).__mro__
    config = next(c for c in kinds if issubclass(c, TrainingArguments) and not issubclass(c, SAMArguments))
    names = {"trainer": base.__name__, "config": config.__name__}
    radius = {"schedule": schedule_of(args), "rho": f"{rho_of(args):g}"}
    return _TEMPLATES.get_template("section.md.j2").render(
        method=method_class(args), facts=facts(trainer), **radius, **names
    )


def citations(trainer: Any) -> str:
    """Return the BibTeX entries of SAM and of the method, if it is another."""
    methods = (METHODS["sam"], method_class(trainer.sam_args))
    return _TEMPLATES.get_template("citations.md.j2").render(methods=methods)


def facts(trainer: Any) -> dict[str, str]:
    """Return the rows of the table: what was done, and what was measured."""
    args, method = trainer.sam_args, method_class(trainer.sam_args)
    table = {"method": f"[{method.title}]({method.paper}), `{args.sam_method}`"}
    if method.perturbs:
        table["radius ρ"] = _radius(args)
    if method.perturbs and "sam_p" not in method.refuses:
        table["norm p"] = f"{args.sam_p:g}"
    if "sam_ascent_steps" not in method.refuses:
        table["ascent steps k"] = str(args.sam_ascent_steps)
    if "sam_m" not in method.refuses:
        group_size = "all examples of an update on a device" if args.sam_m is None else str(args.sam_m)
        table["m, examples that share a perturbation"] = group_size
    table["passes per update (plain training: 1)"] = method.cost.passes
    for name, option in method.options.items():
        table[f"`{name}`"] = str((args.sam_method_kwargs or {}).get(name, option.default))
    table |= {f"`{name}`": f"`{value}`" for name, value in _other_arguments(args).items()}
    return table | _measurements(trainer.state.log_history) | trainer.model_card_facts


def _radius(args: Any) -> str:
    rho, schedule = f"{rho_of(args):g}", schedule_of(args)
    return {
        "constant": rho,
        "linear": f"{rho}, linear to {args.sam_rho_min:g}",
        "cosine": f"{rho}, cosine to {args.sam_rho_min:g}",
        "lr": f"{rho}, follows the learning rate down to {args.sam_rho_min:g}",
        "warmup": f"{rho}, from 0 over the first {args.sam_rho_warmup_ratio:.0%} of training",
        "auto": f"{AUTO_SHARE:g} of the length of the optimizer's last step",
    }[schedule]


def _other_arguments(args: Any) -> dict[str, Any]:
    """Return the other arguments that do not have their default values."""
    others = {f.name: f.default for f in fields(SAMArguments) if f.name not in _SHOWN}
    changed = {name: getattr(args, name) for name, default in others.items() if getattr(args, name) != default}
    if args.sam_interval is None and method_class(args).default_interval != 1:
        changed["sam_interval"] = method_class(args).default_interval
    return changed


def _measurements(history: list[dict[str, Any]]) -> dict[str, str]:
    table = {}
    for key, name in (
        ("sam_sharpness", "sharpness L(w+ε) − L(w), last log"),
        ("eval_sharpness_lambda_max", "λmax of the Hessian, last evaluation"),
    ):
        values = [entry[key] for entry in history if key in entry]
        if values and math.isfinite(values[-1]):
            table[name] = f"{values[-1]:.4g}"
    return table
