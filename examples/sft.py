"""Finetune a causal language model with TRL's SFTTrainer and Sharpness-Aware Minimization."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from sam_hf import SAMArguments, SAMMixin
from sam_hf.command_line import parse_arguments, run
from sam_hf.errors import UsageError
from sam_hf.inputs.checkpoints import from_checkpoint
from sam_hf.inputs.options import ExampleArguments, ModelArguments
from sam_hf.inputs.splits import load_examples
from sam_hf.recipes.best_metric import check_best_metric
from sam_hf.recipes.card import trl_card_arguments
from sam_hf.recipes.model_options import with_lora
from sam_hf.recipes.run import run_recipe, start_run


class SAMSFTTrainer(SAMMixin, SFTTrainer):
    pass


@dataclass
class SAMSFTConfig(SAMArguments, SFTConfig):  # at the top level, because Trainer pickles it with every checkpoint
    pass


def main(argv: list[str] | None = None) -> None:
    data, model_arguments, args = parse_arguments([ExampleArguments, ModelArguments, SAMSFTConfig], argv, __doc__)
    if args.do_predict:
        raise UsageError("do_predict is not offered here: give do_train or do_eval")
    check_best_metric(args, ["mean_token_accuracy"])
    checkpoint, weights, start = start_run(args, model_arguments, data)
    splits = load_examples(data, args)
    tokenizer = from_checkpoint(AutoTokenizer, checkpoint)
    for dataset in splits.values():
        check_columns(dataset, args, tokenizer)

    model = from_checkpoint(AutoModelForCausalLM, weights)
    trainer = SAMSFTTrainer(
        model=with_lora(model, model_arguments, task="CAUSAL_LM"),
        args=args,
        train_dataset=splits.get("train", splits.get("validation")),  # TRL needs one even for evaluation
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
    )
    card = trl_card_arguments(data, args.output_dir)
    run_recipe(trainer, start, card, save_model=model_arguments.save_final_model)


def check_columns(dataset, args, tokenizer) -> None:
    """Refuse columns that SFTTrainer cannot use."""
    columns = dataset.column_names
    text = args.dataset_text_field
    if "messages" not in columns and text not in columns and not {"prompt", "completion"} <= set(columns):
        raise UsageError(
            f"the columns are {', '.join(columns)}: there must be {text} (see dataset_text_field), messages, or "
            "prompt and completion"
        )
    used = ("messages", text, "prompt", "completion")
    for name in [name for name in used if name in columns]:
        missing = sum(value is None for value in dataset[name])
        if missing:
            raise UsageError(f"the column {name} has nothing in {missing} of {len(dataset)} examples")
    first = dataset[0].get("messages", dataset[0].get("prompt"))
    if isinstance(first, list) and tokenizer.chat_template is None and args.chat_template_path is None:
        raise UsageError("the data are conversations, and the model has no chat template: give chat_template_path")


if __name__ == "__main__":
    run(main)
