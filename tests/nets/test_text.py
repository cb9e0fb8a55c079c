"""Text as contexts, on a text small enough to count by hand."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from traindyn.nets import text

WORDS = "The cat and the dog. So: the cat, THE end"


def test_words_are_ranked_by_frequency_and_then_by_alphabet():
    tokens = text.tokenise(WORDS, 5)
    assert tokens.vocabulary == ("the", "cat", "and", "dog", "<unk>")
    np.testing.assert_array_equal(tokens.ids, [0, 1, 2, 0, 3, 4, 0, 1, 0, 4])


def test_words_keep_their_apostrophes_and_lose_everything_else():
    tokens = text.tokenise("don't __init__ x2, 'quoted' – Ärger!", 10)
    assert set(tokens.vocabulary) == {"don't", "init", "x2", "quoted", "ärger", "<unk>"}


@pytest.mark.parametrize(
    ("words", "vocabulary"),
    (
        ("caf\u00e9 cafe\u0301 CAFE\u0301", ("café",)),  # composed, decomposed, upper case
        ("हिन्दी में हिन्दी", ("हिन्दी", "में")),  # vowel signs and viramas are marks
        ("می\u200cروم می", ("می", "می\u200cروم")),  # a zero-width joiner inside a word
        ("\ufb01nd find \ufb02y", ("find", "fly")),  # ligatures
        ("don\u2019t don't ‘so’", ("don't", "so")),
        ("\ufeffthe the", ("the",)),  # a byte-order mark
    ),
)
def test_words_of_any_script_are_whole(words, vocabulary):
    assert text.tokenise(words, 10).vocabulary == (*vocabulary, "<unk>")


def test_wikitext_is_tokenised_as_the_text_that_it_stands_for():
    plain = "The well-known king's 1,000 men don't say 3.5, but <unk> it's the men's"
    wiki = "The well @-@ known king 's 1 @,@ 000 men do n't say 3 @.@ 5 , but <unk> it 's the men 's"
    for size in (4, 100):
        one, two = text.tokenise(plain, size), text.tokenise(wiki, size)
        assert one.vocabulary == two.vocabulary
        np.testing.assert_array_equal(one.ids, two.ids)
    assert "unk" not in two.vocabulary and two.vocabulary.count("<unk>") == 1
    assert two.ids[-4] == len(two.vocabulary) - 1  # the text's own <unk>
    assert "<unk>" not in text.frequent_queries(two, 100)
    assert text.tokenise("the 's' and <unk>", 9).vocabulary == ("and", "s", "the", "<unk>")  # a quoted letter


def test_a_vocabulary_larger_than_the_text_has_all_its_words():
    tokens = text.tokenise(WORDS, 100)
    assert tokens.vocabulary == ("the", "cat", "and", "dog", "end", "so", "<unk>")
    assert tokens.ids.max() == 5


def test_frequent_queries_are_words_and_never_the_unknown_one():
    tokens = text.tokenise(WORDS, 3)
    assert text.frequent_queries(tokens, 1) == ("the",)
    assert text.frequent_queries(tokens, 2) == ("the", "cat")
    assert text.frequent_queries(tokens, 3) == ("the", "cat")


def test_contexts_are_the_windows_that_end_in_a_query():
    data = text.contexts(text.tokenise(WORDS, 5), ("the", "cat"), length=3, least=1)
    # Windows of two words and the query, with a word after it. "the" at 3, 6 and 8, not at 0; "cat" at 7, not at 1.
    expected = [
        [0, 0.5, 0.5, 0, 0],  # cat and [the] → dog
        [0, 0, 0, 0.5, 0.5],  # dog <unk> [the] → cat
        [0.5, 0.5, 0, 0, 0],  # the cat [the] → <unk>
        [0.5, 0, 0, 0, 0.5],  # <unk> the [cat] → the
    ]
    np.testing.assert_array_equal(data.x, expected)
    np.testing.assert_array_equal(data.label, [3, 1, 4, 0])
    np.testing.assert_array_equal(data.query, [0, 0, 0, 1])


def test_queries_are_numbered_as_given():
    tokens = text.tokenise(WORDS, 5)
    one, two = (text.contexts(tokens, q, length=3, least=1) for q in (("the", "cat"), ("cat", "the")))
    np.testing.assert_array_equal(two.query, [0, 1, 1, 1])
    np.testing.assert_array_equal(two.x[1:], one.x[:3])


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(
    words=st.lists(st.sampled_from("abcde"), min_size=12, max_size=40), size=st.integers(2, 8), length=st.integers(2, 6)
)
def test_frequencies_of_a_window_sum_to_one_and_counts_are_whole(words, size, length):
    tokens = text.tokenise(" ".join([*words, "a"]), size)
    query = tokens.vocabulary[0]
    ends = [i for i in range(length - 1, len(words)) if tokens.ids[i] == 0]
    hypothesis.assume(ends)
    data = text.contexts(tokens, (query,), length=length, least=len(ends))
    counts = np.asarray(data.x) * (length - 1)
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-12)
    np.testing.assert_allclose(np.sum(data.x, axis=1), 1, rtol=1e-14)
    np.testing.assert_array_equal(data.label, tokens.ids[np.array(ends) + 1])


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda: text.tokenise(WORDS, 1), "size must be an integer of at least 2"),
        (lambda: text.tokenise("", 5), "text must contain words, got none"),
        (lambda: text.tokenise(" \n\t", 5), "text must contain words, got none"),
        (lambda: text.contexts(text.tokenise(WORDS, 5), ("bird",)), "words of the vocabulary, got 'bird'"),
        (lambda: text.contexts(text.tokenise(WORDS, 5), ("the",), length=1), "length must be an integer of at least 2"),
        (
            lambda: text.contexts(text.tokenise(WORDS, 5), ("the",), length=3, least=4),
            "queries must each end at least 4 windows of 3 words, got 3 for 'the'",
        ),
        (lambda: text.contexts(text.tokenise(WORDS, 5), ()), "queries must"),
        (lambda: text.contexts(text.tokenise(WORDS, 5), ("the", "the")), "queries must hold each word once, got 'the'"),
        (
            lambda: text.contexts(text.Tokens(np.zeros(9, int), ("the", "the", "<unk>")), ("the",)),
            "tokens.vocabulary must hold each word once, got 'the'",
        ),
    ),
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
