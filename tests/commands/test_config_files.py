"""Configuration files in YAML."""

from __future__ import annotations

import pytest

from sam_hf.command_line.config import read_yaml
from sam_hf.errors import UsageError


@pytest.mark.parametrize("text", ["seed: 1\nsam_rho: 0.1\nseed: 2\n", "variants:\n  sam: {sam_rho: 1, sam_rho: 2}\n"])
def test_a_key_that_is_given_twice(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"run\.yaml cannot be read: (seed|sam_rho) is given twice"):
        read_yaml(str(path))


def test_words_numbers_and_merged_mappings(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("eval_strategy: no\nlearning_rate: 1e-4\nbase: &base {a: 1}\nnext: {<<: *base, a: 2, b: yes}\n")
    expected = {"eval_strategy": "no", "learning_rate": 1e-4, "base": {"a": 1}, "next": {"a": 2, "b": "yes"}}
    assert read_yaml(str(path)) == expected
