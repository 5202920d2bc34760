"""Compiling the plugin: what is looked for, what is run, and what is said when it fails."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from feather_edge.cli import main
from feather_edge.engines import plugin_build
from feather_edge.engines.plugin_build import SOURCE, build_plugin, plan_plugin
from feather_edge.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

NVCC = """#!/bin/sh
case "$1" in
  --list-gpu-arch) printf 'compute_75\\ncompute_87\\ncompute_90\\n';;
  --version) echo 'Cuda compilation tools, release 12.6, V12.6.68';;
  *) {compile};;
esac
"""
WRITES = 'for last; do :; done; echo "$@" > "$last"'  # the last argument is the output
FAILS = "echo 'plugin.cu(7): error: no such thing' >&2; exit 2"

VERSION_10_3 = """
#define NV_TENSORRT_MAJOR 10 //!< TensorRT major version.
#define NV_TENSORRT_MINOR 3 //!< TensorRT minor version.
#define NV_TENSORRT_PATCH 0 //!< TensorRT patch version.
"""
VERSION_10_13 = """
#define TRT_MAJOR_ENTERPRISE 10
#define TRT_MINOR_ENTERPRISE 13
#define TRT_PATCH_ENTERPRISE 3
#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< TensorRT major version.
#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE //!< TensorRT minor version.
#define NV_TENSORRT_PATCH TRT_PATCH_ENTERPRISE //!< TensorRT patch version.
"""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the fake compiler is a shell script")


@pytest.fixture
def nvcc(tmp_path: Path) -> Path:
    return fake_nvcc(tmp_path, WRITES)


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    return fake_headers(tmp_path, VERSION_10_3)


def fake_nvcc(folder: Path, compile_: str) -> Path:
    path = folder / "nvcc"
    path.write_text(NVCC.format(compile=compile_), encoding="utf-8")
    path.chmod(0o755)
    return path


def fake_headers(folder: Path, version: str) -> Path:
    include = folder / "include"
    include.mkdir(exist_ok=True)
    (include / "NvInferRuntime.h").touch()
    (include / "NvInferVersion.h").write_text(version, encoding="utf-8")
    return include


def message(act: Callable[[], object]) -> str:
    with pytest.raises(BackendError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_source_is_part_of_the_package() -> None:
    assert SOURCE.is_file()
    assert (SOURCE.parent / "kernels.cuh").is_file()
    assert SOURCE.name in (SOURCE.parent / "CMakeLists.txt").read_text(encoding="utf-8")


def test_the_plan_says_what_was_found(tmp_path: Path, nvcc: Path, headers: Path) -> None:
    plan = plan_plugin(tmp_path / "out", tensorrt_include=headers, nvcc=nvcc)
    assert plan.arch == (87,)  # of 87, 110 and 121 the only one that this nvcc knows
    assert (plan.tensorrt_version, plan.cuda_version) == ("10.3.0", "12.6")
    assert plan.command[0] == str(nvcc)
    assert "-gencode=arch=compute_87,code=sm_87" in plan.command
    assert plan.command[plan.command.index("-isystem") + 1] == str(headers)
    assert not any(word.startswith("-l") for word in plan.command)
    assert plan.build_s is None
    assert not (tmp_path / "out").exists()


def test_the_library_is_written_where_asked(tmp_path: Path, nvcc: Path, headers: Path) -> None:
    done = build_plugin(tmp_path / "out", arch=(75, 87), tensorrt_include=headers, nvcc=nvcc)
    assert done.library == tmp_path / "out" / "libfeather_edge_plugin.so"
    words = done.library.read_text(encoding="utf-8").split()
    assert str(SOURCE) in words
    assert "-gencode=arch=compute_75,code=sm_75" in words
    assert done.build_s is not None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "build-plugin.log",
        "libfeather_edge_plugin.so",
    ]


def test_a_failed_compilation_leaves_the_old_library(tmp_path: Path, headers: Path) -> None:
    old = tmp_path / "libfeather_edge_plugin.so"
    old.write_text("old", encoding="utf-8")
    nvcc = fake_nvcc(tmp_path, FAILS)
    text = message(lambda: build_plugin(tmp_path, tensorrt_include=headers, nvcc=nvcc))
    assert text == (
        "nvcc could not compile the plugin: plugin.cu(7): error: no such thing; all of it is in "
        f"{tmp_path / 'build-plugin.log'}"
    )
    assert old.read_text(encoding="utf-8") == "old"


def test_versions_through_a_second_macro(tmp_path: Path, nvcc: Path) -> None:
    headers = fake_headers(tmp_path, VERSION_10_13)
    plan = plan_plugin(tmp_path, tensorrt_include=headers.parent, nvcc=nvcc)
    assert (plan.tensorrt_version, plan.tensorrt_include) == ("10.13.3", headers)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (VERSION_10_3.replace(" 3 ", " 2 "), "is 10.2.0; the plugin needs 10.3 or later"),
        ("", "does not say which TensorRT it is"),
    ],
)
def test_headers_that_will_not_do(tmp_path: Path, nvcc: Path, version: str, words: str) -> None:
    headers = fake_headers(tmp_path, version)
    assert words in message(lambda: plan_plugin(tmp_path, tensorrt_include=headers, nvcc=nvcc))


def test_missing_headers_say_what_installs_them(tmp_path: Path, nvcc: Path) -> None:
    text = message(lambda: plan_plugin(tmp_path, tensorrt_include=tmp_path / "no", nvcc=nvcc))
    assert f"is not in {tmp_path / 'no'}, {tmp_path / 'no' / 'include'}; on JetPack" in text
    assert "sudo apt install libnvinfer-headers-dev" in text


def test_headers_are_found_below_tensorrt_root(
    tmp_path: Path, nvcc: Path, headers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    monkeypatch.setattr(plugin_build.platform, "machine", lambda: "none")
    assert plan_plugin(tmp_path, nvcc=nvcc).tensorrt_include in {headers, Path("/usr/include")}


def test_missing_nvcc_says_what_installs_it(
    tmp_path: Path, headers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_build.shutil, "which", lambda name: None)
    monkeypatch.setattr(plugin_build, "CUDA_ROOTS", ())
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    text = message(lambda: plan_plugin(tmp_path, tensorrt_include=headers))
    assert f"is not on PATH nor in {tmp_path / 'cuda' / 'bin'};" in text
    assert "sudo apt install nvidia-jetpack" in text


def test_nvcc_is_found_below_cuda_home(
    tmp_path: Path, headers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    nvcc = fake_nvcc(tmp_path / "bin", WRITES)
    monkeypatch.setattr(plugin_build.shutil, "which", lambda name: None)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert plan_plugin(tmp_path, tensorrt_include=headers).command[0] == str(nvcc)


def test_an_nvcc_that_is_not_there(tmp_path: Path, headers: Path) -> None:
    nvcc = tmp_path / "no"
    text = message(lambda: plan_plugin(tmp_path, tensorrt_include=headers, nvcc=nvcc))
    assert text == f"nvcc {nvcc} does not exist; --nvcc names the compiler itself"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!/bin/sh\necho no GPU compiler >&2; exit 1\n", "failed: no GPU compiler; is it a CUDA"),
        ("no program", "cannot be run: "),
    ],
)
def test_an_nvcc_that_is_none(tmp_path: Path, headers: Path, script: str, words: str) -> None:
    nvcc = fake_nvcc(tmp_path, WRITES)
    nvcc.write_text(script, encoding="utf-8")
    assert words in message(lambda: plan_plugin(tmp_path, tensorrt_include=headers, nvcc=nvcc))


def test_an_arch_that_nvcc_does_not_know(tmp_path: Path, nvcc: Path, headers: Path) -> None:
    text = message(
        lambda: plan_plugin(tmp_path, arch=(87, 110), tensorrt_include=headers, nvcc=nvcc)
    )
    assert text == (
        f"{nvcc} cannot compile for sm_110; it knows 75, 87, 90: choose among these with --arch"
    )


def test_the_command(tmp_path: Path, nvcc: Path, headers: Path) -> None:
    words = ["build-plugin", "-o", str(tmp_path / "out"), "--nvcc", str(nvcc)]
    words += ["--tensorrt-include", str(headers), "--arch", "87"]
    runner = CliRunner()

    dry = runner.invoke(main, [*words, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert dry.stdout.startswith(f"{nvcc} -std=c++17 ")
    assert not (tmp_path / "out").exists()

    done = runner.invoke(main, [*words, "--json"])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["library"] == str(tmp_path / "out" / "libfeather_edge_plugin.so")
    assert (record["arch"], record["tensorrt_version"]) == ([87], "10.3.0")

    plain = runner.invoke(main, words)
    assert plain.stdout == f"{record['library']}\n"

    wrong = runner.invoke(main, ["build-plugin", "--arch", "orin"])
    assert wrong.exit_code == 2
    assert "'orin' is not a list of compute capabilities times ten, such as 87" in wrong.stderr
