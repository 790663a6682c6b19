"""What steps, runs and their parts cost, as ratios from one run on one thread, in CPU time.

    [DEEP_SAD_PYTORCH=PATH] python benchmarks/speed.py --write

Everything learns from random pixels in the shape of MNIST or CIFAR-10. A method's epochs in the Lightning loop are
compared with those of Deep SVDD just before them, so that what else the machine does hits both; the first epoch does
not count, and validation is off. PATH is a checkout of https://github.com/lukasruff/Deep-SAD-PyTorch, which then trains
and tests on the same images: those of MNIST, if ELITE_PL_DATA names a folder that has them.
"""

import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import loop_overhead
import machine
import numpy as np
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_module

from elite_pl import config
from elite_pl.algorithm import metrics
from elite_pl.data import Arrays
from elite_pl.data.datamodule import PollutedData
from elite_pl.methods.base import Detector
from elite_pl.runs.build import make_data, make_detector, make_trainer
from elite_pl.runs.callbacks import History
from elite_pl.runs.run import run
from elite_pl.runs.spec import RunSpec

RESULTS = Path(__file__).parent / "results" / "speed.md"
METHODS = Path(__file__).parents[1] / "conf" / "method"
SAME_STEPS = ("_augmented", "_paper", "_published", "_release", "_tabular", "_hinge")  # other settings of a class
EPOCHS = 4
MNIST = ["dataset=mnist", "n_train=2500", "label_ratio=0.008"]  # 128 unlabeled samples and 20 labeled ones in a step
CIFAR = ["dataset=cifar10", "n_train=600", "label_ratio=0.167"]  # 128 and 100
# Of Deep-SAD-PyTorch, for as many epochs as both are trained.
PUBLISHED, TOGETHER = ["method.average=samples", "method.eta=1", "method.optimizer={lr: 1e-3, weight_decay: 1e-6}"], 5
SEEDS = 6
DATA = os.environ.get("ELITE_PL_DATA")
COMMON = ["logger=none", "threads=1", "method.pretrain_epochs=0", "batch_size=128", "trainer.accelerator=cpu"]

TRIED = """## What was tried

An ELITE step by rules as in `algorithm/tangent.py`, over one by PyTorch's rules for dual numbers: medians of 8 to 60
turns in one process, on a busy machine (another run moves them by 0.02), at commit 9f359c5. The first row is in use.

| rules | MNIST, channels last | MNIST, not so | CIFAR-10 shape, 100 labeled | 64 features, MLP |
|---|---|---|---|---|
| convolution with `[W; v]`, batch normalization | 0.83 | 0.87 | not measured | 1.05 |
| the same, leaky ReLU and pooling | 0.85 | 0.90 | 1.00 (channels last: 1.01) | 1.04 |
| the same, value and tangent convolved one by one | 0.89 | 0.94 | 0.97 (0.98) | 1.01 |
| batch normalization alone | 0.93 | 0.97 | not measured | not measured |

`trainer.channels_last` stays off. MNIST's images have strides that PyTorch takes for channels last, so they gain
nothing: whole runs of classes 0 and 3 by elite_svdd and deep_svdd took 0.97 to 1.07 of the CPU time, and ROC AUC was
0.2 points lower on average (-0.5 to 0.1). Gray images with other strides do gain (an epoch of deep_svdd 0.69, of
elite_svdd 0.81).

Whole runs, before (commit 31a127d) and at 23c3caf, in turn, CPU time without logger: digits, three times, 10.5 and
6.1 s (0.58), 5.1 s with `pictures=false` (0.48); MNIST with 20 epochs 79 and 60 s (0.76; twice at e8d42ac 74 and 55,
71 and 60). The goal, half, is missed on MNIST, whose steps are half of a run. Of the digits' run torch and Lightning
are 2.5 s, pictures 0.9 s and Hydra 0.4 s. Its first step is done 2.9 s after the start (goal: 4). What was saved:
`torch._dynamo`, which optimizers and Lightning import whether or not anybody compiles (1.3 s); SymPy, which PyTorch
imports to check the shape of a gradient or of a zero tangent (0.4 s); margins of pictures, which were measured by
drawing everything twice (0.3 s); Python's search for garbage, which does without what imports have loaded (1 s).

A constant subtracted from a dual number by a rule of our own: a step of ELITE on 64 features takes 0.66 of the time,
because PyTorch works out the shape of its zero tangent in Python. A rule for the Euclidean norm was slower than
PyTorch's (1.08) and is not kept.

Deep SAD: after 5 epochs one seed differs from another by 3 to 5 points (standard deviation), so two seeds, as this
table had before, say nothing. Over twelve, ours has 76.9 ± 0.9, and 77.3 ± 0.9 with `method.labeled_statistics=joint`,
as in Deep-SAD-PyTorch. In a bare loop on the same splits, all labels at every step or each once an epoch as there makes
no difference: 77.9 ± 0.9 and 78.2 ± 1.5.

What three times its speed would take: PyTorch's convolutions alone, forward and backward, are 0.48 of a step of Deep
SVDD on 128 images, so 0.55 on the 148 of Deep SAD's step. That would have to take 0.58 (Deep-SAD-PyTorch: 1.75), which
leaves 0.03 for normalization, pooling, the optimizer, the samples and the loop.
"""


def colors() -> Arrays:
    """Random pixels in the shape of CIFAR-10."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (6000, 3, 32, 32), dtype=np.uint8), np.arange(6000) % 2
    return Arrays("colors", x, y, x[:100], y[:100], None, "classes", "random")


def pixels() -> Arrays:
    """Random pixels in the shape of MNIST, and as many to test on."""
    gray = loop_overhead.pixels()
    rng = np.random.default_rng(1)
    return replace(
        gray, x_test=rng.integers(0, 256, (10000, 28, 28), dtype=np.uint8)[:, None], y_test=np.arange(10000) % 2
    )


class Times(pl.Callback):
    """CPU seconds of the epochs, and of the parts of a run."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.at: dict[str, float] = {"read": time.process_time()}
        self.validation = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the preparation."""
        self.at["prepare"] = time.process_time()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Between two epochs."""
        self.at.setdefault("train", time.process_time())
        self.marks.append(time.process_time())

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The test set is scored."""
        self.validation -= time.process_time()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """And has been."""
        self.validation += time.process_time()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What comes after are scores and files."""
        self.at["files"] = time.process_time()


TIMES = Times()


def times() -> Times:
    """The callback of the run at hand, as its configuration names it."""
    return TIMES


def composed(directory: Path, *typed: str, random: bool = True) -> Any:
    """The configuration of a run, on random pixels or on those of the data set."""
    with initialize_config_module("elite_pl.conf", version_base="1.3"):
        cfg = compose("train", [*COMMON, f"epochs={EPOCHS}", f"output_dir={directory}", *typed])
    if random:
        source = "colors" if cfg.dataset.name == "cifar10" else "pixels"
        cfg.dataset.source = {"_target_": f"__main__.{source}"}
    return cfg


def fitted(*typed: str, random: bool = True) -> tuple[Detector, PollutedData, Times]:
    """A detector after its training in the Lightning loop, without validation; with the times of its epochs."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = composed(Path(folder), "trainer.limit_val_batches=0", *typed, random=random)
        data = make_data(cfg)
        detector = make_detector(cfg, data.sample_shape)
        assert isinstance(detector, Detector)
        trainer = make_trainer(replace(RunSpec.of(cfg), directory=Path(folder)), History(Path(folder) / "history.csv"))
        found = Times()
        trainer.callbacks.insert(0, found)  # type: ignore[attr-defined]
        trainer.fit(detector, datamodule=data)
    return detector, data, found


def epoch(*typed: str) -> float:
    """CPU seconds of an epoch."""
    return statistics.median(np.diff(fitted(*typed)[2].marks)[1:].tolist())


def has_epochs(method: str) -> bool:
    """Whether a method is trained by gradient, and nothing but that."""
    return "pretrain_epochs" in config.compose([f"method={method}"]).method


def against(base: list[str], other: list[str]) -> str:
    """The CPU time of an epoch over that of a base just before."""
    before = epoch(*base)
    return f"{epoch(*other) / before:.2f}"


def whole_run() -> list[tuple[str, str]]:
    """Where the CPU seconds of a whole run go."""
    global TIMES
    imports = "from elite_pl.runs import startup; startup.import_lightning(); import elite_pl.runs.launch"
    start = subprocess.Popen([sys.executable, "-c", imports])
    usage = os.wait4(start.pid, 0)[2]
    TIMES = Times()
    with tempfile.TemporaryDirectory() as folder:
        watched = "+callbacks.times._target_=__main__.times"
        cfg = composed(Path(folder), *MNIST, "method=elite_svdd", "method.pretrain_epochs=1", watched)
        run(RunSpec.of(cfg))
    end, at = time.process_time(), TIMES.at
    training = at["files"] - at["train"] - TIMES.validation
    parts = {
        "imports": usage.ru_utime + usage.ru_stime,
        "reading": at["prepare"] - at["read"],
        "preparation, with 1 epoch of pre-training": at["train"] - at["prepare"],
        f"{EPOCHS} epochs of steps": training,
        f"{EPOCHS} times 10,000 test samples": TIMES.validation,
        "last scores and files": end - at["files"],
    }
    rows = [(f"elite_svdd, a whole run: {name}", f"{seconds:.1f} s") for name, seconds in parts.items()]
    rows.append(("elite_svdd: unlabeled samples trained on", f"{EPOCHS * 2480 / training:,.0f} a second"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [*rows, ("elite_svdd, a whole run: peak memory, with the imports", f"{memory:.0f} MiB")]


def rival(path: str) -> list[tuple[str, str]]:
    """Deep-SAD-PyTorch over our Deep SAD of the same settings, both for as many epochs from initial weights."""
    sys.path.insert(0, f"{path}/src")
    from base.torchvision_dataset import TorchvisionDataset  # type: ignore[import-not-found]
    from datasets.mnist import MyMNIST  # type: ignore[import-not-found]
    from DeepSAD import DeepSAD  # type: ignore[import-not-found]
    from torchvision import transforms

    def images(x: np.ndarray, anomalous: torch.Tensor, label: torch.Tensor) -> Any:
        made = MyMNIST.__new__(MyMNIST)  # its files are not needed, the way in which it reads a sample is
        made.data, made.targets, made.semi_targets = torch.as_tensor(x[:, 0]), anomalous.long(), label.long()
        made.transform, made.target_transform = transforms.ToTensor(), None
        return made

    ratios: dict[str, list[float]] = {"training, the center included": [], "testing": [], "end to end": []}
    roc_aucs: dict[str, list[float]] = {"Deep-SAD-PyTorch": [], "deep_sad": []}
    for seed in range(SEEDS):
        start = time.process_time()
        typed = [
            "dataset=mnist",
            "label_ratio=0.004",
            "method=deep_sad",
            *PUBLISHED,
            f"epochs={TOGETHER}",
            f"seed={seed}",
        ]
        detector, data, at = fitted(*typed, random=DATA is None)
        trained = time.process_time()
        score = detector.score_samples(data.test)
        tested = time.process_time()
        anomalous, arrays, split = data.anomalous("test"), data.arrays, data.split
        roc_aucs["deep_sad"].append(metrics.roc_auc(score, anomalous))

        index = np.concatenate([split.unlabeled, split.labeled])
        label = torch.cat([torch.zeros(len(split.unlabeled)), data.labeled_y])
        dataset = TorchvisionDataset("")
        dataset.train_set = images(arrays.x_train[index], label < 0, label)
        dataset.test_set = images(arrays.x_test[split.test], anomalous, torch.zeros(len(anomalous)))
        torch.manual_seed(seed)
        theirs = DeepSAD()
        theirs.set_network("mnist_LeNet")
        times = [time.process_time()]
        theirs.train(dataset, n_epochs=TOGETHER, device="cpu")
        times.append(time.process_time())
        theirs.test(dataset, device="cpu")
        times.append(time.process_time())
        roc_aucs["Deep-SAD-PyTorch"].append(theirs.trainer.test_auc)
        ratios["training, the center included"].append((times[1] - times[0]) / (trained - at.at["prepare"]))
        ratios["testing"].append((times[2] - times[1]) / (tested - trained))
        ratios["end to end"].append((times[2] - times[0]) / (tested - start))
    rows = [(f"Deep-SAD-PyTorch over deep_sad: {part}", f"{statistics.mean(r):.2f}") for part, r in ratios.items()]
    if DATA:
        for name, found in roc_aucs.items():
            mean, error = 100 * statistics.mean(found), 100 * statistics.stdev(found) / SEEDS**0.5
            what = f"{name}: ROC AUC on MNIST after {TOGETHER} epochs, {SEEDS} seeds"
            rows.append((what, f"{mean:.1f} ± {error:.1f}"))
    return rows


def main() -> None:
    options = machine.started(__doc__, RESULTS)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    config.register()

    lines = ["| what | measured |", "|---|---|"]

    def tell(rows: list[tuple[str, str]]) -> None:
        for row in rows:
            lines.append(f"| {row[0]} | {row[1]} |")
            print(lines[-1], flush=True)

    tell(whole_run())
    last = "trainer.channels_last=true"
    svdd, elite = "method=deep_svdd", "method=elite_svdd"
    cases = {
        "elite_svdd by virtual_step over deep_svdd": (
            [svdd, *MNIST],
            [elite, *MNIST, "method.meta_gradient=virtual_step"],
        ),
        "elite_svdd over deep_svdd, CIFAR-10, 100 labeled": ([svdd, *CIFAR], [elite, *CIFAR]),
        "deep_svdd, CIFAR-10, channels_last over not": ([svdd, *CIFAR], [svdd, *CIFAR, last]),
        "elite_svdd, CIFAR-10, channels_last over not": ([elite, *CIFAR], [elite, *CIFAR, last]),
    }
    methods = sorted(path.stem for path in METHODS.glob("*.yaml") if not path.stem.endswith(SAME_STEPS))
    methods = [method for method in methods if method not in ("deep_svdd", "elite_ae") and has_epochs(method)]
    cases |= {f"{method} over deep_svdd": ([svdd, *MNIST], [f"method={method}", *MNIST]) for method in methods}
    cases["elite_ae over autoencoder"] = ["method=autoencoder", *MNIST], ["method=elite_ae", *MNIST]
    for name, (base, other) in cases.items():
        tell([(name, against(base, other))])
    for case in ("MNIST LeNet", "digits MLP"):
        ratio, bare = loop_overhead.measure(case, 8)
        tell([(f"Lightning loop over a bare loop, {case} ({bare:.1f} ms a step)", f"{ratio:.2f}")])
    if path := os.environ.get("DEEP_SAD_PYTORCH"):
        tell(rival(path))
    tell([("all of this, CPU time", f"{time.process_time() / 60:.0f} min")])
    text = f"""# Speed

`DEEP_SAD_PYTORCH=… python benchmarks/speed.py --write`, or `make bench`: CPU time on one thread, random pixels in the
shape of MNIST, batches of 128, 20 labeled samples, where nothing else is said. Another run moves a ratio by a tenth,
beside busy neighbors by more.

{chr(10).join(lines)}

{TRIED}
{machine.in_words()}"""
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
