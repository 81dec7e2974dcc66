"""The code before and the code after in docs/migrating.md train the same weights."""

from __future__ import annotations

import copy
import re
import sys
import types
from pathlib import Path

import pytest
import tiny
import torch

PAGE = Path(__file__).parents[2] / "docs" / "migrating.md"
BLOCKS = dict(re.findall(r'```python title="(.*?)"\n(.*?)```', PAGE.read_text(encoding="utf-8"), flags=re.DOTALL))


class DavdaSAM(torch.optim.Optimizer):
    """The algorithm of davda54/sam with its public names. The original is on no package index."""

    def __init__(self, params, base_optimizer, rho, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base_optimizer(self.param_groups, **options)

    @torch.no_grad()
    def first_step(self, zero_grad):
        weights = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in weights]).norm()
        self.weights_before = [p.clone() for p in weights]
        for p in weights:
            p.add_(self.param_groups[0]["rho"] * p.grad / (norm + 1e-12))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad):
        weights = [p for group in self.param_groups for p in group["params"]]
        for p, before in zip(weights, self.weights_before, strict=True):
            p.copy_(before)
        self.base_optimizer.step()
        self.zero_grad()


@pytest.fixture
def library(request, monkeypatch):
    if request.param == "davda54/sam":
        monkeypatch.setitem(sys.modules, "sam", types.SimpleNamespace(SAM=DavdaSAM))
    else:
        pytest.importorskip("pytorch_optimizer")
    return request.param


@pytest.mark.parametrize("library", ["davda54/sam", "pytorch_optimizer"], indirect=True)
def test_before_and_after_train_the_same_weights(library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start, ends = tiny.bert(), []
    for side in ("before", "after"):
        code = BLOCKS[f"{side}: {library}"]
        # The same examples in the same order, on the CPU
        code = code.replace('"out",', '"out", train_sampling_strategy="sequential", use_cpu=True, report_to="none",')
        namespace = {"model": copy.deepcopy(start), "train_dataset": tiny.sentences(24)}
        exec(compile(code, str(PAGE), "exec"), namespace)
        ends.append(tiny.flat(namespace["model"]))
    before, after = ends
    # pytorch_optimizer computes the norm in float32
    assert tiny.relative_difference(after, before) < (1e-7 if library == "pytorch_optimizer" else 1e-10)
    assert tiny.relative_difference(after, tiny.flat(start)) > 1e-2


def test_the_radius_of_the_page_matters(tmp_path, monkeypatch):
    """Without this test, the check above would also pass with plain training on both sides."""
    monkeypatch.chdir(tmp_path)
    ends = []
    for rho in ("0.05", "0.0"):
        code = BLOCKS["after: davda54/sam"].replace("sam_rho=0.05", f'sam_rho={rho}, use_cpu=True, report_to="none"')
        namespace = {"model": tiny.bert(), "train_dataset": tiny.sentences(24)}
        exec(compile(code, str(PAGE), "exec"), namespace)
        ends.append(tiny.flat(namespace["model"]))
    assert tiny.relative_difference(*ends) > 1e-4
