"""The code on the page "How it works" is the update that SAMTrainer makes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny import flat, perceptron, points, relative_difference, trainer_of, windows_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how_it_works.md"
RHO, BATCH, UPDATES = 0.2, 4, 5


@pytest.fixture(scope="module")
def code() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return block


def collated(examples):
    return {key: torch.stack([example[key] for example in examples]) for key in examples[0]}


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_the_page_is_the_update_of_the_trainer(tmp_path, code, accumulation):
    data, model, expected = points(64), perceptron(dropout=0.3), perceptron(dropout=0.3)
    trainer = trainer_of(
        model,
        data,
        tmp_path,
        sam_rho=RHO,
        max_steps=UPDATES,
        gradient_accumulation_steps=accumulation,
        optim_args="momentum=0.9",
    )
    step, states, parts = trainer.training_step, [], []

    def recorded_step(*args):
        states.append(torch.get_rng_state())
        parts.append(float(step(*args)))  # Trainer's own log has them in float32
        return torch.tensor(parts[-1])

    trainer.training_step = recorded_step
    trainer.train()
    namespace: dict = {}
    exec(compile(code, str(PAGE), "exec"), namespace)
    torch.set_rng_state(states[0])
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.05, momentum=0.9)
    expected.train()
    losses = [
        float(namespace["sam_update"](expected, optimizer, [collated(batch) for batch in window], RHO))
        for window in windows_of(data, BATCH, accumulation, UPDATES)
    ]
    assert relative_difference(flat(model), flat(expected)) < 1e-12
    sums = [sum(parts[i : i + accumulation]) for i in range(0, len(parts), accumulation)]
    assert sums == pytest.approx(losses, rel=1e-12)


def test_the_page_is_short(code):
    assert len(code.splitlines()) <= 45
    assert {int(number) for number in re.findall(r"# (\d+)$", code, flags=re.MULTILINE)} == set(range(1, 14))


def test_every_numbered_line_has_a_row_and_every_file_exists():
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d, ]+) \|", text, flags=re.MULTILINE)
    assert {int(number) for row in rows for number in row.split(",")} == set(range(1, 14))
    assert not [path for path in re.findall(r"\]\(\.\./([^)]+)\)", text) if not (ROOT / path).exists()]
