"""`uvos list`, `uvos info`, `uvos --help` and the exit codes of wrong use."""

import subprocess
import sys

import pytest

from uvos_jax import registry
from uvos_jax.cli.main import COMMANDS


def test_list_names_all_systems(uvos_command):
    code, text, _ = uvos_command("list")
    assert code == 0
    assert all(name in text for name in registry.list_systems())


def test_info_tells_parameters_paper_and_configurations(uvos_command):
    code, text, _ = uvos_command("info", "cosnet")
    assert code == 0
    assert "81,242,436" in text
    assert "light" in text
    assert "CVPR 2019" in text


@pytest.mark.parametrize(
    ("name", "advice"),
    [("mug", "uvos convert mug FILE... --config mug:release"), ("dfnet", "train it: uvos train")],
)
def test_info_tells_what_to_do_with_the_official_weights(name, advice, uvos_command):
    _, text, _ = uvos_command("info", name)
    assert advice in text


def test_info_of_an_unknown_system_suggests_near_names(refused):
    assert "cosnet" in refused("info", "cosnt")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    from uvos_jax.cli.main import main

    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: uvos {command}" in capsys.readouterr().out


def test_wrong_use_ends_with_code_two(capsys):
    from uvos_jax.cli.main import main

    for arguments in ([], ["nonsense"], ["predict"], ["predict", "x", "--nonsense"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m uvos_jax.cli.main list | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
