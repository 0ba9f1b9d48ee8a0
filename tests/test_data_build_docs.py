"""docs/data.md tells the arguments, keys, readers and specs that the code has, and its own spec works."""

from __future__ import annotations

import inspect
from dataclasses import fields

from published_layouts import picture
from test_docs import DOCS, names, rows, section, spelled

from qoqmed.preparing.build import Arguments, build
from qoqmed.preparing.labels import READERS
from qoqmed.preparing.rows import SOURCES
from qoqmed.preparing.spec import Spec, load, shipped


def test_arguments_and_their_defaults():
    told = {cells[0].strip("`"): cells[1] for cells in rows(section("data.md", "## Arguments"))}
    assert told == {one.name: spelled(one.default) for one in fields(Arguments)}


def test_specs_keys_and_readers():
    table = list(rows(section("data.md", "## The shipped specs")))
    assert sorted(name for cells in table for name in names(cells[0])) == list(shipped())
    of_spec = {name: load(name).data_set for name in shipped()}
    for cells in table:
        assert ", ".join(of_spec[name] for name in names(cells[0])) == cells[1]
    own = list(rows(section("data.md", "## A spec of your own")))
    keys = {name for cells in own if not cells[0].startswith("`rows:") for name in names(cells[0])}
    readers = {cells[0].strip("`"): set(names(cells[1])) for cells in own}
    assert keys >= {one.name for one in fields(Spec)} | set(SOURCES) | set(READERS)
    for name, reader in READERS.items():
        assert set(list(inspect.signature(reader).parameters)[2:]) <= readers[name] | {"map"}, name


def test_the_spec_of_the_page_builds(tmp_path):
    text = (DOCS / "data.md").read_text(encoding="utf-8").split("```yaml my_set.yaml\n")[1].split("```")[0]
    (tmp_path / "my_set.yaml").write_text(text)
    for place in range(4):
        picture(tmp_path / "source" / ("mole", "melanoma")[place % 2] / f"p{place}_1.png")
    built = build(str(tmp_path / "my_set.yaml"), tmp_path / "source", tmp_path / "out")
    assert sum(built.rows.values()) == 4 and built.left_out == {}
