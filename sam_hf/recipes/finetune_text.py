"""Finetune a pretrained checkpoint on text, one sentence or a pair, with Sharpness-Aware Minimization."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

from ..command_line.parsing import parse_arguments, run
from ..inputs.options import DataArguments, ModelArguments, option


@dataclass
class TextArguments(DataArguments):
    text_column: str | None = option(None, "Column with the text. Default: the first column of strings.")
    text_pair_column: str | None = option(None, "Column with the second text of a pair.")
    max_seq_length: int = option(128, "Longer texts are cut to this many tokens.")


def argument_types() -> list[type]:
    from ..arguments.fields import SAMTrainingArguments

    return [TextArguments, ModelArguments, SAMTrainingArguments]


def main(argv: list[str] | None = None) -> None:
    data, model_arguments, args = parse_arguments(argument_types(), sys.argv[1:] if argv is None else argv, __doc__)

    from transformers import AutoTokenizer, DataCollatorWithPadding, set_seed

    from ..inputs.checkpoints import from_checkpoint, model_path, starting_point
    from ..inputs.splits import load_labelled
    from ..inputs.texts import text_columns, tokenized
    from ..trainer.mixin import SAMTrainer
    from .card import card_arguments
    from .loss import loss_function
    from .run import carry_out, find_checkpoint, metrics_function, write_labels

    set_seed(args.seed)
    resume_from = find_checkpoint(args, model_arguments.overwrite_output_dir)
    path = model_path(model_arguments.model_name_or_path)
    splits, scheme, replaced = load_labelled(data, args, path)
    texts = text_columns(next(iter(splits.values())), data.text_column, data.text_pair_column)

    tokenizer = from_checkpoint(AutoTokenizer, path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = load_model(starting_point(path, resume_from), scheme, tokenizer, model_arguments)
    with args.main_process_first(desc="tokenizing"):
        for split in splits:
            splits[split] = tokenized(splits[split], tokenizer, texts, data.max_seq_length)

    trainer = SAMTrainer(
        model=model,
        args=args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if args.fp16 or args.bf16 else None),
        compute_loss_func=loss_function(scheme.problem_type, args.label_smoothing_factor),
        compute_metrics=metrics_function(scheme.problem_type),
    )
    card = card_arguments(data, model_arguments, "text-classification")
    carry_out(
        trainer,
        resume_from,
        card,
        splits.get("test"),
        partial(write_labels, scheme=scheme),
        noise=data.label_noise,
        replaced=replaced,
        save_model=model_arguments.save_final_model,
    )


def load_model(path: str, scheme, tokenizer, model_arguments: ModelArguments):
    """The checkpoint at `path` with an output for each label, and with adapters on request."""
    from transformers import AutoModelForSequenceClassification

    from ..inputs.checkpoints import from_checkpoint, outputs_named
    from .lora import with_lora

    outputs = outputs_named(scheme.names)
    model = from_checkpoint(AutoModelForSequenceClassification, path, problem_type=scheme.problem_type, **outputs)
    model.config.pad_token_id = tokenizer.pad_token_id
    return with_lora(model, model_arguments)


if __name__ == "__main__":
    run(main)
