"""`sam-hf sharpness` refuses what it cannot measure, with an error of one line."""

from __future__ import annotations

import pytest
from sharpness_runs import QUICK, save_bert

from sam_hf.commands.sharpness.command import main
from sam_hf.errors import UsageError


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "model is missing"),
        (["--model", "./nowhere"], "model=./nowhere: the folder does not exist"),
        (["--model", "BERT", "--against", "./nowhere"], "against=./nowhere: the folder does not exist"),
        (["--model", "BERT"], "no data"),
        (["--model", "BERT", "--train_file", "CSV", "--split", "test"], "there is no test split"),
        (["--model", "BERT", "--train_file", "CSV", "--train_dir", "x"], "train_dir is a folder of images, but"),
        (["--model", "BERT", "--train_file", "CSV", "--top", "0"], "top=0"),
        (["--model", "BERT", "--max_vectors", "6"], "max_vectors=6 is not allowed"),
        (["--model", "BERT", "--tolerance", "nan"], "tolerance=nan is not allowed"),
        (["--model", "BERT", "--trace_probes", "1"], "trace_probes=1 is not allowed"),
        (["--model", "BERT", "--product", "exact"], "exact"),
        (["--model", "BERT", "--split", "test", "--label_noise", ".2"], "label_noise is for the training examples"),
        (["--model", "BERT", "--hesian"], "did you mean hessian?"),
    ],
)
def test_wrong_use(bert, reviews, tmp_path, options, message):
    given = [{"BERT": str(bert), "CSV": str(reviews)}.get(word, word) for word in options]
    with pytest.raises(UsageError) as error:
        main([*given, "--out", str(tmp_path / "report")])
    assert message in str(error.value) and not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    "names, message",
    [
        (("bad", "great"), "the models have different labels: in addition to those in common,"),
        (("bad", "good", "fair"), "other has fair"),
    ],
)
def test_models_with_different_labels_are_refused(bert, reviews, tmp_path, names, message):
    other = save_bert(tmp_path / "other", names=names)
    with pytest.raises(UsageError) as error:
        main(["--model", str(bert), "--against", str(other), "--train_file", str(reviews), *QUICK])
    assert message in str(error.value)


def test_a_label_that_the_model_does_not_know(bert, tmp_path):
    data = tmp_path / "data.csv"
    data.write_text("text,label\ngood film,good\nbad plot,awful\n")
    with pytest.raises(UsageError, match=r"the data have the label awful, which .* does not: it has bad, good"):
        main(["--model", str(bert), "--train_file", str(data), *QUICK])
