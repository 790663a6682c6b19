"""What a second process gains: ELITE steps of the same global batch by one process and by two, one thread each.

    python benchmarks/ddp_scaling.py

On random pixels in the shape of MNIST. A step's time is the difference of a long and a short run, divided by the steps
that it has more: what comes before and after the steps cancels. Runs of one and of two processes take turns.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from hydra import compose, initialize_config_module

from elite_pl import config
from elite_pl.cli import silence_advice
from elite_pl.runs import environment
from elite_pl.runs.launch import launch
from elite_pl.runs.spec import RunSpec


def seconds(processes: int, batch_size: int, epochs: int, directory: Path) -> float:
    """What a run of so many epochs trains for."""
    trainer = ["trainer=ddp", f"trainer.devices={processes}"] if processes > 1 else []
    settings = [f"batch_size={batch_size}", f"epochs={epochs}", "method.pretrain_epochs=0", "threads=1", "logger=none"]
    with initialize_config_module("elite_pl.conf", version_base="1.3"):
        cfg = compose("train", ["dataset=mnist", *trainer, *settings, "trainer.accelerator=cpu"])
    cfg.dataset.source = {"_target_": "loop_overhead.pixels"}
    cfg.trainer.check_val_every_n_epoch = epochs
    cfg.output_dir = str(directory)
    found = launch(RunSpec.of(cfg))
    assert found is not None
    return found["train/seconds"]


def step(processes: int, batch_size: int, epochs: int) -> float:
    """Seconds a step."""
    with tempfile.TemporaryDirectory() as directory:
        short, long = (seconds(processes, batch_size, e, Path(directory)) for e in (1, 1 + epochs))
    return (long - short) / (epochs * (4980 // batch_size + (4980 % batch_size >= 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 512])
    options = parser.parse_args()
    torch.set_num_threads(1)
    silence_advice()
    config.register()
    print("| global batch | a step, 1 process | a step, 2 processes | speed-up, median | of the repetitions |")
    print("|---|---|---|---|---|")
    for batch_size in options.batch_sizes:
        one, two = [], []
        for _ in range(options.repetitions):
            one.append(step(1, batch_size, options.epochs))
            two.append(step(2, batch_size, options.epochs))
        ratios = sorted(a / b for a, b in zip(one, two, strict=True))
        print(
            f"| {batch_size} | {1e3 * statistics.median(one):.1f} ms | {1e3 * statistics.median(two):.1f} ms | "
            f"{statistics.median(ratios):.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} |",
            flush=True,
        )
    where = environment.environment()
    print(f"\n{where['device']}, {where['platform']}, torch {where['version/torch']}, commit {where['commit']}.")


if __name__ == "__main__":
    main()
