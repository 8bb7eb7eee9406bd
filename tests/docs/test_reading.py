"""What the runner of the pages takes for the same, and what it does not."""

from __future__ import annotations

import pytest

from docs.pages import missing, same, steps

PAGE = """
# A page

```console
$ zeropoint plan m \\
    --json
{"a": 1}

$ zeropoint bad
...
zeropoint: no
(exit code 2)
```

```python
print(1)
```

```text
1
```

```toml
x = 1
```
"""


def test_a_page_is_its_commands_and_programs_with_what_it_shows_of_their_output() -> None:
    plan, bad, program = steps(PAGE)
    assert (plan.kind, plan.text.split(), plan.shown) == (
        "console",
        ["zeropoint", "plan", "m", "--json"],
        ('{"a": 1}',),
    )
    assert (bad.text, bad.shown, bad.exit_code) == ("zeropoint bad", ("zeropoint: no",), 2)
    assert (program.kind, program.text, program.shown, program.line) == ("python", "print(1)\n", ("1",), 16)
    with pytest.raises(ValueError, match="line 2: a console block begins with a command"):
        list(steps("```console\nzeropoint recipes\n```\n"))


@pytest.mark.parametrize(
    ("page", "output"),
    [
        ("KL  0.218 nats", "KL 0.2201   nats"),
        ("8,192 tokens", "8,300 tokens"),
        ("-2 ███ 94,824  11 %", "-2 █▎ 94,800  11 %"),
        ("done in 13.1 s", "done in 99.8 s"),
        ("done in 13.1 s", "done in 1 h 03 min"),
        ("peak memory  521.1 MB  x0.91", "peak memory  1.2 MB  x0.01"),
        ("S 0.00001", "S 0.00002"),
        ("there are a, ...; did you mean 'b'?", "there are a, b, c; did you mean 'b'?"),
    ],
)
def test_lines_that_are_the_same(page: str, output: str) -> None:
    assert same(page, output)


@pytest.mark.parametrize(
    ("page", "output"),
    [
        ("KL 0.218 nats", "KL 0.25 nats"),
        ("KL 0.218 nats", "KL 0.218 bits"),
        ("4 bits", "5 bits"),
        ("int4 g64 sym", "int4 g32 sym"),
        ("-2 to 7", "2 to 7"),
        ("one", "one two"),
        ("there are a, ...; did you mean 'b'?", "there are a, b, c; did you mean 'c'?"),
    ],
)
def test_lines_that_are_not(page: str, output: str) -> None:
    assert not same(page, output)


def test_lines_are_found_in_their_order() -> None:
    assert missing(["a 1", "c"], "a 1\nb\nc\n") is None
    assert missing(["c", "a 1"], "a 1\nb\nc\n") == "a 1"
    assert missing(["a", "a"], "a\n") == "a"
    assert missing(["table", "zeropoint: first"], "zeropoint: first\ntable\n") is None
