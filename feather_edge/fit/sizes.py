"""What a checkpoint or a bundle holds, as far as memory is concerned; no weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from feather_edge.bundle import Bundle
from feather_edge.checkpoint import resolve_checkpoint
from feather_edge.engines.memory import weight_bytes
from feather_edge.export.planning import plan_export
from feather_edge.manifest import MANIFEST_FILE
from feather_edge.recipes import default_recipe_name, load_recipe

if TYPE_CHECKING:
    import onnx

    from feather_edge.export.planning import ExportPlan
    from feather_edge.graphs import GraphSpec
    from feather_edge.manifest import BundleManifest
    from feather_edge.pruning.schedule import PruningSchedule
    from feather_edge.recipes import ExportRecipe

__all__ = ["ModelSizes", "planned_sizes", "read_sizes"]

TRACED = (
    "PyTorch traces the vision tower: what it takes during the export, and what is alive within "
    "the tower, do not count"
)


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """A bundle, there or planned.

    Attributes:
        source: what it is read from, for people.
        checkpoint: the folder to plan again with another recipe; None for a bundle.
        manifest: of the bundle; a planned one lists no files.
        schedule: where the decoder is split.
        models: by name of a graph, its main form without the data of its weights.
        weights: by name of a graph, bytes by type.
        embeddings_bytes: of the file of the embeddings.
        disk_bytes: of the bundle.
        write_bytes: in memory while the export writes the tensor that takes most.
        calibration: of the float bundle through which an export runs sample prompts, if it does.
        notes: what is not in these numbers.
    """

    source: str
    checkpoint: Path | None
    manifest: BundleManifest
    schedule: PruningSchedule
    models: dict[str, onnx.ModelProto]
    weights: dict[str, dict[str, int]]
    embeddings_bytes: int
    disk_bytes: int
    write_bytes: int = 0
    calibration: ModelSizes | None = None
    notes: tuple[str, ...] = ()

    @property
    def graphs(self) -> tuple[GraphSpec, ...]:
        """The contracts, vision encoder first."""
        return self.manifest.graphs


def read_sizes(source: str | Path | Bundle, recipe: ExportRecipe | None) -> ModelSizes:
    """Return the sizes of a bundle, or of what an export of a checkpoint would be.

    Args:
        source: a bundle, its folder, or a checkpoint as ``resolve_checkpoint`` takes it; of a
            hub id only the small files are fetched.
        recipe: of the export; None takes the default one. A bundle has its own.

    Raises:
        BundleError: if the bundle cannot be opened.
        CheckpointError: if the checkpoint cannot be read or is not supported.
        RecipeError: if the recipe does not fit it.
    """
    if isinstance(source, Bundle):
        return _bundle_sizes(source)
    if (Path(source) / MANIFEST_FILE).is_file():
        return _bundle_sizes(Bundle.open(source))
    effective = recipe or load_recipe(default_recipe_name(str(source)))
    folder = resolve_checkpoint(str(source), with_weights=False)
    return planned_sizes(folder, effective, source=str(source))


def planned_sizes(folder: Path, recipe: ExportRecipe, *, source: str) -> ModelSizes:
    """Return the sizes of what an export of ``folder`` would be."""
    return _plan_sizes(folder, plan_export(folder, recipe), source)


def _plan_sizes(folder: Path, plan: ExportPlan, source: str) -> ModelSizes:
    weights = {name: weight_bytes(model) for name, model in plan.models.items()}
    own = sum(sum(kinds.values()) for kinds in weights.values()) - plan.shared_bytes
    calibration = plan.calibration
    return ModelSizes(
        source=source,
        checkpoint=folder,
        manifest=plan.manifest,
        schedule=plan.schedule,
        models=plan.models,
        weights=weights,
        embeddings_bytes=plan.embeddings_bytes,
        disk_bytes=own + plan.embeddings_bytes,
        write_bytes=plan.write_bytes,
        calibration=None if calibration is None else _plan_sizes(folder, calibration, source),
        notes=(TRACED,) if plan.is_traced else (),
    )


def _bundle_sizes(bundle: Bundle) -> ModelSizes:
    import onnx

    models = {
        graph.name: onnx.load(bundle.path / graph.file, load_external_data=False)
        for graph in bundle.manifest.graphs
    }
    return ModelSizes(
        source=str(bundle.path),
        checkpoint=None,
        manifest=bundle.manifest,
        schedule=bundle.schedule,
        models=models,
        weights={name: weight_bytes(model) for name, model in models.items()},
        embeddings_bytes=bundle.embed_tokens_file.stat().st_size,
        disk_bytes=sum(record.num_bytes for record in bundle.manifest.files.values()),
    )
