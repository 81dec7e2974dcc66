"""Finetune a tagger (named entities, parts of speech: one label per word) with Sharpness-Aware Minimization."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import AutoModelForTokenClassification, AutoTokenizer, DataCollatorForTokenClassification

from sam_hf import SAMTrainer, SAMTrainingArguments
from sam_hf.command_line import parse_arguments, run
from sam_hf.errors import UsageError
from sam_hf.inputs.checkpoints import from_checkpoint, label_arguments
from sam_hf.inputs.labels import SINGLE_LABEL
from sam_hf.inputs.options import ExampleArguments, ModelArguments, at_least_one, option
from sam_hf.inputs.tags import are_entities, load_tagged, tag_metrics_function, tags_of_words, tokenize_words
from sam_hf.recipes.best_metric import ENTITIES, METRICS, check_best_metric
from sam_hf.recipes.card import card_arguments
from sam_hf.recipes.loss import TOKENS, loss_function
from sam_hf.recipes.model_options import with_lora
from sam_hf.recipes.run import run_recipe, start_run


@dataclass
class TagArguments(ExampleArguments):
    words_column: str | None = option(
        None, "Column with the words: lists, or texts that are split at white space. Default: tokens or words."
    )
    tags_column: str | None = option(
        None, "Column with one tag per word, in the same form. Default: ner_tags, tags, labels or pos_tags."
    )
    drop_unlabelled: bool = option(
        False, "Leave words without a tag (nothing, -1 or -100) out of loss and metrics. Default: refuse them."
    )
    max_seq_length: int = option(128, "Longer sentences are cut to this many tokens.")

    def __post_init__(self):
        super().__post_init__()
        at_least_one(self, "max_seq_length")


def main(argv: list[str] | None = None) -> None:
    data, model_arguments, args = parse_arguments([TagArguments, ModelArguments, SAMTrainingArguments], argv, __doc__)
    checkpoint, weights, start = start_run(args, model_arguments, data)
    splits, names = load_tagged(data, args, checkpoint, data.words_column, data.tags_column, data.drop_unlabelled)
    check_best_metric(args, METRICS[ENTITIES if are_entities(names) else SINGLE_LABEL])

    tokenizer = load_tokenizer(checkpoint)
    model = from_checkpoint(AutoModelForTokenClassification, weights, **label_arguments(names))
    length = min(data.max_seq_length, tokenizer.model_max_length)
    first_tokens = []
    with args.main_process_first(desc="tokenizing"):
        for split in splits:
            splits[split] = splits[split].map(
                lambda batch: tokenize_words(batch, tokenizer, length),
                batched=True,
                remove_columns=splits[split].column_names,
            )
            first_tokens = splits[split]["first_tokens"] if split == "test" else first_tokens
            splits[split] = splits[split].remove_columns("first_tokens")

    trainer = SAMTrainer(
        model=with_lora(model, model_arguments),
        args=args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
        # Without it, accumulated micro-batches would have the same weight, however many words they hold
        compute_loss_func=loss_function(TOKENS, args.label_smoothing_factor),
        compute_metrics=tag_metrics_function(names),
    )
    run_recipe(
        trainer,
        start,
        card_arguments(data, model_arguments, "token-classification"),
        save_model=model_arguments.save_final_model,
        predict_dataset=splits.get("test"),
        prediction_columns=lambda scores: {"prediction": tags_of_words(scores, first_tokens, names)},
    )


def load_tokenizer(checkpoint: str):
    """Return a tokenizer that knows which word each token belongs to."""
    # Words come without the space before them, which is part of the tokens of byte-level tokenizers
    tokenizer = from_checkpoint(AutoTokenizer, checkpoint, add_prefix_space=True)
    if not tokenizer.is_fast:
        raise UsageError(f"model_name_or_path={checkpoint}: its tokenizer does not know which word a token belongs to")
    tokenizer.padding_side = "right"  # tags_of_words counts tokens from the left
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


if __name__ == "__main__":
    run(main)
