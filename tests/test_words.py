"""Words that messages share: a name or two, and the right plural."""
import pytest

from tools.words import counted, some


@pytest.mark.parametrize(("words", "said"), [
    ((1, "photo"), "1 photo"), ((2, "photo"), "2 photos"), ((0, "class"), "0 classes"), ((1, "class"), "1 class"),
    ((1, "image", "has"), "1 image has"), ((3, "image", "has"), "3 images have"), ((2, "mask", "is"), "2 masks are"),
    ((2, "mask", "shows"), "2 masks show"), ((1, "mask", "was"), "1 mask was"), ((4, "file", "was"), "4 files were")])
def test_things_are_counted_in_their_number(words, said):
    assert counted(*words) == said


def test_of_many_names_the_first_are_said():
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
