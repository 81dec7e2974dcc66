"""Tests of the metrics of tagged words and of generated texts against values counted by hand."""

from __future__ import annotations

import pytest

from sam_hf.metrics import load_metric


def test_entities_are_right_as_a_whole_or_wrong():
    right = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-PER"]]
    found = [["B-PER", "O", "O", "B-LOC"], ["B-LOC", "B-PER"]]
    # There are 3 entities. Of the 4 predicted, 2 are right: the first is too short, and one LOC is not an entity
    measured = load_metric("entities").compute(predictions=found, references=right)
    assert measured == pytest.approx({"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "accuracy": 4 / 6})


def test_no_entity_at_all():
    measured = load_metric("entities").compute(predictions=[["O"]], references=[["O"]])
    assert measured["f1"] == 0 and measured["accuracy"] == 1


def test_generated_texts():
    metric = load_metric("generated_text")
    same = ["the cat sat on the mat", "a dog"]
    measured = metric.compute(predictions=same, references=same)
    assert measured == pytest.approx(dict.fromkeys(("chrf", "bleu", "rouge1", "rouge2", "rougeL"), 100.0))
    measured = metric.compute(predictions=["the dog sat", "zzz"], references=["the cat sat", "the cat"])
    # The first text has two of three words in order, and neither pair of neighbours. The second text has nothing
    assert measured["rouge1"] == measured["rougeL"] == pytest.approx(100 * (2 / 3) / 2)
    assert measured["rouge2"] == 0
    assert 0 < measured["chrf"] < 100
