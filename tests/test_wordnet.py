"""WordNet's files as Princeton lays them out: read into synonyms, refused by name, and used for the captions of a cleaning."""

import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parlib.experiments.clean_params import Clean
from parlib.experiments.trials import Sweep
from parlib.method.eda import _STOP, _SYNONYMS, insert, reword
from parlib.method.methods import METHODS, Recipe, rewording
from parlib.method.wordnet import FILES, content, synonyms
from parlib.model.clip import Clip, save
from parlib.train.cached import training_identity

# Between the lemmas and the gloss stand pointers and, for verbs, frames; they are left unread. Real lines end in two spaces.
NOUNS = """\
  1 This software and database is being provided to you, the LICENSEE, by
  2 Princeton University under the following license.
00000100 05 n 03 cat 0 true_cat 0 Felis_catus 1 002 @ 00000200 n 0000 ~ 00000300 n 0102 | a feline; "a true_cat 0"
00000200 18 n 02 guy 0 cat 1 000 | an informal term for a man
00000300 13 n 01 banana 0 001 @ 00000100 n 0000 | it has no other name
00000400 03 n 0a one 0 two 0 three 0 four 0 five 0 six 0 seven 0 eight 0 nine 0 ten 0 000 | ten of them: 0a is hexadecimal
00000500 17 n 02 Earth 0 earth 1 000 | the same word twice
00000600 23 n 02 vitamin_A 0 A 0 000 | one of which is a stop word
"""
VERBS = "00000100 29 v 02 vomit 0 cat 2 001 $ 00000200 v 0000 01 + 02 00 | eject  \n"
ADJECTIVES = """\
00000100 00 a 03 red 0 reddish(a) 0 ruddy(ip) 0 001 & 00000200 a 0000 | of a colour
00000200 00 s 02 bloody_(sic) 0 red(p) 1 000 | what is no marker stays
"""
ADVERBS = "00000100 02 r 02 about 0 some 1 000 | not quite  \n"


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, text in zip(FILES, (NOUNS, VERBS, ADJECTIVES, ADVERBS), strict=True):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_synonyms_are_the_other_lemmas_of_all_synsets(folder):
    ten = "eight five four nine one seven six ten three two".split()
    assert synonyms(folder) == {
        "a": ["vitamin a"],
        "about": ["some"],
        "bloody (sic)": ["red"],
        "cat": ["felis catus", "guy", "true cat", "vomit"],
        "felis catus": ["cat", "true cat"],
        "guy": ["cat"],
        "red": ["bloody (sic)", "reddish", "ruddy"],
        "reddish": ["red", "ruddy"],
        "ruddy": ["red", "reddish"],
        "some": ["about"],
        "true cat": ["cat", "felis catus"],
        "vitamin a": ["a"],
        "vomit": ["cat"],
    } | {word: [other for other in ten if other != word] for word in ten}
    assert list(synonyms(folder)) == sorted(synonyms(folder))


def test_a_folder_is_read_once(folder):
    assert synonyms(folder) is synonyms(folder)


def test_a_folder_without_wordnet_is_named(folder):
    (folder / "data.adj").unlink()
    with pytest.raises(FileNotFoundError, match=f"{folder} holds no data.adj: WordNet is read .* data.noun, data.verb, data.adj, data.adv"):
        synonyms(folder)
    with pytest.raises(FileNotFoundError, match="nowhere holds no data.noun"):
        synonyms(folder / "nowhere")


@pytest.mark.parametrize(
    "line",
    [
        "00000300 13 n 02 banana 0 000 | one lemma fewer than it says\n",
        "00000300 13 n 01 banana 0 plantain 0 000 | one more\n",
        "00000300 13 n zz banana 0 000 | no number\n",
        "00000300 13 n 00 000 | none at all\n",
        "00000300 13 x 01 banana 0 000 | of no kind\n",
        "banana n 1 1 @ 1 0 00000300\n",  # a line of index.noun
        "00000300 13 n 02 banana 0 plan",  # cut off
        "00000300 13 n 01 banana 0 000 | cut off in its glo",
        "\n",
    ],
)
def test_a_malformed_line_is_named(folder, line):
    (folder / "data.noun").write_text(NOUNS + line)
    with pytest.raises(ValueError, match=f"{folder}/data.noun, line 9, is no synset of WordNet") as caught:
        synonyms(folder)
    assert "\n" not in str(caught.value)


def test_without_wordnet_captions_are_today_s():
    captions = ["a small picture of one cat on a red ground", "the dog", "banana"]
    assert reword(captions, 3, None) == reword(captions, 3) == reword(captions, 3, _SYNONYMS)
    assert not _STOP & set(_SYNONYMS)  # so that leaving these alone changes nothing
    assert reword(captions, 3) == ["a picture of one cat a red", "dog the", "banana"]  # as it was before there was a table
    assert reword(captions, 5) == ["a small picture of one kitten cat on a red ground", "puppy the dog", "banana"]


def test_captions_take_wordnet_s_words(folder):
    captions = ["a cat and a banana"] * 300
    found = reword(captions, 0, synonyms(folder))
    assert found == reword(captions, 0, dict(synonyms(folder)))
    assert found != reword(captions, 1, synonyms(folder))
    for word in ("felis catus", "guy", "true cat", "vomit"):
        assert any(f"a {word} and a banana" == caption for caption in found)  # one word for one, at its place
    assert not any("vitamin" in caption for caption in found)  # "a" is left alone
    assert not any(word in " ".join(found).split() for word in ("kitten", "red"))  # no word of our own list


def test_a_word_that_wordnet_has_not_is_inserted_as_it_is(folder):
    assert insert(["banana"], random.Random(0), synonyms(folder)) == ["banana", "banana"]


def test_a_recipe_rewords_by_the_folder_it_names(folder):
    recipe = Recipe("cleanclip", 1, 2, 1e-3, seed=0)
    assert rewording(recipe) is METHODS["cleanclip"].reword
    given = pickle.loads(pickle.dumps(rewording(replace(recipe, wordnet=str(folder)))))  # as Ray hands it to a process
    assert given(["a cat"] * 50, 4) == reword(["a cat"] * 50, 4, synonyms(folder)) != reword(["a cat"] * 50, 4)
    assert rewording(replace(recipe, method="par", wordnet=str(folder))) is None
    with pytest.raises(FileNotFoundError, match="nowhere holds no data.noun"):
        rewording(replace(recipe, wordnet=str(folder / "nowhere")))


def test_a_training_is_named_by_what_wordnet_holds(clip: Clip, scenes, folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    for name in FILES:
        (copy / name).write_bytes((folder / name).read_bytes())
    recipe, feed = Recipe("cleanclip", 1, 2, 1e-3, seed=0), scenes.first(4).feed(clip)

    def key(**changes: str) -> dict[str, Any]:
        return training_identity(clip, feed, replace(recipe, **changes), reference=None, watch=None)

    assert key(wordnet=str(folder)) == key(wordnet=str(copy)) != key()
    assert key(method="par", wordnet=str(folder)) == key(method="par")  # it rewords nothing
    before = key(wordnet=str(folder))
    (folder / "data.adv").write_text("")
    assert key(wordnet=str(folder)) != before


def test_parameters_take_a_folder_where_captions_are_reworded(folder):
    params = Clean.check({"method": "roclip", "wordnet": str(folder)})
    assert params.recipe().wordnet == params.wordnet == str(folder)
    assert params.id.startswith("02_clean/roclip_badnet_stripes_s0_wordnet")
    assert Clean.check(params.model_dump()) == params
    with pytest.raises(ValueError, match="wordnet is for methods that reword captions: cleanclip, roclip$"):
        Clean.check({"method": "par", "wordnet": str(folder)})
    with pytest.raises(ValueError, match="wordnet = 'no/folder': .*/no/folder holds no data.noun") as caught:
        Clean.check({"method": "cleanclip", "wordnet": "no/folder"})
    assert "\n" not in str(caught.value)


def test_none_is_today_s_recipe_and_id():
    params = Clean.check({"method": "cleanclip"})
    assert params.recipe().wordnet == ""
    assert "wordnet" not in params.asked()
    assert params.id == "02_clean/cleanclip_badnet_stripes_s0"


def test_a_run_builds_on_the_files(clip: Clip, folder, tmp_path_factory):
    poisoned = tmp_path_factory.mktemp("poisoned")
    save(clip, poisoned)
    params = Clean.check({"method": "cleanclip", "wordnet": str(folder), "poisoned": f"local-dir:{poisoned}"})
    before = params.inputs()["wordnet"]
    assert before.model_dump() == {"run": str(folder), "sha256": content(folder)}
    assert "wordnet" not in Clean.check({"method": "cleanclip", "poisoned": params.poisoned}).inputs()
    space = [{"method": ["cleanclip"], "poisoned": [params.poisoned], "wordnet": ["", str(folder)]}]
    assert Sweep.check({"space": space}).inputs()[str(folder)] == before
    (folder / "data.verb").write_text(VERBS.replace("vomit", "hurl"))
    assert params.inputs()["wordnet"] != before
