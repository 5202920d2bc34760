"""Deployments that are killed: ``-m support.killing CHECKPOINT FOLDER NUMBER`` runs and judges.

Each deployment runs in a fork of a process that has loaded everything, so that a trial costs what
the stages cost. It ends itself by SIGKILL a random moment after a chosen change of the file
system: an audit hook counts these. Writes ``trials.json`` into FOLDER.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feather_edge.deploy.chain import deploy
from feather_edge.deploy.deployment import Deployment
from feather_edge.deploy.target import read_target
from feather_edge.recipes import ExportRecipe

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MEASURED", "deployment", "tree"]

MEASURED = ("deploy/measured.json", "report.html")
"""The files of a bundle that hold times; all others must be the same."""
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.chmod", "os.utime")
WRITING = os.O_WRONLY | os.O_RDWR
MAX_DELAY_S = 0.02


def deployment(
    checkpoint: str, output: Path, *, keep_ratio: float = 0.5, **options: Any
) -> Deployment:
    """Return a small deployment: two segments, one round of the benchmark."""
    fields: dict[str, Any] = {"target": read_target("cpu"), "warmup": 0, "repeat": 1, **options}
    recipe = ExportRecipe(stages=(2,), keep_ratio=(keep_ratio,), opset="both")
    return Deployment(checkpoint=checkpoint, output=output, recipe=recipe, **fields)


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder, but for what holds times; those must be there."""
    files = {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    for name in MEASURED:
        assert files.pop(name)
    return files


def in_fork(action: Callable[[], object]) -> int:
    """Run an action in a fork; returns its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_changes(reached: Callable[[int], None]) -> None:
    """Call ``reached`` with the number of each change of the file system from now on."""
    num_changes = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal num_changes
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if is_write or event in CHANGES:
            num_changes += 1
            reached(num_changes)

    sys.addaudithook(hook)


def kill_at(number: int, delay_s: float) -> None:
    """End this process by SIGKILL, so long after it begins change ``number``."""

    def die() -> None:
        time.sleep(delay_s)
        os.kill(os.getpid(), signal.SIGKILL)

    def reached(now: int) -> None:
        if now == number:
            threading.Thread(target=die).start() if delay_s else die()

    count_changes(reached)


class Trials:
    """Trials below one folder, all with the same name of the bundle."""

    def __init__(self, checkpoint: str, root: Path) -> None:
        self._checkpoint = checkpoint
        self._root = root
        self._rng = random.Random(2026)  # noqa: S311 - the same moments on every run

    def output(self, name: str) -> Path:
        return self._root / name / "bundle"

    def whole(self, name: str, **options: Any) -> int:
        """Deploy undisturbed; returns the number of changes of the file system."""
        counter = self._root / f"{name}.count"
        output = self.output(name)

        def run() -> None:
            count_changes(lambda number: numbers.append(number))
            deploy(deployment(self._checkpoint, output, **options))
            counter.write_text(str(len(numbers)))

        numbers: list[int] = []
        assert in_fork(run) == 0
        return int(counter.read_text())

    def disturb(self, name: str, num_changes: int) -> dict[str, Any]:
        """Deploy over what is there, killed once or twice, and then to the end."""
        output, kills = self.output(name), []
        for _ in range(self._rng.choice((1, 1, 2))):
            number = self._rng.randint(1, num_changes)
            delay_s = self._rng.choice((0, 0, self._rng.uniform(0, MAX_DELAY_S)))

            def run(number: int = number, delay_s: float = delay_s) -> None:
                kill_at(number, delay_s)
                deploy(deployment(self._checkpoint, output))

            kills.append({"at": number, "delay_s": delay_s, "status": in_fork(run)})
        left = tree(output) if (output / MEASURED[1]).exists() else None
        status = in_fork(lambda: deploy(deployment(self._checkpoint, output)))
        return {"kills": kills, "left": left, "status": status}


def main(checkpoint: str, root: Path, num_trials: int) -> None:
    """Run the trials: half from nothing, half over an earlier bundle."""
    trials = Trials(checkpoint, root)
    num_changes = trials.whole("whole")
    trials.whole("earlier", keep_ratio=0.25)
    wanted, earlier = tree(trials.output("whole")), tree(trials.output("earlier"))
    found = []
    for number in range(num_trials):
        name, is_over = f"trial-{number}", number % 2 == 1
        if is_over:
            shutil.copytree(trials.output("earlier"), trials.output(name))
        trial = trials.disturb(name, num_changes)
        left, got = trial.pop("left"), tree(trials.output(name))
        found.append(
            {
                **trial,
                "is_over": is_over,
                "left_is_whole": left in (None, earlier, wanted),
                "differs": sorted(
                    name
                    for name in wanted.keys() | got.keys()
                    if wanted.get(name) != got.get(name)
                ),
                "beside": sorted(path.name for path in trials.output(name).parent.iterdir()),
            }
        )
    (root / "trials.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
