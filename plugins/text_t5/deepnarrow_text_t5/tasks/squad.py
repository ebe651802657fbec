"""SQuAD v1.1 (Rajpurkar et al. 2016) in T5's form, from its JSON or from tensorflow-datasets.

As in T5, the right answers are compared in the form that the model is taught, with punctuation
apart; so "o ' clock" is right, which the official script would compare with "oclock".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deepnarrow.errors import InputError
from deepnarrow_text_t5.tasks import prompts
from deepnarrow_text_t5.tasks.benchmark import BenchmarkTask
from deepnarrow_text_t5.tasks.examples import TextExample
from deepnarrow_text_t5.tasks.readers import Placed, column, read_json, text
from deepnarrow_text_t5.tasks.scoring import score_answers

FILES = {"train": "train-v1.1.json", "validation": "dev-v1.1.json"}


def _read(folder: Path, part: str, where: str) -> Iterator[Placed]:
    path = folder / FILES[part]
    place = f"{where}, file '{path}'"
    content = read_json(path, where)
    try:
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = [answer["text"] for answer in question["answers"]]
                    yield Placed(f"{place}, question {question['id']!r}", {
                        "context": paragraph["context"], "question": question["question"],
                        "answers": {"text": answers}})
    except (KeyError, TypeError) as error:
        raise InputError(place, "has not SQuAD's layout", got=f"no {error}",
                         expected="data / paragraphs / qas / answers") from error


def _convert(placed: Placed, part: str) -> list[TextExample]:
    del part
    answers = [prompts.pad_punctuation(text) for text in column(placed, "answers")["text"]]
    if not answers:
        raise InputError(placed.place, "has no answers", expected="at least one")
    for name in ("context", "question"):
        text(placed, name)
    return [TextExample(prompts.squad(placed.row), answers[0], None, tuple(answers),
                        placed.row["context"])]


SQUAD = (
    BenchmarkTask("squad", "squad", "v1.1", "squad", read=_read, convert=_convert,
                  score=score_answers, metrics=("em", "f1"), referenced=True, target_length=64),
)
