"""Hostile input, made by hypothesis, in a process that may crash: ``python -m support.hostile``.

Each function below is one kind of file. Whatever becomes of it, the program may answer or refuse
with an error of its own; a traceback of something else, a crash, a hang (``HANG_S``) or memory
beyond ``MAX_GROWTH_BYTES`` ends this process with a status that is not 0.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import io
import json
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from feather_edge.bundle import Bundle
from feather_edge.checkpoint.reader import read_tensors
from feather_edge.errors import BundleError, FeatherEdgeError
from feather_edge.images import load_image
from feather_edge.manifest import MANIFEST_FILE, BundleManifest, manifest_sha256
from feather_edge.runtime.backends.fake import FakeBackend
from feather_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from feather_edge.runtime.prompt import PromptFormatter
from feather_edge.runtime.session import Session

HANG_S = 20
MAX_GROWTH_BYTES = 2 * 2**30

ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 255, 2**31, 2**53, -(2**53), 0.5, -0.0, 1e308, 1e-308, "",
    "x", "..", "/etc/passwd", "../outside", "onnx/../..", "\x00", "é" * 100, "9" * 400, [], {},
    [[]], [0] * 50, {"a": 1}, ["x", "y"],
]  # fmt: skip

odd_values = st.sampled_from(ODD_VALUES) | st.integers(-(2**60), 2**60) | st.floats() | st.text()


@st.composite
def mutated_bytes(draw: st.DrawFn, original: bytes) -> bytes:
    """Flip, insert, delete, repeat and cut."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(1, 64))
        how = draw(st.sampled_from(["flip", "set", "insert", "delete", "repeat", "cut"]))
        if how == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "set":
            data[place : place + length] = draw(st.sampled_from([b"\0", b"\xff"])) * length
        elif how == "insert":
            data[place:place] = draw(st.binary(max_size=64))
        elif how == "delete":
            del data[place : place + length]
        elif how == "repeat":
            data[place:place] = data[place : place + length] * draw(st.integers(1, 9))
        elif how == "cut":
            del data[place:]
    return bytes(data)


def _places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(document, dict):
        for key, value in document.items():
            found += _places(value, (*path, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            found += _places(value, (*path, index))
    return found


@st.composite
def mutated_document(draw: st.DrawFn, original: Any) -> Any:
    """Replace, remove, repeat and swap values anywhere in a JSON document."""
    document = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(document)[1:]
        if not places:
            break
        *parents, key = draw(st.sampled_from(places))
        holder = document
        for parent in parents:
            holder = holder[parent]
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "repeat", "swap"]))
        if how == "replace":
            holder[key] = copy.deepcopy(draw(odd_values))  # lists may be changed again
        elif how == "remove":
            del holder[key]
        elif how == "repeat" and isinstance(holder, list):
            holder.extend([holder[key]] * draw(st.integers(1, 40)))
        else:
            *others, other = draw(st.sampled_from(places))
            with contextlib.suppress(KeyError, IndexError, TypeError):
                source = document
                for parent in others:
                    source = source[parent]
                holder[key] = copy.deepcopy(source[other])
    return document


def _fuzz(num_examples: int, strategy: Any, check: Any) -> int:
    """Run ``check`` on examples of ``strategy``; returns how many it saw."""
    seen = 0

    @settings(
        max_examples=num_examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def run(example: Any) -> None:
        nonlocal seen
        seen += 1
        signal.alarm(HANG_S)
        with contextlib.suppress(FeatherEdgeError):
            check(example)
        signal.alarm(0)

    run()
    return seen


def _check_one_line(refusal: FeatherEdgeError) -> None:
    assert "\n" not in str(refusal), refusal


# -- one function for each kind of file -------------------------------------------------------


def sealed_files(bundle: Path, num_examples: int) -> int:
    """Damage of any file that its seal must tell: only the very same bundle may open."""
    names = sorted(
        path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()
    )
    before = {name: (bundle / name).read_bytes() for name in names}
    manifest = Bundle.open(bundle).manifest

    def check(example: tuple[str, bytes]) -> None:
        name, content = example
        (bundle / name).write_bytes(content)
        try:
            opened = Bundle.open(bundle)
            is_same = content == before[name] or name == MANIFEST_FILE
            assert is_same, f"{name} was altered and nobody noticed"
            assert opened.manifest == manifest, "the manifest says something else"
        except BundleError as refusal:
            _check_one_line(refusal)
        finally:
            (bundle / name).write_bytes(before[name])

    strategy = st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.just(name), mutated_bytes(before[name]))
    )
    return _fuzz(num_examples, strategy, check)


def manifests(bundle: Path, num_examples: int) -> int:
    """Manifests that say anything and are sealed: a session opens and answers, or refuses."""
    file = bundle / MANIFEST_FILE
    original = json.loads(file.read_text())
    picture = Image.new("RGB", (40, 30), "red")

    def check(document: Any) -> None:
        with contextlib.suppress(msgspec.ValidationError, FeatherEdgeError, TypeError):
            document["sha256"] = manifest_sha256(msgspec.convert(document, BundleManifest))
        file.write_text(json.dumps(document))
        with Session.open(bundle, backend=FakeBackend(token_ids=[5, 6])) as session:
            session.generate(picture, "what ?", max_new_tokens=2)

    return _fuzz(num_examples, mutated_document(original), check)


def tensors(bundle: Path, num_examples: int) -> int:
    """Safetensors files, header and all: every tensor that is listed can be read."""
    content = (bundle / "onnx" / "embed_tokens.safetensors").read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    header, body = content[8:length], content[length:]
    file = bundle / "fuzzed.safetensors"

    def check(example: bytes) -> None:
        file.write_bytes(example)
        for view in read_tensors(file).values():
            assert view.read().nbytes == view.nbytes

    def packed(document: Any) -> bytes:
        text = json.dumps(document).encode()
        return len(text).to_bytes(8, "little") + text + body

    strategy = mutated_bytes(content[: length + 64]) | mutated_document(json.loads(header)).map(
        packed
    )
    return _fuzz(num_examples, strategy, check)


def graphs(bundle: Path, num_examples: int) -> int:
    """ONNX files in ONNX Runtime: one opens and runs, or the backend says that it does not."""
    backend = OnnxRuntimeBackend(device="cpu", num_threads=1)
    spec = Bundle.open(bundle).manifest.graphs[-1]
    file = bundle / spec.file
    content = file.read_bytes()
    sizes = {"batch": 1, "sequence": 2, "past_sequence": 1, "total_sequence": 3}
    inputs = {
        tensor.name: backend.upload(
            np.ones([sizes[d] if isinstance(d, str) else d for d in tensor.shape], tensor.dtype)
        )
        for tensor in spec.inputs
    }

    def check(example: bytes) -> None:
        file.write_bytes(example)
        backend.open(file, spec).run(inputs)

    return _fuzz(num_examples, mutated_bytes(content), check)


def tokenizers(bundle: Path, num_examples: int) -> int:
    """Tokenizer, its settings and the chat template: a prompt is encoded, or refused."""
    names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"]
    before = {name: (bundle / name).read_bytes() for name in names}
    token_id = json.loads(before["config.json"])["image_token_index"]

    def check(example: tuple[str, bytes]) -> None:
        name, content = example
        (bundle / name).write_bytes(content)
        try:
            formatter = PromptFormatter.open(bundle, image_token_id=token_id)
            encoded = formatter.encode("where is it ?", images=[(4,)])
            formatter.decode(encoded.prompt_ids.tolist())
        finally:
            (bundle / name).write_bytes(before[name])

    def mutated(name: str) -> st.SearchStrategy[tuple[str, bytes]]:
        content = mutated_bytes(before[name])
        if name.endswith(".json"):
            content |= mutated_document(json.loads(before[name])).map(
                lambda document: json.dumps(document).encode()
            )
        return st.tuples(st.just(name), content)

    return _fuzz(num_examples, st.sampled_from(names).flatmap(mutated), check)


def pictures(_bundle: Path, num_examples: int) -> int:
    """Image files of every common format: pixels, or a refusal."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    originals = []
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, form)
        originals.append(stream.getvalue())

    def check(example: bytes) -> None:
        assert load_image(example).mode == "RGB"

    return _fuzz(num_examples, st.sampled_from(originals).flatmap(mutated_bytes), check)


KINDS = {
    each.__name__: each
    for each in (sealed_files, manifests, tensors, graphs, tokenizers, pictures)
}


def main(kind: str, source: str, num_examples: int) -> None:
    """Fuzz one kind of file in a copy of a bundle; the last line on stdout counts examples."""
    faulthandler.enable()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a hang ends the process
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(shutil.copytree(source, Path(folder) / "bundle"))
        grown = _address_space_bytes() + MAX_GROWTH_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (grown, grown))
        sys.stdout.write(f"{KINDS[kind](bundle, num_examples)}\n")


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
