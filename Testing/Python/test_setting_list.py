"""The settings of a study as programs show and change them."""

from __future__ import annotations

from pathlib import Path

import pytest
from event_lines import of_one_command
from trained_study import make_study, tiny_config

from SegGuidedMMRegLib import cli
from SegGuidedMMRegLib.config import config_from_dict, preset
from SegGuidedMMRegLib.locks import working_on
from SegGuidedMMRegLib.setting_list import settings_of
from SegGuidedMMRegLib.study import Study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("settings"), config=tiny_config()).folder


def by_name(config, dimension: int = 2) -> dict:
    return {setting.name: setting for setting in settings_of(config, dimension)}


def tell(capsys, *arguments: object) -> dict:
    """The last event of a command."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main([*map(str, arguments), "--events"])
    return of_one_command(capsys.readouterr().out.splitlines(), str(arguments[0]))[-1]


def test_every_setting_explains_itself_and_no_section_is_forgotten() -> None:
    found = by_name(preset("default"))
    assert [name for name, setting in found.items() if not setting.help] == []
    sections = {name.partition(".")[0] for name in found}
    assert sections == set(preset("default").model_dump()) - {"preset"}
    assert len(found) == sum(len(v) for k, v in preset("default").model_dump().items() if k != "preset")


def test_kinds_and_limits_are_those_that_are_checked() -> None:
    found = by_name(preset("quick"))
    assert (found["segmentation.steps"].kind, found["segmentation.steps"].minimum) == ("whole", 1)
    rate, share = found["segmentation.learning_rate"], found["segmentation.augmented_share"]
    assert (rate.kind, rate.above, rate.minimum) == ("number", 0, None)
    assert (share.minimum, share.maximum) == (0, 1)
    assert found["adaptation.teacher_decay"].below == 1
    assert found["registration.affine"].kind == "flag"
    assert found["training.device"].choices == ("auto", "cpu", "cuda", "mps")
    assert (found["segmentation.strides"].kind, found["segmentation.strides"].value) == (
        "text",
        "[2, 2, 2, 2]",
    )
    assert found["training.images_at_once"].value == "all"


def test_values_that_are_sent_back_give_the_same_settings(folder) -> None:
    """As a form does it: whatever is shown can be set again."""
    config = Study.open(folder).config
    from SegGuidedMMRegLib.config import override

    shown = [
        f"{s.name}={str(s.value).lower() if s.kind == 'flag' else s.value}" for s in settings_of(config, 2)
    ]
    assert override(config, settings=shown) == config


def test_what_differs_from_the_preset_is_seen_in_3d_too() -> None:
    config = config_from_dict({"preset": "quick", "segmentation": {"steps": 7}})
    changed = [s.name for s in settings_of(config, 2) if s.value != s.preset_value]
    assert changed == ["segmentation.steps"]
    assert by_name(config, 3)["segmentation.batch_size"].preset_value == 2


def test_settings_are_changed_kept_and_told(folder, capsys) -> None:
    told = tell(
        capsys,
        "set",
        folder,
        "segmentation.steps=7",
        "registration.affine=false",
        "segmentation.strides=[2, 2, 1]",
    )
    values = {s["name"]: s["value"] for s in told["settings"]}
    assert (values["segmentation.steps"], values["registration.affine"]) == (7, False)
    config = Study.open(folder).config
    assert (config.segmentation.steps, config.segmentation.strides) == (7, (2, 2, 1))
    again = tell(capsys, "info", folder, "--settings")
    assert again["settings"] == told["settings"]
    assert (again["preset"], again["presets"]) == ("quick", ["paper", "default", "quick"])


def test_a_preset_takes_the_place_of_all_settings_but_those_that_are_given(folder, capsys) -> None:
    told = tell(capsys, "set", folder, "--preset", "quick", "training.device=cpu")
    changed = [s["name"] for s in told["settings"] if s["value"] != s["preset_value"]]
    assert changed == ["training.device"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("segmentation.steps=0", "segmentation.steps: Input should be greater than or equal to 1, got 0."),
        ("segmentation.stepz=3", "did you mean 'steps'"),
        ("steps", "expected SECTION.SETTING=VALUE"),
    ],
)
def test_what_does_not_fit_changes_nothing(folder, capsys, setting, message) -> None:
    before = (folder / "config.yaml").read_bytes()
    told = tell(capsys, "set", folder, "training.seed=5", setting)
    assert (told["code"], told["exit_code"]) == ("input", 2)
    assert message in told["message"]
    assert str(folder) in told["message"]
    assert (folder / "config.yaml").read_bytes() == before


def test_the_settings_of_a_study_that_trains_stay(folder, capsys) -> None:
    with working_on(folder, "train"):
        told = tell(capsys, "set", folder, "training.seed=5")
    assert told["code"] == "study_locked"


def test_a_folder_without_a_study_is_not_made(tmp_path, capsys) -> None:
    assert tell(capsys, "set", tmp_path / "none", "training.seed=5")["code"] == "input"
    assert not (tmp_path / "none").exists()
