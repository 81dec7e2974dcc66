"""Checks that every push must pass."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch
from transformers import AutoModelForSequenceClassification


def logits_of(model) -> torch.Tensor:
    batch = tiny.sentences(5)
    inputs = {key: torch.stack([example[key] for example in batch]) for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return model.eval()(**inputs).logits


def assert_pushed(trainer, repository: str, revision: str = "main", **kwargs) -> None:
    """Check that the model loaded from the Hub gives the same logits, bit for bit."""
    model = AutoModelForSequenceClassification.from_pretrained(repository, revision=revision, **kwargs)
    assert torch.equal(logits_of(model), logits_of(trainer.model))


def assert_no_secret(hub, *folders, tokens=()) -> None:
    """Check that no token is in what was sent, except in headers, nor in any file."""
    secrets = [token.encode() for token in (*hub.store.tokens, *tokens)]
    assert any(hub.token in r.headers.get("authorization", "") for r in hub.requests), "the token was used at all"
    files = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    places = {str(path): path.read_bytes() for path in files} | {"the Hub": hub.every_byte()}
    assert not [place for place, content in places.items() for secret in secrets if secret in content]
