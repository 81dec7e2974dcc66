"""Finetune a pretrained checkpoint on text, one sentence or a pair, with Sharpness-Aware Minimization."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from sam_hf.commands.arguments import DataArguments, ModelArguments, option
from sam_hf.commands.cli import UsageError, parse_arguments, run


@dataclass
class TextArguments(DataArguments):
    text_column: str | None = option(None, "Column with the text. Default: the first column of strings.")
    text_pair_column: str | None = option(None, "Column with the second text of a pair.")
    max_seq_length: int = option(128, "Longer texts are cut to this many tokens.")


def main(argv: list[str] | None = None) -> None:
    from sam_hf import SAMTrainingArguments

    data, model_arguments, args = parse_arguments(
        [TextArguments, ModelArguments, SAMTrainingArguments], sys.argv[1:] if argv is None else argv, __doc__
    )

    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, set_seed

    from sam_hf import SAMTrainer
    from sam_hf.commands.data import load_splits
    from sam_hf.commands.labels import add_label_noise, encode, find_label_column, infer_scheme
    from sam_hf.commands.lora import with_lora
    from sam_hf.commands.loss import loss_function
    from sam_hf.commands.run import carry_out, find_checkpoint, metrics_function

    set_seed(args.seed)
    path = model_path(model_arguments.model_name_or_path)
    splits = load_splits(data)
    for split, wanted in (("train", True), ("validation", args.do_eval), ("test", args.do_predict)):
        if wanted and split not in splits:
            raise UsageError(f"there is no {split} split: the data have {', '.join(splits)}")
    column = find_label_column(splits["train"], data.label_column)
    scheme = infer_scheme(splits["train"], column)
    texts = text_columns(splits["train"], data, column)
    for split in splits:
        if split != "test":
            find_label_column(splits[split], column)
            splits[split] = encode(splits[split], column, scheme, split)
    seed = args.seed if args.data_seed is None else args.data_seed
    splits["train"], replaced = add_label_noise(splits["train"], data.label_noise, scheme, seed)

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(
        path,
        num_labels=len(scheme.names),
        problem_type=scheme.problem_type,
        id2label=dict(enumerate(scheme.names)),
        label2id={name: i for i, name in enumerate(scheme.names)},
        ignore_mismatched_sizes=True,
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    m = model_arguments
    model = with_lora(model, m.lora_r, m.lora_alpha, m.lora_dropout, m.lora_target_modules)
    length = min(data.max_seq_length, tokenizer.model_max_length)
    with args.main_process_first(desc="tokenizing"):
        for split in splits:
            kept = {"labels"} if split != "test" else set()
            splits[split] = splits[split].map(
                lambda batch: tokenizer(*(batch[text] for text in texts), truncation=True, max_length=length),
                batched=True,
                remove_columns=[name for name in splits[split].column_names if name not in kept],
            )

    trainer = SAMTrainer(
        model=model,
        args=args,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if args.fp16 or args.bf16 else None),
        compute_loss_func=loss_function(scheme.problem_type, args.label_smoothing_factor),
        compute_metrics=metrics_function(scheme.problem_type),
    )
    checkpoint = find_checkpoint(args, model_arguments.overwrite_output_dir)
    carry_out(trainer, scheme, checkpoint, replaced, data.label_noise, splits.get("test"))


def model_path(name: str | None) -> str:
    from pathlib import Path

    from sam_hf.commands.demo import demo_model_path, is_demo

    if name is None:
        raise UsageError("model_name_or_path is missing: give a Hub name, a folder, or demo:NAME")
    if is_demo(name):
        return demo_model_path(name)
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UsageError(f"model_name_or_path={name} does not exist")
    return name


def text_columns(dataset, data: TextArguments, label_column: str) -> list[str]:
    """The one or two columns of text: those named, else the string columns beside the label and ids."""
    given = [name for name in (data.text_column, data.text_pair_column) if name is not None]
    missing = [name for name in given if name not in dataset.column_names]
    strings = [
        name
        for name, feature in dataset.features.items()
        if str(getattr(feature, "dtype", "")) in ("string", "large_string")
        and name != label_column
        and name.lower() not in ("id", "idx", "guid")
    ]
    columns = given or strings
    if missing or not 1 <= len(columns) <= 2:
        raise UsageError(f"name text_column (and text_pair_column): the columns are {', '.join(dataset.column_names)}")
    return columns


if __name__ == "__main__":
    run(main)
