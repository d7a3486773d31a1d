import json

import pytest
from pydantic import BaseModel

from bertillery.config.section import InputError
from bertillery.system.records import read_json, read_yaml


class Numbers(BaseModel):
    steps: int
    losses: dict[str, float]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[]", "the content"),
        (b'{"steps": "many", "losses": {}}', "steps"),
        (b'{"steps": 1, "losses": {"mlm": null}}', "losses.mlm"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_message_with_its_name_and_the_remedy(tmp_path, content, said):
    path = tmp_path / "finished.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(path, Numbers, remedy="delete it")
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert said in message
    assert message.endswith("; delete it")


def test_what_fits_is_returned_as_the_schema_has_it(tmp_path):
    path = tmp_path / "finished.json"
    path.write_text(json.dumps({"steps": 3, "losses": {"mlm": 1.5}}))
    assert read_json(path, Numbers, remedy="") == Numbers(steps=3, losses={"mlm": 1.5})
    assert read_json(path, dict[str, object], remedy="")["steps"] == 3


def test_yaml_is_read_in_the_same_way(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: !!python/object:os.system {}\n")
    with pytest.raises(InputError, match=r"(?s)config\.yaml: not valid YAML.*; delete it"):
        read_yaml(path, dict[str, object], remedy="delete it")
    path.write_text("steps: 3\nlosses: {mlm: 1.5}\n")
    assert read_yaml(path, Numbers, remedy="").steps == 3
