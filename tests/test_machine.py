"""What a result says of the machine it is from."""

from pathlib import Path

import pytest

from torchcaps.train.machine import describe_cpu

LINUX = {
    "processor : 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\nprocessor : 1\nmodel name\t: other\n": (
        "AMD EPYC (family 26, model 2)"
    ),
    "processor\t: 0\nmodel name\t: ARMv8 Processor\n": "ARMv8 Processor",
}


@pytest.mark.parametrize("text", LINUX)
def test_a_processor_is_told_from_others_of_its_name(text: str, tmp_path: Path) -> None:
    (cpuinfo := tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    assert describe_cpu(cpuinfo) == LINUX[text]


@pytest.mark.parametrize("text", [None, "", "CPU implementer\t: 0x41\n"])
def test_a_system_that_names_no_processor_says_what_python_knows(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    assert describe_cpu(tmp_path / "cpuinfo") == "aarch64"
