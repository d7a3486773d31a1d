from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from transformers import BertConfig

import distill.config
import finetune.config
from bertillery.config import layers
from bertillery.config.layers import Layer, dump, merge_layers, read_layers, read_values
from bertillery.config.section import ConfigError, Section, validate
from bertillery.config.types import Duration


class Optim(Section):
    """Inner section."""

    rate: float = 1e-4
    """How fast."""
    kind: Literal["adam", "sgd"] = "adam"


class Top(Section):
    """Outer section."""

    optim: Optim = Optim()
    length: Duration = Duration("3 epochs")
    folder: Path = Path("runs")
    betas: tuple[float, float] = (0.9, 0.999)
    limit: int | None = None
    needed: str


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_layers_are_merged_left_to_right(tmp_path: Path):
    base = write(tmp_path, "base.yaml", "needed: base\noptim: {rate: 1.0, kind: sgd}\nlimit: 3\n")
    over = write(tmp_path, "over.yaml", "optim: {rate: 2.0}\nlimit: null\n")
    values, sources = read_values([base, over])
    top = validate(Top, values, sources)
    assert (top.needed, top.optim.rate, top.optim.kind, top.limit) == ("base", 2.0, "sgd", None)
    assert sources["optim.rate"] == over
    assert sources["optim.kind"] == base
    values, _ = read_values([over, base, "optim.rate=3", "optim.rate=4"])
    assert validate(Top, values).optim.rate == 4.0
    values, _ = read_values(["optim.rate=4", base])
    assert validate(Top, values).optim.rate == 1.0


def test_a_number_in_a_key_counts_items_of_a_list(tmp_path: Path):
    base = write(tmp_path, "base.yaml", "phases: [{batch: 32, length: 128}, {batch: 8}]\nnames: [a, b]\n")
    values, sources = read_values([base, "phases.1.length=512", "phases.0.batch=16", "names.1=c", "phases.2.batch=4"])
    assert values == {
        "phases": [{"batch": 16, "length": 128}, {"batch": 8, "length": 512}, {"batch": 4}],
        "names": ["a", "c"],
    }
    assert sources["phases.0.batch"] == "argument 'phases.0.batch=16'"
    assert read_values(["phases.0.batch=16"])[0] == {"phases": [{"batch": 16}]}
    assert read_values([base])[0]["phases"][0]["batch"] == 32
    for wrong in ("phases.3.batch=1", "more.1.batch=1"):
        with pytest.raises(ConfigError, match="counted from 0"):
            read_values([base, wrong])


def test_layers_can_be_merged_again_over_others(tmp_path: Path):
    """A merge changes no layer: a recipe is put below what was read, and overrides may be left out."""
    base = write(tmp_path, "base.yaml", "phases: [{sizes: {a: 1}}]\noptim: {rate: 1.0}\n")
    file, *overrides = read_layers([base, "phases.0.sizes.a=2", "optim.rate=2"])
    assert merge_layers([file, *overrides])[0] == {"phases": [{"sizes": {"a": 2}}], "optim": {"rate": 2}}
    values, sources = merge_layers([Layer({"optim": {"rate": 0.5, "kind": "sgd"}}, "recipe"), file])
    assert values == {"phases": [{"sizes": {"a": 1}}], "optim": {"rate": 1.0, "kind": "sgd"}}
    assert (sources["optim.kind"], sources["optim.rate"]) == ("recipe", base)


@pytest.mark.parametrize("load", [finetune.config.load_config, distill.config.load_config])
def test_a_command_reads_its_arguments_once(
    load: Callable[[list[str]], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    BertConfig(hidden_size=8, num_attention_heads=1).save_pretrained(tmp_path / "model")
    file = write(
        tmp_path,
        "task.yaml",
        "task: {name: t, type: classification, text: [a], label: b, labels: [x, y],\n"
        "  metrics: accuracy, hub: {dataset: a/b}}\n",
    )
    read = []
    plain = layers._read_file
    monkeypatch.setattr(layers, "_read_file", lambda path: read.append(str(path)) or plain(path))
    given = [file, f"model.from={tmp_path / 'model'}"]
    if load is distill.config.load_config:
        write(tmp_path, "own.yaml", "objective: {type: distilbert}\ntasks: {t: [train.keep=3]}\n")
        given += [str(tmp_path / "own.yaml"), f"teacher.from={tmp_path / 'model'}"]
    config: Any = load(given)
    assert [each for each in read if each in given] == [each for each in given if each.endswith(".yaml")]
    assert config.train.keep == (3 if load is distill.config.load_config else 1)


def test_a_value_may_be_the_name_of_a_configuration_file(tmp_path: Path):
    assert read_values(["space=a.yaml"])[0] == {"space": "a.yaml"}
    assert read_values([write(tmp_path, "rate=3.yaml", "optim: {rate: 3.0}\n")])[0] == {"optim": {"rate": 3.0}}


def test_an_empty_file_changes_nothing(tmp_path: Path):
    assert read_values([write(tmp_path, "empty.yaml", "# nothing\n")]) == ({}, {})


@pytest.mark.parametrize("text", ["5e-5", "5E-5", "5.0e-05", "0.00005"])
def test_floats_are_floats(tmp_path: Path, text: str):
    assert read_values([f"optim.rate={text}"])[0] == {"optim": {"rate": 5e-5}}
    assert read_values([write(tmp_path, "a.yaml", f"rate: {text}\n")])[0] == {"rate": 5e-5}


WRITTEN = [
    "001",
    "010",
    "0x10",
    "0b1",
    "1:30",
    "2024-01-01",
    "00.5",
    "1e3",
    "1.50",
    "12",
    "1_000",
    "on",
    ".5",
    "~",
    "true",
]


def test_what_is_no_decimal_number_is_text():
    """YAML 1.1 has octal numbers, numbers to the base of 60, and dates."""
    assert read_values([f"names=[{', '.join(WRITTEN)}]"])[0]["names"] == [
        *WRITTEN[:7],
        1000.0,
        1.5,
        12,
        1000,
        "on",
        0.5,
        None,
        True,
    ]


class Names(Section):
    names: list[str]


def test_text_that_looks_like_something_else_survives_a_dump(tmp_path: Path):
    dumped = dump(Names(names=WRITTEN))
    assert yaml.safe_load(dumped) == read_values([write(tmp_path, "a.yaml", dumped)])[0] == {"names": WRITTEN}


def test_all_problems_at_once_with_source_and_near_name(tmp_path: Path):
    file = write(tmp_path, "bad.yaml", "optim: {rat: 1.0, kind: adagrad}\nlength: soon\nlimit: many\n")
    with pytest.raises(ConfigError) as caught:
        validate(Top, *read_values([file, "betas=[1, x]"]))
    message = str(caught.value)
    assert message.startswith("6 problems in the configuration:")
    assert f"optim.rat: unknown key (from {file}); did you mean 'rate'?" in message
    assert f"optim.kind: given 'adagrad' (from {file}): Input should be 'adam' or 'sgd'" in message
    assert 'a duration is "3 epochs", "10_000 steps" (or 10000), or "5%"' in message
    assert "limit: given 'many'" in message
    assert "betas.1: given 'x' (from argument 'betas=[1, x]')" in message
    assert "needed: required, but not given" in message


def test_a_key_given_twice_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"a\.yaml: given twice: limit"):
        read_values([write(tmp_path, "a.yaml", "limit: 1\nlimit: 2\n")])
    with pytest.raises(ConfigError, match="given twice: rate"):
        read_values([write(tmp_path, "b.yaml", "optim:\n  rate: 1\n  rate: 2\n")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "holds keys and values, this one a list"),
        ("a: [\n", "not valid YAML"),
        ("a: !!python/name:os.x\n", "YAML"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: str, message: str):
    with pytest.raises(ConfigError, match=message):
        read_values([write(tmp_path, "a.yaml", content)])


def test_a_missing_file_names_those_there_are(tmp_path: Path):
    write(tmp_path, "base.yaml", "")
    with pytest.raises(ConfigError, match=r"no configuration file .*bse\.yaml'; there are: base"):
        read_values([str(tmp_path / "bse.yaml")])
    with pytest.raises(ConfigError, match="neither a"):
        read_values(["epochs"])


def test_dashes_before_a_setting_are_pointed_out():
    with pytest.raises(ConfigError, match=r"'--train\.steps=4': .* without dashes; did you mean 'train\.steps=4'\?"):
        read_values(["--train.steps=4"])
    with pytest.raises(ConfigError, match="there are --help and --print-config"):
        read_values(["--epochs"])


ALIASES = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 6))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ALIASES, "aliases .* stand for more than 10,000 values"),
        ("a: &a [*a]", "or for themselves"),
        ("a: &a {b: *a}", "or for themselves"),
        ("a: " + "{b: " * 3000, "nested too deeply"),
        ("a: " + "1" * 5000, "not valid YAML"),
        ("a: !!int word", "not valid YAML"),
        ("a: !!timestamp word", "not valid YAML"),
        ("a: {[1]: 2}", "not valid YAML"),
    ],
    ids=["aliases of aliases", "itself", "itself in a mapping", "depth", "digits", "int", "date", "list as a key"],
)
def test_a_document_that_explodes_or_is_none_is_refused(tmp_path: Path, content: str, message: str):
    with pytest.raises(ConfigError, match=message):
        read_values([write(tmp_path, "a.yaml", content)])


def test_a_key_of_thousands_of_parts_is_refused():
    with pytest.raises(ConfigError, match=r"a key of 5,000 parts"):
        read_values([".".join(["a"] * 5000) + "=1"])


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_what_is_printed_in_any_encoding_reads_back_alike(tmp_path: Path, encoding: str):
    names = Names(names=["好的", "na\u00efve", "plain", "\U0001f600"])
    (tmp_path / "a.yaml").write_bytes(dump(names, encoding).encode(encoding))
    (tmp_path / "a.yaml").write_text((tmp_path / "a.yaml").read_bytes().decode(encoding), encoding="utf-8")
    assert validate(Names, read_values([str(tmp_path / "a.yaml")])[0]) == names


def test_an_alias_is_what_it_stands_for(tmp_path: Path):
    content = "a: &a [1, 2]\nb: *a\nc: [" + "1, " * 20_000 + "]\n"
    values, _ = read_values([write(tmp_path, "a.yaml", content)])
    assert (values["a"], values["b"], len(values["c"])) == ([1, 2], [1, 2], 20_000)


def test_a_file_that_is_not_text(tmp_path: Path):
    (tmp_path / "a.yaml").write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: not UTF-8 text"):
        read_values([str(tmp_path / "a.yaml")])


@pytest.mark.parametrize("given", ["{1: 2}", "{null: 1}", "{2.5: 1}", "{true: 1}", "{0: 2}"])
@pytest.mark.parametrize("under", [None, {"optim": {"rate": 1.0}}])
def test_keys_are_names(given: str, under: dict[str, Any] | None):
    """Numbers count the items of a list, and a section is none."""
    with pytest.raises(ConfigError, match="optim"):
        validate(Top, *merge_layers([Layer(under or {}, "below"), *read_layers([f"optim={given}", "needed=x"])]))


def test_dump_reads_back_equal(tmp_path: Path):
    top = validate(Top, {"needed": "ä: 1", "optim": {"rate": 5e-5}, "length": "10_000 steps", "betas": [0.5, 0.25]})
    again = validate(Top, read_values([write(tmp_path, "a.yaml", dump(top))])[0])
    assert again == top
    assert dump(again) == dump(top)
    assert isinstance(again.length, Duration)
