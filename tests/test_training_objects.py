"""Scenes, and data of objects and of pixels' classes as users bring it: read as they are meant, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from training_cases import need_libraries

need_libraries()

import numpy as np
from PIL import Image

from involution.training import BadImageError, Cityscapes, Coco, DataError, Pairs, SceneMaps, Scenes, Voc
from involution.training.coco import coco_scores, recorded
from involution.training.scenes import _material, draw_scene, write_coco

SIZES = ((40, 30), (33, 57))  # heights and widths of two images


def ready(data, stage="fit"):
    data.setup(stage)
    return data


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder, train=3, test=4)
    return folder


def changed(coco: Path, folder: Path, change) -> Path:
    """A copy whose annotations of training images were changed."""
    shutil.copytree(coco, folder, dirs_exist_ok=True)
    file = folder / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return folder


# --- Scenes -----------------------------------------------------------------------------------------------


def test_boxes_are_tight_and_labels_those_of_the_digits():
    ((_, train, names), (_, test, _)) = (_material()[part] for part in ("train", "test"))
    assert not {digit.tobytes() for digit in train} & {digit.tobytes() for digit in test}
    counts = set()
    for index in range(40):
        image, labels, masks = draw_scene("train", 5, index)
        assert image.shape == (3, 128, 128) and image.dtype == torch.uint8 and masks.sum(0).max() == 1
        counts.add(len(labels))
        assert 1 <= labels.min() and labels.max() <= 10
    assert counts == {1, 2, 3, 4, 5} and set(names) == set(range(10))
    batch = next(iter(ready(Scenes(masks=True, batch_size=8, test=8)).val_dataloader()))
    for image, target in zip(batch.images, batch.targets, strict=True):
        assert image.dtype == torch.float32 and 0.5 < image.max() <= 1
        for box, mask, area in zip(target["boxes"], target["masks"], target["area"], strict=True):
            y, x = mask.nonzero(as_tuple=True)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1] and area == len(x)


def test_a_scene_is_a_function_of_seed_epoch_and_index():
    def epoch(number: int, kind=Scenes, **arguments):
        data = ready(kind(train=6, test=2, batch_size=3, **arguments))
        loader = data.train_dataloader()
        loader.order.set_epoch(number)
        return [batch.images for batch in loader]

    def equal(one, other):
        pairs = zip(one, other, strict=True)
        return all(torch.equal(torch.stack(list(a)), torch.stack(list(b))) for a, b in pairs)

    assert equal(epoch(1), epoch(1, workers=1))  # a process of its own
    assert not equal(epoch(1), epoch(2)) and not equal(epoch(1), epoch(1, seed=1))
    tests = [[b.images for b in ready(Scenes(test=2, seed=s, batch_size=2)).val_dataloader()] for s in (0, 1)]
    assert equal(*tests)


def test_maps_are_those_of_the_same_scenes():
    objects = next(iter(ready(Scenes(masks=True, test=3, batch_size=3)).val_dataloader()))
    images, maps, _ = next(iter(ready(SceneMaps(test=3, batch_size=3)).val_dataloader()))
    data = SceneMaps()
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    torch.testing.assert_close(images * std + mean, torch.stack(objects.images))
    assert maps.dtype == torch.int64 and data.classes[:2] == ["background", "0"] and len(data.classes) == 11
    for target, classes in zip(objects.targets, maps, strict=True):
        expected = (target["masks"] * target["labels"][:, None, None]).sum(0)
        assert torch.equal(classes, expected)


def test_scenes_as_coco_files_are_read_back(coco):
    written = next(iter(ready(Coco(str(coco), masks=True, batch_size=4, workers=0)).val_dataloader()))
    drawn = next(iter(ready(Scenes(masks=True, test=4, batch_size=4)).val_dataloader()))
    for one, other in ((written.images, drawn.images), (written.targets, drawn.targets)):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert Coco(str(coco)).classes == Scenes().classes


# --- COCO -------------------------------------------------------------------------------------------------


def test_coco_as_it_is_found(coco, tmp_path):
    """Sparse ids, a crowd, an image without objects, a polygon, a box without an area."""

    def change(content):
        for each in content["categories"]:
            each["id"] = 100 - 3 * each["id"]
        polygon = [[10, 10, 20, 10, 20, 30, 10, 30]]
        one = {"id": 1, "image_id": 0, "category_id": 97, "bbox": [10, 10, 10, 20], "segmentation": polygon}
        content["annotations"] = [one, {**one, "id": 7, "category_id": 70, "iscrowd": 1}, {**one, "id": 9}]
        content["annotations"][2]["bbox"] = [5, 5, 0, 3]

    folder = changed(coco, tmp_path, change)
    names = folder / "annotations"
    shutil.copy(names / "instances_train2017.json", names / "instances_val2017.json")
    data = Coco(str(folder), val="val2017", masks=True, mirror=False, workers=0, batch_size=3)
    assert data.category_ids == list(range(70, 98, 3)) and data.classes == list("9876543210")
    with pytest.warns(UserWarning, match="1 boxes without an area left out; one: 9"):
        ready(data)
    shutil.copytree(folder / "train2017", folder / "val2017", dirs_exist_ok=True)
    tests, training = next(iter(data.val_dataloader())).targets, next(iter(data.train_dataloader())).targets
    assert tests[0]["labels"].tolist() == [10, 1] and tests[0]["iscrowd"].tolist() == [False, True]
    assert tests[0]["boxes"].tolist() == [[10, 10, 20, 30]] * 2
    assert tests[0]["masks"][0, 10:30, 10:20].all() and tests[0]["masks"][0].sum() == 200
    assert tests[1]["boxes"].shape == (0, 4) and tests[1]["masks"].shape == (0, 128, 128)
    assert sorted(target["labels"].tolist() for target in training) == [[], [], [10]]


def spoil(kind: str, **values):
    return lambda content: content[kind][1].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("images"), "is not a file of COCO's annotations: KeyError"),
        (
            lambda content: content["categories"].append({"id": 99, "name": "x"}),
            "categories .*99.* are in one",
        ),
        (spoil("annotations", id=1), "has two annotations of the id 1"),
        (spoil("annotations", category_id=99), "annotation 2 has the category 99, which there is not"),
        (spoil("annotations", image_id=99), "annotation 2 is of the image 99, which there is not"),
        (spoil("annotations", bbox=[1, 2, 3]), r"annotation 2 has the box \[1, 2, 3\], not four numbers"),
        (spoil("annotations", segmentation=[[1, 2, 3, 4]]), "annotation 2 has a polygon of fewer than three"),
        (
            spoil("annotations", segmentation={"size": [1, 2]}),
            r"annotation 2 has a mask of \[1, 2\], but its",
        ),
    ],
)
def test_coco_files_that_contradict_themselves(coco, tmp_path, change, message):
    with pytest.raises(DataError, match=message) as raised:
        ready(Coco(str(changed(coco, tmp_path, change))))
    assert "instances_train2017.json" in str(raised.value)


def test_coco_objects_that_cannot_be(coco, tmp_path):
    data = ready(Coco(str(changed(coco, tmp_path, spoil("annotations", bbox=[100, 100, 90, 20]))), workers=0))
    with pytest.raises(
        BadImageError, match=r"of .*00000\d.png, .*reaches out of the image of 128x128 pixels"
    ):
        for sample in data.parts["train"]:
            data.read(*sample)
    (tmp_path / "train2017" / "000000.png").unlink()
    with pytest.raises(BadImageError, match=r"000000.png' cannot be read"):
        data.read(*data.parts["train"][0])

    def lower(content):
        content["images"][0]["height"] = 64
        one = {**content["annotations"][1], "segmentation": [[1, 1, 9, 1, 9, 9]], "image_id": 0}
        content["annotations"] = [one]

    data = ready(Coco(str(changed(coco, tmp_path, lower)), masks=True, workers=0))
    with pytest.raises(BadImageError, match=r"masks of .*00.png must be \(1, 128, 128\), .* \(1, 64, 128\)"):
        data.read(*data.parts["train"][0])
    (tmp_path / "annotations" / "instances_val2017.json").write_text("{")
    with pytest.raises(DataError, match=r"val2017.json is not a file of COCO's annotations: JSONDecode"):
        Coco(str(tmp_path))


# --- VOC, pairs, Cityscapes -------------------------------------------------------------------------------


def save(file: Path, pixels, mode: str | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    if mode == "P":
        image.putpalette([7] * 768)
    image.save(file)
    return file


def test_voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "Annotations").mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
    one = f"<object><name>{{}}</name><difficult>{{}}</difficult>{box}</object>"
    for part in ("train", "val"):
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text(f"{part}\n")
        save(root / "JPEGImages" / f"{part}.jpg", np.zeros((*SIZES[0], 3)))
        text = one.format("cat", 0) + one.format("tvmonitor", 1)
        (root / "Annotations" / f"{part}.xml").write_text(f"<annotation>{text}</annotation>")
    data = ready(Voc(str(tmp_path), batch_size=1, workers=0, mirror=False))
    (target,) = next(iter(data.val_dataloader())).targets
    assert target["boxes"].tolist() == [[0, 1, 30, 40]] * 2  # pixels count from 1, and the last is included
    assert [data.classes[label - 1] for label in target["labels"]] == ["cat", "tvmonitor"]
    assert target["iscrowd"].tolist() == [False, True]
    assert next(iter(data.train_dataloader())).targets[0]["labels"].tolist() == [8]
    (root / "Annotations" / "val.xml").write_text(f"<annotation>{text}{one.format('dragon', 0)}</annotation>")
    with pytest.raises(BadImageError, match=r"val.xml, object 3: 'dragon' is not in list"):
        next(iter(data.val_dataloader()))
    with pytest.raises(DataError, match="VOC2007 is not in"):
        ready(Voc(str(tmp_path), "2007"))


def write_pairs(root: Path, values=(0, 1, 255)) -> Path:
    """Two images of different sizes in each part, one map grey and one with a palette."""
    (root / "classes.txt").write_text("road\n sky \n")
    for part in ("train", "val"):
        for size, mode in zip(SIZES, ("L", "P"), strict=True):
            save(root / "images" / part / f"{mode}.png", np.full((*size, 3), 255))
            save(root / "masks" / part / f"{mode}.png", np.resize(values, size), mode)
    return root


def test_pairs(tmp_path):
    data = ready(Pairs(str(write_pairs(tmp_path)), batch_size=2, workers=0, crop=(24, 16)))
    assert data.classes == ["road", "sky"]
    images, maps, _ = next(iter(data.val_dataloader()))
    assert images.shape == (2, 3, 40, 57) and maps.shape == (2, 40, 57)
    for image, classes, (height, width) in zip(images, maps, SIZES, strict=True):
        assert torch.equal(classes[:height, :width], torch.tensor(np.resize((0, 1, 255), (height, width))))
        assert classes[height:].eq(255).all() and classes[:, width:].eq(255).all()
        assert image[:, height:].eq(0).all() and image[:, :height, :width].gt(1).all()
    images, maps, _ = next(iter(data.train_dataloader()))
    assert images.shape == (2, 3, 24, 16) and set(maps.unique().tolist()) <= {0, 1, 255}


MAP = "masks/train/L.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "classes.txt").unlink(), "has no classes.txt"),
        (lambda root: shutil.rmtree(root / "images"), "There are no images in .*images/train"),
        (lambda root: (root / MAP).unlink(), r"L.png is missing: there is no .*L.png"),
        (
            lambda root: write_pairs(root, (0, 7)),
            r"L.png' has the values \[7\]; there are classes from 0 to 1",
        ),
        (lambda root: save(root / MAP, np.zeros((5, 5))), r"L.png' is \(5, 5\), but .* \(40, 30\)"),
        (lambda root: save(root / MAP, np.zeros((*SIZES[0], 3))), "it is RGB, neither grey of 8"),
        (lambda root: (root / MAP).write_bytes(b"no"), r"map .*L.png' cannot be read"),
    ],
)
def test_pairs_that_are_none(tmp_path, change, message):
    change(write_pairs(tmp_path))
    with pytest.raises(DataError, match=message):
        list(ready(Pairs(str(tmp_path), batch_size=2, workers=0)).train_dataloader())


def test_cityscapes(tmp_path):
    for part in ("train", "val"):
        save(tmp_path / "leftImg8bit" / part / "ulm" / "ulm_0_leftImg8bit.png", np.zeros((2, 3, 3)))
        ids = [[0, 7, 8], [11, 33, 29]]  # unlabeled, road, sidewalk, building, bicycle, caravan
        save(tmp_path / "gtFine" / part / "ulm" / "ulm_0_gtFine_labelIds.png", ids)
    data = ready(Cityscapes(str(tmp_path), batch_size=1, workers=0), "validate")
    maps = next(iter(data.val_dataloader())).targets
    assert maps.tolist() == [[[255, 0, 1], [2, 18, 255]]]
    assert (len(data.classes), data.classes[0], data.classes[18]) == (19, "road", "bicycle")
    with pytest.raises(DataError, match="Cityscapes is not in"):
        ready(Cityscapes(str(tmp_path / "elsewhere")))


# --- COCO's scores ----------------------------------------------------------------------------------------


def objects(boxes, labels, scores=None):
    kept = {"boxes": torch.tensor(boxes).float().reshape(-1, 4), "labels": torch.tensor(labels).long()}
    return kept if scores is None else {**kept, "scores": torch.tensor(scores).float()}


def scores(truth, found, ids, kind="bbox"):
    image = torch.empty(3, 128, 128)
    pairs = ([recorded(each, image, number) for number, each in enumerate(part)] for part in (truth, found))
    return coco_scores(*pairs, ids, kind)


def test_the_truth_is_perfect_and_other_labels_are_not():
    truth = next(iter(ready(Scenes(masks=True, test=40)).val_dataloader())).targets
    ids = list(range(1, 11))
    found = [{**each, "scores": torch.ones(len(each["labels"]))} for each in truth]
    for kind in ("bbox", "segm"):
        numbers, by_class, table = scores(truth, found, ids, kind)
        assert numbers[0] == numbers[1] == pytest.approx(1) and by_class == pytest.approx(1)
        assert "Average Precision" in table
        shuffled = [{**each, "labels": each["labels"] % 10 + 1} for each in found]
        assert scores(truth, shuffled, ids, kind)[0][0] < 0.05


def test_a_mask_is_as_large_as_its_pixels():
    """Of two detections one is right, of a small object; the other is small in a box that is not."""
    masks = torch.zeros(2, 128, 128)
    masks[0, :10, :10] = masks[1, 100, 40:100] = masks[1, 40, 40:100] = 1
    both = objects([[0, 0, 10, 10], [40, 40, 100, 101]], [1, 1], [0.8, 0.9])
    truth = {name: value[:1] for name, value in {**both, "masks": masks}.items() if name != "scores"}
    numbers = [scores([truth], [{**both, "masks": masks}], [5], kind)[0] for kind in ("bbox", "segm")]
    # All sizes and small ones: in a large box, the second is no mistake among the small.
    assert [(each[0], each[3]) for each in numbers] == [
        pytest.approx(pair) for pair in ((0.5, 1), (0.5, 0.5))
    ]


def test_scores_of_a_few_boxes_by_hand():
    """Class 5: of two, one is found, at an IoU of 0.8. Class 9: none is found. Class 11: there is none."""
    truth = [objects([[0, 0, 10, 10], [50, 50, 60, 60], [20, 20, 40, 40]], [1, 1, 2]), objects([], [])]
    found = [objects([[0, 0, 10, 8], [70, 70, 80, 80]], [1, 1], [0.9, 0.8]), objects([], [], [])]
    numbers, by_class, _ = scores(truth, found, [5, 9, 11])
    # Precision 1 up to a recall of 0.5, which 51 of the 101 points of the curve have, at IoUs of 0.5 to 0.8: 7 of 10.
    expected = 51 / 101 * 7 / 10
    assert by_class[:2] == pytest.approx([expected, 0]) and np.isnan(by_class[2])
    assert numbers[:3] == pytest.approx([expected / 2, 51 / 202, 51 / 202])
    assert np.isnan(numbers[5])  # nothing is large
    assert scores(truth, [objects([], [], [])] * 2, [5, 9, 11])[0][0] == 0
    crowd = [{**truth[0], "iscrowd": torch.tensor([False, True, True]), "area": torch.ones(3)}, truth[1]]
    one = [objects([[0, 0, 10, 10], [50, 50, 60, 60]], [1, 1], [0.9, 0.8]), found[1]]
    assert scores(crowd, one, [5, 9, 11])[0][0] == pytest.approx(1)  # neither a miss nor a mistake
