"""The names of mmseg's segmenters, which the official checkpoints have, and ours."""

from __future__ import annotations

from ..models.official import OfficialNames, involution_names


def _conv_norm(official: str, ours: str) -> dict[str, str]:
    return {f"{official}.conv": f"{ours}.conv", f"{official}.bn": f"{ours}.norm"}


NAMES = OfficialNames(
    "segmenter",
    "backbone",
    {
        "neck.lateral_convs.{}.conv": "neck.lateral.{}",
        "neck.fpn_convs.{}.conv": "neck.output.{}",
        **involution_names("neck.fpn_convs.{}", "neck.output.{}"),
        **_conv_norm("decode_head.scale_heads.{}.{}", "head.scales.{}.{}"),
        **_conv_norm("decode_head.psp_modules.{}.1", "head.pools.{}.1"),
        **_conv_norm("decode_head.bottleneck", "head.bottleneck"),
        **_conv_norm("decode_head.lateral_convs.{}", "head.lateral.{}"),
        **_conv_norm("decode_head.fpn_convs.{}", "head.output.{}"),
        **_conv_norm("decode_head.fpn_bottleneck", "head.fusion"),
        "decode_head.conv_seg": "head.classifier",
        **_conv_norm("auxiliary_head.convs.{}", "auxiliary.convs.{}"),
        "auxiliary_head.conv_seg": "auxiliary.classifier",
    },
    classifiers=("head.classifier", "auxiliary.classifier"),
    optional=("auxiliary",),
)
