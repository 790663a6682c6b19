"""The command `python -m elite_pl.export`: a trained detector for use without elite_pl. The work is in `deployment`."""

from __future__ import annotations

from collections.abc import Sequence

from elite_pl.options import Parser, exit_codes

EPILOG = """\
onnx, torch: one file that maps raw samples, any number of them, to score and is_anomaly, preprocessing and weights in
it. directory: such a file with plain numbers, a program that scores files by it, and a model card. Of a detector of
tables a graph takes the encoded columns, and the program of the directory encodes a CSV file.

  python -m elite_pl.export detector.pt --to onnx
"""


def parser() -> Parser:
    """The options of the command."""
    found = Parser("export", "Writes a trained detector as a file for onnxruntime or PyTorch.", EPILOG)
    found.add_detector()
    found.add_argument("--to", required=True, choices=("onnx", "torch", "directory"), help="what is written")
    found.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="default: beside DETECTOR, with .onnx, .pt2 or _export in its name",
    )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line, prints where the export is, and exits with 2 for bad input."""
    with exit_codes():
        options = parser().parse_args(arguments)
        from elite_pl.deployment.exporting import export, place_of
        from elite_pl.deployment.scoring import load_for

        place = place_of(options.to, options.detector, options.output)
        export(load_for(options.detector, options.weights), options.to, place)
        print(place)


if __name__ == "__main__":
    main()
