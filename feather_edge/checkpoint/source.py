"""Find the checkpoint that a user named: a folder, the shipped model, or a hub id."""

from __future__ import annotations

import re
from pathlib import Path

import feather_edge
from feather_edge.errors import CheckpointError

DEMO = "demo"

# Weights as safetensors; configs, tokenizer.json and templates. No pickle and no code is fetched.
_ALLOW_PATTERNS = ["*.safetensors", "*.json", "*.jinja"]
_PLAN_PATTERNS = ["*.json", "*.jinja"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_checkpoint(spec: str, *, with_weights: bool = True) -> Path:
    """Return the local folder of a checkpoint; a hub id is downloaded first.

    Args:
        spec: a local folder, ``demo`` for the model that ships with the package, or a hub id
            ``organisation/name``. A local folder wins over a hub id of the same spelling.
        with_weights: whether a download brings them; a plan does with a few small files.

    Raises:
        CheckpointError: nothing of that name, or the hub cannot be reached.
    """
    folder = Path(spec).expanduser()
    if spec and folder.is_dir():
        return folder
    if spec == DEMO:
        return _demo_folder()
    if folder.is_file():
        raise CheckpointError(
            f"checkpoint {spec} is a file; give the folder that holds config.json"
        )
    if _HUB_ID.fullmatch(spec) and not spec.endswith((".safetensors", ".json", ".bin")):
        return _download(spec, _ALLOW_PATTERNS if with_weights else _PLAN_PATTERNS)
    raise CheckpointError(
        f"checkpoint {spec!r} does not exist; give a local folder, a hub id such as "
        f"llava-hf/llava-1.5-7b-hf, or {DEMO} for the model that ships with feather-edge"
    )


def _demo_folder() -> Path:
    folder = Path(feather_edge.__file__).parent / "assets" / "scene_vlm"
    if not folder.is_dir():
        raise CheckpointError(
            f"the shipped model is missing: {folder} does not exist; install feather-edge again"
        )
    return folder


def _download(hub_id: str, patterns: list[str]) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(
            f"{hub_id} is no local folder, and fetching it from the hub needs huggingface_hub: "
            "pip install 'feather-edge[hub]'"
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(hub_id, allow_patterns=patterns)
    except Exception as error:  # the client raises its own, httpx's and the system's errors
        cause = str(error).strip().splitlines()
        raise CheckpointError(
            f"{hub_id} is no local folder and cannot be fetched from the hub "
            f"({type(error).__name__}: {cause[0] if cause else 'no reason given'}); check the "
            "spelling, the network, and that you may read it"
        ) from error
    return Path(folder)
