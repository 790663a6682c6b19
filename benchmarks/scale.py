"""What a run takes of memory and of time as the samples grow, in memory (.npz) and memory-mapped (.npy).

    python benchmarks/scale.py [SAMPLES…] --write

Each run is a `python -m elite_pl.train` of its own on random vectors of 64 features, of which 40 are labeled, with 20
optimizer steps: preparation, scoring and the files at the end see every sample. Memory is the largest that the process
has of its own (`RssAnon`), which pages of a mapped file are no part of; what imports take is that of the same run on
200 samples. Linux only.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import numpy as np

RESULTS = Path(__file__).parent / "results" / "scale.md"
FEATURES, FEW = 64, 200
TARGET = 300  # MB beyond the imports and the data itself
SETTINGS = [
    "dataset.labels=known",
    "method.pretrain_epochs=0",
    "trainer.max_steps=20",
    "threads=1",
    "logger=none",
    "trainer.accelerator=cpu",
]


def write_data(folder: Path, samples: int, kind: str) -> list[str]:
    """Writes random vectors with known labels, and returns what a command types to read them."""
    x = np.random.default_rng(0).random((samples, FEATURES), dtype=np.float32)
    y = np.zeros(samples, dtype=np.int64)
    y[:20], y[20:40] = 1, -1
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    if kind == "npy":
        return ["dataset=npy", f"dataset.path={folder}/x.npy", f"dataset.labels_path={folder}/y.npy"]
    np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=x[:0], y_test=y[:0])
    return ["dataset=npz", f"dataset.path={folder}/data.npz"]


def peak(samples: int, kind: str, typed: list[str]) -> tuple[float, float]:
    """The peak of a run's own memory in MB, and its CPU seconds."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        arguments = [*write_data(folder, samples, kind), *SETTINGS, *typed, f"output_dir={folder}/outputs"]
        process = subprocess.Popen(
            [sys.executable, "-m", "elite_pl.train", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        status, most = Path(f"/proc/{process.pid}/status"), 0
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            own = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")]
            most = max([most, *(int(line.split()[1]) for line in own)])
            time.sleep(0.02)
        _, code, usage = os.wait4(process.pid, 0)
        if code:
            sys.exit(f"{' '.join(arguments)}: failed")
        return most / 1e3, usage.ru_utime + usage.ru_stime


def plot(rows: list[tuple[str, int, float, float]], path: Path) -> None:
    """Memory beyond the imports over the number of samples, beside what the goal allows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for kind, label in {"npz": "in memory", "npy": "memory-mapped"}.items():
        own = [(samples, max(extra, 1)) for k, samples, extra, _ in rows if k == kind]
        axes.plot(*zip(*own, strict=True), "o-", label=label)
    samples = sorted({row[1] for row in rows})
    axes.plot(samples, [megabytes(n) + TARGET for n in samples], "k--", label=f"the data and {TARGET} MB")
    axes.set(xscale="log", xlabel="samples", ylabel="memory beyond the imports (MB)", ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def megabytes(samples: int) -> float:
    """The size of the data."""
    return samples * FEATURES * 4 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", nargs="*", type=int, default=[5000, 200_000, 1_000_000], metavar="SAMPLES")
    parser.add_argument("--typed", nargs="*", default=[], metavar="KEY=VALUE", help="of the command")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} and its plot")
    options = parser.parse_args()
    lines = ["| data | samples | size | memory beyond the imports | CPU time |", "|---|---|---|---|---|"]
    rows = []
    for kind in ("npz", "npy"):
        imports, start = peak(FEW, kind, options.typed)
        for samples in options.samples:
            memory, seconds = peak(samples, kind, options.typed)
            rows.append((kind, samples, memory - imports, seconds - start))
            spent = seconds - start
            lines.append(
                f"| {kind} | {samples:,} | {megabytes(samples):.0f} MB | {memory - imports:.0f} MB | "
                + (f"{spent:.0f} s, {1e6 * spent / samples:.0f} µs a sample |" if spent >= 1 else "under 1 s |")
            )
            print(lines[-1], flush=True)
    if not options.write:
        return
    plot(rows, RESULTS.with_suffix(".png"))
    text = f"""# Memory and time over the number of samples

`python benchmarks/scale.py --write`: 64 float32 features, 20 steps, every sample prepared, scored and listed in the
audit. Both columns are beyond a run on {FEW} samples, whose peak is {imports:.0f} MB. The goal is the data once and
{TARGET} MB; of memory-mapped data (npy) their file is not counted.

{chr(10).join(lines)}

![](scale.png)

{machine.in_words()}"""
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
