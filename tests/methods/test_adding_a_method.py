"""The example of docs/adding_a_method.md follows its formula and passes the tests of every method."""

from __future__ import annotations

import inspect
import itertools
import re
from pathlib import Path

import pytest
import test_every_method
import torch
from common import run_of

from sam_hf import SAMArguments
from sam_hf.methods import METHODS, Method, Point

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_method.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMON = [check for name, check in vars(test_every_method).items() if name.startswith("test_")]


def written_on_the_page() -> type[Method]:
    """Return the class in the first block of the page, as if the block were the file that the page names."""
    (file, code), *_ = re.findall(r"`sam_hf/methods/(\w+)\.py`:\n\n```python\n(.*?)```", TEXT, flags=re.DOTALL)
    namespace = {"__name__": f"sam_hf.methods.{file}", "__package__": "sam_hf.methods"}
    exec(compile(code, str(PAGE), "exec"), namespace)
    (method,) = [
        value
        for value in namespace.values()
        if isinstance(value, type) and issubclass(value, Method) and value is not Method
    ]
    assert method.name == file
    return method


METHOD = written_on_the_page()


@pytest.fixture
def registered(monkeypatch) -> str:
    monkeypatch.setitem(METHODS, METHOD.name, METHOD)
    return METHOD.name


def test_the_line_of_the_table_is_on_the_page():
    assert f'```python\n    "{METHOD.name}": {METHOD.__name__},\n```' in TEXT


@pytest.mark.parametrize("eta", [0.0, 0.5, 20.0])
def test_formula(eta):
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 2), (4,))]
    ascent = METHOD(eta=eta).ascent([grad.clone() for grad in grads], Point(grads, grads))
    g = torch.cat([grad.flatten() for grad in grads])
    inverse = torch.diag(1 / (1 + eta * g**2))
    expected = inverse @ g / (g @ inverse @ g).sqrt()
    actual = ascent.scale * torch.cat([direction.flatten() for direction in ascent.directions])
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(ascent.norm, g.norm())


def cases(check) -> list[dict[str, str]]:
    """Return the values that the common test is parametrised by, apart from the methods."""
    marks = [mark for mark in check.pytestmark if mark.name == "parametrize" and mark.args[0] != "method"]
    return [
        dict(zip((mark.args[0] for mark in marks), values, strict=True))
        for values in itertools.product(*(mark.args[1] for mark in marks))
    ]


@pytest.mark.parametrize(
    ("check", "case"),
    [(check, case) for check in COMMON for case in cases(check)],
    ids=lambda value: value.__name__ if callable(value) else "-".join(value.values()),
)
def test_common(tmp_path, registered, check, case):
    given = {"tmp_path": tmp_path, "method": registered} | case
    check(**{name: given[name] for name in inspect.signature(check).parameters})


def test_is_an_argument_like_the_others(tmp_path, registered):
    with pytest.raises(ValueError, match=r"sam_p=3\.0.*fishersam.*ellipsoid"):
        SAMArguments(sam_method=registered, sam_p=3.0)
    with pytest.raises(ValueError, match="eta=-1"):
        SAMArguments(sam_method=registered, sam_method_kwargs={"eta": -1})
    _, trainer = run_of(registered, tmp_path, sam_method_kwargs={"eta": 0.5})
    trainer.train()
    assert trainer.state.global_step == 6
