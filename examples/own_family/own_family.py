"""Quantize a model that lowbit does not know, DistilBERT: describe its family in one record and register it.

In a script, import the module that holds the record before `prepare`. On the command line, name it:
`lowbit train model=hf model.path=distilbert/distilbert-base-uncased model.family=own_family.DISTILBERT data=cola
data.tokenizer=model`, in the folder that holds own_family.py. Run this file to train a step of 2-bit weights and 8-bit
activations: `python own_family.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from lowbit.modeling import Rule, prepare
from lowbit.modeling.families import Family, LayerNames, register_family, route_attention_function
from lowbit.quantizers import QuantizerSpec

DISTILBERT = register_family(
    Family(
        name="hf_distilbert",
        class_names=("DistilBertForSequenceClassification", "DistilBertForTokenClassification"),
        layers="distilbert.transformer.layer",
        names=LayerNames(
            attention="attention",
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            attn_out="attention.out_lin",
            ffn_in="ffn.lin1",
            ffn_out="ffn.lin2",
            attn_block="sa_layer_norm",
            activation="ffn.activation",
            attn_block_at="output",
        ),
        model_roles={
            "word_embedding": ("distilbert.embeddings.word_embeddings",),
            "position_embedding": ("distilbert.embeddings.position_embeddings",),
            "pooler": ("pre_classifier",),
            "classifier": ("classifier",),
        },
        inputs=("input_ids", "attention_mask"),
        route_attention=route_attention_function,
        dropout=("dropout", "attention_dropout"),
        head_count="n_heads",
    )
)

WEIGHT = QuantizerSpec("twn", clip=2.5)
ACTIVATION = QuantizerSpec("minmax_symmetric", bits=8, clip=2.5)
RULES = (
    Rule(("query", "key", "value", "attn_out", "ffn_in", "ffn_out", "pooler"), weight=WEIGHT, input=ACTIVATION),
    Rule(("attention",), bmm=ACTIVATION),
    Rule(("word_embedding",), weight=QuantizerSpec("twn", clip=2.5, granularity="row")),
)


def tiny_model(seed: int = 0) -> DistilBertForSequenceClassification:
    """Return a DistilBERT of two layers with random weights."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 50, "max_position_embeddings": 16, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    return DistilBertForSequenceClassification(DistilBertConfig(**sizes)).eval()


def main() -> None:
    """Train one step from a full-precision teacher: on its logits and on the attention scores of each layer."""
    teacher, student = prepare(tiny_model()), prepare(tiny_model(), RULES)
    print("\n".join(student.resolved.report))
    ids = torch.randint(1, 50, (8, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        theirs = teacher.run(batch, ["scores"])
    optimizer = torch.optim.AdamW(student.model.parameters(), lr=1e-3)
    for step in range(2):
        mine = student.run(batch, ["scores"])
        pairs = zip(mine.layers, theirs.layers, strict=True)
        loss = F.mse_loss(mine.logits, theirs.logits) + sum(F.mse_loss(a.scores, b.scores) for a, b in pairs)
        print(f"step {step}: loss {loss.item():.4f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student.restore()  # the plain model of transformers again, with the trained weights


if __name__ == "__main__":
    main()
