"""The code of README.md and docs/ runs and prints what it says, and what these pages name is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from statistics import geometric_mean

import documentation
import pytest

import involution
from benchmarks import cases, results

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
}
README = PAGES["README.md"]
# (page, line of its first fence, code)
BLOCKS = [
    (page, text.count("\n", 0, block.start()) + 1, block[1])
    for page, text in PAGES.items()
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)
]


def test_there_are_blocks():
    pages = [page for page, _, _ in BLOCKS]
    assert pages.count("README.md") >= 1 and len(pages) >= 15
    # A block that is indented, or fenced in another way, would not run.
    assert sum(len(re.findall(r"^ *(```|~~~) *py", text, re.M)) for text in PAGES.values()) == len(BLOCKS)


@pytest.mark.parametrize(
    ("page", "line", "block"), BLOCKS, ids=[f"{page}:{line}" for page, line, _ in BLOCKS]
)
def test_python_blocks(page, line, block, capsys):
    if "involution.train" in block or "involution.detection" in block:
        try:
            import involution.training.libraries  # noqa: F401  with torchvision, which detectors need too
        except ImportError as error:
            pytest.skip(str(error))
    exec(compile("\n" * line + block, str(ROOT / page), "exec"), {})
    # What is printed stands behind the call, or, where it is long, in the next line.
    promised = re.findall(r"^print\(.*\)(?:  |\n)# (.*)$", block, re.M)
    assert capsys.readouterr().out.splitlines() == promised


def test_readme_is_short():
    assert len(README.splitlines()) <= 160


def test_targets_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = {
        target: page
        for page, text in PAGES.items()
        for match in re.findall(r"^    make ([a-z]+)|`make ([a-z]+)`", text, re.M)
        for target in match
        if target
    }
    assert {"demo", "test", "docs", "bench", "profile", "sanitize", "lint", "gpu"} <= named.keys()
    for target, page in named.items():
        assert re.search(rf"^{target}:", makefile, re.M), f"{page} names make {target}, the Makefile does not"


def test_commands_exist():
    named = {
        module: page
        for page, text in PAGES.items()
        for module in re.findall(r"python -m ((?:benchmarks|involution)(?:\.\w+)+)", text)
    }
    assert len(named) >= 8
    for module, page in named.items():
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{page} names {module}"


def headings(text: str) -> set[str]:
    """The fragments of a page's headings, as code hosts and the site make them."""
    found = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    """Relative links lead to files of the repository and to headings that are there."""
    for link in documentation.links(PAGES[page]):
        assert (ROOT / documentation.linked_file(link, page)).is_file(), f"{page} links to {link}"
    for link, heading in re.findall(r"\]\(([\w./-]*\.md)?#([^)]+)\)", PAGES[page]):
        target = documentation.linked_file(link, page) if link else page
        assert heading in headings(PAGES[target]), f"{page} links to #{heading} of {target}"


def test_every_page_can_be_reached():
    linked = {
        documentation.linked_file(link, page) for page in PAGES for link in documentation.links(PAGES[page])
    }
    assert set(PAGES) - linked == set()


def test_files_that_contributing_names_exist():
    """Whoever moves a file changes its place here, too."""
    named = re.findall(
        r"`((?:csrc|involution|tests|tools|benchmarks|docs)(?:/[\w.*]+)*)`", PAGES["CONTRIBUTING.md"]
    )
    assert len(named) >= 20
    for path in named:
        assert list(ROOT.glob(path)), f"CONTRIBUTING.md names {path}"
    assert "def check_tensors" in (ROOT / "involution" / "_arguments.py").read_text("utf-8")
    assert "class Stem" in (ROOT / "involution" / "models" / "blocks.py").read_text("utf-8")


def test_install_variables_are_read():
    files = [ROOT / "setup.py", *(ROOT / "tools").glob("*.py"), *(ROOT / "csrc").rglob("*.cpp")]
    files += (ROOT / "involution").glob("*.py")
    sources = "".join(path.read_text("utf-8") for path in files)
    table = PAGES["docs/install.md"].split("## Settings")[1].split("## ")[0]
    variables = set(re.findall(r"^\| `([A-Z_]+)", table, re.M)) - {"MAX_JOBS"}  # torch reads that one
    assert len(variables) >= 5
    for variable in variables:
        assert variable in sources, f"docs/install.md names {variable}, which is read nowhere"


def test_extras_are_declared():
    declared = (ROOT / "pyproject.toml").read_text("utf-8").split("[project.optional-dependencies]")[1]
    table = PAGES["docs/install.md"].split("## Extras")[1].split("## ")[0]
    extras = re.findall(r"^\| `([a-z]+)` \|", table, re.M)
    assert len(extras) >= 5
    for extra in extras:
        assert re.search(rf"^{extra} = \[", declared, re.M), f"docs/install.md names the extra {extra}"


def test_site_is_built(tmp_path):
    """Strictly: a link that leads nowhere, on any page or in a docstring, fails."""
    pytest.importorskip("mkdocs", reason="the site needs pip install -e '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="the site needs pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    for page in (
        "index",
        "contributing",
        "changelog",
        "api",
        *(Path(page).stem for page in PAGES if "/" in page),
    ):
        assert (tmp_path / f"{page}.html").is_file()
    assert (tmp_path / "files" / "benchmarks" / "results" / "nvidia-h100.csv").is_file()
    api = (tmp_path / "api.html").read_text("utf-8")
    for name in involution.__all__:
        if name not in ("__version__", "models", "reference"):
            assert f'id="involution.{name}"' in api or f'id="involution.functional.{name}"' in api, name
    assert ":class:" not in api


# --- Figures are those of the records that they name --------------------------------------------------------

WORDS = {page: " ".join(text.split()) for page, text in PAGES.items()}


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
            assert f"| {dtype}, {layout} | {' | '.join(cells)} |" in PAGES["docs/benchmarks.md"]
    together = geometric_mean(row["copy_share"] for row in rows)
    detector = [
        100 * row["copy_share"]
        for row in rows
        if row["case"] == "detection" and row["layout"] == "channels_last"
    ]
    assert f"in channels_last at {min(detector):.0f} to {max(detector):.0f} %" in WORDS["README.md"]
    assert f"the three operations run at {100 * together:.0f} % of the speed" in WORDS["README.md"]


def test_what_the_rest_is_compared_with():
    published = [row["baselines"].get("official", {}).get("ratio") for row in measured("nvidia-h100")]
    ratios = [ratio for ratio in published if ratio]
    assert (
        f"take {geometric_mean(ratios):.1f} times as long in the geometric mean: from" in WORDS["README.md"]
    )
    assert f"from {min(ratios):.2f} times," in WORDS["README.md"]
    assert f"to {max(ratios):.1f} times with a stride" in WORDS["README.md"]
    before = geometric_mean(row["copy_share"] for row in measured("nvidia-h200"))
    assert f"ran at {100 * before:.0f} % of a copy on an H200" in WORDS["docs/benchmarks.md"]
    rows = measured("amd-epyc-avx512-network", "network")
    networks = [row["ratio"] for row in rows]
    words = WORDS["README.md"]
    assert f"RedNet-50 takes {min(networks):.2f} to {max(networks):.2f} times as long as ResNet-50" in words
    last = [row["ratio"] for row in rows if row["layout"] == "channels_last"]
    assert f"{min(last):.2f} to {max(last):.2f} times in channels_last" in words
    layers = {
        "rednet-stem": 1,
        "rednet-1": 3,
        "rednet-2-down": 1,
        "rednet-2": 3,
        "rednet-3-down": 1,
        "rednet-3": 5,
    }
    layers |= {"rednet-4-down": 1, "rednet-4": 2}
    for layout in ("contiguous", "channels_last"):
        of = {"operation": "forward", "dtype": "float32", "layout": layout, "batch": 8}
        involutions = [row for row in measured("amd-epyc-avx512") if row.items() >= of.items()]
        ms = sum(layers.get(row["case"], 0) * row["kernel_us"] for row in involutions) / 1000
        of = {"mode": "inference", "layout": layout, "batch": 8}
        (network,) = (row for row in rows if row.items() >= of.items())
        assert f"{100 * ms / network['rednet50']['ms']:.0f} % of its inference at batch 8" in words


def test_networks_and_layers_on_an_h100():
    rows = measured("nvidia-h100-network", "network")

    def of(mode: str, batch: int, launch: str) -> dict:
        wanted = {"mode": mode, "batch": batch, "launch": launch}
        return next(row for row in rows if row.items() >= wanted.items())

    words = WORDS["README.md"]
    fused, large, step = of("fused", 64, "graph"), of("fused", 256, "graph"), of("training", 64, "graph")
    assert f"it takes {fused['ratio']:.2f} times as long at batch 64" in words
    assert f"and {large['ratio']:.2f} times at batch 256" in words
    assert f"a training step at batch 64 takes {step['ratio']:.2f} times as long" in words
    names = {"inference": "inference", "fused": "fused for inference", "training": "training step"}
    for launch, text in (("graph", "CUDA graph"), ("eager", "eager")):
        for mode, name in names.items():
            many = of(mode, 64, launch)
            memory = many["rednet50"]["peak_bytes"] / many["resnet50"]["peak_bytes"]
            cells = f"{of(mode, 1, launch)['ratio']:.2f} | {many['ratio']:.2f} | {memory:.2f}"
            assert f"| {name}, {text} | {cells} |" in PAGES["docs/benchmarks.md"]
    for row in measured("nvidia-h100-layer", "layer"):
        if row["batch"] == 64:
            layers = row["layers"]
            times = " | ".join(f"{layers[name]['us']:.0f}" for name in ("fused", "unfused", "conv3x3"))
            memory = " | ".join(f"{layers[name]['peak_bytes'] / 2**20:.0f}" for name in ("fused", "unfused"))
            assert f"| `{row['case']}` | {times} | {memory} |" in PAGES["docs/fused.md"]


def test_scores_on_the_scenes():
    for row in measured("amd-epyc-avx512-scenes", "scenes"):
        found = row["scores"]
        kinds = (("boxes", ""), ("masks", "segm_")) if "map" in found else ()
        scores = [
            f"{what} mAP50 {found[f'{kind}map_50']:.2f}, mAP {found[f'{kind}map']:.2f}"
            for what, kind in kinds
            if f"{kind}map" in found
        ]
        text = "; ".join(scores) or f"mIoU {found['miou']:.2f}"
        cells = [f"`{row['task']}`", row["layers"], f"{row['parameters']:,}", text]
        cells.append(f"{row['cpu_seconds'] / 60:.0f} min")
        assert f"| {' | '.join(cells)} |" in PAGES["docs/training.md"]


def test_backbones_of_detectors_on_a_cpu():
    rows = measured("amd-epyc-avx2-detection", "detection")
    for mode in ("inference", "fused", "training"):
        ratios = [row["ratio"] for row in rows if row["mode"] == mode]
        assert f"{mode} {min(ratios):.2f} to {max(ratios):.2f}" in WORDS["docs/benchmarks.md"]


def same_but(key: str, rows: list[dict], one: str, other: str) -> list[float]:
    """Times of the rows with ``key=one`` over those of the rows that differ from them in it alone."""
    name = [part for part in ("case", "batch", "operation", "dtype", "layout") if part != key]
    others = {tuple(row[part] for part in name): row["kernel_us"] for row in rows if row[key] == other}
    return [row["kernel_us"] / others[tuple(row[part] for part in name)] for row in rows if row[key] == one]


def test_figures_of_the_cpu_kernels():
    rows, words = measured("amd-epyc-avx512"), WORDS["docs/benchmarks.md"]
    forward, both = [], []
    for layout in ("contiguous", "channels_last"):
        ratios: dict[str, list[float]] = {"forward": [], "both": []}
        usual = [row for row in rows if row["dtype"] == "float32" and row["layout"] == layout]
        for case in sorted({row["case"] for row in usual if row["case"].startswith("rednet")}):
            of_case = [row for row in usual if row["case"] == case]
            unfold = sum(row["baselines"]["unfold"]["us"] for row in of_case)
            ratios["both"].append(unfold / sum(row["kernel_us"] for row in of_case))
            ratios["forward"] += [
                row["baselines"]["unfold"]["ratio"] for row in of_case if row["operation"] == "forward"
            ]
        forward.append(f"{min(ratios['forward']):.0f} to {max(ratios['forward']):.0f}")
        both.append(f"{min(ratios['both']):.0f} to {max(ratios['both']):.0f}")
    assert f"| forward | {' | '.join(forward)} |" in words
    assert f"| forward and both gradients | {' | '.join(both)} |" in words
    least = min(row["baselines"]["reference"]["ratio"] for row in rows)
    assert f"nothing is less than {int(10 * least) / 10} times as fast" in words
    shares = [
        row["bound_share"] for row in rows if row["dtype"] == "float32" and row["kernel_size"] == [7, 7]
    ]
    assert f"K = 7 in float32 reaches {100 * min(shares):.0f} to {100 * max(shares):.0f} %" in words
    halves = geometric_mean(same_but("dtype", rows, "bfloat16", "float32"))
    assert f"bfloat16 takes {halves:.2f} times as long as float32" in words
    layouts = geometric_mean(same_but("layout", rows, "channels_last", "contiguous"))
    assert f"channels_last {layouts:.2f} times as long as contiguous storage" in words
    timed = [row for row in rows if row["single_us"] and row["case"] != "tiny"]
    threads = geometric_mean(row["single_us"] / row["warm_us"] for row in timed)
    assert f"one thread, without the tiny map, {threads:.2f} times as long as two" in words
