"""Settings of every test: offline, quiet, one thread per worker."""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)
os.environ["OMP_NUM_THREADS"] = "1"

import pytest


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
