"""The bank of prompts: how many, how varied, grammatical; and a bank of one's own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest

from everyframe.training import prompts
from everyframe.training.prompts import _participle, _third_person, prompt_bank


def test_general_bank_is_large_distinct_and_varied():
    bank = prompt_bank()
    assert 3500 <= len(bank) <= 4500
    assert len({prompt.lower() for prompt in bank}) == len(bank)
    lengths = [len(prompt.split()) for prompt in bank]
    assert min(lengths) <= 2
    assert max(lengths) >= 11
    assert 5 <= sum(lengths) / len(lengths) <= 9
    words = {word for prompt in bank for word in prompt.split()}
    assert len(words) > 1200
    assert {"dog", "kitchen", "car", "soccer", "guitar", "chopping", "sunset", "city", "wedding", "rain"} <= words
    assert {"sign", "smiling", "drone", "snow", "red", "concert", "office", "tutorial"} <= words
    # No kind of sentence makes up most of the bank.
    (_, most), *_ = Counter(" ".join(prompt.split()[:2]) for prompt in bank).most_common(1)
    assert most < 0.08 * len(bank)


def test_general_bank_is_clean_english():
    for prompt in prompt_bank():
        assert prompt == " ".join(prompt.split())
        assert not prompt.endswith(".")
        assert len(prompt) < 100  # CLIP's text tower reads 77 tokens
        assert re.fullmatch(r"[A-Za-z0-9 '\",-]+", prompt), prompt
        assert "X" not in prompt.split()
        assert not re.search(r"\b(a|an|the) (a|an|the)\b", prompt), prompt
        assert not re.search(r"\ba [aeio]", prompt), prompt
        assert not re.search(r"\ban [^aeiou]", prompt), prompt
        assert not re.search(r"\b(\w+) \1\b", prompt), prompt
        assert not re.search(r"\b(two people|two children) \w+s (a|the|on|in)\b", prompt), prompt


def test_general_bank_keeps_animals_and_people_apart():
    animals = r"^an? (\w+ )?(dog|puppy|cat|horse|cow|bird|elephant|lion|fish|snake)\b"
    human = "piano|guitar|on the phone|laptop|book|jacket|shopping|newspaper|video game|dishes"
    assert not [prompt for prompt in prompt_bank() if re.search(animals, prompt) and re.search(human, prompt)]
    young = [prompt for prompt in prompt_bank() if re.match(r"(a|two) (baby|toddler|child|children)\b", prompt)]
    assert not [prompt for prompt in young if re.search(r"\b(car\b|weld|drill|saw\b|wine|gym|taxi)", prompt)]


@pytest.mark.parametrize(
    ("verb", "third", "participle"),
    [
        ("open", "opens", "opening"),
        ("wash", "washes", "washing"),
        ("carry", "carries", "carrying"),
        ("play", "plays", "playing"),
        ("do", "does", "doing"),
        ("chop", "chops", "chopping"),
        ("ride", "rides", "riding"),
        ("lie", "lies", "lying"),
        ("dye", "dyes", "dyeing"),
        ("fix", "fixes", "fixing"),
        ("pass", "passes", "passing"),
        ("jump", "jumps", "jumping"),
    ],
)
def test_verb_forms(verb, third, participle):
    assert (_third_person(verb), _participle(verb)) == (third, participle)


def test_general_bank_is_the_same_in_every_process():
    code = f"import runpy; print('|'.join(runpy.run_path({prompts.__file__!r})['prompt_bank']()))"
    here = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert here.stdout.strip() == "|".join(prompt_bank())


def test_own_bank_is_read_line_by_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff# mine\n\n  a café at night \r\na dog\n#a cat\na dog\nein Mädchen\n".encode())
    assert prompt_bank(path) == ["a café at night", "a dog", "ein Mädchen"]
    assert prompt_bank(str(path)) == prompt_bank(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "prompts.txt: the file of prompts cannot be read"),
        (b"", "prompts.txt: needs at least 2 different prompts, one per line, got 0"),
        (b"# only\n\n# comments\n", "got 0"),
        (b"one\none\n", "got 1"),
        (b"caf\xe9\nbar\n", "prompts.txt: is not a list of prompts in UTF-8"),
    ],
)
def test_own_bank_that_cannot_be_used_raises(tmp_path, content, message):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prompt_bank(path)
