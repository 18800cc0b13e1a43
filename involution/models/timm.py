"""RedNet for timm: ``import involution.models.timm`` makes ``timm.create_model("rednet50")`` work.

The networks have timm's interface (``default_cfg``, ``feature_info``, ``forward_intermediates``, ``reset_classifier``,
``output_stride`` and what goes with them), so that what is built on timm, such as segmentation_models_pytorch's
``tu-rednet50``, takes them.

timm is an extra, and importing this module is what asks for it; nothing else in the library imports it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .rednet import RedNet
from .registry import create_model, list_models

try:
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.models import FeatureInfo, build_model_with_cfg, generate_default_cfgs, register_model
except (ImportError, RuntimeError) as error:  # the latter from a torchvision that does not fit torch
    raise ImportError(
        f"involution.models.timm needs timm, which cannot be imported ({error}). Install it with: "
        "pip install -e '.[timm]'"
    ) from error


def _configuration(**changes: Any) -> dict[str, Any]:
    """How the published networks were trained and measured, in timm's words; there is nothing to download."""
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1",
        "classifier": "head",
        **changes,
    }


_TINY = _configuration(num_classes=10, input_size=(3, 32, 32), pool_size=(8, 8), crop_pct=1.0)
default_cfgs = generate_default_cfgs(
    {name: _TINY if name == "rednet_tiny" else _configuration() for name in list_models()}
)

# What timm calls an argument, and what it is called here.
_NAMES = {"in_chans": "in_channels", "drop_path_rate": "drop_path", "drop_rate": "dropout"}


def build(name: str, pretrained: bool = False, **arguments: Any) -> RedNet:
    """A network by name, with timm's names of the arguments.

    With ``features_only`` it is a :class:`RedNet` that returns maps, of the stages ``out_indices``, counted from 0, and
    has timm's ``feature_info``; with ``feature_cls`` too, that one of timm's extractors.

    Raises:
        ValueError: ``pretrained`` is asked for.
        TypeError: an argument is not one of :class:`RedNet`'s.
    """
    if pretrained:
        raise ValueError(
            f"timm has no weights of {name} to download. Build it with pretrained=False and read a file with "
            "involution.models.load_checkpoint."
        )
    make = partial(_create, name)
    if arguments.get("features_only") and "feature_cls" not in arguments:
        features = {key: arguments.pop(key) for key in ("features_only", "out_indices") if key in arguments}
        make = partial(make, **features)
    # For timm's own extractors, all stages, which some of them find as children of the network.
    feature_cfg = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
    if name == "rednet_tiny":
        feature_cfg["out_indices"] = (0, 1, 2)
    model = build_model_with_cfg(make, name, pretrained, feature_cfg=feature_cfg, **arguments)
    if isinstance(model, RedNet) and model.features_only:
        model.feature_info = FeatureInfo(model.feature_info, model.out_indices)
    return model


def _create(name: str, **arguments: Any) -> RedNet:
    model: Any = create_model(name, **{_NAMES.get(key, key): value for key, value in arguments.items()})
    model.in_chans = model.in_channels  # as timm's networks call it
    return model


def _register(name: str) -> None:
    def entry(pretrained: bool = False, **arguments: Any) -> RedNet:
        return build(name, pretrained, **arguments)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"{name} of the involution library; see involution.models.{name}."
    register_model(entry)


for _name in list_models():
    _register(_name)
