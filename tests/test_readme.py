"""The README's code runs and prints what it says, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import geometric_mean

import pytest

from benchmarks import cases, results

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


def test_there_are_blocks():
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks(block, capsys):
    if "involution.train" in block:
        try:
            import involution.training.libraries  # noqa: F401
        except ImportError as error:
            pytest.skip(str(error))
    exec(compile(block, "README.md", "exec"), {})
    promised = re.findall(r"^print\(.*\)  # (.*)$", block, re.M)
    assert capsys.readouterr().out.splitlines() == promised


def test_targets_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = set(re.findall(r"^    make ([a-z]+)|`make ([a-z]+)`", README, re.M))
    targets = {name for pair in named for name in pair if name}
    assert {"demo", "test", "profile", "sanitize", "lint"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), (
            f"the README names make {target}, the Makefile does not"
        )


def test_linked_files_exist():
    for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", README):
        assert (ROOT / link).is_file(), f"the README links to {link}"


def test_install_variables_are_read():
    files = [ROOT / "setup.py", *(ROOT / "tools").glob("*.py"), *(ROOT / "csrc").rglob("*.cpp")]
    sources = "".join(path.read_text("utf-8") for path in files)
    table = README.split("## Install options")[1].split("## ")[0]
    for variable in set(re.findall(r"^\| `([A-Z_]+)", table, re.M)) - {"MAX_JOBS"}:  # torch reads that one
        assert variable in sources, f"the README's {variable} is read nowhere"


# --- Figures are those of the records that they name --------------------------------------------------------

WORDS = " ".join(README.split())


def measured(record: str, benchmark: str = "operator") -> list[dict]:
    return results.load(results.FOLDER / f"{record}.csv", benchmark)["results"]


def test_shares_of_a_copy_on_an_h100():
    rows = [row for row in measured("nvidia-h100") if row["layout"] in ("contiguous", "channels_last")]
    for dtype in ("float32", "bfloat16"):
        for layout in ("channels_last", "contiguous"):
            cells = []
            for operation in cases.OPERATIONS:
                wanted = {"dtype": dtype, "layout": layout, "operation": operation}
                shares = [100 * row["copy_share"] for row in rows if row.items() >= wanted.items()]
                cells.append(f"{geometric_mean(shares):.0f} % ({min(shares):.0f} to {max(shares):.0f})")
            assert f"| {dtype}, {layout} | {' | '.join(cells)} |" in README
    together = geometric_mean(row["copy_share"] for row in rows)
    assert f"All together that is {together:.0%}".replace("%", " %") in WORDS


def test_what_the_rest_is_compared_with():
    published = [row["rivals"].get("official", {}).get("ratio") for row in measured("nvidia-h100")]
    ratios = [ratio for ratio in published if ratio]
    assert f"take {geometric_mean(ratios):.1f} times as long in the geometric mean: from" in WORDS
    assert f"from {min(ratios):.2f} times," in WORDS and f"to {max(ratios):.1f} times with a stride" in WORDS
    before = geometric_mean(row["copy_share"] for row in measured("nvidia-h200"))
    assert f"ran at {100 * before:.0f} % of a copy on an H200" in WORDS
    networks = [row["ratio"] for row in measured("amd-epyc-avx512-network", "network")]
    assert f"RedNet-50 took {min(networks):.2f} to {max(networks):.2f} times as long as ResNet-50" in WORDS
