"""A tiny causal language model with its tokenizer, and runs of TRL's trainers on it, with and without SAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from sam_hf import SAMArguments, SAMMixin

WORDS = ["the", "a", "cat", "dog", "sees", "hears", "big", "small", "bird", "user", "assistant", ":", "yes", "no"]
SPECIAL = ["<pad>", "<eos>", "<unk>"]
TEMPLATE = "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' <eos> ' }}{% endfor %}"


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="right"
    )
    fast.chat_template = TEMPLATE
    return fast


def llama(model_class=LlamaForCausalLM, dropout: float = 0.0, dtype: torch.dtype = torch.float64, **config: Any):
    settings = {
        "vocab_size": len(SPECIAL + WORDS),
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "attention_dropout": dropout,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 1,
    }
    torch.manual_seed(0)
    return model_class(LlamaConfig(**(settings | config))).to(dtype)


def reward_model() -> LlamaForSequenceClassification:
    return llama(LlamaForSequenceClassification, num_labels=1)


def phrase(generator: torch.Generator, length: int) -> str:
    return " ".join(WORDS[int(i)] for i in torch.randint(0, 9, (length,), generator=generator))


def texts(size: int) -> Dataset:
    """Return texts of different lengths, so that a mean over examples is not a mean over tokens."""
    generator = torch.Generator().manual_seed(1)
    return Dataset.from_list([{"text": phrase(generator, 3 + i % 4)} for i in range(size)])


def conversations(size: int) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    rows = [
        [{"role": "user", "content": phrase(generator, 2 + i % 3)}, {"role": "assistant", "content": "yes"}]
        for i in range(size)
    ]
    return Dataset.from_list([{"messages": row} for row in rows])


def preferences(size: int) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    rows = [
        {"prompt": phrase(generator, 2), "chosen": " " + phrase(generator, 2 + i % 2), "rejected": " no"}
        for i in range(size)
    ]
    return Dataset.from_list(rows)


def with_sam(trainer_class: type, arguments_class: type) -> tuple[type, type]:
    """Return the classes that a user would write for any trainer and its arguments."""
    trainer = type(f"SAM{trainer_class.__name__}", (SAMMixin, trainer_class), {})
    arguments = dataclass(type(f"SAM{arguments_class.__name__}", (SAMArguments, arguments_class), {}))
    return trainer, arguments


def run(classes: tuple[type, type], model, data: Dataset, output_dir, **changes: Any):
    """Train with TRL and return the trainer. `changes` are arguments, or parameters of the trainer itself."""
    # TRL's own defaults are for large models
    settings = {"bf16": False, "gradient_checkpointing": False} | changes
    return run_with(classes, model, data, output_dir, processing_class=tokenizer(), **settings)


def run_with(classes: tuple[type, type], model, data: Dataset, output_dir, **changes: Any):
    trainer_class, arguments_class = classes
    parameters = "processing_class peft_config ref_model callbacks loss eval_dataset compute_metrics".split()
    options = {key: changes.pop(key) for key in parameters if key in changes}
    settings: dict[str, Any] = {
        "use_cpu": True,
        "train_sampling_strategy": "sequential",
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    args = arguments_class(output_dir=str(output_dir), **(settings | changes))
    trainer = trainer_class(model=model, args=args, train_dataset=data, **options)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    return trainer


def logged(trainer, *names: str) -> list[list[float]]:
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [[entry[name] for name in names] for entry in entries]
