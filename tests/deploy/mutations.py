"""Damage to packed files: of their bytes, or of their content below a hash that is right."""
import json

import numpy as np

_VALUES = (None, True, 0, -1, 2**70, 1e308, "", "**", "*" * 60, [], [[]], {}, {"bits": 4}, [0, float("inf")])
_EXTREMES = np.array([-3e38, -1e30, -1, -1e-38, 0, 1e-45, 1e-38, 1, 1e30, 3e38], np.float32)


def mutate_bytes(content, rng):
    """A file with a flipped bit, a cut, an insertion or an overwritten run, half of the time in its header."""
    header = 8 + int.from_bytes(content[:8], "little")
    mutated = bytearray(content)
    at = int(rng.integers(0, header if rng.random() < 0.5 else len(content)))
    kind = rng.integers(4)
    if kind == 0:
        mutated[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del mutated[at:]
    elif kind == 2:
        mutated[at:at] = rng.bytes(int(rng.integers(1, 9)))
    else:
        mutated[at:at + 8] = rng.bytes(min(8, len(content) - at))
    return bytes(mutated)


def mutate_artifact(artifact, rng):
    """(tensors, metadata) with one place of either changed."""
    tensors = {name: array.copy() for name, array in artifact.tensors.items()}
    metadata = json.loads(json.dumps(artifact.metadata))
    if rng.random() < 0.5:
        _mutate_tree(metadata, rng)
    else:
        with np.errstate(all="ignore"):
            _mutate_tensors(tensors, rng)
    return tensors, metadata


def set_extremes(artifact, rng):
    """(tensors, metadata) that a reader accepts, with ordered bounds and other numbers at the ends of float32."""
    tensors = {name: array.copy() for name, array in artifact.tensors.items()}
    pairs = tensors["bounds"].reshape(-1, 2)
    for i in rng.integers(0, len(pairs), rng.integers(1, 9)):
        pair = np.sort(rng.choice(_EXTREMES, 2, replace=False))
        with np.errstate(over="ignore"):
            if np.isfinite(pair[1] - pair[0]):
                pairs[i] = pair
    places = rng.integers(0, tensors["rest"].size, rng.integers(0, 9))
    tensors["rest"][places] = rng.choice(_EXTREMES, places.size)
    return tensors, artifact.metadata


def _mutate_tree(tree, rng):
    """Replace, remove or double one random node of nested dicts and lists."""
    nodes = []

    def walk(node):
        for key in (list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()):
            nodes.append((node, key))
            walk(node[key])
    walk(tree)
    node, key = nodes[int(rng.integers(len(nodes)))]
    kind = rng.integers(3)
    if kind == 0:
        node[key] = _VALUES[int(rng.integers(len(_VALUES)))]
    elif kind == 1:
        del node[key]
    elif isinstance(node, list):
        node.insert(key, node[key])
    else:
        node[f"{key}x"] = node[key]


def _mutate_tensors(tensors, rng):
    name = ("codes", "bounds", "rest")[int(rng.integers(3))]
    array = tensors[name]
    kind = rng.integers(4)
    if kind == 0:
        raw = array.view(np.uint8)
        raw[int(rng.integers(raw.size))] = rng.integers(256)
    elif kind == 1:
        tensors[name] = array[:int(rng.integers(array.size))]
    elif kind == 2:
        tensors[name] = array.astype((np.float16, np.int64, np.bool_)[int(rng.integers(3))])
    else:
        tensors[name] = np.resize(array, (int(rng.integers(4)), int(rng.integers(3))))
