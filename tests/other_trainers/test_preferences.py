"""SAM in TRL's preference trainers makes the updates of a hand-written loop, and counts TRL's own metrics once."""

from __future__ import annotations

import copy

import pytest
import torch
from causal import llama, logged, preferences, reward_model, run, tokenizer, with_sam
from tiny import flat, relative_difference

trl = pytest.importorskip("trl")
cpo = pytest.importorskip("trl.experimental.cpo")
orpo = pytest.importorskip("trl.experimental.orpo")

DPO = (trl.DPOTrainer, trl.DPOConfig)
KTO = (trl.KTOTrainer, trl.KTOConfig)
REWARD = (trl.RewardTrainer, trl.RewardConfig)
CPO = (cpo.CPOTrainer, cpo.CPOConfig)
ORPO = (orpo.ORPOTrainer, orpo.ORPOConfig)


def with_reference(classes, model, *args, **options):
    # Without it the trainer would load a reference from the Hub, by the model's name
    return run(classes, model, *args, ref_model=llama(), **options)


CASES = {
    "dpo": (with_reference, DPO, llama, ("loss", "num_tokens", "rewards/margins", "logps/chosen")),
    "kto": (with_reference, KTO, llama, ("loss", "num_tokens", "kl", "entropy")),
    "cpo": (run, CPO, llama, ("loss", "rewards/margins", "logps/chosen")),
    "orpo": (run, ORPO, llama, ("loss", "rewards/margins", "logps/chosen")),
    "reward": (run, REWARD, reward_model, ("loss", "num_tokens", "mean_reward", "accuracy", "margin")),
}


@pytest.mark.parametrize("case", CASES)
def test_plain_trainer_at_vanishing_rho(tmp_path, case):
    trained, classes, make, metrics = CASES[case]
    expected, model = make(), make()
    options = {"gradient_accumulation_steps": 2, "learning_rate": 0.5}
    plain = trained(classes, expected, preferences(16), tmp_path, **options)
    sam = trained(with_sam(*classes), model, preferences(16), tmp_path, sam_rho=1e-12, **options)
    torch.testing.assert_close(torch.tensor(logged(sam, *metrics)), torch.tensor(logged(plain, *metrics)))
    torch.testing.assert_close(flat(model), flat(expected), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_metrics_are_those_of_one_pass(tmp_path, case):
    trained, classes, make, metrics = CASES[case]
    options = {"gradient_accumulation_steps": 2, "learning_rate": 0.0, "logging_steps": 2, "max_steps": 4}
    plain = trained(classes, make(), preferences(16), tmp_path, **options)
    sam = trained(with_sam(*classes), make(), preferences(16), tmp_path, sam_rho=1.0, sam_ascent_steps=2, **options)
    assert logged(sam, *metrics) == logged(plain, *metrics)
    assert abs(logged(sam, "sam_sharpness")[0][0]) > 1e-3


def token_ids(example, key):
    """Return the token ids of the prompt with its completion, and the number of ids of the prompt."""
    ids = tokenizer()(example["prompt"] + example[key] + " <eos>").input_ids
    return torch.tensor([ids]), len(tokenizer()(example["prompt"]).input_ids)


def log_probability(model, example, key):
    """Return the log probability of the completion given the prompt."""
    ids, prompt = token_ids(example, key)
    logp = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    return logp[prompt - 1 :].sum()


def dpo_loss(model, reference, data, beta=0.1):
    losses = []
    for example in data:
        with torch.no_grad():
            base = log_probability(reference, example, "chosen") - log_probability(reference, example, "rejected")
        margin = log_probability(model, example, "chosen") - log_probability(model, example, "rejected")
        losses.append(-torch.nn.functional.logsigmoid(beta * (margin - base)))
    return torch.stack(losses).mean()


def reward_loss(model, reference, data):
    def reward(example, key):
        return model(token_ids(example, key)[0]).logits.squeeze()

    margins = torch.stack([reward(example, "chosen") - reward(example, "rejected") for example in data])
    return -torch.nn.functional.logsigmoid(margins).mean()


@pytest.mark.parametrize("case, loss", [("dpo", dpo_loss), ("reward", reward_loss)])
def test_update_of_a_hand_written_loop(tmp_path, case, loss):
    trained, classes, make, _ = CASES[case]
    data, model, expected, reference = preferences(8), make(), make(), make()
    start = flat(model)
    options = {"max_steps": 1, "learning_rate": 0.5, "sam_rho": 0.3, "gradient_accumulation_steps": 2}
    trained(with_sam(*classes), model, data, tmp_path, **options)

    weights = list(expected.parameters())
    gradient = torch.autograd.grad(loss(expected, reference, data), weights)
    norm = torch.cat([g.flatten() for g in gradient]).norm()
    perturbed = copy.deepcopy(expected)
    with torch.no_grad():
        for p, g in zip(perturbed.parameters(), gradient, strict=True):
            p += 0.3 * g / norm
    update = torch.autograd.grad(loss(perturbed, reference, data), list(perturbed.parameters()))
    step = torch.cat([-0.5 * g.flatten() for g in update])
    # TRL's head computes in float32 for every type of weights
    assert relative_difference(flat(model) - start, step) < 1e-5
    assert relative_difference(torch.cat([-0.5 * g.flatten() for g in gradient]), step) > 0.01
