"""Check a data folder before anything runs on it: what is there, what is damaged or unpaired, what is missing.

  python tools/prepare_data.py --root DATA --train DATA/train --make-lr --scales 2,4

DATA holds Set5/HR/*, Set14/HR/*, B100/HR/*, Urban100/HR/*, Manga109/HR/*; --make-lr writes the low-resolution
images (MATLAB's bicubic) beside them, which is optional: the tools make missing ones in memory. --sets names sets of
your own.
"""
import argparse
import sys

from ppsr2q.core.errors import UserError
from ppsr2q.workflow import cli


def scales_of(text: str):
    try:
        scales = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--scales {text}: expected numbers like 2,4") from None
    if not set(scales) <= {2, 3, 4}:
        raise UserError(f"--scales {text}: expected 2, 3 or 4")
    return scales


def show_file(path) -> None:
    print(f"\r\033[Kread {path.name}", end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, metavar="FOLDER", help="folder that holds the test sets")
    parser.add_argument("--train", metavar="FOLDER", help="folder of training images, searched at any depth")
    parser.add_argument("--scales", default="2,4", metavar="A,B", help="scales to check (default: %(default)s)")
    parser.add_argument("--sets", metavar="A,B", help="test sets to look for (default: the five above)")
    parser.add_argument("--make-lr", action="store_true", help="write missing low-resolution images")
    arguments = parser.parse_args()
    from ppsr2q.data.prepare import BENCHMARKS, prepare_data
    sets = arguments.sets.split(",") if arguments.sets else list(BENCHMARKS)
    report = prepare_data(arguments.root, scales_of(arguments.scales), arguments.make_lr, arguments.train, sets,
                          show_file if sys.stderr.isatty() else None)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    print(report)
    if report.problems:
        raise UserError(f"{len(report.problems)} problem(s) found, see above")


if __name__ == "__main__":
    cli.run(main)
