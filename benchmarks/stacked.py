"""CPU time of trainings that are made as one, over that of the same trainings one by one; both with the same trainer.

    python benchmarks/stacked.py [--write]

Random samples, one thread, 128 unlabeled and 20 labeled ones in a step (tables: 64 and 20), prepared before the
clock starts. The first row is `elite_pl.fit` on a table of 2,000 rows, with all that it does besides; the next six are
whole commands, which also start, evaluate and, two of them, draw.
"""

import itertools
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import machine
import numpy as np
from pytorch_lightning import LightningDataModule

import elite_pl
from elite_pl import config
from elite_pl.data.arrays import make_arrays
from elite_pl.data.datamodule import PollutedData
from elite_pl.methods.base import Detector
from elite_pl.runs import crossfit
from elite_pl.runs.build import make_data, make_detector, make_trainer
from elite_pl.runs.candidates import with_settings
from elite_pl.runs.spec import RunSpec
from elite_pl.runs.stacked import StackedData, together

RESULTS = Path(__file__).parent / "results" / "stacked.md"
STEPS, TURNS = 20, 2
COMMON = ["dataset=npz", "dataset.path=null", "dataset.labels=known", "logger=none", "threads=1", "epochs=100"]
COMMON += ["trainer.accelerator=cpu", f"trainer.max_steps={STEPS}"]
TABLE, OTHER = (2000, 20), ["batch_size=128", "method.pretrain_epochs=0"]
# Shape of the samples, further settings, methods, and numbers of detectors.
CASES = {
    "tabular network": (TABLE, [], ("deep_sad_tabular", "labels_only_tabular", "elite_tabular"), (4, 10)),
    "MLP, 64 features, batches of 32": ((2000, 64), ["batch_size=32", OTHER[1]], ("elite_svdd",), (10,)),
    "MLP, 64 features": ((2000, 64), OTHER, ("deep_sad", "labels_only", "elite_svdd"), (4, 10)),
    "MLP, 512 features": ((2000, 512), OTHER, ("deep_sad", "labels_only", "elite_svdd"), (4, 10)),
}


def noise(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Samples, and labels of ten of each kind; a tenth are anomalies."""
    rng = np.random.default_rng(0)
    x, y = rng.random(shape, np.float32), np.zeros(shape[0], dtype=np.int64)
    x[: shape[0] // 10] **= 2
    y[:10], y[-10:] = -1, 1
    return x, y


def prepared(spec: RunSpec, shape: tuple[int, ...], k: int) -> Iterator[tuple[PollutedData, Detector]]:
    x, y = noise(shape)
    arrays = make_arrays("noise", x, y, x[:0], y[:0], labels="known")
    for seed in range(k):
        own = with_settings(spec, {"seed": seed})
        data = make_data(own.config, arrays)
        detector = make_detector(own.config, data.sample_shape)
        assert isinstance(detector, Detector)
        detector.prepare(data)
        detector.prepared.fill_(True)
        yield data, detector


def cpu_seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def fit(spec: RunSpec, detector: Detector, data: LightningDataModule) -> None:
    make_trainer(spec, None).fit(detector, datamodule=data)


def steps(typed: list[str], shape: tuple[int, ...], k: int) -> tuple[float, float]:
    """CPU milliseconds of a step of one detector, one by one and together; means of the turns."""
    spec = RunSpec.of(config.compose([*COMMON, *typed]))
    alone, at_once = 0.0, 0.0
    for _ in range(TURNS):
        alone += sum(cpu_seconds(partial(fit, spec, detector, data)) for data, detector in prepared(spec, shape, k))
        data, detectors = zip(*prepared(spec, shape, k), strict=True)
        at_once += cpu_seconds(partial(fit, spec, together(detectors), StackedData(data, detectors)))
    return 1000 * alone / k / STEPS / TURNS, 1000 * at_once / k / STEPS / TURNS


def of_fit() -> tuple[float, float]:
    """CPU seconds of `elite_pl.fit` on a table, one by one and together; means of the turns."""
    x, y = noise(TABLE)
    whole = partial(elite_pl.fit, x, y, overrides=["threads=1", "trainer.accelerator=cpu"])
    alone, at_once = 0.0, 0.0
    for _ in range(TURNS):
        with mock.patch.object(crossfit, "why_not", lambda *_: "to be measured alone"):
            alone += cpu_seconds(whole)
        at_once += cpu_seconds(whole)
    return alone / TURNS, at_once / TURNS


def command(*typed: str) -> float:
    """CPU seconds of a sweep of the digits' study by the command."""
    with tempfile.TemporaryDirectory() as place:
        _, usage = machine.train("-m", "dataset=digits", "method=elite_svdd", *typed, f"output_dir={place}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    options = machine.started(__doc__, RESULTS)
    logging.getLogger("elite_pl").setLevel(logging.ERROR)
    lines = ["| trainings | of | one by one | together | ratio |", "|---|---|---|---|---|"]

    def tell(what: str, k: str, one: float, other: float, unit: str) -> None:
        lines.append(f"| {what} | {k} | {one:.1f} {unit} | {other:.1f} {unit} | {other / one:.2f} |")
        print(lines[-1], flush=True)

    tell("`elite_pl.fit`, 2,000 rows", "4 seeds and 5 folds", *of_fit(), "s")
    for drawn, numbers in (([], (20,)), (["pictures=false"], (20, 100))):
        name, start = " ".join(["digits, elite_svdd, whole command", *drawn]), command("seed=0", *drawn)
        for k in numbers:
            cells = f"seed=range({k // 10})", "normal_class=range(10)", *drawn
            each, stack = command(*cells), command(*cells, "hydra.sweeper.stack=10")
            tell(name, f"{k} cells, 10 at a time", each, stack, "s")
            tell("the same, without the start and the first cell", f"{k - 1} cells", each - start, stack - start, "s")
    for network, (shape, typed, methods, counts) in CASES.items():
        for method, k in itertools.product(methods, counts):
            tell(f"{method}, {network}", str(k), *steps([f"method={method}", *typed], shape, k), "ms")
    text = f"""# Trainings together

`python benchmarks/stacked.py --write`: CPU time on one thread, of a step of one detector where nothing else is said,
one by one and with stacked weights ({STEPS} steps, 128 unlabeled samples, tables 64, and 20 labeled ones; the same
trainer, which keeps nothing).

{chr(10).join(lines)}

{NOTE}
{machine.in_words()}"""
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")


NOTE = """\
A whole command gains less than its training: each cell has its pictures and files, and a pre-training of its own.

Tried before, by a prototype in a bare loop that is not kept (64 unlabeled and 20 labeled samples for the tabular
network, 32 and 10 for the MLP, 128 and 20 for MNIST, 128 and 100 for CIFAR-10), over one by one:

| method, network | of | `torch.func.vmap` over the network | layers written out | |
|---|---|---|---|---|
| elite, tabular network | 4 | 0.49 | 0.33 | kept |
| elite, tabular network | 10 | 0.28 | 0.22 | kept |
| elite, MLP, 64 features, batch normalization | 4 | 0.64 | 0.34 | kept |
| elite, MLP, 64 features, batch normalization | 10 | 0.27 | 0.20 | kept |
| deep_sad, MNIST LeNet | 4 | 1.45 | 0.44, over `channels_last` one by one 0.67 | dropped |
| deep_sad, MNIST LeNet | 10 | 1.24 | 0.42, over `channels_last` one by one 0.71 | dropped |
| elite, MNIST LeNet | 4 | 1.36 | 0.60, over `channels_last` one by one 0.73 | dropped |
| deep_sad, CIFAR-10 LeNet | 4 | 1.30 | 0.98, over `channels_last` one by one 1.07 | dropped |
| elite, CIFAR-10 LeNet | 4 | 1.35 | 1.30, over `channels_last` one by one 1.29 | dropped |

Written out, a LeNet is one of grouped convolutions in `channels_last` (without it 1.14 to 1.50). It gains less than
twice over one that is in `channels_last` already, so convolutions are trained one by one.
"""


if __name__ == "__main__":
    main()
