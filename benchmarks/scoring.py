"""How fast `python -m elite_pl.score` is on one core: a million rows of 21 columns, and images.

    python benchmarks/scoring.py --write

Of rows each case is the command itself, on files made for it. Counted is the CPU time of its process, so that a busy
machine changes less; start-up, most of it the import of torch, is that of the same command on few rows, and taken off.
Of images the two parts of the command are timed by themselves: reading (files, decoding, resizing), and the network.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import machine
import numpy as np
import polars as pl
import torch
from PIL import Image

import elite_pl
from elite_pl.data.sources.images import read_images
from elite_pl.deployment.inputs import image_shape

RESULTS = Path(__file__).parent / "results" / "scoring.md"
FEW = 10  # rows, for the start-up
TARGET = 5.0  # seconds of CPU time besides start-up for a million rows
TRAINING = 1000  # samples, of which 20 are labeled
ONE_CORE = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}


def numbers(n: int) -> pl.DataFrame:
    """21 columns of numbers."""
    values = np.random.default_rng(n).standard_normal((n, 21)).round(4)
    return pl.DataFrame(values.astype(np.float32), schema=[f"x{i}" for i in range(21)])


def mixed(n: int) -> pl.DataFrame:
    """15 columns of numbers, 4 of words, 1 of dates, and ids; with gaps."""
    rng = np.random.default_rng(n)
    words = {f"word{k}": np.array([f"word {i}" for i in range(k)])[rng.integers(k, size=n)] for k in (3, 10, 20, 40)}
    day = np.datetime64("2020-01-01") + rng.integers(0, 1000, n).astype("timedelta64[D]")
    made = numbers(n).select(pl.all().head(n)).drop([f"x{i}" for i in range(15, 21)])
    made = made.with_columns(day=day, **words, id=np.char.add("row ", np.arange(n).astype(str)))
    gap = pl.Series(rng.random(n) < 0.02)
    return made.with_columns(pl.when(~gap).then(pl.col("x0", "word10")))


def images(folder: Path, n: int, shape: tuple[int, ...], suffix: str) -> None:
    """Images of smooth noise, as photographs are smooth."""
    rng = np.random.default_rng(n)
    folder.mkdir(parents=True)
    for i in range(n):
        coarse = rng.integers(0, 256, (shape[0] // 4, shape[1] // 4, *shape[2:]), dtype=np.uint8)
        Image.fromarray(coarse).resize((shape[1], shape[0])).save(folder / f"{i:06}{suffix}")


def train(*arguments: str) -> Path:
    """Trains a detector by the command, and returns its file."""
    command = [sys.executable, "-m", "elite_pl.train", *arguments, "epochs=1", "logger=none", "threads=1"]
    done = subprocess.run(command, env=ONE_CORE, check=True, capture_output=True, text=True)
    return Path(done.stdout.splitlines()[-1]) / "detector.pt"


def cpu_seconds(detector: Path, given: Path, output: str) -> float:
    """CPU time of scoring."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "elite_pl.score", detector, given, "-o", output, "--threads", "1"]
    subprocess.run(command, env=ONE_CORE, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def line(what: str, detector: Path, few: Path, many: Path, n: int, output: str) -> str:
    """The line of a case in the table."""
    start_up = min(cpu_seconds(detector, few, output) for _ in range(2))
    found = min(cpu_seconds(detector, many, output) for _ in range(2)) - start_up
    return f"| {what} | {n:,} | {start_up:.1f} s | {found:.1f} s | {n / found:,.0f} |"


def parts(detector: Path, folder: Path) -> str:
    """Images a second, and microseconds an image of reading and of the network, in this process."""
    trained, names = elite_pl.load(detector), sorted(os.listdir(folder))
    start = time.process_time()
    pixels = np.stack([image for image in read_images(folder, names, image_shape(trained))])
    read = time.process_time()
    trained.score_checked(pixels[:, 0] if len(trained.samples.shape) == 2 else pixels)
    end, n = time.process_time(), len(names)
    return f"{n / (end - start):,.0f} | {1e6 * (read - start) / n:,.0f} | {1e6 * (end - read) / n:,.0f}"


def tables(n: int) -> list[str]:
    """Lines of rows: detectors on numbers and on all kinds of columns."""
    label = pl.Series("label", ["normal"] * 10 + ["anomaly"] * 10 + [""] * (TRAINING - 20))
    lines = []
    makers: dict[str, tuple[Callable[[int], pl.DataFrame], list[str]]] = {
        "numbers": (numbers, []),
        "numbers, words, dates, ids, gaps": (mixed, ["dataset.id_column=id"]),
    }
    for name, (make, keys) in makers.items():
        make(TRAINING).with_columns(label).write_csv("training.csv")
        detector = train("dataset=table", "dataset.path=training.csv", *keys)
        for rows, stem in ((FEW, "few"), (n, "many")):
            frame = make(rows)
            frame.write_csv(f"{stem}.csv")
            frame.write_parquet(f"{stem}.parquet")
        for suffix in ("csv", "parquet"):
            what = f"{suffix} of {name}, {suffix} out"
            few, many = Path(f"few.{suffix}"), Path(f"many.{suffix}")
            lines.append(line(what, detector, few, many, n, f"out.{suffix}"))
            print(lines[-1], flush=True)
    np.save("training.npy", numbers(TRAINING).to_numpy())
    np.save("labels.npy", np.repeat([1, -1, 0], [10, 10, TRAINING - 20]))
    detector = train("dataset=npy", "dataset.path=training.npy", "dataset.labels_path=labels.npy")
    for rows, stem in ((FEW, "few"), (n, "many")):
        np.save(f"{stem}.npy", numbers(rows).to_numpy())
    lines.append(line("npy, csv out", detector, Path("few.npy"), Path("many.npy"), n, "out.csv"))
    print(lines[-1], flush=True)
    return lines


def pictures(n: int) -> list[str]:
    """Lines of images; of the large ones a tenth as many."""
    lines = []
    cases: dict[str, tuple[tuple[int, ...], str, int, list[str]]] = {
        "28 x 28, gray, PNG": ((28, 28), ".png", n, []),
        "224 x 224, color, JPEG, resized to 64 x 64": ((224, 224, 3), ".jpg", n // 10, []),
        "the same, `backbone=efficientnet_lite0`": ((224, 224, 3), ".jpg", n // 10, ["backbone=efficientnet_lite0"]),
    }
    for i, (what, (shape, suffix, count, keys)) in enumerate(cases.items()):
        folder = Path(f"images{i}")
        images(folder / "training/unlabeled", 100, shape, suffix)
        images(folder / "training/labeled/normal", 10, shape, suffix)
        images(folder / "training/labeled/anomaly", 11, shape, suffix)
        images(folder / "many", count, shape, suffix)
        detector = train("dataset=image_folder", f"dataset.path={folder / 'training'}", *keys)
        lines.append(f"| {what} | {count:,} | {parts(detector, folder / 'many')} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} beside the other results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        of_rows, of_images = tables(options.rows), pictures(options.images)
        os.chdir("/")
    text = f"""# Scoring on one core

`python benchmarks/scoring.py --write`: `python -m elite_pl.score` with detectors of `method=elite_svdd`, in seconds of
CPU time of its process, on one thread. Start-up, most of it the import of torch, is that of the same command on {FEW}
rows, and not counted in what follows it. Of images start-up is not in the figures at all.

Target: a million rows of 21 columns in under {TARGET:.0f} s besides start-up.

| rows | number | start-up | besides | rows a second |
|---|---|---|---|---|
{chr(10).join(of_rows)}

| images | number | images a second | reading, µs an image | network, µs an image |
|---|---|---|---|---|
{chr(10).join(of_images)}

{machine.in_words(polars=pl.__version__, Pillow=Image.__version__)}"""
    print(f"\n{text}")
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
