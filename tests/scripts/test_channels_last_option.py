"""`--channels_last` trains the same in another layout, also if a run resumes in a layout other than its first."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import Conv2d

import sam_hf
from sam_hf.errors import UsageError
from sam_hf.recipes.model_options import to_channels_last

# The large epsilon keeps Adam from taking a full step where a gradient is hardly more than rounding
OPTIONS = (
    "--adam_epsilon 0.1 --learning_rate 0.001 "
    "--report_to none --disable_tqdm true --use_cpu true --per_device_train_batch_size 4 --sam_rho 0.01 --do_train "
    "--image_size 48 --lr_scheduler_type constant --crop_scale_min 1 --horizontal_flip 0"
).split()


@pytest.fixture
def train(finetune_image, tmp_path, timm_checkpoint, image_folder):
    def call(output, *options):
        where = [
            "--model_name_or_path",
            timm_checkpoint,
            "--train_dir",
            image_folder,
            "--output_dir",
            tmp_path / output,
        ]
        finetune_image.main([*map(str, where), *OPTIONS, *options])
        return load_file(tmp_path / output / "model.safetensors")

    return call


@pytest.fixture
def layouts(monkeypatch):
    """The set of answers to whether a convolution's output was channels last, from all training steps."""
    seen = set()
    step = sam_hf.SAMTrainer.training_step

    def note(module, _, output):
        if isinstance(module, Conv2d) and output.shape[2] > 1:
            seen.add(output.is_contiguous(memory_format=torch.channels_last))

    def watched(self, model, inputs, *args):
        handles = [module.register_forward_hook(note) for module in model.modules()]
        loss = step(self, model, inputs, *args)
        for handle in handles:
            handle.remove()
        return loss

    monkeypatch.setattr(sam_hf.SAMTrainer, "training_step", watched)
    return seen


def assert_moved_alike(one, other, start):
    """Check that both moved almost the same way. The kernels sum in another order, so the bits differ."""
    convolutions = [name for name, value in start.items() if value.dim() == 4]
    assert len(convolutions) > 5
    for name in convolutions:
        moved = (one[name] - start[name]).norm()
        assert moved > 0 and (other[name] - one[name]).norm() < 0.1 * moved, name


def test_same_training(train, timm_checkpoint, layouts):
    plain = train("plain", "--max_steps", "2", "--save_strategy", "no")
    assert layouts == {False}
    layouts.clear()
    other = train("other", "--max_steps", "2", "--save_strategy", "no", "--channels_last")
    assert layouts == {True}
    assert_moved_alike(plain, other, load_file(timm_checkpoint / "model.safetensors"))


@pytest.mark.parametrize("first, then", [((), ("--channels_last",)), (("--channels_last",), ())], ids=["to", "from"])
def test_resuming_in_the_other_layout(train, timm_checkpoint, first, then):
    plain = train("plain", "--max_steps", "4", "--save_strategy", "no")
    train("changed", "--max_steps", "2", "--save_steps", "2", *first)
    changed = train("changed", "--max_steps", "4", "--save_strategy", "no", *then)
    assert_moved_alike(plain, changed, load_file(timm_checkpoint / "model.safetensors"))


def test_refused_with_fsdp(monkeypatch):
    with pytest.raises(UsageError, match="channels_last cannot go with FSDP"):
        to_channels_last(Conv2d(3, 3, 3), SimpleNamespace(fsdp=["full_shard"]))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="channels_last cannot go with FSDP"):
        to_channels_last(Conv2d(3, 3, 3), SimpleNamespace(fsdp=[]))
