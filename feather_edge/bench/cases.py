"""Random requests for a soak: pictures of any size, every way to prune, some spoilt on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from feather_edge.evaluate.scenes import COLOURS, SHAPES, make_scene
from feather_edge.pruning import CRITERION_NAMES, PRE_CRITERION_NAMES, Pruning, Region
from feather_edge.runtime.sampling import Sampling

if TYPE_CHECKING:
    from feather_edge.bundle import Bundle

__all__ = ["ENDINGS", "Case", "Ending", "random_case"]

Ending = Literal["answered", "cancelled", "dropped", "refused"]
"""Read to its end; closed after some tokens; left to the garbage collector; an error."""

ENDINGS: tuple[Ending, ...] = ("answered", "cancelled", "dropped", "refused")
SHARES = (0.7, 0.1, 0.1, 0.1)
MAX_SIDE_PX = 1024
MAX_NEW_TOKENS = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One request: how it shall end, and the arguments of ``Session.stream``.

    Attributes:
        num_read: tokens to read where it is not read to its end.
    """

    ending: Ending
    num_read: int
    request: dict[str, Any]


def random_case(bundle: Bundle, seed: tuple[int, int]) -> Case:
    """Return the case of a seed: always the same."""
    rng = np.random.default_rng(seed)
    ending = ENDINGS[int(rng.choice(len(ENDINGS), p=SHARES))]
    request: dict[str, Any] = {
        "images": [_picture(rng) for _ in range(int(rng.choice((1, 1, 1, 0, 2))))],
        "prompt": _prompt(rng),
        "pruning": _pruning(rng, num_stages=len(bundle.schedule.stages)),
        "sampling": Sampling(
            temperature=float(rng.choice((0, 0, 0.8))), seed=int(rng.integers(9))
        ),
        "max_new_tokens": int(rng.integers(1, MAX_NEW_TOKENS + 1)),
    }
    if ending == "refused":
        request |= _spoilt(rng)
    return Case(ending=ending, num_read=int(rng.integers(1, 4)), request=request)


def _picture(rng: np.random.Generator) -> np.ndarray:
    """Return a picture of any size, uint8 [H, W, 3]."""
    from PIL import Image

    scene = make_scene(rng, num_objects=int(rng.integers(1, 5)))
    width, height = (int(side) for side in rng.integers(16, MAX_SIDE_PX, 2))
    return np.asarray(Image.fromarray(scene.image).resize((width, height)))


def _prompt(rng: np.random.Generator) -> str:
    text = f"where is the {rng.choice(COLOURS)} {rng.choice(SHAPES)} ?"
    return " ".join([text] * int(rng.integers(1, 4)))


def _pruning(rng: np.random.Generator, *, num_stages: int) -> Pruning:
    shares = sorted((float(x) for x in rng.uniform(0.05, 1, max(1, num_stages))), reverse=True)
    return Pruning(
        criterion=str(rng.choice(CRITERION_NAMES)),
        keep_ratio=tuple(shares if rng.random() < 0.5 else shares[:1]),
        stride=int(rng.integers(0, 5)),
        selection="union" if rng.random() < 0.2 else "fill",
        seed=int(rng.integers(100)),
        pre_criterion=str(rng.choice(PRE_CRITERION_NAMES)) if rng.random() < 0.2 else "none",
        pre_keep_ratio=float(rng.uniform(0.2, 1)),
    )


def _spoilt(rng: np.random.Generator) -> dict[str, Any]:
    """Return what makes a request one that has to be refused, early or late."""
    picture = _picture(rng)
    choices: list[dict[str, Any]] = [
        {"images": b"no picture"},
        {"images": picture[:0]},
        {"images": picture, "max_new_tokens": 10**6},
        {"images": picture, "regions": [Region(box=(0, 0, 10**5, 1))]},
        {"images": picture, "prompt": "word " * 10**4},
        {"images": picture, "pruning": Pruning(criterion="best")},
    ]
    return choices[int(rng.integers(len(choices)))]
