"""Damaged packed files through the whole runtime: the reader, the network's construction, a tiny image.

By hand under AddressSanitizer and UndefinedBehaviorSanitizer, from the root of the repository (GCC):

  python -m tests.deploy.fuzz_runtime --mutations 10000 FOLDER

FOLDER takes the models, of 1 to 8 bits and of mixed ones, that the mutations start from. Every model is also run, on
every instruction set of this machine, on images of many sizes with several threads. A finding ends the process.
"""
import argparse
import dataclasses
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from ppsr2q.core.errors import UserError
from ppsr2q.core.files import load_artifact, save_artifact
from ppsr2q.deploy.packed import PACKED_KIND, read_packed, write_packed
from ppsr2q.deploy.runtime import Runtime, library
from tests.deploy.mutations import mutate_artifact, mutate_bytes, set_extremes

SIZES = ((1, 1), (1, 17), (17, 1), (15, 16), (16, 33), (37, 50), (48, 16))
SANITIZERS = "-fsanitize=address,undefined"


def fuzz(model: Path, mutations: int, folder: Path, rng: np.random.Generator) -> Counter:
    """Run ``mutations`` damaged copies of a packed file; anything but a result or a UserError is raised.

    Returns:
        How many were ``refused`` and how many ``ran``.
    """
    content, artifact, path = model.read_bytes(), load_artifact(model), folder / "mutated.safetensors"
    counts = Counter()
    for _ in range(mutations):
        kind = rng.integers(5)
        if kind == 0:
            path.write_bytes(mutate_bytes(content, rng))
        else:
            change = mutate_artifact if kind < 3 else set_extremes
            tensors, metadata = change(artifact, rng)
            save_artifact(path, tensors, PACKED_KIND, metadata)
        try:
            runtime = Runtime(read_packed(path), int(rng.integers(1, 4)))
        except UserError:
            counts["refused"] += 1
            continue
        image = rng.random((*rng.integers(1, 20, 2), 3), np.float32)
        assert runtime.upscale(image).shape == tuple(np.array(image.shape) * (runtime.scale, runtime.scale, 1))
        counts["ran"] += 1
    return counts


def _write_models(folder: Path) -> None:
    """Needs Paddle, and therefore runs in a process without sanitizers."""
    from tests.deploy.networks import LAYER, quantized, random_network
    rng = np.random.default_rng(0)
    plans = {f"{bits}": (bits, {}) for bits in range(1, 9)}
    for i in range(6):
        kinds = ("*.weight", "*.input", "win_mhsa.points.*", "assm.selectiveScan.points.*", "convffn*.**",
                 "assm.CPE.*.*")
        overrides = {f"{LAYER}.{kind}": rng.choice([None, 1, 2, 3, 4, 6, 8]) for kind in kinds}
        plans[f"mixed{i}"] = (4, {k: None if b is None else int(b) for k, b in overrides.items()})
    for name, (bits, overrides) in plans.items():
        write_packed(folder / f"{name}.safetensors", quantized(random_network(), bits, overrides)[1])


def _sanitize() -> None:
    """From now on the runtime is compiled with sanitizers, and files are written without waiting for the disk."""
    plain = library.runtime_library

    def sanitized(name):
        made = plain(name)
        flags = ("-O1", "-g", "-fno-sanitize-recover=all", SANITIZERS)
        return dataclasses.replace(made, name=f"{made.name}-sanitized", compile_flags=made.compile_flags + flags,
                                   link_flags=made.link_flags + (SANITIZERS,))
    library.runtime_library = sanitized
    os.fsync = lambda descriptor: None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mutations", type=int, default=10000)
    parser.add_argument("--inside", action="store_true", help="(the process that runs below the sanitizers)")
    arguments = parser.parse_args()
    if not arguments.inside:
        _write_models(arguments.folder)
        preload = " ".join(subprocess.run(["gcc", f"-print-file-name=lib{name}.so"], text=True, check=True,
                                          capture_output=True).stdout.strip() for name in ("asan", "ubsan"))
        sys.exit(subprocess.run([sys.executable, "-m", "tests.deploy.fuzz_runtime", "--inside", *sys.argv[1:]],
                                env={**os.environ, "LD_PRELOAD": preload, "PYTHONMALLOC": "malloc",
                                     "ASAN_OPTIONS": "detect_leaks=0"}).returncode)
    _sanitize()
    rng, models = np.random.default_rng(1), sorted(arguments.folder.glob("*.safetensors"))
    (arguments.folder / "mutated").mkdir(exist_ok=True)
    for model in models:
        for name in library.instruction_sets():
            if library.supported(name):
                for size in SIZES:
                    Runtime(read_packed(model), 3, name).upscale(rng.random((*size, 3), np.float32))
        counts = fuzz(model, -(-arguments.mutations // len(models)), arguments.folder / "mutated", rng)
        print(f"{model.name}: every size ran; of its mutations {counts['ran']} ran, {counts['refused']} were refused",
              flush=True)


if __name__ == "__main__":
    main()
