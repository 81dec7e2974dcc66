"""Finetune a tagger (named entities, parts of speech: one label a word) with Sharpness-Aware Minimization."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from sam_hf.command_line.parsing import parse_arguments, run
from sam_hf.errors import UsageError
from sam_hf.inputs.options import ExampleArguments, ModelArguments, option


@dataclass
class TagArguments(ExampleArguments):
    words_column: str | None = option(
        None, "Column with the words: lists, or texts split at white space. Default: tokens or words."
    )
    tags_column: str | None = option(
        None, "Column with a tag for each word, likewise. Default: ner_tags, tags, labels or pos_tags."
    )
    max_seq_length: int = option(128, "Longer sentences are cut to this many tokens.")


def main(argv: list[str] | None = None) -> None:
    from sam_hf import SAMTrainingArguments

    data, model_arguments, args = parse_arguments(
        [TagArguments, ModelArguments, SAMTrainingArguments], sys.argv[1:] if argv is None else argv, __doc__
    )

    from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification, set_seed

    from sam_hf import SAMTrainer
    from sam_hf.inputs.checkpoints import from_checkpoint, model_path, outputs_named, starting_point
    from sam_hf.inputs.tags import load_tagged, tag_metrics_function, tags_of_words, tokenized
    from sam_hf.recipes.card import card_arguments
    from sam_hf.recipes.lora import head_name, with_lora
    from sam_hf.recipes.loss import TOKENS, loss_function
    from sam_hf.recipes.run import carry_out, find_checkpoint, write_rows

    set_seed(args.seed)
    resume_from = find_checkpoint(args, model_arguments.overwrite_output_dir)
    path = model_path(model_arguments.model_name_or_path)
    splits, names = load_tagged(data, args, path, data.words_column, data.tags_column)

    tokenizer = load_tokenizer(path)
    start = starting_point(path, resume_from)
    model = from_checkpoint(AutoModelForTokenClassification, start, **outputs_named(names))
    model = with_lora(model, model_arguments, head=head_name(model) if model_arguments.lora_r else None)
    length = min(data.max_seq_length, tokenizer.model_max_length)
    first_tokens = []
    with args.main_process_first(desc="tokenizing"):
        for split in splits:
            splits[split] = splits[split].map(
                lambda batch: tokenized(batch, tokenizer, length),
                batched=True,
                remove_columns=splits[split].column_names,
            )
            first_tokens = splits[split]["first_tokens"] if split == "test" else first_tokens
            splits[split] = splits[split].remove_columns("first_tokens")

    trainer = SAMTrainer(
        model=model,
        args=args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        # Without it, accumulated micro-batches would count alike, however many words they hold
        compute_loss_func=loss_function(TOKENS, args.label_smoothing_factor),
        compute_metrics=tag_metrics_function(names),
    )
    carry_out(
        trainer,
        resume_from,
        card_arguments(data, model_arguments, "token-classification"),
        splits.get("test"),
        lambda path, scores: write_rows(path, tags_of_words(scores, first_tokens, names)),
        save_model=model_arguments.save_final_model,
    )


def load_tokenizer(path: str):
    """One that can say which word a token is of."""
    from transformers import AutoTokenizer

    from sam_hf.inputs.checkpoints import from_checkpoint

    # Words come without the space before them, which tokenizers of bytes have in their tokens
    tokenizer = from_checkpoint(AutoTokenizer, path, add_prefix_space=True)
    if not tokenizer.is_fast:
        raise UsageError(f"model_name_or_path={path}: its tokenizer cannot say which word a token is of")
    tokenizer.padding_side = "right"  # predictions are read off from the left
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


if __name__ == "__main__":
    run(main)
