"""Measuring: interleaved calls, and child processes of limited memory and time."""
from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from statistics import median
from typing import Any, Callable, Container, Dict, Iterator, List, Mapping, Optional, Tuple

from ppsr2q.core.environment import available_memory
from ppsr2q.core.errors import UserError

REST = 0.5  # seconds after which the threads of a process that did its part no longer spin (OpenMP's: after 0.2)
_MEMORY_SHARE = 0.9  # of what is available; the rest is for the system


class DoesNotFit(Exception):
    """A measurement ran out of memory or time; the message is the reason that a record gives."""


def interleave(calls: Mapping[str, Callable[[], object]], rounds: int, once: Container[str] = (),
               rest: float = 0.0) -> Dict[str, List[float]]:
    """Seconds of every call in every round, round robin after one unmeasured round.

    Whatever slows the machine for a while slows all calls alike, so ratios of medians hold. Calls named in ``once``
    are too slow for that: they run in the first round only, without a warm-up. ``rest`` seconds pass before each call.
    """
    for name, call in calls.items():
        if name not in once:
            call()
    samples: Dict[str, List[float]] = {name: [] for name in calls}
    for i in range(rounds):
        for name, call in calls.items():
            if i > 0 and name in once:
                continue
            time.sleep(rest)
            started = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - started)
    return samples


def peak_bytes() -> int:
    """Largest resident memory of this process so far, in bytes.

    Linux: VmHWM, because ru_maxrss survives exec and so holds the peak of the parent too.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return _kilobytes(status, "VmHWM") * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def limit_memory() -> None:
    """From here on this process may take 90% of the memory that is available now; beyond it allocations fail
    (MemoryError) instead of pushing the machine into its out-of-memory killer. Without /proc: no limit."""
    available = available_memory()
    if available is not None:
        taken = 1024 * _kilobytes(Path("/proc/self/status"), "VmSize")
        limit = taken + int(_MEMORY_SHARE * available)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _kilobytes(path: Path, key: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1])


def in_child(function: Callable[..., Any], *arguments: Any, seconds: Optional[float] = None,
             environment: Optional[Mapping[str, Optional[str]]] = None) -> Any:
    """``function(*arguments)`` in a fresh process, which is ended afterwards.

    Args:
        function: of a module, since it is found by its name; arguments and result are pickled.
        seconds: time limit, the start of the process included; None: none.
        environment: variables of the child that differ from ours; None takes one away.

    Raises:
        DoesNotFit: over the time limit, out of memory, or ended by a signal.
        UserError: raised by the function.
        RuntimeError: any other error of the function, with its traceback.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, function, arguments))
    with _changed_environment(environment or {}):
        process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            raise DoesNotFit(f"takes more than {seconds:.0f} s")
        succeeded, value = receiver.recv()
    except EOFError:
        process.join()
        raise DoesNotFit(f"its process ended with {_ending(process.exitcode)}, most likely for want of memory"
                         ) from None
    finally:
        process.kill()
        process.join()
    if succeeded:
        return value
    raise value


def _child(sender: Any, function: Callable[..., Any], arguments: tuple) -> None:
    sender.send(_outcome(function, arguments))


def _outcome(function: Callable[..., Any], arguments: tuple) -> Tuple[bool, Any]:
    """(True, result), or (False, what the parent should raise)."""
    try:
        return True, function(*arguments)
    except MemoryError:
        taken = peak_bytes() / 1e9
        return False, DoesNotFit(f"needs more memory than is free here ({taken:.1f} GB were taken)")
    except UserError as error:
        return False, error
    except Exception:
        return False, RuntimeError(f"in a child process:\n{traceback.format_exc()}")


class Worker:
    """A call that is made in a process of its own, again and again: processes can be timed round robin, and neither
    memory nor settings of one help or hinder another.

    Args:
        make: ``make(*arguments)`` gives the call, in the child.
        environment: as for :func:`in_child`.

    Raises:
        DoesNotFit, UserError, RuntimeError: as :func:`in_child`, here and when called.
    """

    def __init__(self, make: Callable[..., Callable[[], object]], *arguments: Any,
                 environment: Optional[Mapping[str, Optional[str]]] = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, arguments))
        with _changed_environment(environment or {}):
            self._process.start()
        other.close()
        self._wait()

    def __call__(self) -> None:
        self._connection.send("call")
        self._wait()

    def _wait(self) -> None:
        try:
            succeeded, value = self._connection.recv()
        except EOFError:
            self._process.join()
            succeeded, value = False, DoesNotFit(f"its process ended with {_ending(self._process.exitcode)}")
        if not succeeded:
            self.close()
            raise value

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def interleave_workers(makers: Mapping[str, Callable[[], Worker]], rounds: int,
                       once: Container[str] = ()) -> Dict[str, List[float]]:
    """:func:`interleave` of processes that exist as long as it takes, with a rest between two calls."""
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, make in makers.items():
            workers[name] = make()
            stack.callback(workers[name].close)
        return interleave(workers, rounds, once, REST)


def time_together(makers: Mapping[str, Callable[[], Worker]], rounds: int,
                  once: Container[str] = ()) -> Dict[str, Dict[str, Any]]:
    """Name -> ``seconds`` (median) and ``samples`` of :func:`interleave_workers`; ``skipped``, the reason, for all where one
    of the processes does not fit beside the others."""
    try:
        samples = interleave_workers(makers, rounds, once)
    except DoesNotFit as error:
        return {name: {"skipped": f"beside the others: {error}"} for name in makers}
    return {name: {"seconds": median(values), "samples": values} for name, values in samples.items()}


def _serve(connection: Any, make: Callable[..., Callable[[], object]], arguments: tuple) -> None:
    succeeded, call = _outcome(make, arguments)
    connection.send((succeeded, None if succeeded else call))
    while succeeded:
        connection.recv()
        succeeded, error = _outcome(call, ())
        connection.send((succeeded, None if succeeded else error))


def _ending(exitcode: int) -> str:
    return signal.Signals(-exitcode).name if exitcode < 0 else f"code {exitcode}"


@contextlib.contextmanager
def _changed_environment(changes: Mapping[str, Optional[str]]) -> Iterator[None]:
    before = dict(os.environ)
    for key, value in changes.items():
        os.environ.pop(key, None)
        if value is not None:
            os.environ[key] = value
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
