"""Scores of captions against implementations written here from the definitions."""

import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocoevalcap")

from everyframe.evaluation import captions
from everyframe.evaluation.bertscore import BertScore, load_bert
from everyframe.evaluation.captions import plain_tokens, score_captions, tokenize

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
WORDS = ["red", "blue", "circle", "star", "moves", "left", "a", "the", "over", "sand"]


@pytest.fixture
def no_java(monkeypatch):
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)


def random_texts(seed, clips=12, references=3):
    rng = np.random.default_rng(seed)

    def sentence(shortest=1):
        return " ".join(rng.choice(WORDS, size=rng.integers(shortest, 12)))

    wrote = {f"clip {k}": [sentence() for _ in range(rng.integers(1, references + 1))] for k in range(clips)}
    said = {key: sentence(0) for key in wrote}
    said["clip 0"] = ""
    said["clip 1"] = wrote["clip 1"][0]
    return said, wrote


def longest_common_subsequence(a, b):
    if not a or not b:
        return 0
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if x == y else max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


def rouge_l(said, wrote, beta=1.2):
    """Lin 2004, with the largest precision and the largest recall over the references."""
    total = 0.0
    for key, text in said.items():
        words = text.split()
        common = [longest_common_subsequence(words, other.split()) for other in wrote[key]]
        recall = max(n / len(other.split()) for n, other in zip(common, wrote[key], strict=True))
        precision = max(common) / len(words) if words else 0.0
        if precision and recall:
            total += (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    return 100 * total / len(said)


def cider(said, wrote, sigma=6.0):
    """Vedantam et al. 2015, equations 1 to 3 and the clipped, length-penalised form of section 4 (CIDEr-D)."""

    def grams(text, n):
        words = text.split()
        return Counter(tuple(words[k : k + n]) for k in range(len(words) - n + 1))

    scores = []
    for n in (1, 2, 3, 4):
        seen = Counter(gram for texts in wrote.values() for gram in set().union(*(grams(text, n) for text in texts)))

        def vector(text, n=n, seen=seen):
            return {g: c * (math.log(len(wrote)) - math.log(max(1, seen[g]))) for g, c in grams(text, n).items()}

        for key, text in said.items():
            mine, value = vector(text), 0.0
            for other in wrote[key]:
                theirs = vector(other)
                dot = sum(min(mine[g], theirs.get(g, 0.0)) * theirs.get(g, 0.0) for g in mine)
                lengths = math.sqrt(sum(v * v for v in mine.values()) * sum(v * v for v in theirs.values()))
                # Lengths are numbers of bigrams, as in the published code.
                gap = max(len(text.split()) - 1, 0) - max(len(other.split()) - 1, 0)
                value += (dot / lengths if lengths else dot) * math.exp(-(gap**2) / (2 * sigma**2))
            scores.append(10 * value / len(wrote[key]))
    return 100 * sum(scores) / len(scores)


@pytest.mark.parametrize("seed", range(4))
def test_rouge_and_cider_equal_their_definitions(seed, no_java):
    said, wrote = random_texts(seed)
    found = score_captions(said, wrote, metrics=["ROUGE-L", "CIDEr"])
    assert found.scores["ROUGE-L"] == pytest.approx(rouge_l(said, wrote), abs=1e-9)
    assert found.scores["CIDEr"] == pytest.approx(cider(said, wrote), abs=1e-9)
    assert (found.tokenization, found.clips, found.missing) == ("plain", 12, {})


def test_extremes(no_java):
    wrote = {"a": ["a red circle moves left over the sand"], "b": ["the blue star of the far north"]}
    perfect = score_captions({key: texts[0] for key, texts in wrote.items()}, wrote, metrics=["ROUGE-L", "CIDEr"])
    assert perfect.scores == {"ROUGE-L": pytest.approx(100), "CIDEr": pytest.approx(1000)}
    nothing = score_captions({"a": "", "b": "?!"}, wrote, metrics=["ROUGE-L", "CIDEr"])
    assert nothing.scores == {"ROUGE-L": 0, "CIDEr": 0}
    # Of one clip every word is in every document: CIDEr says nothing.
    assert score_captions({"a": "x y"}, {"a": ["x y"]}, metrics=["CIDEr"]).scores == {"CIDEr": 0}


@needs_java
def test_ptb_tokens_are_those_of_pycocoevalcap():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = [
        "A man doesn't open the car's door, slowly.",
        'He says: "we\'re late" - it is 3.5 p.m. (maybe)',
        "Über-café — 20% off $5 … ok",
        "The cat -- black-and-white -- sat.",
    ]
    theirs = PTBTokenizer().tokenize({k: [{"caption": text}] for k, text in enumerate(texts)})
    # Texts without words must not shift the others.
    (own,) = tokenize([{"x": ["", *texts, ""]}], "ptb")
    assert own["x"] == ["", *(theirs[k][0] for k in range(len(texts))), ""]
    plain = ["A man doesn't open the car's door, slowly.", "they'll go; we've 3.5 well-known 'quoted' cats!"]
    (own,) = tokenize([{"x": plain}], "ptb")
    assert own["x"] == [plain_tokens(text) for text in plain]


@needs_java
def test_meteor_equals_its_formula_where_every_match_is_exact():
    """One text said word for word, the other not at all, so that no order is penalised.

    Denkowski and Lavie 2014: harmonic mean with alpha 0.85 of precision and recall, summed over the set, in which
    function words (a, the) weigh 0.25 and others 0.75.
    """
    wrote = {"a": ["A red ||| circle."], "b": ["the star"]}
    found = score_captions({"a": "a red circle", "b": ""}, wrote, metrics=["METEOR"])
    precision, recall = 1.0, (2 * 0.75 + 0.25) / (3 * 0.75 + 2 * 0.25)
    expected = precision * recall / (0.85 * precision + 0.15 * recall)
    assert found.tokenization == "ptb"
    assert found.scores["METEOR"] == pytest.approx(100 * expected, abs=1e-4)


def test_without_java_the_metrics_that_need_it_are_named(no_java, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said, wrote = random_texts(9)
    found = score_captions(said, wrote)
    assert set(found.scores) == {"ROUGE-L", "CIDEr"}
    assert set(found.missing) == {"METEOR", "SPICE", "BERTScore"}
    assert "METEOR needs Java" in found.missing["METEOR"]
    assert "roberta-large" in found.missing["BERTScore"]
    with pytest.raises(ValueError, match="SPICE needs Java, which was not found"):
        score_captions(said, wrote, metrics=["ROUGE-L", "SPICE"])


def test_spice_names_the_files_it_lacks(monkeypatch):
    monkeypatch.setattr(captions.shutil, "which", lambda name: "/usr/bin/java")
    import pycocoevalcap.spice as package

    if (Path(package.__file__).parent / "lib" / "stanford-corenlp-3.6.0.jar").exists():
        pytest.skip("Stanford CoreNLP is here")
    assert "get_stanford_models" in captions._why_not("SPICE", True, None)


def test_a_java_that_does_not_run_is_none(tmp_path, monkeypatch):
    stub = tmp_path / "java"
    stub.write_text("#!/bin/sh\necho get one >&2\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setattr(captions.shutil, "which", lambda name: str(stub))
    said, wrote = random_texts(3)
    assert score_captions(said, wrote, metrics=["CIDEr"]).tokenization == "plain"
    with pytest.raises(ValueError, match="METEOR needs Java"):
        score_captions(said, wrote, metrics=["METEOR"])


def test_a_program_that_fails_costs_its_own_metric_alone(no_java, monkeypatch):
    def fail(wrote, said):
        raise captions._ProgramError("ROUGE-L's program failed")

    monkeypatch.setitem(captions._SCORERS, "ROUGE-L", fail)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said, wrote = random_texts(3)
    found = score_captions(said, wrote)
    assert set(found.scores) == {"CIDEr"} and found.missing["ROUGE-L"] == "ROUGE-L's program failed"
    with pytest.raises(ValueError, match="program failed"):
        score_captions(said, wrote, metrics=["ROUGE-L", "CIDEr"])


@pytest.mark.parametrize(
    ("said", "wrote", "metrics", "message"),
    [
        ({"a": "x"}, {"b": ["x"]}, None, "must be of the same clips, got 1 and 1 with 0 in common"),
        ({}, {}, None, "must be of the same clips"),
        ({"a": "x"}, {"a": [" "]}, None, "a has an empty reference"),
        ({"a": "x"}, {"a": []}, None, "a has an empty reference"),
        ({"a": "x"}, {"a": ["x"]}, ["BLEU"], "metrics must be of ROUGE-L, CIDEr, .*, got BLEU"),
    ],
)
def test_bad_input_is_refused(said, wrote, metrics, message, no_java):
    with pytest.raises(ValueError, match=message):
        score_captions(said, wrote, metrics=metrics)


# --- BERTScore -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny BERT with seeded weights."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {word: k for k, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=1.0,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


def test_bertscore_equals_a_loop_over_words(bert, no_java):
    import torch
    from transformers import AutoModel, AutoTokenizer

    said, wrote = random_texts(5)
    found = score_captions(said, wrote, metrics=["BERTScore"], bert=bert).scores["BERTScore"]
    tokenizer, model = AutoTokenizer.from_pretrained(bert), AutoModel.from_pretrained(bert).eval()

    def states(text):
        with torch.inference_mode():
            out = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        return [row.numpy() for row in out.hidden_states[3][0, 1:-1]]  # of 4 layers the third; [CLS] and [SEP] go

    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    def f1(a, b):
        if not a or not b:
            return 0.0
        precision = np.mean([max(cosine(x, y) for y in b) for x in a])
        recall = np.mean([max(cosine(x, y) for x in a) for y in b])
        return 2 * precision * recall / (precision + recall)

    expected = np.mean([max(f1(states(said[key]), states(text)) for text in wrote[key]) for key in wrote])
    assert found == pytest.approx(100 * expected, abs=1e-4)


def test_bertscore_takes_the_first_word_for_one_inside_a_text(tmp_path):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    words.train_from_iterator(["x circle moves", "y circle moves", "x moves"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=400, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    states = BertScore(BertModel(config).eval(), tokenizer, 1).states(["circle moves", "", "moves"])
    assert len(tokenizer.tokenize("moves")) > 1 == len(tokenizer.tokenize(" moves"))
    assert [len(states[text]) for text in ("circle moves", "", "moves")] == [2, 0, 1]


def test_bertscore_layers_and_a_missing_model(bert):
    found = load_bert(bert)
    assert isinstance(found, BertScore) and found.layer == 3
    with pytest.raises(ValueError, match="no model for BERTScore can be loaded from /nowhere"):
        load_bert("/nowhere")
