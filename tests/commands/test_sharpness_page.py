"""The page of `sam-hf sharpness` is one file that shows everything that was measured, and nothing else."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from sam_hf.commands.sharpness.page import draw_pictures, write_page
from sam_hf.errors import UsageError
from sam_hf.reports import page

X = [-1.0, -0.5, 0.0, 0.5, 1.0]
Y = [-1.0, 0.0, 1.0]


def model(name: str, scale: float) -> dict:
    values = np.linspace(-1, 10 * scale, 300)
    density = np.exp(-(values**2) / 0.1) + 1e-5 * np.exp(-((values - 9 * scale) ** 2) / 0.1)
    return {
        "name": name,
        "path": f"outputs/{name}",
        "parameters": 22713986,
        "loss": 0.3217 * scale,
        "gradient_norm": 0.1234 * scale,
        "hessian": {
            "product": "double_backward",
            "attention": "eager",
            "eigenvalues": [9.0 * scale, 7.0 * scale, 5.0 * scale],
            "residuals": [0.011, 0.012, 0.013],
            "lambda_ratio": 3.33,
            "trace": 123.4 * scale,
            "trace_error": 5.6,
            "density": {"eigenvalues": values.tolist(), "density": density.tolist(), "sigma": 0.2},
        },
        "neighborhood": {
            "rho": 0.05,
            "m_sharpness": [
                {"m": m, "p": p, "mean": 0.2 * scale / m, "max": 0.777 * scale / m, "error": 0.01 * scale / m}
                for m in (2, 8)
                for p in (2, "inf")
            ],
            "adaptive": [{"p": 2, "rho": 0.5, "mean": 0.0456 * scale, "max": 0.0891}],
            "random": [{"p": 2, "mean": 1.5e-5 * scale, "max": 2.5e-5}],
        },
        "landscape": {
            "line": {"x": X, "loss": [0.3 + scale * x**2 for x in X]},
            "surface": {"x": X, "y": Y, "loss": [[0.3 + scale * (x**2 + y**2) for y in Y] for x in X]},
        },
    }


def result(*models: dict) -> dict:
    whole = {
        "version": 1,
        "settings": {"dataset": "demo:rotten-tomatoes", "examples": 64, "seed": 0, "command": "sam-hf sharpness"},
        "environment": {"torch": "2.14.1", "device": "cpu"},
        "models": list(models),
    }
    if len(models) == 2:
        whole["between"] = {"t": [0.0, 0.5, 1.0], "loss": [0.3, 0.9876, 0.6]}
    return json.loads(json.dumps(whole))  # as it is read from the file


class Reader(HTMLParser):
    """Collects tags, text and styles. It fails if a tag is closed that is not the one opened last."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.style = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            self.style += data
        elif self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def make(folder, whole: dict) -> tuple[list[page.Picture], Reader]:
    pictures = draw_pictures(whole, folder)
    return pictures, Reader(write_page(whole, pictures, folder / "sharpness.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="module")
def pair(folder):
    return make(folder, result(model("sam", 1.0), model("adamw", 2.0)))


def test_every_measurement_has_its_picture_in_both_formats(pair):
    pictures, read = pair
    names = ["spectral_density", "m_sharpness_2", "m_sharpness_inf", "loss_line", "loss_between", "loss_surface"]
    assert [picture.name for picture in pictures] == names
    for picture in pictures:
        assert picture.png.read_bytes()[:4] == b"\x89PNG" and b"</svg>" in picture.svg.read_bytes()
    images = [attributes for tag, attributes in read.tags if tag == "img"]
    assert len(images) == len(names)
    assert all(image["alt"] for image in images), "a picture without a text"
    assert [attributes["id"] for tag, attributes in read.tags if tag == "figure"] == [
        *("spectral_density", "m_sharpness_2", "m_sharpness_inf", "loss_line", "loss_surface", "loss_between")
    ]


def test_the_page_needs_no_other_file(pair):
    _, read = pair
    for tag, attributes in read.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base")
        assert not [name for name in attributes if name.startswith("on")]
        if "src" in attributes:
            assert attributes["src"].startswith("data:image/")
        if "href" in attributes:
            is_paper = tag == "a" and attributes["href"].startswith("https://arxiv.org/abs/")
            assert is_paper or attributes["href"] == "data:,"
    assert "color-scheme: light dark" in read.style
    assert "url(" not in read.style and "@import" not in read.style
    policy = [attributes["content"] for tag, attributes in read.tags if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


@pytest.mark.parametrize(
    "number",
    [
        "22,713,986",
        "0.3217",
        "0.6434",
        "0.1234",
        "9.000 ± 0.011",
        "14.000 ± 0.012",
        "10.000 ± 0.013",
        "123.4 ± 5.6",
        "246.8 ± 5.6",
        "0.500 ± 0.025",  # the ratio of the traces, with both errors
        "3.33",
        "0.1000 ± 0.0050",
        "0.3885",
        "0.0456",
        "0.0891",
        "1.5·10⁻⁵",
        "0.9876",
        "demo:rotten-tomatoes",
        "2.14.1",
        "double backward",
    ],
)
def test_numbers_and_their_errors_are_on_the_page(pair, number):
    assert f" {number} " in f" {pair[1].text} "


def test_every_point_of_the_landscape_is_in_the_tables(pair):
    for value in ("0.55", "1.3", "2.3", "1.55", "4.3"):
        assert f" {value} " in pair[1].text


@pytest.mark.parametrize(
    ("absent", "gone"),
    [
        (["hessian"], ["Curvature", "λmax", "trace"]),
        (["neighborhood"], ["Neighbourhood", "m-sharpness,"]),
        (["landscape"], ["Landscape", "Loss surface"]),
        (["hessian", "neighborhood", "landscape"], ["Curvature", "Neighbourhood", "Landscape"]),
    ],
    ids=lambda value: "+".join(value) if value[0].islower() else "",
)
def test_what_was_not_measured_is_not_there(tmp_path, absent, gone):
    one = model("sam", 1.0)
    for key in absent:
        del one[key]
    pictures, read = make(tmp_path, result(one))
    headings = read.text.split("Settings and environment")[0].split("At a glance")[1]
    assert not [word for word in gone if word in headings]
    assert "Between" not in read.text and "first / second" not in read.text
    assert len(pictures) == 5 - sum({"hessian": 1, "neighborhood": 2, "landscape": 2}[key] for key in absent)


def test_parts_of_measurements_may_be_absent_in_one_of_two_models(tmp_path):
    first, second = model("sam", 1.0), model("adamw", 2.0)
    del first["hessian"], first["landscape"], second["landscape"]["line"], second["gradient_norm"]
    first["neighborhood"]["m_sharpness"] = [{"m": 64, "p": 2, "mean": 0.25, "max": 0.25, "error": float("inf")}]
    pictures, read = make(tmp_path, result(first, second))
    assert [p.name for p in pictures] == [
        "spectral_density",
        "m_sharpness_2",
        "m_sharpness_inf",
        "loss_between",
        "loss_surface",
    ]
    assert "–" in read.text


def test_a_page_with_losses_that_are_not_finite(tmp_path):
    first, second = model("sam", 1.0), model("adamw", 2.0)
    for one in (first, second):
        del one["hessian"]
    nothing = float("nan")
    first["landscape"]["surface"]["loss"] = [[nothing] * len(Y) for _ in X]
    first["landscape"]["line"]["loss"] = [nothing, None, 0.3, float("inf"), nothing]
    second["landscape"]["surface"]["loss"][0][0] = None
    first["neighborhood"]["m_sharpness"][0] |= {"mean": nothing, "max": float("inf"), "error": None}
    pictures, read = make(tmp_path, result(first, second))
    assert len(pictures) == 5 and "∞" in read.text and "–" in read.text
    assert "lowest" in pictures[-1].svg.read_text(encoding="utf-8"), "the surface that is finite is drawn"


def test_hostile_names_stay_text(tmp_path):
    name = "<script>alert(1)</script>\"'&--><img src=x onerror=alert(2)>$x$"
    first, second = model(name, 1.0), model(name, 2.0)
    for one in (first, second):
        del one["landscape"]["surface"], one["neighborhood"]
    whole = result(first, second)
    whole["settings"]["command"] = "</td><script src='https://example.org/x.js'></script>"
    whole["environment"]["device"] = {"<b>": "</table>"}
    pictures, read = make(tmp_path, whole)
    assert not [tag for tag, _ in read.tags if tag in ("script", "b")]
    assert not [attributes for _, attributes in read.tags if "onerror" in attributes]
    assert name in read.text and f"{name} (2)" in read.text
    assert whole["settings"]["command"] in read.text
    assert not any(b"<script" in picture.svg.read_bytes() for picture in pictures)


def test_the_same_measurements_give_the_same_bytes(pair, folder, tmp_path):
    whole = result(model("sam", 1.0), model("adamw", 2.0))
    before = copy.deepcopy(whole)
    make(tmp_path, whole)
    assert whole == before
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir()) and len(names) == 13
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


@pytest.mark.parametrize("whole", [{"version": 2, "models": [{}]}, {"version": 1, "models": []}], ids=["2", "empty"])
def test_another_file_is_refused(tmp_path, whole):
    with pytest.raises(ValueError, match=r"sharpness\.json of version 1"):
        draw_pictures(whole, tmp_path)


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("sam_hf.reports.page.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=re.escape('pip install "sam-hf[plot]"')):
        draw_pictures(result(model("sam", 1.0)), tmp_path)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (12.3456, 0.0123, "12.346 ± 0.012"),
        (-12.3456, 1.23, "−12.3 ± 1.2"),
        (1234.5, 123.0, "1230 ± 120"),
        (3.2e-9, 1.1e-10, "3.2·10⁻⁹ ± 1.1·10⁻¹⁰"),
        (165.429569, 5.8e-5, "165.43 ± 5.8·10⁻⁵"),
        (0.25, float("inf"), "0.25"),
        (0.25, None, "0.25"),
        (None, 0.1, "–"),
        (float("nan"), 0.1, "–"),
        (float("inf"), 0.1, "∞"),
        (22713986, None, "22,713,986"),
        (float(123456), None, "1.235·10⁵"),
    ],
)
def test_numbers_are_rounded_to_their_error(value, error, text):
    assert page.measured(value, error) == text
