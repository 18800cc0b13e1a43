"""The examples: their answers are right, and they run."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name: str, monkeypatch) -> ModuleType:
    pytest.importorskip("matplotlib")
    if name in ("nuclei", "surveillance", "roadside", "signs"):
        pytest.importorskip("sklearn")
    if name == "signs":
        pytest.importorskip("involution.detection", exc_type=ImportError)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


@pytest.fixture(autouse=True)
def threads():
    """The examples set their number."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_answer_of_the_sequence_is_in_the_recording_at_its_place(monkeypatch):
    sequence = load("sequence", monkeypatch)
    recording = sequence.record(3, torch.Generator().manual_seed(0))
    assert 0.5 < recording.signal.square().mean() < 2
    assert 2 < recording.shift.abs().max() <= sequence.LARGEST
    # s(t) = y(t + e): interpolate the recording, which is oversampled four times, by a windowed sinc.
    around = torch.arange(-30, 31, dtype=torch.float64)
    for b in range(3):
        y = recording.known[b, 0].double()
        for t in range(60, 190, 7):
            place = t + recording.shift[b, t]
            samples = place.round() + around
            distance = place - samples
            window = (math.pi * distance / 62).cos().square()
            value = (y[samples.long()] * distance.sinc() * window).sum()
            assert value == pytest.approx(float(recording.signal[b, 0, t]), abs=0.01)


def test_the_response_is_the_derivative(monkeypatch):
    sequence = load("sequence", monkeypatch)
    kernel = torch.arange(1.0, sequence.KERNEL + 1)
    model = torch.nn.Conv1d(2, 1, sequence.KERNEL, padding="same", bias=False)
    model.weight.data[0] = torch.stack([kernel, 0 * kernel])
    response = sequence.response(model, torch.randn(2, sequence.LENGTH))
    half, middle = sequence.KERNEL // 2, sequence.KERNEL - 1
    torch.testing.assert_close(response[100, middle - half : middle + half + 1], kernel)
    assert response[100].count_nonzero() == sequence.KERNEL


def test_the_texture_moves_in_its_direction(monkeypatch):
    volume = load("volume", monkeypatch)
    blocks = volume.film(64, torch.Generator().manual_seed(0), noise=0.0)
    assert set(blocks.direction.tolist()) == set(range(9))
    for video, direction in zip(blocks.video[:, 0], blocks.direction.tolist(), strict=True):
        down, right = list(volume.DIRECTIONS.values())[direction]
        for before, after in itertools.pairwise(video):
            # What was at (i, j) is at (i + down, j + right).
            assert torch.equal(after.roll((-down, -right), (0, 1))[1:-1, 1:-1], before[1:-1, 1:-1])
        assert not torch.equal(video[0], video[1]) or direction == 0


@pytest.mark.parametrize("name", ["sequence", "volume"])
def test_the_baseline_has_at_least_as_many_parameters(monkeypatch, name):
    example, baseline = load(name, monkeypatch), load("baseline", monkeypatch)
    budget = baseline.parameters(example.network("involution", 16))
    network = baseline.smallest_not_below(budget, lambda channels: example.network("convolution", channels))
    channels = network[0].out_channels
    assert (
        baseline.parameters(network)
        >= budget
        > baseline.parameters(example.network("convolution", channels - 1))
    )


@pytest.mark.parametrize(
    ("name", "settings"), [("sequence", ["--channels=8"]), ("volume", ["--channels=8", "--test=20"])]
)
def test_they_run(monkeypatch, capsys, tmp_path, name, settings):
    example = load(name, monkeypatch)
    status = example.main(["--steps=3", f"--output={tmp_path / 'out.png'}", *settings])
    assert status == 1  # three steps are not enough for what the example promises
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "involution" in out
    assert "depthwise convolution" in out


# --- Nuclei ---------------------------------------------------------------------------------------------------


def two_nuclei() -> torch.Tensor:
    """Two that touch, of 48 and 64 pixels."""
    nuclei = torch.zeros(12, 20, dtype=torch.long)
    nuclei[2:10, 2:8] = 7
    nuclei[2:10, 8:16] = 3
    return nuclei


def test_borders_keep_nuclei_apart(monkeypatch):
    nuclei = load("nuclei", monkeypatch)
    classes = nuclei.classes(two_nuclei())
    expected = torch.zeros(12, 20, dtype=torch.long)
    expected[2:10, 2:16] = nuclei.BORDER
    expected[3:9, 3:7] = nuclei.INSIDE
    expected[3:9, 9:15] = nuclei.INSIDE
    assert torch.equal(classes, expected)
    cut = two_nuclei()[:, :10]  # where the picture ends is no border
    assert nuclei.classes(cut)[4, 9] == nuclei.INSIDE


def test_pieces_are_the_nuclei_that_the_classes_come_from(monkeypatch):
    pytest.importorskip("scipy")
    nuclei = load("nuclei", monkeypatch)
    truth = two_nuclei()
    pieces = nuclei.pieces(nuclei.classes(truth))
    assert torch.equal(pieces > 0, truth > 0)
    assert sorted(nuclei.matched(pieces, truth, least=0.8)) == [3, 7]
    specks = torch.zeros(12, 20, dtype=torch.long)
    specks[1:4, 1:4] = nuclei.INSIDE
    assert not nuclei.pieces(specks).any()


def test_overlap_and_matches_of_nuclei(monkeypatch):
    nuclei = load("nuclei", monkeypatch)
    truth = two_nuclei()
    found = torch.zeros_like(truth)
    found[2:10, 2:7] = 1  # IoU 40 / 48 with 7
    found[2:10, 7:10] = 2  # touches both, and is none of them
    dice, iou = nuclei.overlap(found > 0, truth > 0)
    assert dice == pytest.approx(2 * 64 / (64 + 112))
    assert iou == pytest.approx(64 / 112)
    assert nuclei.matched(found, truth) == {7: 1}
    assert nuclei.matched(found, truth, least=0.9) == {}
    assert nuclei.matched(truth, truth) == {7: 7, 3: 3}
    assert nuclei.matched(torch.full_like(truth, 5), truth, least=0.1) == {
        3: 5
    }  # one piece finds one nucleus
    assert nuclei.overlap(found > 9, truth > 9) == (0, 0)


def test_where_stardist_is_missing_it_is_said_how_to_get_it(monkeypatch):
    nuclei = load("nuclei", monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps stardist"):
        nuclei.main(["--steps=1"])


def test_the_micrograph_of_stardist(monkeypatch):
    nuclei = load("nuclei", monkeypatch)
    if importlib.util.find_spec("stardist") is None:
        pytest.skip("needs pip install --no-deps stardist")
    whole = nuclei.read(*nuclei.shipped())
    assert whole.image.shape == (512, 512)
    for begin, end, count in ((0, None, 125), (0, nuclei.SPLIT, 89), (nuclei.SPLIT, None, 41)):
        part = whole.columns(begin, end)
        assert len(part.nuclei.unique()) - 1 == count
        # Nuclei are bright, and the picture's values are not clipped.
        assert part.image[part.nuclei > 0].mean() > 1 > 0 > part.image[part.nuclei == 0].mean()
    assert len(whole.image.unique()) > 200


def test_nuclei_run(monkeypatch, capsys, tmp_path):
    pytest.importorskip("scipy")
    nuclei = load("nuclei", monkeypatch)
    numpy, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(416), indexing="ij")
    centres = ((rows % 32 - 16).square() + (columns % 32 - 16).square()).float().sqrt()
    numbers = (centres < 10) * (1 + columns // 32 + 13 * (rows // 32))
    image.fromarray(numpy.uint16(numbers)).save(tmp_path / "mask.tif")
    image.fromarray(numpy.uint16(20 + 200 * (centres < 10))).save(tmp_path / "picture.tif")
    files = [f"--picture={tmp_path / 'picture.tif'}", f"--mask={tmp_path / 'mask.tif'}"]
    assert nuclei.main(["--steps=2", f"--output={tmp_path / 'out.png'}", *files]) == 1
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "Of 9 nuclei in 96 columns" in out
    assert "involution" in out and "3x3 convolution" in out
    with pytest.raises(SystemExit):
        nuclei.main(files[:1])


# --- Surveillance ---------------------------------------------------------------------------------------------


def test_things_are_where_their_velocity_says(monkeypatch):
    surveillance = load("surveillance", monkeypatch)
    numpy = pytest.importorskip("numpy")
    background, ink, black = numpy.ones((40, 50, 3)), numpy.ones((6, 4)), numpy.zeros(3)
    thing = surveillance.Thing(ink, black, numpy.array([10, 20]), numpy.array([2.0, -2.5]))
    parked = surveillance.Thing(ink, black, numpy.array([30, 40]), numpy.array([0.0, 0.0]))
    for frame in range(-7, 8):
        picture, moving = surveillance.expose(background, [parked, thing], frame)
        expected = numpy.zeros((40, 50), bool)
        row, column = 10 + 2 * frame, round(20 - 2.5 * frame)  # of halves, the even number
        expected[max(row, 0) : max(row + 6, 0), max(column, 0) : column + 4] = True
        assert (moving == expected).all()
        expected[30:36, 40:44] = True
        assert ((picture == 0).all(2) == expected).all()
        assert (background == 1).all()


def test_clips_without_disturbance_change_only_where_something_moves(monkeypatch):
    surveillance = load("surveillance", monkeypatch)
    numpy = pytest.importorskip("numpy")
    monkeypatch.setattr(surveillance, "NOISE", 0.0)
    for frame in (-2, 0, 2):  # the middle one is in every clip, beside one more
        clips = surveillance.film("test", 4, numpy.random.default_rng(0), sorted({frame, 0}), False)
        first, last = clips.frames[:, 0], clips.frames[:, -1]
        changed = (first != last).any(1)
        assert changed.any() == (frame != 0)
        assert 0.005 < clips.moving.float().mean() < 0.3
        assert clips.moving.shape == changed.shape == (4, surveillance.SIDE, surveillance.SIDE)
    disturbed = surveillance.film("test", 4, numpy.random.default_rng(0), (0, 1, 2))
    light = disturbed.frames.mean((2, 3, 4))
    assert ((light / light.mean(1, keepdim=True) - 1).abs() < 0.3).all()
    assert (light.amax(1) / light.amin(1) > 1.01).any()
    same = surveillance.same_light(disturbed.frames).mean((2, 3, 4))
    torch.testing.assert_close(same, same[:, :1].expand(4, 3))


def test_background_subtraction_is_right_where_nothing_disturbs(monkeypatch):
    surveillance = load("surveillance", monkeypatch)
    frames = torch.rand(1, 1, 3, 16, 16).repeat(1, 5, 1, 1, 1)
    moving = torch.zeros(1, 16, 16, dtype=torch.bool)
    for frame in range(5):
        frames[0, frame, 1, 4:8, 3 * frame : 3 * frame + 3] += 0.5
    moving[0, 4:8, 6:9] = True
    difference = surveillance.subtracted(frames)
    assert torch.equal(difference > surveillance.best_threshold(difference, moving), moving)
    assert surveillance.iou(moving, moving) == 1
    assert surveillance.iou(moving.roll(1, 2), moving) == pytest.approx(8 / 16)
    assert surveillance.iou(moving & False, moving & False) == 0


def test_what_is_trained_on_is_not_tested_on(monkeypatch):
    load("surveillance", monkeypatch)
    numpy, common = pytest.importorskip("numpy"), load("common", monkeypatch)
    for train, test in zip(common.photographs("train"), common.photographs("test"), strict=True):
        assert train.shape[1] + test.shape[1] == 640 and test.shape[1] == 192
        assert 0 <= test.min() < test.max() <= 1
    train, test = common.digits("train"), common.digits("test")
    assert len(train) + len(test) == 1797
    seen = {digit.tobytes() for digit in train}
    assert not any(digit.tobytes() in seen for digit in test)
    assert train.dtype == numpy.uint8 and train.max() == 255


# --- Signs ----------------------------------------------------------------------------------------------------


def test_boxes_are_tight_around_the_warped_sign(monkeypatch):
    roadside = load("roadside", monkeypatch)
    numpy = pytest.importorskip("numpy")
    random = numpy.random.default_rng(0)
    for shape, distance, degrees in itertools.product(roadside.SHAPES, (3.0, 12.0), (-30, 25)):
        matrix = roadside.projection(numpy.radians(degrees), (0.1, -0.05, distance))
        seen = roadside.warped(roadside.sign(shape, random, roadside.material("train")[1]), matrix)
        left, top, right, bottom = roadside.tight_box(seen[..., 3] > 0.5)
        corners = numpy.array([(x, y, 1) for x, y in roadside.corners(shape)]) @ matrix.T
        corners = corners[:, :2] / corners[:, 2:]
        # A pixel counts where the sign covers half of it; pointed tips cover less.
        expected = numpy.concatenate((corners.min(0), corners.max(0)))
        assert abs(expected - [left, top, right, bottom]).max() < (1 if shape in ("circle", "octagon") else 2)
        # Turned by so much, it is narrower, and as high as before.
        height = roadside.FOCAL * roadside.SIGN / distance
        assert numpy.ptp(corners[:, 1]) == pytest.approx(height, rel=0.06)
        assert numpy.ptp(corners[:, 0]) == pytest.approx(height * math.cos(math.radians(degrees)), rel=0.06)


def test_signs_are_in_their_boxes_and_distances_in_their_heights(monkeypatch):
    roadside = load("roadside", monkeypatch)
    numpy = pytest.importorskip("numpy")
    grey = numpy.full((roadside.HEIGHT, roadside.WIDTH, 3), 0.5, numpy.float32)
    images = roadside.material("test")[1]
    monkeypatch.setattr(roadside, "material", lambda part: (grey, images))
    frames = roadside.drive("test", 30, numpy.random.default_rng(0))
    counts = [len(target["labels"]) for target in frames.targets]
    assert set(counts) == {0, 1, 2}
    for image, target in zip(frames.images, frames.targets, strict=True):
        assert image.shape == (3, roadside.HEIGHT, roadside.WIDTH) and 0 <= image.min() <= image.max() <= 1
        elsewhere = torch.ones(roadside.HEIGHT, roadside.WIDTH, dtype=torch.bool)
        for left, top, right, bottom in target["boxes"].int().tolist():
            assert image[:, top:bottom, left:right].std() > 0.03
            elsewhere[max(top - 1, 0) : bottom + 1, max(left - 4, 0) : right + 4] = False  # blurred
        assert image[:, elsewhere].std() < 0.03
        assert target["boxes"].shape == (len(target["labels"]), 4)
        heights = target["boxes"][:, 3] - target["boxes"][:, 1]
        assert ((heights - roadside.FOCAL * roadside.SIGN / target["distances"]).abs() < 3).all()


def test_matches_and_average_precision_of_signs(monkeypatch):
    signs = load("signs", monkeypatch)
    box = torch.tensor([[10.0, 10, 50, 50], [60, 60, 80, 80]])  # 40 and 20 pixels high
    truth = {"boxes": box, "labels": torch.tensor([1, 2]), "distances": signs.distance(box)}
    assert truth["distances"].tolist() == pytest.approx([4.2, 8.4])
    found = {
        "boxes": torch.cat((box[:1] + 2, box[:1] + 1, box[1:], box[1:])),
        "labels": torch.tensor([1, 1, 3, 2]),
        "scores": torch.tensor([0.6, 0.9, 0.8, 0.7]),
    }
    # The better score is first to find a sign, each is found once, and the label counts.
    assert signs.matched(found, truth) == [-1, 0, -1, 1]
    empty = {name: values[:0] for name, values in found.items()}
    assert signs.matched(empty, truth) == []
    assert signs.average_precision([found], [truth]) == pytest.approx(1)
    assert signs.average_precision([empty], [truth]) == 0
    both = [found, empty], [truth, truth]  # half of each is found
    assert signs.average_precision(*both) == pytest.approx(51 / 101)
    assert signs.average_precision(*both, (0, 6)) == pytest.approx(51 / 101)
    late = {**found, "scores": torch.tensor([0.9, 0.6, 0.8, 0.7]), "boxes": found["boxes"] + 0.0}
    late["boxes"][0] += 100  # a false alarm, as near, before the hit
    assert signs.average_precision([late], [truth], (0, 6)) == pytest.approx(0.5)
    assert signs.average_precision([late], [truth], (6, 10)) == pytest.approx(1)


def test_average_precision_is_that_of_coco(monkeypatch):
    signs = load("signs", monkeypatch)
    coco = pytest.importorskip("involution.training.coco", exc_type=ImportError)
    generator = torch.Generator().manual_seed(0)
    truth, found = [], []
    for _ in range(30):
        count = int(torch.randint(1, 5, (), generator=generator))
        corner = 100 * torch.rand(count, 2, generator=generator)
        boxes = torch.cat((corner, corner + 10 + 30 * torch.rand(count, 2, generator=generator)), 1)
        labels = torch.randint(1, 5, (count,), generator=generator)
        truth.append({"boxes": boxes, "labels": labels, "distances": signs.distance(boxes)})
        moved = torch.cat((boxes, boxes)) + 3 * torch.randn(2 * count, 4, generator=generator)
        labels = torch.cat((labels, labels.roll(1)))
        found.append({"boxes": moved, "labels": labels, "scores": torch.rand(2 * count, generator=generator)})
    sides = [
        [coco.recorded(each, torch.empty(3, 200, 200), index) for index, each in enumerate(side)]
        for side in (truth, found)
    ]
    numbers, *_ = coco.coco_scores(*sides, [1, 2, 3, 4])
    assert 0.2 < numbers[1] < 0.9
    assert signs.average_precision(found, truth) == pytest.approx(numbers[1], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("surveillance", ["--channels=8", "--test=2"], "background subtraction"),
        ("signs", ["--test=4"], "second sign missed"),
    ],
)
def test_applications_run(monkeypatch, capsys, tmp_path, name, settings, said):
    example = load(name, monkeypatch)
    torch.set_num_threads(1)
    assert example.main(["--steps=2", f"--output={tmp_path / 'out.png'}", *settings]) == 1
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    output = capsys.readouterr()
    assert said in output.out
    assert "2/2" in output.err


def test_the_baseline_with_convolutions_is_a_copy(monkeypatch):
    baseline = load("baseline", monkeypatch)
    from involution import Involution2d
    from involution.segmentation import semantic_fpn_rednet_tiny

    network = semantic_fpn_rednet_tiny(3, in_channels=1).eval()
    count = sum(isinstance(layer, Involution2d) for layer in network.modules())
    replaced = baseline.with_convolutions(network).eval()
    assert not any(isinstance(layer, Involution2d) for layer in replaced.modules())
    assert count == sum(isinstance(layer, Involution2d) for layer in network.modules()) > 0
    assert baseline.parameters(replaced) > baseline.parameters(network)
    image = torch.randn(2, 1, 64, 80)
    assert replaced(image)["out"].shape == network(image)["out"].shape
    own = {parameter.data_ptr() for parameter in network.parameters()}
    assert not any(parameter.data_ptr() in own for parameter in replaced.parameters())
