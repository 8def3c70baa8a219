"""Functions of the tiny tasks in this folder: their data, and how replies of two of them are scored."""

import json
import re
from pathlib import Path
from typing import Any

import datasets  # pyright: ignore[reportMissingImports]


def load(file: str, **_: Any) -> dict[str, Any]:
    """Read a JSON Lines file that lies beside the tasks as the split test; needs no network."""
    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


def letter_question(doc: dict[str, Any]) -> str:
    """Ask a question with lettered options, and for a reply that ends as MMLU-Pro's do."""
    options = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", doc["options"], strict=False))
    return f'Question: {doc["question"]}\n{options}\nFinish with "the answer is (X)", where X is the letter.\nAnswer:'


def followed(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score whether a reply follows its instruction, as IFEval does by a program."""
    reply, rule, argument = results[0].strip(), doc["rule"], doc["argument"]
    if rule == "lower":
        is_followed = reply == reply.lower()
    elif rule == "contains":
        is_followed = argument in reply.lower()
    elif rule == "without":
        is_followed = argument not in reply.lower()
    else:
        is_followed = 0 < len(reply.split()) <= int(argument)
    return {"followed": float(bool(reply) and is_followed)}


def feelings_prompt(doc: dict[str, Any]) -> str:
    """Ask for the strength of feelings in a scene."""
    form = "\n".join(f"{name}: <score>" for name in feelings_of(doc))
    return f"{doc['scene']}\nHow strong is each feeling of this person, from 0 to 10? Answer in this form:\n{form}\n"


def feelings(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Score how near the strengths are to those of the reference, from 0 to 100 as EQ-Bench does."""
    asked = feelings_of(doc)
    found = {name: re.search(rf"{name}\W+(\d+(?:\.\d+)?)", results[0], re.IGNORECASE) for name in asked}
    misses = [10.0 if match is None else min(10.0, abs(float(match[1]) - asked[name])) for name, match in found.items()]
    return {"nearness": 100 - 10 * sum(misses) / len(misses)}


def feelings_of(doc: dict[str, Any]) -> dict[str, float]:
    """Return the feelings that a scene is scored by; a data set fills those of other scenes with null."""
    return {name: score for name, score in doc["scores"].items() if score is not None}
