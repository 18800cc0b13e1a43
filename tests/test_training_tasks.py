"""Detection, instance and semantic segmentation: short runs on scenes, and what is special to each."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from training_cases import curve, need_libraries, train_keeping

need_libraries()

from involution import evaluate as evaluation
from involution.train import train
from involution.training import CheckpointError, DataError, Detection, Scenes, Segmentation, load_model
from involution.training.checkpoint import create_network
from involution.training.detection import COLOURS, draw_objects
from involution.training.loading import Batch

MEASURED = {"detection": ["map"], "instance": ["map", "segm_map"], "segmentation": ["miou", "pixel_accuracy"]}


@pytest.mark.parametrize("task", MEASURED)
def test_a_short_run(task, tmp_path, capsys):
    """The loss halves, a run that was interrupted gives the same numbers, and evaluation repeats them."""
    options = ["--data.train=16", "--data.test=4", "--trainer.max_epochs=9", "--trainer.accelerator=cpu"]
    options += [f"--output={tmp_path / 'whole'}", "--threads=1", "--model.warmup_epochs=1"]
    if task == "segmentation":  # by its weights the loss does not halve before digits are told apart
        options += ["--model.class_weights=null", "--model.optimizer.lr=0.002"]
    whole = train_keeping(tmp_path, [f"--task={task}", *options])
    rows = curve(whole)
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"]) / 2
    assert all(f"val_{name}" in rows[0] for name in MEASURED[task])
    shutil.copy(whole / "config.yaml", tmp_path / "after-3")
    train(resume=tmp_path / "after-3")
    assert curve(tmp_path / "after-3") == rows

    for file in ("examples.png", "detections.json"):  # what training has left; evaluation writes them again
        assert (whole / file).exists() == (task != "segmentation" or file == "examples.png")
        (whole / file).unlink(missing_ok=True)
    assert evaluation.main([str(whole), "--accelerator=cpu"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("as training recorded") == len([name for name in rows[0] if name.startswith("val_")])
    assert (whole / "examples.png").read_bytes()[:4] == b"\x89PNG"
    if task == "segmentation":
        assert "background" in printed
    else:
        assert printed.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all") == len(MEASURED[task])
        found = json.loads((whole / "detections.json").read_text())
        needed = {"image_id", "category_id", "bbox", "score", *["segmentation"][: task == "instance"]}
        assert all(set(each) == needed and each["image_id"] in range(4) for each in found)


COCO = ("batch_size: 16", "schedule: steps", "- 11.0", "weight_decay: 0.0001", "max_epochs: 12")
CITYSCAPES = ("batch_size: 8", "schedule: polynomial", "weight_decay: 0.0005", "max_epochs: 216", "- 1024")
RECIPES = {
    "fasterrcnn": (*COCO, "lr: 0.02", "gradient_clip_val: 5.0"),
    "maskrcnn": (*COCO, "lr: 0.02", "gradient_clip_val: 5.0"),
    "retinanet": (*COCO, "lr: 0.01", "gradient_clip_val: 40.0"),
    "semantic_fpn": (*CITYSCAPES, "lr: 0.01", "gradient_clip_val: null"),
    "upernet": (*CITYSCAPES, "lr: 0.01", "gradient_clip_val: null"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_official_recipes(name, capsys):
    weights = "--model.network_arguments.weights_backbone=w"
    with pytest.raises(SystemExit) as ended:
        train([f"--task={name}", "--data.path=there", weights, "--print_config"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0 and f"network: {name}_rednet50" in printed
    for line in (*RECIPES[name], "weights_backbone: w"):
        assert f" {line}\n" in printed, line


def test_weights_of_a_backbone_are_not_asked_for_again(tmp_path):
    """A checkpoint has all weights, so that it can be read where the file is not."""
    from involution.models import rednet_tiny

    body = {"blocks": (1, 2, 2), "stem": "imagenet"}
    torch.save(rednet_tiny(num_classes=3, stem_kernel_size=7, **body).state_dict(), tmp_path / "body.pth")
    arguments = {"weights_backbone": str(tmp_path / "body.pth"), "neck": "convolution"}
    task = Detection(Scenes().description, network_arguments=arguments)
    assert task.model["arguments"] == {"num_classes": 11, "neck": "convolution"}


def test_networks_are_known_by_name(tmp_path):
    for name in ("fasterrcnn_rednet51_fpn", "upernet_tiny"):
        with pytest.raises(ValueError, match=f"There is no network '{name}' in involution"):
            create_network(name, num_classes=3)
    info = {"version": 2, "model": {"name": "retinanet_rednet7_fpn", "arguments": {}}}
    torch.save({"involution": info, "epoch": 0, "state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="There is no network 'retinanet_rednet7_fpn'"):
        load_model(tmp_path / "x.ckpt")


# --- Detection --------------------------------------------------------------------------------------------


def see_half(task: Detection, part: slice) -> None:
    """Lets a task see some test scenes, of which the network finds every other object."""
    data = Scenes(masks=True, test=6, batch_size=6)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    images, targets = batch.images[part], batch.targets[part]
    found = []
    for target in targets:
        kept = {name: target[name][::2] for name in ("boxes", "labels", "masks")}
        kept |= {"masks": kept["masks"][:, None] * 0.9, "scores": torch.ones(len(kept["labels"]))}
        found.append(kept)
    task.network = torch.nn.Module()
    task.network.forward = lambda images: found
    task.measure(Batch(images, targets, []))


def in_a_process(rank: int, file: str, results) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    task = Detection(Scenes().description)
    task._trainer = SimpleNamespace(world_size=2)
    see_half(task, slice(rank, None, 2))
    results.put({name: value.item() for name, value in task.scores().items()})
    torch.distributed.destroy_process_group()


def test_two_processes_find_what_one_finds(tmp_path):
    task = Detection(Scenes().description)
    task._trainer = SimpleNamespace(world_size=1)
    see_half(task, slice(None))
    expected = {name: value.item() for name, value in task.scores().items()}
    assert 0.3 < expected["val_segm_map"] < 0.9 and expected["val_map"] > 0.3
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    arguments = [(rank, str(tmp_path / "m"), results) for rank in (0, 1)]
    several = [fork.Process(target=in_a_process, args=each) for each in arguments]
    for process in several:
        process.start()
    assert [results.get(timeout=120) for _ in several] == [expected] * 2
    for process in several:
        process.join()


def test_examples_show_truth_and_detections(tmp_path):
    image, box = torch.zeros(3, 32, 32), torch.tensor([[4.0, 6, 20, 30]])
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 16:20, 8:16] = 1
    target = {"boxes": torch.tensor([[1.0, 1, 3, 3]])}
    found = {"boxes": box, "labels": torch.tensor([1]), "scores": torch.tensor([0.9]), "masks": mask}
    picture = draw_objects(image, target, found, ["cat", "dog"])
    assert COLOURS[1] == "orange" and picture.shape == (3, 512, 512)  # 16 times as large
    assert picture[:, 30 * 16, 12 * 16].tolist() == [255, 165, 0]  # the box
    assert picture[:, 18 * 16, 12 * 16].tolist() == [127, 82, 0]  # the mask, half of the colour
    assert picture[:, 16, 32].tolist() == [255, 255, 255] and picture[:, 8 * 16, 28 * 16].sum() == 0
    nothing = {name: value[:0] for name, value in found.items()}
    assert draw_objects(torch.zeros(3, 900, 20), target, nothing, ["cat"]).shape == (3, 900, 20)


# --- Segmentation -----------------------------------------------------------------------------------------


def test_losses_and_scores_of_pixels_are_their_definitions():
    data = {"classes": ["a", "b", "c", "d"], "input": {"channels": 3, "mean": [0.5], "std": [0.5]}}
    task = Segmentation(data, auxiliary=0.3)
    out, aux = torch.randn(2, 4, 5, 7), torch.randn(2, 4, 5, 7)
    out[:, 3] = -100  # never found, and not there: it does not count
    maps = torch.randint(3, (2, 5, 7))
    maps[0, 2:] = 255
    task.network = torch.nn.Module()
    task.network.forward = lambda images: {"out": out.bfloat16(), "aux": aux}
    batch = Batch(torch.empty(2, 3, 5, 7), maps, [])
    kept = maps != 255
    own = [F.cross_entropy(each.movedim(1, 3)[kept], maps[kept]) for each in (out.bfloat16().float(), aux)]
    torch.testing.assert_close(task.loss(batch), own[0] + 0.3 * own[1])
    task.measure(batch)
    with pytest.warns(UserWarning, match=r"1 image\(s\) skipped; one: unreadable"):
        task.validation_step(Batch(torch.empty(0), [], ["unreadable"]), 0)
    scores, found = task.scores(), out.bfloat16().argmax(1)
    torch.testing.assert_close(scores["val_loss"], own[0])
    pairs = [(maps == i, found == i) for i in range(3)]
    ious = [(there & seen).sum() / (kept & (there | seen)).sum() for there, seen in pairs]
    torch.testing.assert_close(scores["val_miou"].float(), torch.stack(ious).mean())
    torch.testing.assert_close(scores["val_pixel_accuracy"].float(), (found == maps)[kept].float().mean())
    assert task.loss(batch._replace(targets=torch.full_like(maps, 255))) == 0


def test_the_loss_of_a_class_has_its_weight():
    data = {"classes": ["a", "b", "c"], "input": {"channels": 3, "mean": [0.5], "std": [0.5]}}
    weights = [0.1, 1.0, 2.0]
    task = Segmentation(data, class_weights=weights)
    out, maps = torch.randn(2, 3, 5, 7), torch.randint(3, (2, 5, 7))
    maps[0, 2:] = 255
    task.network = torch.nn.Module()
    task.network.forward = lambda images: {"out": out}
    own = [
        (weights[maps[place]], -out.movedim(1, 3)[place].log_softmax(0)[maps[place]])
        for place in zip(*(maps != 255).nonzero(as_tuple=True), strict=True)
    ]
    expected = sum(weight * loss for weight, loss in own) / sum(weight for weight, _ in own)
    batch = Batch(torch.empty(2, 3, 5, 7), maps, [])
    torch.testing.assert_close(task.loss(batch), expected)
    task.measure(batch)
    torch.testing.assert_close(task.scores()["val_loss"], F.cross_entropy(out, maps, ignore_index=255))
    assert task.loss(batch._replace(targets=torch.full_like(maps, 255))) == 0
    for wrong in ([], [1.0, 1.0], [1.0, 1.0, -0.5]):
        with pytest.raises(DataError, match=r"class_weights must have a number .* for each of the 3"):
            Segmentation(data, class_weights=wrong)
