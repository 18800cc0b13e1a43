"""RedNet through timm, which is an extra; and that nothing needs it."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys

import pytest
import torch

from involution.models import list_models, rednet26


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
def timm(torchvision):
    """Which needs torchvision itself."""
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


@pytest.mark.parametrize("name", list_models())
def test_configurations_hold(timm, name):
    """What timm's own tests ask of a model and its default_cfg, without memory."""
    make = functools.partial(timm.create_model, name, device="meta")
    model = make()
    cfg, names = model.default_cfg, set(model.state_dict())
    assert cfg["architecture"] == name and cfg is model.pretrained_cfg
    assert {f"{cfg['classifier']}.weight", f"{cfg['first_conv']}.weight"} <= names
    assert model.in_chans == cfg["input_size"][0]
    assert (
        model.num_classes == cfg["num_classes"] and model.get_classifier(name_only=True) == cfg["classifier"]
    )
    x = torch.empty(1, *cfg["input_size"], device="meta")
    features = model.forward_features(x)
    assert features.shape == (1, model.num_features, *cfg["pool_size"])
    assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)
    assert timm.models.get_pretrained_cfg_value(name, "input_size") == cfg["input_size"]
    model.reset_classifier(0)
    assert model.num_classes == 0 and model(x).shape == (1, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model(x).shape == features.shape
    assert make(num_classes=0)(x).shape == (1, model.num_features)
    assert make(num_classes=0, global_pool="")(x).shape == features.shape
    info = timm.models.FeatureInfo(model.feature_info, len(model.feature_info))
    maps = model.forward_intermediates(x)[1]
    assert [each.shape[1] for each in maps] == info.channels()
    for each, reduction in zip(maps, info.reduction(), strict=True):
        assert each.shape[2:] == tuple(size // reduction for size in x.shape[2:])
    assert all(model.get_submodule(module) is not None for module in info.module_name())


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_output_strides_are_those_of_timm_s_resnet(timm, output_stride):
    ours, theirs = (
        timm.create_model(name, output_stride=output_stride, device="meta")
        for name in ("rednet50", "resnet50")
    )
    layers = (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4)
    for stage, layer in zip(ours.stages, layers, strict=True):
        for block, other in zip(stage, layer, strict=True):
            assert block.involution.stride == other.conv2.stride
            assert block.involution.dilation == other.conv2.dilation
    infos = [info["reduction"] for info in theirs.feature_info[1:]]
    assert [info["reduction"] for info in ours.feature_info] == infos
    assert ours.forward_features(torch.empty(1, 3, 64, 96, device="meta")).shape[2:] == (
        64 // output_stride,
        96 // output_stride,
    )


INDICES = {None: [0, 1, 2], (0, 2): [0, 2], (-1,): [2], (-2, -1): [1, 2], 2: [1, 2]}


@pytest.mark.parametrize("indices", INDICES)
@pytest.mark.parametrize("kind", [None, "getter", "list", "dict", "hook", "fx"])
def test_every_feature_extractor(timm, kind, indices):
    keywords = {} if indices is None else {"out_indices": indices}
    keywords |= {} if kind is None else {"feature_cls": kind}
    torch.manual_seed(0)
    model = timm.create_model("rednet_tiny", features_only=True, **keywords).eval()
    torch.manual_seed(0)
    whole = timm.create_model("rednet_tiny").eval()
    state = whole.state_dict()
    own = model.state_dict()
    for name, tensor in own.items():  # named otherwise by some extractors
        own[name] = state[
            name.replace("graph_module.", "").replace("model.", "").replace("stages_", "stages.")
        ]
        assert own[name].shape == tensor.shape
    model.load_state_dict(own)
    x = torch.randn(1, 3, 8, 16)
    maps = model(x)
    taken = INDICES[indices]
    expected = [whole.forward_intermediates(x)[1][index] for index in taken]
    torch.testing.assert_close(list(maps.values()) if isinstance(maps, dict) else maps, expected)
    assert model.in_chans == 3
    assert model.feature_info.channels() == [64 << index for index in taken]
    assert model.feature_info.reduction() == [1 << index for index in taken]


def test_groups_of_parameters(timm):
    """All parameters but the head's belong to the stem, a stage or a block."""
    from timm.models import group_parameters
    from timm.optim import param_groups_layer_decay

    model = timm.create_model("rednet_tiny")
    for coarse, count in ((False, 1 + 2 + 2 + 2), (True, 1 + 3)):
        groups = group_parameters(model, model.group_matcher(coarse), reverse=False)
        assert len(groups) == count + 1 and sorted(groups[max(groups)]) == ["head.bias", "head.weight"]
    names = {"stem": r"^stem", "blocks": r"^stages\.(\d+)\.(\d+)"}
    assert model.group_matcher() == names
    decayed = param_groups_layer_decay(model, layer_decay=0.5)
    assert len({group["lr_scale"] for group in decayed}) == 8
    assert sum(len(group["params"]) for group in decayed) == len(list(model.parameters()))


@pytest.mark.parametrize("training", [False, True])
def test_timm_traces_it(timm, training):
    from timm.models import get_notrace_functions, get_notrace_modules
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    torch.manual_seed(0)
    model = timm.create_model("rednet_tiny", drop_path_rate=0.2).train(training)
    tracing = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    nodes = get_graph_node_names(model, tracer_kwargs=tracing)
    ends = {"train_return_nodes": nodes[0][-1:], "eval_return_nodes": nodes[1][-1:]}
    graph = create_feature_extractor(copy.deepcopy(model), **ends, tracer_kwargs=tracing).train(training)
    x = torch.randn(2, 3, 16, 16)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    (output,) = graph(x).values()
    assert torch.equal(output, expected)
    output.mean().backward()
    assert all(parameter.grad is not None for parameter in graph.parameters())


def test_features_train_with_checkpointing(timm):
    model = timm.create_model("rednet_tiny", features_only=True)
    model.set_grad_checkpointing()
    model(torch.randn(2, 3, 8, 8))[-1].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.fixture(scope="module")
def segmentation(timm):
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        pytest.skip(f"segmentation_models_pytorch cannot be imported: {error}")
    return segmentation_models_pytorch


@pytest.mark.parametrize("encoder", ["tu-rednet26", "tu-resnet26"])
@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("DeepLabV3Plus", {"encoder_output_stride": 8}),
        ("DeepLabV3Plus", {"encoder_output_stride": 16}),
        ("PAN", {"encoder_output_stride": 16}),
        ("PAN", {"encoder_output_stride": 32}),
        ("DPT", {"decoder_readout": "ignore"}),
        ("Unet", {}),
    ],
    ids=str,
)
def test_segmenters_take_it_as_they_take_timm_s_resnet(segmentation, encoder, name, keywords):
    with torch.device("meta"):
        model = getattr(segmentation, name)(encoder, encoder_weights=None, classes=4, **keywords).eval()
    assert model(torch.empty(2, 3, 256, 288, device="meta")).shape == (2, 4, 256, 288)


ARCHITECTURES = (
    *("unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet"),
    *("deeplabv3", "deeplabv3plus", "pan", "upernet", "segformer", "dpt"),
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_segmenter_trains(segmentation, name):
    """A step moves the decoder and, through every stage that it reads, the encoder's first convolution."""
    torch.manual_seed(0)
    keywords = {"decoder_readout": "ignore"} if name == "dpt" else {}  # there is no class token
    model = segmentation.create_model(name, "tu-rednet26", encoder_weights=None, classes=4, **keywords)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    size = 128 if name == "pan" else 64  # which halves the last map three times more
    scores = model(torch.randn(2, 3, size, size))
    assert scores.shape == (2, 4, size, size)
    torch.nn.functional.cross_entropy(scores, torch.randint(4, (2, size, size))).backward()
    optimizer.step()
    moved = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert any(key.endswith("stem.conv1.weight") for key in moved)
    for part in ("decoder.", "segmentation_head."):
        assert any(key.startswith(part) for key in moved)


def test_every_segmenter_is_among_them(segmentation):
    assert set(segmentation.MODEL_ARCHITECTURES_MAPPING) == set(ARCHITECTURES)


def test_there_is_nothing_to_download(timm):
    with pytest.raises(ValueError, match=r"involution\.models\.load_checkpoint"):
        timm.create_model("rednet26", pretrained=True)
    with pytest.raises(TypeError, match="cardinality"):
        timm.create_model("rednet26", cardinality=8)
