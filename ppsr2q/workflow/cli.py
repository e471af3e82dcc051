"""What all command line tools share: ``-c``, ``-o``, and errors that are messages."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Callable

from ppsr2q.core.config import Config, describe_options, load_config
from ppsr2q.core.environment import keep_freed_memory
from ppsr2q.core.errors import Interrupted, ParityError, UserError
from ppsr2q.core.files import make_writable
from ppsr2q.deploy import ENGINES

EXAMPLE = "example: -o train.iterations=600 -o data.train=/data/DIV2K"


def make_parser(description: str, needs_config: bool = True) -> argparse.ArgumentParser:
    """A parser with ``-c``, ``-o`` and ``--options``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", required=needs_config, metavar="FILE",
                        help="experiment, one of configs/*.yml or your own")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE",
                        help=f"change one option, may be repeated; {EXAMPLE}")
    parser.add_argument("--options", action=_ListOptions, nargs=0, help="list all options of a config and exit")
    return parser


class _ListOptions(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        print(describe_options())
        parser.exit()


def run(main: Callable[[], None], go_on: str = "") -> None:
    """Run a tool's main function; leave with 0, 2 (a user's mistake), 3 (parity) or 130 (interrupted and saved).

    Args:
        go_on: what an interrupted user has to do to go on.
    """
    try:
        main()
    except UserError as error:
        _leave(f"error: {error}", 2)
    except ParityError as error:
        _leave(f"parity check failed: {error}", 3)
    except Interrupted as error:
        _leave(f"{error}. {go_on}".rstrip(), 130)
    except KeyboardInterrupt:
        _leave("interrupted", 130)
    except MemoryError as error:
        _leave(f"error: not enough memory ({error}); use smaller images, tiles or batches", 2)
    except BrokenPipeError:
        sys.exit(1)


def _leave(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


def add_engine(parser: argparse.ArgumentParser) -> None:
    """``--engine`` and ``--threads`` of the tools that use a finished model."""
    parser.add_argument("--engine", choices=("paddle", *ENGINES), default="paddle",
                        help="of a packed model also runtime (ppsr2q's own, on integers) and onnxruntime, both without "
                             "Paddle (default: paddle)")
    parser.add_argument("--threads", type=int, metavar="N",
                        help="of an engine other than paddle (default: all processors)")


def expect_report(path: Path) -> None:
    """Find out before anything is measured whether ``--json`` can be written; an earlier report stays until then.

    Raises:
        UserError: another suffix than ``.json``, a folder of that name, or one that cannot be written to.
    """
    if path.suffix != ".json" or path.is_dir():
        raise UserError(f"--json {path}: expected the name of a file that ends in .json")
    make_writable(path.parent)


def configure(arguments: argparse.Namespace, needs_paddle: bool = True) -> Config:
    """Read the config, prepare Paddle for it where it computes, and let memory stay with the program."""
    config = load_config(arguments.config, arguments.override)
    if needs_paddle:
        prepare(config)
    else:
        keep_freed_memory()
    return config


def prepare(config: Config) -> None:
    """Device and seed of a config, and memory that stays with the program."""
    from ppsr2q import ops  # noqa: F401  explains a missing Paddle, sets its threads
    from ppsr2q.core.device import seed_everything, select_device
    keep_freed_memory()
    select_device(config.device)
    seed_everything(config.seed)
