"""Finetune a pretrained checkpoint on text, one sentence or a pair, with Sharpness-Aware Minimization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from ..arguments.fields import SAMTrainingArguments
from ..command_line import parse_arguments
from ..inputs.checkpoints import from_checkpoint, label_arguments
from ..inputs.labels import say_columns
from ..inputs.options import DataArguments, ModelArguments, at_least_one, option
from ..inputs.splits import load_labelled
from ..inputs.texts import check_texts, text_columns, tokenize_texts
from ..trainer.mixin import SAMTrainer
from .best_metric import METRICS, check_best_metric
from .card import card_arguments
from .loss import loss_function
from .model_options import with_lora
from .run import LabelNoise, label_columns, metrics_function, run_recipe, start_run


@dataclass
class TextArguments(DataArguments):
    text_column: str | None = option(
        None, "Column with the text. Default: the columns of a pair in GLUE; text, sentence or review; the only text."
    )
    text_pair_column: str | None = option(None, "Column with the second text of a pair.")
    max_seq_length: int = option(128, "Longer texts are cut to this many tokens.")

    def __post_init__(self):
        super().__post_init__()
        at_least_one(self, "max_seq_length")


ARGUMENT_TYPES: list[type] = [TextArguments, ModelArguments, SAMTrainingArguments]


def main(argv: Sequence[str] | None = None) -> None:
    data, model_arguments, args = parse_arguments(ARGUMENT_TYPES, argv, __doc__)
    checkpoint, weights, start = start_run(args, model_arguments, data)
    splits, scheme, replaced = load_labelled(data, args, checkpoint)
    columns = text_columns(next(iter(splits.values())), data.text_column, data.text_pair_column)
    check_texts(splits, columns)
    say_columns(args, "text", columns, scheme)
    check_best_metric(args, METRICS[scheme.problem_type])

    tokenizer = from_checkpoint(AutoTokenizer, checkpoint)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    outputs = {"problem_type": scheme.problem_type, **label_arguments(scheme.names)}
    model = from_checkpoint(AutoModelForSequenceClassification, weights, **outputs)
    model.config.pad_token_id = tokenizer.pad_token_id
    with args.main_process_first(desc="tokenizing"):
        for split in splits:
            splits[split] = tokenize_texts(splits[split], tokenizer, columns, data.max_seq_length)

    trainer = SAMTrainer(
        model=with_lora(model, model_arguments, task="SEQ_CLS"),
        args=args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if args.fp16 or args.bf16 else None),
        compute_loss_func=loss_function(scheme.problem_type, args.label_smoothing_factor),
        compute_metrics=metrics_function(scheme.problem_type),
    )
    run_recipe(
        trainer,
        start,
        card_arguments(data, model_arguments, "text-classification"),
        save_model=model_arguments.save_final_model,
        label_noise=LabelNoise(data.label_noise, replaced),
        predict_dataset=splits.get("test"),
        prediction_columns=partial(label_columns, scheme=scheme),
    )
