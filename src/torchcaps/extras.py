"""Which optional part of the installation a missing package belongs to; nothing here imports one."""

from __future__ import annotations

EXTRAS = {  # by the name that is imported; pyproject.toml has the packages, and a test compares the two
    "lightning_fabric": "train",
    "torchvision": "train",
    "PIL": "train",
    "tyro": "train",
    "rich": "train",
    "matplotlib": "train",
    "filelock": "train",
    "timm": "timm",
    "scipy": "scipy",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "huggingface_hub": "hub",
    "submitit": "slurm",
    "tensorboard": "log",
    "wandb": "log",
}


def missing_extra(error: ModuleNotFoundError) -> str:
    """Return what to install, in one line, where `error` is of an optional package; else what the error says itself."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return str(error)
    return f'this needs {package}, which is not installed: pip install "torchcaps[{EXTRAS[package]}]"'
