"""Every name of TensorRT's Python module that the package uses exists where it is used."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tensorrt_api import Gate, listings, names_used, parse_version, wrong_names

import feather_edge

PACKAGE = Path(feather_edge.__file__).parent
ALL = ("10.3.0", "10.13.3.9", "10.15.1.29", "11.4.0.106")

# Names that not every recorded version has, with the versions that have them.
GATES = {"IAttentionInputLayer": Gate(since=(10, 14))}


def test_what_is_recorded() -> None:
    assert list(listings()) == ["10.13.3.9", "10.15.1.29", "10.3.0", "11.4.0.106"]
    assert list(listings("tensorrt_rtx")) == ["1.7.1.116"]


@pytest.mark.parametrize(
    ("name", "versions"),
    [
        ("Builder.build_serialized_network", ALL),
        ("Logger.WARNING", ALL),
        ("ILogger.Severity.ERROR", ALL),
        ("BuilderFlag.FP16", ALL[:3]),
        ("NetworkDefinitionCreationFlag.EXPLICIT_BATCH", ALL[:3]),
        ("NetworkDefinitionCreationFlag.STRONGLY_TYPED", ALL),
        ("OnnxParser.supports_model", ALL[:3]),
        ("OnnxParser.load_model_proto", ALL[1:]),
        ("ITopKLayer.indices_type", ALL[2:]),
        ("IKVCacheUpdateLayer", ALL[2:]),
        ("IRotaryEmbeddingLayer", ALL[2:]),
        ("Builder.no_such_thing", ()),
    ],
)
def test_listings_tell_versions_apart(name: str, versions: tuple[str, ...]) -> None:
    found = {version for version, names in listings().items() if name in names}
    assert found == set(versions)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("trt.Builder(trt.Logger(trt.Logger.WARNING))", {"Builder", "Logger.WARNING"}),
        ("import tensorrt\ntensorrt.Runtime", {"Runtime"}),
        ("import tensorrt_rtx as rtx\nrtx.ComputeCapability.SM86", {"ComputeCapability.SM86"}),
        (
            "def f():\n    import tensorrt as t\n    return t.BuilderFlag.TF32",
            {"BuilderFlag.TF32"},
        ),
        ("from tensorrt import OnnxParser", {"OnnxParser"}),
        ("getattr(trt.BuilderFlag, 'TF32')", {"BuilderFlag.TF32"}),
        ("getattr(trt.BuilderFlag, 'FP16', None)", {"BuilderFlag"}),
        ("hasattr(trt, 'IAttention')", set()),
        ("other.Builder; x.trt.Builder", set()),
        ("trt.Builder(l).create_network(0)", {"Builder"}),
    ],
)
def test_names_used(source: str, names: set[str]) -> None:
    assert names_used(source) == names


def test_versions_compare_as_numbers() -> None:
    assert parse_version("10.3.0") < parse_version("10.13.3.9") < parse_version("11.4.0.106")
    assert parse_version("10.14.1.48.post1") == (10, 14, 1, 48)


def test_a_name_that_a_version_lacks_needs_a_gate() -> None:
    source = "trt.BuilderFlag.FP16"
    assert wrong_names(source) == [
        "tensorrt 11.4.0.106 has no BuilderFlag.FP16; declare a Gate for it"
    ]
    assert wrong_names(source, {"BuilderFlag.FP16": Gate(until=(11,))}) == []
    assert wrong_names(source, {"BuilderFlag.FP16": Gate(since=(10, 13), until=(11,))}) == [
        "tensorrt 10.3.0 has BuilderFlag.FP16, and its Gate says otherwise"
    ]


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PACKAGE.rglob("*.py")) if "tensorrt" in path.read_text("utf-8")],
    ids=lambda path: path.relative_to(PACKAGE).as_posix(),
)
def test_every_name_used_exists(path: Path) -> None:
    assert wrong_names(path.read_text(encoding="utf-8"), GATES) == []
