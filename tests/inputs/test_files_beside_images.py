"""Files in folders of images that are no images: which are counted, passed over or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from image_trees import rows

from sam_hf.errors import UsageError
from sam_hf.inputs.image_folders import load_image_folder


class TestLeftOut:
    def test_other_files_are_counted(self, tree, warnings):
        folder = tree("cat/1.png", "dog/1.png", "README.txt", "cat/notes.txt", "dog/more/data.npy", "dog/a.h5")
        assert len(rows(folder)) == 2
        assert warnings() == [f"Files that are no images are left out of {folder}: 4, the first is README.txt."]

    def test_hidden_images_and_folders_are_counted(self, tree, warnings):
        folder = tree("cat/1.png", "dog/1.png", "dog/.2.png", ".net/1.png", "cat/.gitkeep")
        assert len(rows(folder)) == 2
        (line,) = warnings()
        assert (
            line == f"Images and folders whose names begin with a dot are left out of {folder}: 2, the first is .net."
        )

    def test_leftovers_of_systems_are_passed_over(self, tree, warnings):
        leftovers = [".DS_Store", "Thumbs.db", "@eaDir/1.png", "__MACOSX/cat/1.png", ".ipynb_checkpoints/1.png"]
        folder = tree("cat/1.png", "dog/1.png", "cat/._1.png", ".cache/huggingface/1.png", *leftovers)
        tree(*(f"cat/{name}" for name in leftovers))
        assert rows(folder) == {"cat/1.png": "cat", "dog/1.png": "dog"}
        assert not warnings()

    def test_something_that_is_no_file(self, tree, warnings):
        folder = tree("cat/1.png", "dog/1.png")
        os.mkfifo(folder / "cat/pipe")
        assert len(rows(folder)) == 2
        assert "the first is cat/pipe" in warnings()[0]

    @pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet", "cat/metadata.csv"])
    def test_metadata(self, tree, warnings, name):
        import pandas

        folder = tree("cat/1.png", "dog/1.png")

        def write(column: str) -> None:
            table = pandas.DataFrame({"file_name": ["cat/1.png"], column: ["x"]})
            {
                ".csv": lambda: table.to_csv(folder / name, index=False),
                ".jsonl": lambda: table.to_json(folder / name, orient="records", lines=True),
                ".parquet": lambda: table.to_parquet(folder / name),
            }[Path(name).suffix]()

        write("taken")
        assert rows(folder) == {"cat/1.png": "cat", "dog/1.png": "dog"}
        assert warnings() == [f"{folder / name} is not read (its columns: file_name, taken)."]
        write("label")
        with pytest.raises(UsageError, match="has the column label, and the class folders name classes too"):
            load_image_folder(str(folder))

    def test_metadata_that_is_damaged(self, tree, warnings):
        folder = tree("cat/1.png", "dog/1.png")
        for name in ("metadata.csv", "metadata.jsonl", "metadata.parquet"):
            (folder / name).write_bytes(b"")
        assert len(rows(folder)) == 2
        assert warnings()[0] == f"{folder / 'metadata.csv'} is not read (its columns: unknown)."

    def test_metadata_instead_of_class_folders(self, tree):
        folder = tree("a.png", "metadata.csv")
        with pytest.raises(UsageError, match=r"no class folders.*to take metadata.csv, give as dataset_name"):
            load_image_folder(str(folder))
        assert rows(folder, needs_classes=False) == {"a.png": None}
