"""The command line in this process: exit status, standard output and standard error of one call."""

from collections.abc import Callable

import pytest

from lipctrl.cli.main import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call `lipctrl` with arguments."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # tyro's own errors, --help and --print-config
            status = int(stop.code or 0)
        out = capsys.readouterr()
        return status, out.out, out.err

    return call
