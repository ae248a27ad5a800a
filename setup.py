"""All metadata of the package."""

import pathlib
import re

from setuptools import find_packages
from setuptools import setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$',
    (HERE / "keras_dlkit" / "__init__.py").read_text(),
    re.MULTILINE,
).group(1)

EXTRAS = {
    "tensorflow": ["tensorflow>=2.18"],
    "jax": ["jax>=0.5"],
    "torch": ["torch>=2.6"],
    "tfmot": ["tensorflow-model-optimization>=0.8", "tf-keras>=2.18"],
    "examples": ["scikit-learn>=1.5", "matplotlib>=3.9"],
    # KerasHub needs TensorFlow (through tensorflow-text) on every backend.
    "hub": ["keras-hub>=0.25"],
    # What a SavedModel, ONNX and LiteRT are written with and served by.
    "export": [
        "ai-edge-litert>=2.0",
        "onnx>=1.18",
        "onnxruntime>=1.20",
        "onnxscript>=0.5",
        "setuptools<81",  # tensorflow_hub imports pkg_resources
        "tensorflow-hub>=0.16",
        "tf2onnx>=1.16",
    ],
    "notebook": ["ipykernel>=6.29", "nbclient>=0.10"],
    "lint": ["mypy>=1.18", "ruff>=0.14"],
    "docs": [
        "latex2mathml>=3.77",
        "mkdocs-material>=9.5",
        "mkdocstrings[python]>=1.0",
        "pytest>=8.2",
        "ruff>=0.14",  # breaks long signatures
    ],
}
EXTRAS["test"] = [
    *EXTRAS["examples"],
    *EXTRAS["lint"],
    "hypothesis>=6.100",
    "keras-tuner>=1.4",
    "pydot>=3.0",
    "pytest>=8.2",
    "scipy>=1.13",
    "tensorboard>=2.18",
]
EXTRAS["dev"] = [
    *EXTRAS["test"],
    *EXTRAS["docs"],
    *EXTRAS["hub"],
    "build>=1.2",
    "pre-commit>=3.7",
    "tox>=4.15",
]

setup(
    name="keras_dlkit",
    version=VERSION,
    description="Training components for Keras 3 that attach to any model.fit",
    author="The keras_dlkit authors",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["keras_dlkit", "keras_dlkit.*"]),
    package_data={"keras_dlkit": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=["keras>=3.12", "numpy>=1.26"],
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
