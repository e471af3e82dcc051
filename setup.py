"""Installs ppsr2q; the folder ``models/`` becomes the package ``ppsr2q.models``."""
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "ppsr2q/__init__.py").read_text(encoding="utf-8")).group(1)
DEPLOY = ["onnx", "onnxruntime", "openvino"]
TEST = ["pytest>=7", *DEPLOY]

setup(
    name="ppsr2q",
    version=VERSION,
    description="SPR²Q for PaddlePaddle: image super-resolution networks at 4, 2 and 1 bit",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9",
    packages=find_packages(include=["ppsr2q", "ppsr2q.*"]) + ["ppsr2q.models"],
    package_dir={"ppsr2q.models": "models"},
    package_data={"ppsr2q.ops": ["csrc/*"], "ppsr2q.deploy.runtime": ["csrc/*"], "ppsr2q.deploy.openvino": ["*.cpp"],
                  "ppsr2q.models": ["weights/*.safetensors"]},
    install_requires=[
        # Paddle 3.3.1 reads shape-[1] tensors in a way that numpy 2.4 no longer allows
        "numpy<2.4",
        "opencv-python-headless",
        "pillow",
        "pyyaml",
        "scikit-image",
        "safetensors",
        "matplotlib",
        "visualdl>=2.5",
    ],
    extras_require={
        # neither Paddle package is a hard requirement: only one of the two may be installed
        "cpu": ["paddlepaddle>=3.0; python_version < '3.14'"],
        # the newest GPU build on PyPI; builds of 3.x are on Paddle's own index (README)
        "gpu": ["paddlepaddle-gpu==2.6.2", "numpy<2", "opencv-python-headless<=4.11.0.86", "setuptools"],
        "test": TEST,
        "deploy": DEPLOY,
    },
)
