"""Options of ``feather-edge export`` on how numbers are stored, and how exact they must be."""

from __future__ import annotations

from typing import get_args

import click

from feather_edge.cli._options import all_of
from feather_edge.recipes import Clipping, FloatPrecision, HeadPrecision, OpsetName, Precision

__all__ = ["precision_options"]

_RECIPE = "from the recipe"

precision_options = all_of(
    click.option(
        "--precision",
        type=click.Choice(get_args(Precision)),
        show_default=_RECIPE,
        help="Of the decoder: of weights and activations, of weights alone (int8, int4), or of "
        "weights and what they are multiplied with (int8-dynamic, for CPUs).",
    ),
    click.option(
        "--vision-precision",
        type=click.Choice(get_args(Precision)),
        show_default="as --precision, but int8 with int4",
        help="Of the vision encoder.",
    ),
    click.option(
        "--head-precision",
        type=click.Choice(get_args(HeadPrecision)),
        show_default="float, but int8 with integer weights",
        help="Of the language head's weights; float is the type of activations.",
    ),
    click.option(
        "--activations",
        type=click.Choice(get_args(FloatPrecision)),
        show_default="fp32",
        help="With int8 and int4, the type of all else: fp32 for CPUs, fp16 for TensorRT.",
    ),
    click.option(
        "--block-size",
        type=click.IntRange(min=16),
        show_default=_RECIPE,
        help="Weights of int8 and int4 that share a scale, such as 32 or 128.",
    ),
    click.option(
        "--clipping",
        type=click.Choice(get_args(Clipping)),
        show_default=_RECIPE,
        help="How scales are chosen: none for the largest weight, mse for least squared error.",
    ),
    click.option(
        "--opset",
        type=click.Choice(get_args(OpsetName)),
        show_default="every form that can hold the precision",
        help="Form of the graphs: 18 for TensorRT before 10.15, 23 for all else, 24 for KV caches "
        "in place with TensorRT; both for 18 and 23. Weights are shared.",
    ),
    click.option(
        "--lowest-cosine",
        type=click.FloatRange(-1, 1),
        show_default="from the recipe, or by precision",
        help="What verify asks of every output of every graph.",
    ),
    click.option(
        "--lowest-overlap",
        type=click.FloatRange(0, 1),
        show_default=_RECIPE,
        help="Share of the reference's kept rows that verify asks for.",
    ),
)
