"""Read the questions of SQuAD from the official JSON files or the hub; name bad ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lowbit.config.squad_files import Entry, Part, entries, squad_description, squad_file
from lowbit.data.bad_rows import check_rows
from lowbit.hub import hub_split
from lowbit.settings.data import DataConfig

_HUB_SPLIT: dict[Part, str] = {"train": "train", "dev": "validation"}


@dataclass
class Questions:
    """The usable questions column by column, and one line for each of the others.

    `answers` holds the texts of all accepted answers, `spans` the first and last-plus-one character of the first one;
    without an answer they are empty and (-1, -1).
    """

    questions: list[str] = field(default_factory=list)
    contexts: list[str] = field(default_factory=list)
    answers: list[list[str]] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of usable questions."""
        return len(self.questions)


def read_questions(config: DataConfig, part: Part) -> Questions:
    """Return the questions of a part, checked one by one.

    Raises:
        ValueError: bad ones that are not to be skipped, or none that is good; a file that holds something else.
    """
    file = squad_file(config, part)
    rows = Questions()
    for where, content in _hub(config, part) if file is None else entries(file):
        problem = content if isinstance(content, str) else _take(rows, *content, config)
        if problem is not None:
            rows.bad.append(f"{where}: {problem}")
    check_rows(config, rows.bad, len(rows), f"the part {part} has no usable question")
    return rows


def _take(rows: Questions, context: Any, entry: Any, config: DataConfig) -> str | None:
    """Append a question and return None, or return what is wrong with it."""
    fields = entry if isinstance(entry, dict) else {}
    question, answers = fields.get("question"), fields.get("answers")
    if not isinstance(context, str) or not context.strip():
        return "`context` is missing or empty"
    if not isinstance(question, str) or not question.strip():
        return "`question` is missing or empty"
    if not isinstance(answers, list):
        return "`answers` is missing or no list"
    spans: list[tuple[int, int]] = []
    for answer in answers:
        found = _answer(context, answer)
        if isinstance(found, str):
            return found
        spans.append(found)
    if not answers and not squad_description(config).has_no_answer:
        return "`answers` is empty, and every question of SQuAD 1.1 has one"
    if fields.get("is_impossible", not answers) != (not answers):
        return f"`is_impossible` is {fields['is_impossible']}, but there are {len(answers)} answers"
    rows.questions.append(question)
    rows.contexts.append(context)
    rows.answers.append([context[start:end] for start, end in spans])
    rows.spans.append(spans[0] if spans else (-1, -1))
    return None


def _answer(context: str, answer: Any) -> tuple[int, int] | str:
    """Return the characters of an answer without blanks around it, or what is wrong with it."""
    fields = answer if isinstance(answer, dict) else {}
    text, start = fields.get("text"), fields.get("answer_start")
    if not isinstance(text, str) or not text.strip() or not isinstance(start, int):
        return f"answer {answer!r} lacks `text` or `answer_start`"
    if start < 0 or context[start : start + len(text)] != text:
        return f"the context has {context[max(start, 0) :][: len(text)]!r} at {start}, not the answer {text!r}"
    start += len(text) - len(text.lstrip())
    return start, start + len(text.strip())


def _hub(config: DataConfig, part: Part) -> Iterator[Entry]:
    known = squad_description(config)
    revision = config.revision or known.revision
    split, files = _HUB_SPLIT[part], list(known.files.values())
    data = hub_split(
        known.repository, split=split, revision=revision, root="SQUAD_DIR", files=files, choice=config.name
    )
    for number, row in enumerate(data, start=1):
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
        where = f"{known.repository}, {split} row {number}"
        yield where, (row["context"], {"question": row["question"], "answers": answers})
