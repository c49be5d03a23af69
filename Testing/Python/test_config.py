"""Settings: the presets, the paper's own numbers, and clear words for what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from SegGuidedMMRegLib.config import (
    config_from_dict,
    fitted_to_dimension,
    load_config,
    override,
    preset,
    save_config,
)


@pytest.mark.parametrize("name", ["default", "quick", "paper"])
def test_a_preset_survives_writing_and_reading(tmp_path: Path, name: str) -> None:
    save_config(preset(name), tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == preset(name)


def test_the_paper_preset_has_the_settings_of_appendix_b() -> None:
    paper = preset("paper")
    assert paper.augmentation.method == "gradicon"
    assert paper.augmentation.learning_rate == 5e-5
    assert paper.segmentation.loss == "dice"
    assert paper.adaptation.method == "cyclegan"
    assert (paper.adaptation.lambda_gan, paper.adaptation.lambda_cycle) == (1.0, 10.0)
    assert paper.adaptation.epochs == 400
    assert paper.registration.lambda_inverse_consistency == 1.5
    assert paper.registration.learning_rate == 1e-4
    assert paper.registration.refinement_steps == 0


def test_a_file_changes_only_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("preset: quick\nsegmentation: {learning_rate: 0.01}\n")
    config, quick = load_config(path), preset("quick")
    assert config.segmentation.learning_rate == 0.01
    assert config.segmentation.steps == quick.segmentation.steps
    assert config.registration == quick.registration


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    assert load_config(tmp_path / "config.yaml") == preset("default")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "segmentation: {stepz: 3}",
            r"config.yaml: unknown setting 'segmentation.stepz'; did you mean 'steps'",
        ),
        ("segmentaton: {steps: 3}", "did you mean 'segmentation'"),
        ("segmentation: {steps: 0}", r"segmentation.steps: .*got 0"),
        ("segmentation: {steps: many}", r"segmentation.steps: .*got 'many'"),
        ("segmentation: 7", "must hold settings by name"),
        ("adaptation: {method: magic}", r"adaptation.method: .*got 'magic'"),
        ("preset: fast", "preset must be one of default, quick, paper"),
        ("preset: [quick]", "preset must be one of"),
        ("- 1", "expected settings by name"),
        ("a: [", "not readable as YAML"),
        ("training: {seed: !!python/object/apply:os.system ['true']}", "not readable as YAML"),
    ],
)
def test_what_does_not_fit_is_named_with_file_and_value(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_config(path)
    assert "config.yaml" in str(caught.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ValueError, match="steps") as caught:
        config_from_dict({"segmentation": {"steps": 0}, "registration": {"batch_size": 0}})
    assert "batch_size" in str(caught.value)


def test_single_settings_override_the_rest() -> None:
    config = override(preset("quick"), settings=["segmentation.steps=5", "segmentation.channels=[4, 8]"])
    assert config.segmentation.steps == 5
    assert config.segmentation.channels == (4, 8)
    assert config.registration == preset("quick").registration


def test_a_preset_takes_the_place_of_the_settings() -> None:
    assert override(preset("quick"), "paper") == preset("paper")


@pytest.mark.parametrize(
    "text", ["segmentation.steps", "steps=5", "segmentation.stepz=5", "segmentation.steps=[", "preset.x=1"]
)
def test_a_single_setting_that_does_not_fit_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="--set"):
        override(preset("quick"), settings=[text])


def test_quick_is_cut_down_further_for_volumes_but_not_what_the_user_set():
    changed = override(preset("quick"), None, None, ("registration.steps=7",))
    volumes = fitted_to_dimension(changed, 3)
    assert volumes.segmentation.channels[0] < changed.segmentation.channels[0]
    assert volumes.registration.steps == 7
    assert fitted_to_dimension(changed, 2) == changed
    assert fitted_to_dimension(preset("default"), 3).adaptation.randomised_steps == 600
    assert fitted_to_dimension(preset("paper"), 3) == preset("paper")
