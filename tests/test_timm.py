"""RedNet through timm, which is an extra; and that nothing needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from involution.models import rednet26


def test_nothing_needs_timm_until_it_is_asked_for():
    code = """
import sys, involution, involution.models
assert not any(name.split(".")[0] == "timm" for name in sys.modules)
sys.modules["timm"] = None
import involution.models.timm
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode != 0
    assert "ImportError: involution.models.timm needs timm" in result.stderr
    assert "pip install -e '.[timm]'" in result.stderr


@pytest.fixture(scope="module")
def timm():
    try:
        import timm
    except ImportError as error:
        pytest.skip(f"timm cannot be imported: {error}")
    import involution.models.timm  # noqa: F401

    return timm


@pytest.mark.parametrize("depth", [26, 38, 50, 101, 152])
def test_timm_knows_the_names(timm, depth):
    assert f"rednet{depth}" in timm.list_models("rednet*")
    assert timm.is_model(f"rednet{depth}")


def test_timm_builds_the_same_network(timm):
    torch.manual_seed(0)
    theirs = timm.create_model(
        "rednet26", num_classes=7, in_chans=1, drop_path_rate=0.2, drop_rate=0.1
    ).eval()
    torch.manual_seed(0)
    ours = rednet26(num_classes=7, in_channels=1, drop_path=0.2, dropout=0.1).eval()
    x = torch.randn(1, 1, 64, 64)
    assert torch.equal(theirs(x), ours(x))
    assert theirs.dropout.p == 0.1 and theirs.stages[-1][-1].drop_path.probability == pytest.approx(0.2)
    assert theirs.get_classifier() is theirs.head
    assert timm.data.resolve_model_data_config(theirs)["input_size"] == (3, 224, 224)


def test_timm_gives_features(timm):
    model = timm.create_model("rednet50", features_only=True, device="meta")
    assert model.feature_info.channels() == [256, 512, 1024, 2048]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    maps = model(torch.empty(1, 3, 64, 96, device="meta"))
    assert [tuple(each.shape[1:]) for each in maps] == [
        (256, 16, 24),
        (512, 8, 12),
        (1024, 4, 6),
        (2048, 2, 3),
    ]
    chosen = timm.create_model("rednet50", features_only=True, out_indices=(1, 3), device="meta")
    assert chosen.feature_info.channels() == [512, 2048]


def test_there_is_nothing_to_download(timm):
    with pytest.raises(ValueError, match=r"involution\.models\.load_checkpoint"):
        timm.create_model("rednet26", pretrained=True)
    with pytest.raises(TypeError, match="output_stride"):
        timm.create_model("rednet26", output_stride=8)
