"""Finetune a causal language model with TRL's SFTTrainer and Sharpness-Aware Minimization."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from trl import SFTConfig, SFTTrainer

from sam_hf import SAMArguments, SAMMixin
from sam_hf.command_line.parsing import parse_arguments, run
from sam_hf.errors import UsageError
from sam_hf.inputs.options import ExampleArguments, ModelArguments


class SAMSFTTrainer(SAMMixin, SFTTrainer):
    pass


@dataclass
class SAMSFTConfig(SAMArguments, SFTConfig):  # at the top level: Trainer pickles it with every checkpoint
    pass


def main(argv: list[str] | None = None) -> None:
    data, model_arguments, args = parse_arguments(
        [ExampleArguments, ModelArguments, SAMSFTConfig], sys.argv[1:] if argv is None else argv, __doc__
    )

    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    from sam_hf.inputs.checkpoints import from_checkpoint, model_path, starting_point
    from sam_hf.inputs.splits import load_examples
    from sam_hf.recipes.card import trl_card_arguments
    from sam_hf.recipes.lora import with_lora
    from sam_hf.recipes.run import carry_out, find_checkpoint

    if args.do_predict:
        raise UsageError("do_predict is not offered here: give do_train or do_eval")
    set_seed(args.seed)
    resume_from = find_checkpoint(args, model_arguments.overwrite_output_dir)
    path = model_path(model_arguments.model_name_or_path)
    splits = load_examples(data, args)
    tokenizer = from_checkpoint(AutoTokenizer, path)
    for dataset in splits.values():
        check_columns(dataset, args, tokenizer)

    model = from_checkpoint(AutoModelForCausalLM, starting_point(path, resume_from))
    trainer = SAMSFTTrainer(
        model=with_lora(model, model_arguments, task="CAUSAL_LM"),
        args=args,
        train_dataset=splits.get("train", splits.get("validation")),  # TRL wants one to evaluate, too
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
    )
    carry_out(
        trainer,
        resume_from,
        trl_card_arguments(data, args.output_dir),
        save_model=model_arguments.save_final_model,
    )


def check_columns(dataset, args, tokenizer) -> None:
    """Refuse what SFTTrainer would not know what to do with."""
    columns = dataset.column_names
    text = args.dataset_text_field
    if "messages" not in columns and text not in columns and not {"prompt", "completion"} <= set(columns):
        raise UsageError(
            f"the columns are {', '.join(columns)}: there must be {text} (see dataset_text_field), messages, or "
            "prompt and completion"
        )
    first = dataset[0].get("messages", dataset[0].get("prompt"))
    if isinstance(first, list) and tokenizer.chat_template is None and args.chat_template_path is None:
        raise UsageError("the data are conversations, and the model has no chat template: give chat_template_path")


if __name__ == "__main__":
    run(main)
