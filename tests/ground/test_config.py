"""Finding, overriding and checking configurations."""

import json

import pytest

from uvos_jax import config as configs
from uvos_jax.errors import ConfigError


@pytest.fixture
def base():
    cfg = configs._import_config_file(configs.config_folder() / "_base.py").get_base_config()
    cfg.model.name = "cosnet"
    return cfg


def test_base_config_is_valid_once_it_names_a_system(base):
    configs.validate(base)


def test_json_round_trip_restores_tuples(base):
    import json

    again = configs.from_dict(json.loads(configs.to_json(base)))
    assert again.to_dict() == base.to_dict()


def test_unknown_field_suggests_the_near_one(base):
    with pytest.raises(ConfigError, match=r"did you mean 'lr'"):
        configs.override(base, {"optim.lrr": "1"})


def test_override_reads_text_as_the_type_of_the_default(base):
    configs.override(
        base,
        {
            "optim.lr": "1e-3",
            "data.batch_size": "4",
            "data.size": "(65, 97)",
            "train.remat": "True",
        },
    )
    assert base.optim.lr == 1e-3
    assert base.data.batch_size == 4
    assert base.data.size == (65, 97)
    assert base.train.remat is True


def test_override_of_the_wrong_type_names_field_and_value(base):
    with pytest.raises(ConfigError, match=r"data\.batch_size.*2\.5"):
        configs.override(base, {"data.batch_size": "2.5"})


def test_integer_is_taken_where_a_float_is_expected(base):
    configs.override(base, {"optim.lr": "1"})
    assert isinstance(base.optim.lr, float)


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("data.batch_size", 0, "batch_size must be at least 1, got 0"),
        ("optim.lr", -1.0, "must not be negative"),
        ("optim.ema", 1.0, r"\[0, 1\)"),
        ("predict.threshold", 2.0, "threshold"),
    ],
)
def test_impossible_values_are_refused(base, field, value, message):
    configs.override(base, {field: value})
    with pytest.raises(ConfigError, match=message):
        configs.validate(base)


def test_unknown_config_file_suggests_names():
    with pytest.raises(ConfigError, match=r"config 'cosnett' not found.*did you mean 'cosnet'"):
        configs.load_config("cosnett")


def test_unknown_variant_is_a_config_error():
    with pytest.raises(ConfigError, match="nonsense"):
        configs.load_config("cosnet:nonsense")


def test_fields_that_came_after_the_weights_take_their_published_values():
    tiny = configs.load_config("mpnet:tiny")
    stored = json.loads(configs.to_json(tiny))
    del stored["model"]["edge_dropout"]
    config = configs.from_weights(stored)
    assert config.model.edge_dropout == configs.load_config("mpnet").model.edge_dropout
    assert config.model.widths == tiny.model.widths  # what is there stays
    configs.build(config)
