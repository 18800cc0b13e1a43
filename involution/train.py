"""Trains a network: ``python -m involution.train``, which without arguments trains a small RedNet on digits.

``python -m involution.train --help`` lists the options; :func:`train` is the same as a function.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import training
from .training import CheckpointError, DataError, ImageData, NonFiniteError, Task
from .training.checkpoint import write_atomically
from .training.libraries import LightningCLI, jsonargparse, lightning
from .training.run import CONFIG, LAST, AtomicCheckpoints, History, WithinEpochs, new_run, newest_run

EXPECTED_ERRORS = (CheckpointError, DataError, NonFiniteError)  # told in a sentence, without a traceback
SHIPPED = {file.stem: str(file) for file in (Path(__file__).parent / "training" / "configs").glob("*.yaml")}
HELP = f"""\
Every option can also stand in a YAML file for --config: that of an earlier run (config.yaml in its folder), what
--print_config prints, or, by its name alone, one that ships with the package:
{", ".join(sorted(SHIPPED))}. --task NAME is the same.

examples:
  python -m involution.train                      a small RedNet on handwritten digits, in half a minute
  python -m involution.train --task detection     boxes of digits on photographs; also instance, segmentation
  python -m involution.train --resume             go on with the newest run in runs/; or name its folder
  python -m involution.train --data ImageFolder --data.path FOLDER --model.network rednet50 --trainer.max_epochs 90
  python -m involution.train --data.help ImageFolder    the options of a kind of data; --model.help of a task

Of --trainer, the most used options are listed; all arguments of Lightning's Trainer are accepted.
"""
rank_zero_only: Any = lightning.utilities.rank_zero_only
LISTED = ("accelerator", "devices", "precision", "max_epochs", "accumulate_grad_batches", "gradient_clip_val")
DEFAULTS: dict[str, Any] = {"max_epochs": 25, "gradient_clip_val": 1.0, "num_sanity_val_steps": 0}
DEFAULTS |= {"enable_model_summary": False, "logger": False}
CHOICES: dict[str, Any] = dict.fromkeys(("subclass_mode_model", "subclass_mode_data"), True)
CHOICES |= {"save_config_callback": None, "seed_everything_default": 0}
CHOICES |= dict.fromkeys(("load_from_checkpoint_support", "auto_configure_optimizers"), False)


class _Formatter(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
    """Leaves the lines of the examples as they are, and the rarely used options of the trainer out."""

    def add_argument(self, action: argparse.Action) -> None:
        if action.dest.partition("trainer.")[2].removesuffix(".help") in ("", *LISTED):
            super().add_argument(action)


class _Command(LightningCLI):
    """The options, and the task, the data and the trainer that they make."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        parser.prog, parser.epilog, parser.formatter_class = "python -m involution.train", HELP, _Formatter
        parser.usage = "%(prog)s [--task NAME] [--config FILE] [--resume [RUN]] [--OPTION VALUE ...]"
        parser.description = "Trains a network; without options, a small RedNet on handwritten digits."
        add = parser.add_argument
        add("--output", type=str | None, help="folder of the run; a new one in runs/ unless given")
        add("--checkpoint_every", type=int | None, help="steps between checkpoints within an epoch")
        add("--threads", type=int | None, help="processor threads; 1 for digits, else torch's choice")
        parser.set_defaults({"model": {"class_path": "Classification"}, "data": {"class_path": "Digits"}})
        parser.link_arguments("data", "model.init_args.data", lambda data: data.description, "instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("seed_everything", "model.init_args.seed")

    def parse_arguments(self, parser: Any, args: Any) -> None:
        self.config = parser.parse_args(args)

    def instantiate_trainer(self, **_: Any) -> lightning.Trainer:
        config, options, kind = self.config, self.config_init.trainer, lightning.callbacks.ModelCheckpoint
        torch.set_num_threads(config.threads or self.datamodule.threads or torch.get_num_threads())
        run = Path(config.output or new_run(type(self.datamodule).__name__.lower()))
        if rank_zero_only.rank == 0:  # the process that writes, of several that train together
            run.mkdir(parents=True, exist_ok=True)
            config.output = str(run)
            write_atomically(run / CONFIG, lambda file: file.write(self.parser.dump(config).encode()))
        always: dict[str, Any] = {"dirpath": run, "enable_version_counter": False}
        always["save_on_train_epoch_end"] = True
        best = kind(filename="best", monitor=self.model.monitor[0], mode=self.model.monitor[1], **always)
        added: list[Any] = [History(run), best, kind(filename="last", **always)]
        if config.checkpoint_every:
            added.append(WithinEpochs(filename="last", every_n_train_steps=config.checkpoint_every, **always))
        given = options.callbacks if isinstance(options.callbacks, list) else [options.callbacks]
        options.callbacks = [*filter(None, given), *added]
        if options.enable_progress_bar is None:
            options.enable_progress_bar = sys.stderr.isatty()
        options.use_distributed_sampler = False  # the loaders share the images themselves
        return lightning.Trainer(**{**options, "plugins": [*(options.plugins or []), AtomicCheckpoints()]})


def quiet() -> None:
    """Leaves out what Lightning says to its developers and customers."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "(?s).*(does not have many workers|isinstance.treespec|is not empty)")


def train(options: Sequence[str] = (), resume: str | Path | None = None) -> lightning.Trainer:
    """Trains a network, or goes on with a run that was interrupted.

    Args:
        options (sequence of str): Those of the command line, such as ``["--trainer.max_epochs=1"]``. Default: ``()``
        resume (str or Path, optional): Folder of the run to go on with, whose options hold where none are given; ``""``
            is the newest. On the same machine it gives the losses that it would have given without the interruption.

    Returns:
        The trainer: ``callback_metrics`` has the last scores, ``checkpoint_callback.dirpath`` is the folder of the run.

    Raises:
        CheckpointError: the checkpoint to go on from is damaged, or the folder holds a run already.
        DataError: the data is not there, or not what it should be.
        NonFiniteError: the loss or its gradient is not finite.
        SystemExit: an option is unknown or its value is not allowed; the message is printed.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", "--task", action="append", default=[])
    parser.add_argument("--resume", nargs="?", const="", default=resume)
    parser.add_argument("--output")
    found, rest = parser.parse_known_args(options)
    files, path, last = [SHIPPED.get(name, name) for name in found.config], found.output, None
    if found.resume is not None:
        path = Path(found.resume or newest_run(CONFIG))
        files, last = [str(path / CONFIG), *files], path / LAST
    elif path and rank_zero_only.rank == 0 and (Path(path) / CONFIG).exists():
        raise CheckpointError(
            f"{path} holds a run already. Go on by --resume {path}, or give another --output."
        )
    arguments = [*(f"--config={file}" for file in files), *rest, *([f"--output={path}"] if path else [])]
    for name in training.__all__:  # imported, tasks and data have short names
        getattr(training, name)
    threads = torch.get_num_threads()
    try:
        made = _Command(Task, ImageData, args=arguments, run=False, trainer_defaults=DEFAULTS, **CHOICES)
        # Interrupted before its first checkpoint, a run begins again.
        start = last if last and last.exists() else None
        made.trainer.fit(made.model, made.datamodule, ckpt_path=start, weights_only=True)
        return made.trainer
    finally:
        torch.set_num_threads(threads)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command, with the process's arguments unless others are given; an expected error ends it by a sentence."""
    quiet()
    try:
        train(sys.argv[1:] if arguments is None else arguments)
    except EXPECTED_ERRORS as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
