"""The YAML of a model card, with limits on what it may ask for."""

import pytest

from whisperkit_tools.front_matter import FrontMatterError, split_front_matter

BOMB = "\n".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9) if i else 'lol'}]" for i in range(9)) + "\ntags: *a8"


def test_metadata_and_body():
    assert split_front_matter("---\nlicense: mit\ntags: [a, b]\n---\n# x\n") == (
        {"license": "mit", "tags": ["a", "b"]},
        "# x\n",
    )
    assert split_front_matter("---\n---\nbody") == ({}, "body")
    assert split_front_matter("# x\n---\na: 1\n---\n") == ({}, "# x\n---\na: 1\n---\n")


@pytest.mark.parametrize(
    ("front", "reason"),
    [
        (BOMB, "an alias"),
        ("x: " + "[" * 20_000, "nested deeper"),
        ("x: " + "{a: " * 20_000, "nested deeper"),
        ("x: [", "in line"),
        ("- a", "not a mapping"),
        ("x: !!python/object:os.system {}", "could not determine a constructor"),
        ("x: 2024-13-45", "month must be in 1..12"),
        ("x: \x01", "special characters are not allowed"),
        ("x: " + "a" * (2 << 20), "are more than"),
    ],
)
def test_what_is_refused_in_one_line(front, reason):
    with pytest.raises(FrontMatterError, match=reason) as caught:
        split_front_matter(f"---\n{front}\n---\n# x\n")
    assert len(str(caught.value).splitlines()) == 1
