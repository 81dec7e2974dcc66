"""Finetune an encoder-decoder to summarise, translate or rewrite, with Sharpness-Aware Minimization."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from sam_hf.command_line.parsing import parse_arguments, run
from sam_hf.errors import UsageError
from sam_hf.inputs.options import ExampleArguments, ModelArguments, option


@dataclass
class PairArguments(ExampleArguments):
    source_column: str | None = option(None, "Column with the texts to read. Default: the first column.")
    target_column: str | None = option(None, "Column with the texts to write. Default: the second column.")
    source_prefix: str = option("", "Put before every text to read, as T5's `summarize: `.")
    max_source_length: int = option(512, "Longer texts to read are cut to this many tokens.")
    max_target_length: int = option(128, "Longer texts to write are cut to this many tokens; also how far it writes.")


def main(argv: list[str] | None = None) -> None:
    from sam_hf import SAMSeq2SeqTrainingArguments

    data, model_arguments, args = parse_arguments(
        [PairArguments, ModelArguments, SAMSeq2SeqTrainingArguments], sys.argv[1:] if argv is None else argv, __doc__
    )

    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, set_seed

    from sam_hf import SAMSeq2SeqTrainer
    from sam_hf.inputs.checkpoints import from_checkpoint, model_path, starting_point
    from sam_hf.inputs.splits import load_examples
    from sam_hf.recipes.card import card_arguments
    from sam_hf.recipes.lora import with_lora
    from sam_hf.recipes.loss import TOKENS, loss_function
    from sam_hf.recipes.run import carry_out, find_checkpoint, write_rows

    if args.do_predict and not args.predict_with_generate:
        raise UsageError("do_predict writes texts: it needs predict_with_generate")
    if args.generation_max_length is None:
        args.generation_max_length = data.max_target_length
    set_seed(args.seed)
    resume_from = find_checkpoint(args, model_arguments.overwrite_output_dir)
    path = model_path(model_arguments.model_name_or_path)
    splits = load_examples(data, args)
    columns = {split: source_and_target(splits[split], data, split) for split in splits}

    tokenizer = from_checkpoint(AutoTokenizer, path)
    model = from_checkpoint(AutoModelForSeq2SeqLM, starting_point(path, resume_from))
    model = with_lora(model, model_arguments, task="SEQ_2_SEQ_LM")

    with args.main_process_first(desc="tokenizing"):
        for split, (source, target) in columns.items():
            splits[split] = splits[split].map(
                tokenized,
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
        compute_metrics=metrics_of_texts(tokenizer) if args.predict_with_generate else None,
    )
    carry_out(
        trainer,
        resume_from,
        card_arguments(data, model_arguments, "text2text-generation"),
        splits.get("test"),
        lambda path, tokens: write_rows(path, decoded(tokens, tokenizer)),
        save_model=model_arguments.save_final_model,
    )


def source_and_target(dataset, data: PairArguments, split: str) -> tuple[str, str | None]:
    """The two columns of text; of examples to predict the second may be missing."""
    columns = dataset.column_names
    source = data.source_column or columns[0]
    target = data.target_column or next((name for name in columns if name != source), None)
    if target not in columns and split == "test":
        target = None
    elif target is None:
        raise UsageError(f"the {split} split has the column {source} alone: there must be one of texts to write, too")
    for name in (source, target):
        if name is not None and name not in columns:
            raise UsageError(f"no column {name} in the {split} split: the columns are {', '.join(columns)}")
        if name is not None and not all(isinstance(text, str) for text in dataset[name]):
            raise UsageError(f"the column {name} of the {split} split has something else than texts")
    return source, target


def tokenized(batch, tokenizer, data: PairArguments, source: str, target: str | None):
    """What the model takes of the texts in the column `source`, with those of `target` as labels."""
    texts = [data.source_prefix + text for text in batch[source]]
    encoded = tokenizer(texts, truncation=True, max_length=data.max_source_length)
    if target is not None:
        labels = tokenizer(text_target=batch[target], truncation=True, max_length=data.max_target_length)
        encoded["labels"] = labels["input_ids"]
    return encoded


def collator(tokenizer, model):
    """Pads, and makes the decoder's input, which cannot come from labels once the loss has taken these."""
    from transformers import DataCollatorForSeq2Seq

    pad = DataCollatorForSeq2Seq(tokenizer, model=model)

    def collate(examples):
        # Without labels it gives `labels: None`, which Seq2SeqTrainer takes for labels
        return {name: tensor for name, tensor in pad(examples).items() if tensor is not None}

    return collate


def metrics_of_texts(tokenizer):
    """A `compute_metrics` for Trainer, of what was generated."""
    from sam_hf.metrics import load_metric

    metric = load_metric("generated_text")

    def compute_metrics(prediction):
        texts, references = (decoded(tokens, tokenizer) for tokens in (prediction.predictions, prediction.label_ids))
        return metric.compute(predictions=texts, references=references)

    return compute_metrics


def decoded(tokens, tokenizer) -> list[str]:
    import numpy as np

    # Padding: −100 in labels, and where batches of predictions are put together
    return tokenizer.batch_decode(np.where(tokens < 0, tokenizer.pad_token_id, tokens), skip_special_tokens=True)


if __name__ == "__main__":
    run(main)
