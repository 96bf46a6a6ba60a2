"""Text tasks: the grammar and its parser, sums, tokenizers and prompts of a file."""

import itertools
import re

import numpy as np
import pytest

from ppo_lab.envs.text.arithmetic import ArithmeticTask
from ppo_lab.envs.text.grammar import GrammarTask, is_grammatical
from ppo_lab.envs.text.own_prompts import prompts_task, read_prompts
from ppo_lab.envs.text.tokenizers import WordTokenizer
from ppo_lab.utils.errors import ConfigError

TASKS = {"grammar": GrammarTask(), "arithmetic": ArithmeticTask(19)}


def test_the_parser_accepts_every_sentence_of_the_grammar():
    sentences = GrammarTask().corpus(0, 2000)
    assert all(map(is_grammatical, sentences))
    assert len(set(sentences)) > 1900


def test_the_parser_rejects_sentences_whose_words_change_places():
    # A sentence ends with "." and no word before it can: neither order leaves it there.
    for sentence in GrammarTask().corpus(1, 300):
        words = sentence.split()
        assert not is_grammatical(" ".join(words[1:] + words[:1]))
        assert not is_grammatical(" ".join(reversed(words)))


def test_few_random_permutations_are_sentences():
    generator = np.random.default_rng(0)
    sentences = GrammarTask().corpus(2, 500)
    shuffled = [" ".join(generator.permutation(sentence.split())) for sentence in sentences]
    # Of the 6! orders of "the pony greets a robot ." four are sentences: 0.6 %.
    assert sum(map(is_grammatical, shuffled)) < 0.03 * len(shuffled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "the",
        "the pony",
        "the pony greets",
        "the pony greets a robot",
        "the pony greets a robot . .",
        "the pony greets a robot today today .",
        "the pony greets a robot today",
        "the tiny tall pony greets a robot .",
        "pony greets a robot .",
        "the pony a robot greets .",
        "the pony greets a tiny .",
        "the pony greets  a robot .",
        "the pony greets a robot . <pad>",
        "the pony <bos> greets a robot .",
    ],
)
def test_the_parser_rejects_what_is_no_whole_sentence(text):
    assert not is_grammatical(text)


def test_the_grammars_reward_counts_words_grammatical_or_not():
    texts = ["the rude pony greets a lovely robot .", "lovely lovely lovely", "the lazy pony", ""]
    assert GrammarTask().rewards(texts) == [0.0, 1.5, -0.5, 0.0]


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("3+8=11.", 1.0),
        ("0+0=0.", 1.0),
        ("3+8=12.", 0.0),
        ("3+8=11", 0.0),  # cut off
        ("3+8=011.", 0.0),
        ("3+8=1+1.", 0.0),
        ("3+8=11<pad>.", 0.0),
        ("3+8=.", 0.0),
    ],
)
def test_a_sum_is_right_or_wrong(text, reward):
    assert ArithmeticTask(9).rewards([text]) == [reward]


def test_half_of_the_sums_to_learn_from_are_right_and_the_others_nearly():
    task = ArithmeticTask(19)
    sums = task.corpus(0, 10_000)
    assert task.quality(sums)["exact_frac"] == pytest.approx(0.5, abs=0.02)  # 4 deviations
    numbers = [re.fullmatch(r"(\d+)\+(\d+)=(\d+)\.", text).groups() for text in sums]
    assert {int(c) - int(a) - int(b) for a, b, c in numbers} == {-3, -2, -1, 0, 1, 2, 3}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_corpus_follows_from_its_seed_and_begins_with_prompts(task):
    corpus = task.corpus(3, 200)
    assert corpus == task.corpus(3, 200) != task.corpus(4, 200)
    begin = {tuple(prompt) for prompt in task.prompts}
    tokens = task.corpus_tokens(3, 200, task.longest + 2)
    assert tokens.shape == (200, task.longest + 2)
    for text, row in zip(corpus, tokens.tolist(), strict=True):
        end = row.index(task.tokenizer.end) + 1
        assert task.tokenizer.decode(row[:end]) == text
        assert set(row[end:]) == {task.tokenizer.pad}
        assert any(tuple(row[:length]) in begin for length in range(2, end))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_longest_text_has_its_number_of_tokens(task):
    lengths = [len(task.tokenizer.encode(text)) for text in task.corpus(5, 3000)]
    assert max(lengths) == task.longest


def test_quality_is_the_share_of_different_and_of_good_texts():
    texts = ["the pony greets a robot .", "the pony greets a robot .", "the pony", "a pony"]
    quality = GrammarTask().quality(texts)
    assert quality == {"grammatical_frac": 0.5, "distinct_frac": 0.75}
    sums = ArithmeticTask(9).quality(["1+1=2.", "1+1=3.", "1+1=3.", "2+2=4."])
    assert sums == {"exact_frac": 0.5, "distinct_frac": 0.75}


@pytest.mark.parametrize(("separator", "text"), [(" ", "b a b ."), ("", "bab.")])
def test_words_and_characters_survive_encoding(separator, text):
    tokenizer = WordTokenizer("ab", separator)
    assert (tokenizer.size, tokenizer.pad, tokenizer.end) == (5, 0, 2)
    assert tokenizer.encode(text) == [1, 4, 3, 4, 2]  # <pad> <bos> . a b
    assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(ValueError, match=r"unknown word 'c'; known are \. a b"):
        tokenizer.encode("c")


def test_special_tokens_within_a_text_are_shown():
    assert WordTokenizer("ab").decode([1, 3, 0, 1, 4]) == "a <pad> <bos> b"


def write(path, *lines):
    file = path / "prompts.jsonl"
    file.write_text("\n".join(lines))
    return str(file)


def test_prompts_of_a_file_are_read_line_by_line(tmp_path):
    file = write(tmp_path, '{"prompt": "the pony", "more": 1}', "", '{"prompt": "this"}', "")
    assert read_prompts(file) == {1: "the pony", 3: "this"}
    task = prompts_task(file, None)
    assert [task.tokenizer.decode(prompt) for prompt in task.prompts] == ["the pony", "this"]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["", ""], "must hold 1 to 100,000 prompts, not 0"),
        (['{"prompt": "the"}', "{the}"], "line 2 is no JSON: "),
        (['{"prompt": "the"}', "", "[1]"], "line 3 must be an object such as"),
        (['{"text": "the"}'], "line 1 must be an object such as"),
        (['{"prompt": 3}'], "line 1 must be an object such as"),
        (['{"prompt": "the"}', '{"prompt": "the whale"}'], "line 2: unknown word 'whale'"),
        (['{"prompt": "the pony greets a robot ."}'], "line 1 holds the token that ends a text"),
    ],
)
def test_an_error_in_a_file_of_prompts_names_the_line(tmp_path, lines, told):
    file = write(tmp_path, *lines)
    with pytest.raises(ConfigError) as error:
        prompts_task(file, None)
    assert str(error.value).startswith(f"env.prompts={file}: {told}")


def test_a_file_of_prompts_must_exist_be_text_and_not_too_large(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="there is no such file"):
        read_prompts(str(tmp_path / "none.jsonl"))
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(ConfigError, match="codec can't decode"):
        read_prompts(str(file))
    many = itertools.repeat('{"prompt": "the"}', 4)
    monkeypatch.setattr("ppo_lab.envs.text.own_prompts._MOST_PROMPTS", 3)
    with pytest.raises(ConfigError, match="1 to 3 prompts, not 4"):
        read_prompts(write(tmp_path, *many))
    monkeypatch.setattr("ppo_lab.envs.text.own_prompts._MOST_BYTES", 10)
    with pytest.raises(ConfigError, match="must have at most"):
        read_prompts(str(file))
