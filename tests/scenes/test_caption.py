import re

import pytest

from latentc.scenes.caption import CHANCE, COUNT_WORDS, NOUNS, attributes, caption, describe, full_caption
from latentc.scenes.world import COLOURS, Scene, Thing, sample


def texts():
    for seed in range(700):
        scene = sample(seed, "any")
        yield scene, describe(scene, seed)
    for seed in range(150):
        yield sample(seed), None


def words(text):
    return re.findall(r"[a-z-]+", text.lower())


def test_captions_are_clean():
    for scene, described in texts():
        text = described.text if described else full_caption(scene)
        assert text == text.strip()
        assert "  " not in text
        assert " ," not in text
        assert " ." not in text
        assert ",," not in text
        assert text[0].isupper() == text.endswith(".")
        assert re.fullmatch(r"[A-Za-z ,-]+\.?", text), text
        for article, word in re.findall(r"\b(an?) ([a-z]+)", text.lower()):
            assert (article == "an") == (word[0] in "aeiou"), text
        for before, after in zip(words(text), words(text)[1:], strict=False):
            assert before != after, text


def test_one_is_singular_and_more_are_plural():
    for scene, described in texts():
        text = (described.text if described else full_caption(scene)).lower()
        for thing in scene.things:
            forms = [names[thing.count > 1] for names in NOUNS[thing.kind]]
            found = [re.search(rf"\b{re.escape(form)}\b", text) for form in forms]
            assert any(found), text
            if thing.count > 1:
                assert re.search(rf"\b{COUNT_WORDS[thing.count]} ([a-z]+ ){{0,2}}({'|'.join(forms)})\b", text), text


def test_what_is_said_is_in_the_scene_and_in_the_text():
    for scene, described in texts():
        if described is None:
            continue
        facts = attributes(scene)
        assert described.said <= facts.keys()
        for key in described.said:
            if key.endswith(".colour"):
                assert facts[key] in words(described.text)
        told = sum(key.endswith(".colour") for key in described.said)
        extra = ("green meadow", "blue sky", "red evening", "red canyon")
        text = described.text.lower()
        for phrase in extra:
            text = text.replace(phrase, "")
        assert sum(word in COLOURS for word in words(text)) == told, described.text
        assert {f"{thing.kind}.count" for thing in scene.things} <= described.said


def test_an_unsaid_attribute_is_not_in_the_text():
    scene = Scene(
        place="sea",
        sky="night",
        light="full moon",
        things=(Thing(kind="boat", colour="red", size="small", count=2, position="left"),),
    )
    marks = {
        "place": r"\b(sea|ocean)\b",
        "sky": r"\bnight\b",
        "light": r"\bmoon\b",
        "boat.count": r"\btwo\b",
        "boat.colour": r"\bred\b",
        "boat.size": r"\b(small|little)\b",
        "boat.position": r"\bon the left\b",
    }
    seen = set()
    for seed in range(300):
        described = describe(scene, seed)
        assert {key for key, mark in marks.items() if re.search(mark, described.text.lower())} == described.said
        seen.add(described.text)
    assert len(seen) > 100, "several wordings for one scene"


def test_a_full_caption_tells_everything():
    scene = Scene(
        place="beach",
        sky="dawn",
        light="sun",
        things=(
            Thing(kind="umbrella", colour="orange", size="large", count=1, position="left"),
            Thing(kind="cactus", colour="white", size="small", count=3, position="right"),
        ),
    )
    assert full_caption(scene) == (
        "a large orange umbrella on the left and three small white cacti on the right on a beach at dawn, with the sun"
    )
    assert attributes(scene) == {
        "place": "beach",
        "sky": "dawn",
        "light": "sun",
        "umbrella.count": "one",
        "umbrella.colour": "orange",
        "umbrella.size": "large",
        "umbrella.position": "left",
        "cactus.count": "three",
        "cactus.colour": "white",
        "cactus.size": "small",
        "cactus.position": "right",
    }


def test_a_seed_words_a_scene_one_way():
    scene = sample(3)
    assert caption(scene, 5) == caption(scene, 5) == describe(scene, 5).text


@pytest.mark.parametrize("seed", range(5))
def test_a_landscape_alone_has_a_caption(seed):
    assert describe(Scene(place="canyon", sky="snowfall", light="none"), seed).text


def test_chances_say_what_is_told():
    certain = dict.fromkeys(CHANCE, 1.0)
    for seed in range(50):
        scene = sample(seed)
        everything = {key for key, value in attributes(scene).items() if value != "none"}
        assert everything <= describe(scene, seed, certain).said
        assert describe(scene, seed, dict.fromkeys(CHANCE, 0.0)).said == {"place"}, "it says something"
