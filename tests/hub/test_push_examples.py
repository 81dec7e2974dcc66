"""The example with TRL's trainer and `--push_to_hub`. Its card takes fewer arguments, and it can train adapters."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def llama(tmp_path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(tmp_path / "llama")
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = LlamaConfig(vocab_size=5, max_position_embeddings=16, pad_token_id=0, eos_token_id=1, **size)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("adapters", [[], ["--lora_r", "2"]], ids=["all weights", "adapters"])
def test_sft(connected, llama, tmp_path, adapters, monkeypatch):
    pytest.importorskip("trl")
    spec = importlib.util.spec_from_file_location("pushed_sft", REPOSITORY / "examples" / "sft.py")
    sft = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, sft)  # pickle looks here for the class of the arguments
    spec.loader.exec_module(sft)
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({"text": "a b " * (1 + i % 3)}) + "\n" for i in range(8)), encoding="utf-8")
    options = f"--model_name_or_path {llama} --train_file {file} --output_dir {tmp_path / 'words'} --max_steps 2"
    options += " --do_train --push_to_hub --bf16 false --use_cpu true --report_to none --disable_tqdm true"
    sft.main([*options.split(), "--gradient_checkpointing", "false", *adapters])

    files = connected.files("words")
    assert ("adapter_model.safetensors" if adapters else "model.safetensors") in files
    card = files["README.md"].decode()
    assert "# Model Card for words" in card
    assert "## Sharpness-Aware Minimization" in card and "class SAMSFTTrainer(SAMMixin, SFTTrainer)" in card
    assert str(tmp_path) not in card
    assert connected.token.encode() not in b"".join(files.values())
