"""The C++ program of examples/deploy, built by CMake, against Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from exported_files import ExportedFiles
from torch import Tensor

import involution
from involution.export import load

SOURCE = Path(__file__).resolve().parents[1] / "examples" / "deploy"


@pytest.fixture(scope="module")
def program(exported_files: ExportedFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled program."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("no cmake")
    build = tmp_path_factory.mktemp("deploy")
    prefixes = f"{torch.utils.cmake_prefix_path};{involution.cmake_prefix_path}"
    configure = [cmake, "-S", str(SOURCE), "-B", str(build), f"-DCMAKE_PREFIX_PATH={prefixes}"]
    for command in ([*configure, "-DCMAKE_BUILD_TYPE=Release"], [cmake, "--build", str(build)]):
        result = subprocess.run(command, capture_output=True, text=True)
        if torch.version.cuda and "cannot find the CUDA" in result.stderr:
            pytest.skip("find_package(Torch) of a CUDA build of torch needs a CUDA toolkit")
        assert result.returncode == 0, result.stdout + result.stderr
    return build / "classify"


def run(program: Path, *arguments: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([program, *arguments], capture_output=True, text=True, env=environment)


def write_picture(path: Path, pixels: Tensor) -> Path:
    """A (channels, height, width) tensor of bytes as binary PGM or PPM."""
    channels, height, width = pixels.shape
    header = f"P{5 if channels == 1 else 6}\n# a comment\n{width} {height}\n255\n"
    path.write_bytes(header.encode() + bytes(pixels.permute(1, 2, 0).flatten().tolist()))
    return path


def test_the_program_answers_as_python_does(
    exported_files: ExportedFiles, program: Path, tmp_path: Path
) -> None:
    images, labels = exported_files.images()
    chosen = [int((labels == digit).nonzero()[0]) for digit in range(0, 10, 3)]
    answer, _ = load(exported_files.aoti, "aoti")
    pictures = [(images[index] * 255).round().byte() for index in chosen]
    pictures.append((torch.rand(1, 11, 14) * 255).byte())  # another size
    for pixels in pictures:
        result = run(program, exported_files.aoti, write_picture(tmp_path / "picture.pgm", pixels))
        assert result.returncode == 0, result.stderr
        share, digit = answer(pixels[None] / 255).softmax(1)[0].max(0)
        name, printed = result.stdout.split()
        assert name == str(int(digit))
        assert float(printed) == pytest.approx(share.item(), abs=2e-4)


def test_the_program_explains_what_is_wrong(
    exported_files: ExportedFiles, program: Path, tmp_path: Path
) -> None:
    colour = write_picture(tmp_path / "colour.ppm", torch.zeros(3, 8, 8, dtype=torch.uint8))
    short = tmp_path / "short.pgm"
    short.write_bytes(b"P5 8 8 255\n1234")
    text = tmp_path / "text.pgm"
    text.write_bytes(b"P2 8 8 255\n1234")
    for picture, sentence in (
        (colour, "expected: 1, but got: 3"),
        (short, "ends before its last pixel"),
        (text, "is not a binary PGM or PPM picture: it begins with 'P2'"),
        (tmp_path / "missing.pgm", "cannot be opened"),
    ):
        result = run(program, exported_files.aoti, picture)
        assert result.returncode == 1
        assert sentence in result.stderr
    assert run(program, tmp_path / "missing.pt2", text).returncode == 1
    assert "usage" in run(program).stderr


def test_the_library_of_operators_can_be_found() -> None:
    assert (Path(involution.cmake_prefix_path) / "involution" / "involutionConfig.cmake").is_file()
    if involution.build_info()["extension"] is None:
        with pytest.raises(RuntimeError, match="without its compiled library"):
            involution.library_path()
    else:
        assert Path(involution.library_path()).is_file()


def test_a_missing_library_is_explained(tmp_path: Path) -> None:
    """The folder of an installation without a compiled library."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("no cmake")
    share = tmp_path / "involution" / "share"
    shutil.copytree(Path(involution.cmake_prefix_path).parent, share)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(user NONE)\nfind_package(involution REQUIRED)\n"
    )
    command = [cmake, "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={share / 'cmake'}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert "there are 0" in " ".join(result.stderr.split())
