"""The list of families is what the exporter takes, and each says of itself what it is."""

from __future__ import annotations

import json

from click.testing import CliRunner

from feather_edge.cli import main
from feather_edge.export.families import FAMILIES, family_infos


def test_every_family_describes_itself() -> None:
    for model_type, info in zip(FAMILIES, family_infos(), strict=True):
        assert info.model_type == model_type
        assert info.examples
        assert info.towers
        assert info.decoders
        assert info.images


def test_the_table_and_the_json_name_every_family() -> None:
    table = CliRunner().invoke(main, ["families"])
    document = CliRunner().invoke(main, ["families", "--json"])

    assert table.exit_code == document.exit_code == 0
    assert [entry["model_type"] for entry in json.loads(document.stdout)] == list(FAMILIES)
    for model_type in FAMILIES:
        assert f"{model_type}: such as" in table.stdout
