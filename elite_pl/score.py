"""The command `python -m elite_pl.score`: a trained detector on new samples. The work is in `deployment`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from elite_pl.options import Parser, exit_codes

EPILOG = """\
the table has a line per sample: its path (images), id or index; score, higher for the more anomalous; probability of an
anomaly, if the training has held labels out; p_value, the share of the training samples that are not flagged and score
as high, (k + 1) / (n + 1); verdict, normal or anomaly

  python -m elite_pl.score outputs/runs/image_folder/elite_svdd/.../detector.pt new_photos/ -o scores.csv
  python -m elite_pl.score detector.pt rows.parquet -o scores-3.parquet --shard 3/8
"""


def parser() -> Parser:
    """The options of the command."""
    found = Parser("score", "Scores new samples by a trained detector, any number of them in little memory.", EPILOG)
    found.add_detector()
    found.add_argument(
        "input", metavar="INPUT", help="a folder of images, a table (CSV, Parquet) or an array (.npy, .npz)"
    )
    found.add_argument("-o", "--output", metavar="OUT", help=".csv or .parquet (default: CSV on standard output)")
    found.add_argument("--threshold", type=_number, metavar="X", help="call scores above X anomalies")
    found.add_argument(
        "--shard", type=_shard, default=(1, 1), metavar="i/n", help="score the i-th of n pieces alone, from 1/n to n/n"
    )
    found.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )
    found.add_argument("--batch-size", type=_count, metavar="N", help="samples that are scored at a time")
    found.add_argument("--threads", type=_count, metavar="N", help="of the CPU (default: PyTorch's)")
    found.add_argument("--skip-broken", action="store_true", help="go on without images that cannot be read")
    return found


@contextmanager
def _told(text: str, right: str) -> Iterator[None]:
    """Turns a `ValueError` in the block into bad input, naming what was typed."""
    try:
        yield
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not {right}") from None


def _number(text: str) -> float:
    with _told(text, "a finite number"):
        if not math.isfinite(number := float(text)):
            raise ValueError
        return number


def _count(text: str) -> int:
    with _told(text, "a whole number of at least 1"):
        if (number := int(text)) < 1:
            raise ValueError
        return number


def _shard(text: str) -> tuple[int, int]:
    with _told(text, "a shard; 1/8 to 8/8 are those of 8"):
        i, n = map(int, text.split("/"))
        if not 1 <= i <= n:
            raise ValueError
        return i, n


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line, and exits with 2 for bad input."""
    with exit_codes():
        options = parser().parse_args(arguments)
        from elite_pl.deployment.outputs import check_output

        check_output(options.output, options.input, options.detector)
        import torch

        from elite_pl.deployment.scoring import device_of, load_for, score_file

        if options.threads is not None:
            torch.set_num_threads(options.threads)
        score_file(
            load_for(options.detector, options.weights).to(device_of(options.device)),
            options.input,
            options.output,
            threshold=options.threshold,
            shard=options.shard,
            batch_size=options.batch_size,
            skip_broken=options.skip_broken,
        )


if __name__ == "__main__":
    main()
