"""Settings of every test: offline, quiet, one thread per worker."""

import gc
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

gc.set_threshold(10_000, 20, 20)  # a sixth of the suite's time went into garbage collection


def pytest_collection_finish() -> None:
    """Leave modules and test items, most of a million objects, out of every later garbage collection."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries complain of what is still there at the very end


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Name failures as they happen, not at the end of the run only; xdist's workers have no terminal."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        config.pluginmanager.register(Failures(terminal))


class Failures:
    """Prints the name of a test as soon as it has failed."""

    def __init__(self, terminal: Any) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._terminal.write(f"\nFAILED {report.nodeid} ({report.when})\n", flush=True, red=True)


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Folder of numbers computed by the published code; LOWBIT_VECTORS names another of the same format."""
    return Path(os.environ.get("LOWBIT_VECTORS", Path(__file__).parent / "golden"))


@pytest.fixture(scope="session")
def glue() -> Path:
    """Folder of the nine GLUE tasks in the official layout, a few invented rows each."""
    return Path(__file__).parent / "fixtures" / "glue"


@pytest.fixture(scope="session")
def squad() -> Path:
    """Folder of both versions of SQuAD in the official layout, a few invented questions each."""
    return Path(__file__).parent / "fixtures" / "squad"


@pytest.fixture(scope="session")
def xglue() -> Path:
    """Folder of the eight XGLUE tasks in the official layout, a few invented rows each, in two languages or three."""
    return Path(__file__).parent / "fixtures" / "xglue"


@pytest.fixture(scope="session")
def images() -> Path:
    """Folder of three classes named as ImageNet's, in train and val: JPEG and PNG, two of them grey or of a palette."""
    return Path(__file__).parent / "fixtures" / "images"


@pytest.fixture(scope="session")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of CIFAR-10 and CIFAR-100 in the official layout, a few random images each."""
    import numpy as np

    folder = tmp_path_factory.mktemp("cifar")
    draw = np.random.default_rng(0)
    batches = {f"cifar-10-batches-py/data_batch_{n}": ("labels", 10, 10) for n in range(1, 6)}
    batches |= {"cifar-10-batches-py/test_batch": ("labels", 10, 20)}
    batches |= {"cifar-100-python/train": ("fine_labels", 100, 50), "cifar-100-python/test": ("fine_labels", 100, 20)}
    for name, (key, classes, rows) in batches.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        pixels = draw.integers(0, 256, (rows, 3072), dtype=np.uint8)
        file.write_bytes(python2_pickle(key, [place % classes for place in range(rows)], pixels))
    return folder


def python2_pickle(key: str, labels: list[int], pixels: Any) -> bytes:
    """Return the pickle that Python 2 wrote of {"data": pixels, key: labels}, as in the official files."""
    rows, columns = pixels.shape
    integer = [b"J" + number.to_bytes(4, "little") for number in range(max(rows, columns, *labels) + 1)]
    raw = pixels.tobytes()
    return b"".join(
        [
            b"\x80\x02}(U\x04data",
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01" + integer[rows] + integer[columns] + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb",
            b"U" + bytes([len(key)]) + key.encode() + b"](" + b"".join(integer[label] for label in labels) + b"eu.",
        ]
    )


@pytest.fixture(scope="session")
def tiny_bert(glue: Path, squad: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a BERT with random weights and a WordPiece vocabulary of the words in `glue` and `squad`."""
    import re

    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    files = [*glue.glob("*/*.tsv"), *squad.glob("*.json")]
    words = {word for file in files for word in re.findall(r"[a-z]+|[^\sa-z]", file.read_text().lower())}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=128, **sizes)
    folder = tmp_path_factory.mktemp("tiny_bert")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)  # an encoder: each task brings a head of its own width
    BertTokenizer({word: index for index, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder
