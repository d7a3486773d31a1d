from __future__ import annotations

import ast
from pathlib import Path

import pytest

from bertillery.data import pydocs

DOCSTRING = """
Computes the :func:`~a.b.mean` of the ``values`` that
were **given**, see `the notes <https://example.org>`_ for more.

Parameters
----------
values : array_like
    The numbers to be averaged, in any order that
    you like them to be in.
axis : int

Args:
    weights (`list`, *optional*): The weights of the numbers, all
        of them are equal when not given.

.. code-block:: python

    This is the body of a directive and not a sentence.

.. note::
    The result is not rounded in any way whatsoever.

Use it like this, and mind the result::

    x = mean(values) and this looks like text, but is not.

>>> mean([1, 2])
This is the output of the doctest above, no prose.

| A | table with words in it that end in a full stop. |

- The first item of a list of things
  goes over two lines of text.
"""

PROSE = [
    "Computes the mean of the values that were given, see the notes for more.",
    "The numbers to be averaged, in any order that you like them to be in.",
    "The weights of the numbers, all of them are equal when not given.",
    "The result is not rounded in any way whatsoever.",
    "The first item of a list of things goes over two lines of text.",
]


def test_prose_is_what_is_left_of_a_docstring() -> None:
    assert pydocs.prose(DOCSTRING) == PROSE


def test_a_module_is_parsed_not_imported(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(f'raise SystemExit\nclass A:\n    def f(self):\n        """{PROSE[0]}"""\n')
    assert pydocs._read_module(str(path)) == [("A.f", PROSE[:1])]
    path.write_text(f'"""{PROSE[0]}"""\ndef g():\n    """Short."""\n')
    assert pydocs._read_module(str(path)) == [("", PROSE[:1])]
    path.write_text(f'"""{PROSE[0]}"""\nthis is no python')
    assert pydocs._read_module(str(path)) == []


def test_the_language_reference_reads_as_prose() -> None:
    topics = list(pydocs._read_topics())
    paragraphs = [paragraph for topic in topics for paragraph in topic]
    assert len(topics) > 50
    assert sum(map(len, paragraphs)) > 100_000
    assert any(paragraph.startswith("Assert statements are a convenient way to insert") for paragraph in paragraphs)
    assert not any(mark in paragraph for paragraph in paragraphs for mark in ("::", "``", ">>>", "  ", "\n"))


def test_documents_are_the_same_every_time_and_paragraphs_come_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*"abcdefghijkl", "test_m"):
        (tmp_path / f"{name}.py").write_text('"""' + "\n\n".join(PROSE) + f' And this is the module {name}.\n"""')
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "d.py").write_text((tmp_path / "a.py").read_text())
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(pydocs, "_MIN_DOCUMENT", 50)
    pydocs.read_documents.cache_clear()
    documents, repeated = pydocs.read_documents()
    assert [document[-1][-2] for document in documents] == list("abcdefghijkl")
    assert len(documents[0]) == len(PROSE)
    assert len(documents[1]) == 1
    assert repeated == 11 * (len(PROSE) - 1)
    pydocs.read_documents.cache_clear()
    assert (documents, repeated) == pydocs.read_documents()
    pydocs.read_documents.cache_clear()


def test_fingerprint_follows_the_installed_modules_and_the_version_of_the_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of a comment prepares no corpus again; where the tests of prose change, ``_VERSION`` is raised."""
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "a.py").write_text("1")
    before = pydocs.fingerprint()
    with monkeypatch.context() as context:
        context.setattr(pydocs, "__file__", str(tmp_path / "nowhere"))
        assert pydocs.fingerprint() == before
        context.setattr(pydocs, "_VERSION", pydocs._VERSION + 1)
        assert pydocs.fingerprint() != before
    (tmp_path / "a.py").write_text("12")
    assert pydocs.fingerprint() != before


def test_docstrings_of_nested_definitions_in_order() -> None:
    tree = ast.parse('"""m"""\nclass A:\n    """a"""\n    async def f():\n        """f"""\ndef g():\n    "g"\n')
    assert list(pydocs._docstrings(tree)) == [("", "m"), ("A", "a"), ("A.f", "f"), ("g", "g")]
