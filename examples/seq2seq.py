"""Finetune an encoder-decoder to summarise, translate or rewrite, with Sharpness-Aware Minimization."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq

from sam_hf import SAMSeq2SeqTrainer, SAMSeq2SeqTrainingArguments
from sam_hf.command_line import parse_arguments, run
from sam_hf.errors import UsageError
from sam_hf.inputs.checkpoints import from_checkpoint
from sam_hf.inputs.options import ExampleArguments, ModelArguments, at_least_one, option
from sam_hf.inputs.splits import load_examples
from sam_hf.inputs.texts import check_texts, columns_of_text
from sam_hf.metrics import load_metric
from sam_hf.recipes.best_metric import GENERATED_TEXT, METRICS, check_best_metric
from sam_hf.recipes.card import card_arguments
from sam_hf.recipes.loss import TOKENS, loss_function
from sam_hf.recipes.model_options import with_lora
from sam_hf.recipes.run import run_recipe, start_run


@dataclass
class PairArguments(ExampleArguments):
    source_column: str | None = option(None, "Column with the texts to read. Default: the first of the two texts.")
    target_column: str | None = option(None, "Column with the texts to write. Default: the second of them.")
    source_prefix: str = option("", "Text before every text to read, such as T5's `summarize: `.")
    max_source_length: int = option(512, "Longer texts to read are cut to this many tokens.")
    max_target_length: int = option(
        128, "Longer texts to write are cut to this many tokens. The model generates at most as many."
    )

    def __post_init__(self):
        super().__post_init__()
        at_least_one(self, "max_source_length", "max_target_length")


def main(argv: list[str] | None = None) -> None:
    argument_types = [PairArguments, ModelArguments, SAMSeq2SeqTrainingArguments]
    data, model_arguments, args = parse_arguments(argument_types, argv, __doc__)
    if args.do_predict and not args.predict_with_generate:
        raise UsageError("do_predict writes texts: it needs predict_with_generate")
    if args.generation_max_length is None:
        args.generation_max_length = data.max_target_length
    check_best_metric(args, METRICS[GENERATED_TEXT] if args.predict_with_generate else ())
    checkpoint, weights, start = start_run(args, model_arguments, data)
    splits = load_examples(data, args)
    columns = source_and_target(splits, data)
    if args.process_index == 0:
        source, target = next(iter(columns.values()))
        print(f"reads: {source}; writes: {target}", flush=True)

    tokenizer = from_checkpoint(AutoTokenizer, checkpoint)
    model = from_checkpoint(AutoModelForSeq2SeqLM, weights)
    model = with_lora(model, model_arguments, task="SEQ_2_SEQ_LM")
    with args.main_process_first(desc="tokenizing"):
        for split, (source, target) in columns.items():
            splits[split] = splits[split].map(
                tokenize_pairs,
                fn_kwargs={"tokenizer": tokenizer, "data": data, "source": source, "target": target},
                batched=True,
                remove_columns=splits[split].column_names,
            )

    trainer = SAMSeq2SeqTrainer(
        model=model,
        args=args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=collator(tokenizer, model),
        compute_loss_func=loss_function(TOKENS, args.label_smoothing_factor),
        compute_metrics=text_metrics_function(tokenizer) if args.predict_with_generate else None,
    )
    run_recipe(
        trainer,
        start,
        card_arguments(data, model_arguments, "text2text-generation"),
        save_model=model_arguments.save_final_model,
        predict_dataset=splits.get("test"),
        prediction_columns=lambda tokens: {"prediction": decode(tokens, tokenizer)},
    )


def source_and_target(splits, data: PairArguments) -> dict[str, tuple[str, str | None]]:
    """Return the names of the two text columns of each split. In examples to predict, the second may be missing."""
    first, dataset = next(iter(splits.items()))
    given = [name for name in (data.source_column, data.target_column) if name is not None]
    if first != "test":
        check_texts({first: dataset}, given)
    texts = [name for name in columns_of_text(dataset) if name not in given]
    if len(given) < 2 < len(given) + len(texts):
        columns = ", ".join(dataset.column_names)
        raise UsageError(f"name source_column and target_column: the {first} split has the columns {columns}")
    source = data.source_column or next(iter(texts), dataset.column_names[0])
    target = data.target_column or next((name for name in texts if name != source), None)
    if target is None and first != "test":
        raise UsageError(f"the {first} split has only the column {source}: it needs a column of texts to write, too")
    found = {}
    for split, examples in splits.items():
        target_here = None if split == "test" and target not in examples.column_names else target
        check_texts({split: examples}, [name for name in (source, target_here) if name is not None])
        found[split] = source, target_here
    return found


def tokenize_pairs(batch, tokenizer, data: PairArguments, source: str, target: str | None):
    """Return the model's inputs for the column `source`, and the column `target` as labels."""
    texts = [data.source_prefix + text for text in batch[source]]
    encoded = tokenizer(texts, truncation=True, max_length=data.max_source_length)
    if target is not None:
        labels = tokenizer(text_target=batch[target], truncation=True, max_length=data.max_target_length)
        encoded["labels"] = labels["input_ids"]
    return encoded


def collator(tokenizer, model):
    """
    Return a collator that pads, and makes the decoder's input. The model cannot make it, because `compute_loss_func`
    takes the labels away before the model is called.
    """
    pad = DataCollatorForSeq2Seq(tokenizer, model=model)

    def collate(examples):
        # Without labels, the collator returns `labels: None`, and Seq2SeqTrainer would use that as labels
        return {name: tensor for name, tensor in pad(examples).items() if tensor is not None}

    return collate


def text_metrics_function(tokenizer):
    """Return a `compute_metrics` for Trainer that compares generated texts with the references."""
    metric = load_metric("generated_text")

    def compute_metrics(prediction):
        texts, references = (decode(tokens, tokenizer) for tokens in (prediction.predictions, prediction.label_ids))
        return metric.compute(predictions=texts, references=references)

    return compute_metrics


def decode(tokens, tokenizer) -> list[str]:
    # −100 is padding, in labels and where batches of predictions were put together
    return tokenizer.batch_decode(np.where(tokens < 0, tokenizer.pad_token_id, tokens), skip_special_tokens=True)


if __name__ == "__main__":
    run(main)
