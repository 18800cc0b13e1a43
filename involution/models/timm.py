"""RedNet for timm: ``import involution.models.timm`` makes ``timm.create_model("rednet50")`` work.

timm is an extra, and importing this module is what asks for it; nothing else in the library imports it.
"""

from __future__ import annotations

from typing import Any

from .rednet import RedNet
from .registry import create_model, list_models

try:
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.models import FeatureInfo, register_model
except ImportError as error:
    raise ImportError(
        f"involution.models.timm needs timm, which cannot be imported ({error}). Install it with: "
        "pip install -e '.[timm]'"
    ) from error

# How the published networks were trained and measured, in timm's words; there is nothing to download.
_CONFIGURATION = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bilinear",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "stem.conv1",
    "classifier": "head",
}
default_cfgs = {name: _CONFIGURATION for name in list_models() if name != "rednet_tiny"}

# What timm calls an argument, and what it is called here.
_NAMES = {"in_chans": "in_channels", "drop_path_rate": "drop_path", "drop_rate": "dropout"}
# What timm always passes; it speaks of weights to download, of which there are none.
_UNUSED = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def build(name: str, pretrained: bool = False, **arguments: Any) -> RedNet:
    """A network by name, with timm's names of the arguments.

    With ``features_only`` the result has timm's ``feature_info``; ``out_indices`` counts the stages from 0.

    Raises:
        ValueError: ``pretrained`` is asked for.
        TypeError: an argument is not one of :class:`RedNet`'s.
    """
    if pretrained:
        raise ValueError(
            f"timm has no weights of {name} to download. Build it with pretrained=False and read a file with "
            "involution.models.load_checkpoint."
        )
    for unused in _UNUSED:
        arguments.pop(unused, None)
    model: Any = create_model(name, **{_NAMES.get(key, key): value for key, value in arguments.items()})
    if name in default_cfgs:
        model.pretrained_cfg = model.default_cfg = {**_CONFIGURATION, "architecture": name}
    features = [
        {"num_chs": channels, "reduction": reduction, "module": f"stages.{stage}"}
        for stage, channels, reduction in zip(
            model.out_indices, model.feature_channels, model.feature_strides, strict=True
        )
    ]
    if features:
        model.feature_info = FeatureInfo(features, tuple(range(len(features))))
    return model


def _register(name: str) -> None:
    def entry(pretrained: bool = False, **arguments: Any) -> RedNet:
        return build(name, pretrained, **arguments)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"{name} of the involution library; see involution.models.{name}."
    register_model(entry)


for _name in list_models():
    _register(_name)
