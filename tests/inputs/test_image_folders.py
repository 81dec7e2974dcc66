"""Tests of folders of images: which file has which class, and what is refused or left out."""

from __future__ import annotations

import os
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from image_trees import rows

from sam_hf.errors import UsageError
from sam_hf.inputs.image_folders import load_image_folder


class TestClasses:
    def test_images_of_a_class_lie_at_any_depth(self, tree):
        folder = tree("cat/1.png", "cat/day/2.png", "cat/day/early/3.png", "dog/night/1.png")
        assert rows(folder) == {
            "cat/1.png": "cat",
            "cat/day/2.png": "cat",
            "cat/day/early/3.png": "cat",
            "dog/night/1.png": "dog",
        }

    def test_names_that_look_like_something_else(self, tree):
        names = ["__background__", "train", "a,b", "1", "cat.png", "pictures[1]", "what?", "*", "a::b", "café", " x"]
        folder = tree(*(f"{name}/1.png" for name in names), root="photos [new]")
        tree("OTHER/1.png", root="photos n")
        assert rows(folder) == {f"{name}/1.png": name for name in names}

    def test_links(self, tree, tmp_path):
        folder = tree("cat/1.png")
        elsewhere = tree("bird/1.png", "2.png", root="elsewhere")
        (folder / "bird").symlink_to(elsewhere / "bird")
        (folder / "cat/linked.png").symlink_to(elsewhere / "2.png")
        (folder / "cat/more").mkdir()
        (folder / "cat/more/bare").symlink_to(tree("3.png", root="third"))
        assert rows(folder) == {
            "bird/1.png": "bird",
            "cat/1.png": "cat",
            "cat/linked.png": "cat",
            "cat/more/bare/3.png": "cat",
        }
        (tmp_path / "linked").symlink_to(folder)
        assert rows(tmp_path / "linked") == rows(folder)

    def test_composed_and_decomposed_accents_are_one_class(self, tree):
        two = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
        train = load_image_folder(str(tree(f"{two[1]}/1.png", "tea/1.png", root="train")))
        validation = load_image_folder(str(tree(f"{two[0]}/1.png", "tea/1.png", root="validation")))
        assert train.features == validation.features
        assert train.features["label"].names == [two[0], "tea"]

    def test_upper_and_lower_case_are_two_classes(self, tree):
        assert set(rows(tree("a/1.png", "A/1.png", "b/1.PNG".lower())).values()) == {"a", "A", "b"}

    def test_relative_folder(self, tree, monkeypatch):
        folder = tree("cat/1.png", "dog/1.png")
        monkeypatch.chdir(folder.parent)
        dataset = load_image_folder("images")
        monkeypatch.chdir("/")
        assert dataset[0]["image"].size == (4, 4)

    def test_images_to_predict_need_no_classes(self, tree):
        assert rows(tree("b.png", "a.png"), needs_classes=False) == {"a.png": None, "b.png": None}
        with_some = tree("cat/1.png", "cover.png", root="some")
        assert rows(with_some, needs_classes=False) == {"cat/1.png": "cat", "cover.png": None}

    def test_random_trees_agree_with_a_plain_walk(self, tmp_path):
        for seed in range(50):
            generator = np.random.default_rng(seed)
            root = tmp_path / f"tree{seed}"
            for _ in range(generator.integers(2, 30)):
                names = [f"{generator.choice(list('xyz_[1 é'))}{i}" for i in range(generator.integers(1, 5))]
                ending = generator.choice([".png", ".JPG", ".jpeg", ".gif", ".txt", "", ".xml"])
                file = root.joinpath(*names, f"{generator.choice(list('abc-*'))}{ending}")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"is not opened")
            for name in os.listdir(root):
                (root / name / "one.png").write_bytes(b"")
            expected = {}
            for folder, _, files in os.walk(root):
                for file in files:
                    path = Path(folder, file).relative_to(root)
                    if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".gif"):
                        expected[str(path)] = path.parts[0]
            assert rows(root) == expected

    def test_many_files_are_read_fast(self, tmp_path):
        for i in range(20_000):
            if i % 1000 == 0:
                (tmp_path / f"class{i}").mkdir()
            os.close(os.open(tmp_path / f"class{i // 1000 * 1000}" / f"{i}.jpg", os.O_CREAT))
        start = time.process_time()
        assert len(load_image_folder(str(tmp_path))) == 20_000
        assert time.process_time() - start < 2  # usually a tenth of it


class TestRefusals:
    def refused(self, folder: Path, match: str, **options) -> None:
        with pytest.raises(UsageError, match=match) as error:
            load_image_folder(str(folder), **options)
        assert "\n" not in str(error.value)

    def test_missing_folder(self, tree, tmp_path):
        self.refused(tmp_path / "nowhere", "nowhere does not exist")
        self.refused(tree("a.png") / "a.png", "a.png is a file")

    def test_no_class_folders(self, tree):
        folder = tree("a.png")
        self.refused(folder, "has no class folders")

    def test_class_without_images(self, tree):
        folder = tree("cat/1.png")
        (folder / "dog").mkdir()
        self.refused(folder, "the class folder .*dog has no image$")
        tree("dog/readme.txt", "dog/notes/list.csv")
        self.refused(folder, r"dog has no image \(2 other files, the first is readme.txt\)")
        self.refused(tree("readme.txt", root="none"), "none has no image", needs_classes=False)

    def test_images_beside_the_class_folders(self, tree, warnings):
        folder = tree("cat/1.png", "dog/1.png", "cover.png")
        self.refused(folder, "images: cover.png is an image beside the class folders, without a class")
        tree("back.jpg")
        self.refused(folder, "2 images, the first is back.jpg, are beside the class folders")
        assert not warnings()
        assert rows(folder, drop_unlabelled=True) == {"cat/1.png": "cat", "dog/1.png": "dog"}
        assert warnings() == [
            f"Images that lie in no class folder are left out of {folder}: 2, the first is back.jpg."
        ]

    @pytest.mark.parametrize(
        "paths",
        [
            ["train/cat/1.png", "train/dog/1.png", "validation/cat/1.png", "validation/dog/1.png"],
            ["Training_Set/cat/1.png", "test set/dog/1.png"],
            ["train/cat/1.png", "train/dog/1.png"],
            ["train/1.png", "val/1.png"],
            ["train/cat/1.png", "val/cat/1.png", "extra/1.png"],
            ["train/cat/1.png", "test/1.png"],
        ],
    )
    def test_one_level_too_high(self, tree, paths):
        folder = tree(*paths)
        first = sorted({path.split("/")[0] for path in paths} - {"extra"})[0]
        self.refused(folder, f"which are names of splits: give the folder of one split, such as {folder}/{first}, or")

    def test_classes_with_the_names_of_splits(self, tree):
        assert set(rows(tree("train/1.png", "bus/1.png", "test/1.png")).values()) == {"train", "bus", "test"}
        assert rows(tree("train/1.png", root="one")) == {"train/1.png": "train"}
        # Vehicles by view: the folders in "train" and "bus" are alike, but only one of them has the name of a split
        alike = tree("train/front/1.png", "bus/front/1.png", root="alike")
        assert rows(alike) == {"bus/front/1.png": "bus", "train/front/1.png": "train"}

    def test_links_that_lead_nowhere(self, tree):
        folder = tree("cat/1.png", "dog/1.png")
        (folder / "cat/2.png").symlink_to("gone.png")
        self.refused(folder, r"cat/2\.png is a link to gone\.png, which does not exist")
        (folder / "cat/2.png").unlink()
        (folder / "bird").symlink_to(folder / "gone")
        self.refused(folder, "bird is a link to .*gone, which does not exist")
        (folder / "bird").unlink()
        (folder / "self").symlink_to(folder / "self")
        self.refused(folder, "self is a link to .*self, which does not exist")

    @pytest.mark.parametrize(
        "link, target", [("cat/up", ".."), ("cat/self", "."), ("cat/more", "../dog"), ("x", "cat")]
    )
    def test_the_same_folder_twice(self, tree, link, target):
        folder = tree("cat/1.png", "dog/1.png")
        (folder / link).symlink_to(target)
        self.refused(folder, "are the same folder: its images would be taken twice")

    @pytest.mark.parametrize("name", ["3.heic", "3.HEIF", "3.jxl", "3.svg", "3.CR2", "3.dcm", "more/3.heic"])
    def test_kinds_that_pillow_cannot_read(self, tree, name):
        folder = tree("cat/1.png", "dog/1.png", f"cat/{name}")
        self.refused(folder, f"{name} is an image of a kind that this Pillow cannot read: convert it, or remove it")

    def test_a_pillow_without_a_codec(self, tree, monkeypatch):
        from sam_hf.inputs import image_kinds

        folder = tree("cat/1.png", "dog/1.png", "dog/2.avif")
        assert len(rows(folder)) == 3
        monkeypatch.setattr(image_kinds, "_readable_endings", lambda: frozenset({".png"}))
        self.refused(folder, r"dog/2\.avif is an image of a kind that this Pillow cannot read")

    def test_images_under_another_ending(self, tree):
        folder = tree("cat/1.png", "dog/1.png")
        (folder / "cat/1.png").rename(folder / "cat/1.png_large")
        self.refused(folder, r"1\.png_large is an image, but \.png_large is not the ending of one")
        (folder / "cat/1.png_large").rename(folder / "cat/n0144_10026")
        assert rows(folder) == {"cat/n0144_10026": "cat", "dog/1.png": "dog"}

    def test_names_that_are_not_in_utf_8(self, tree):
        folder = tree("cat/1.png", "dog/1.png")
        try:
            os.rename(folder / "dog", os.path.join(os.fsencode(folder), b"d\xf6g"))
        except OSError:
            pytest.skip("this file system takes only UTF-8")
        self.refused(folder, r"is not in UTF-8: rename it")

    def test_folder_without_permission(self, tree, monkeypatch):
        folder = tree("cat/1.png", "dog/1.png")

        def scandir(path, real=os.scandir):
            if str(path).endswith("dog"):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)
        self.refused(folder, "dog cannot be read: Permission denied")
