"""The check of a device, on devices that are wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytest_mock import MockerFixture

from runtime import platforms
from runtime.core.errors import PlatformError
from runtime.platforms import report as platform_report


def rounded(tensor: torch.Tensor, bits: int) -> torch.Tensor:
    """float32 numbers with their last `bits` bits rounded away."""
    return (tensor.view(torch.int32) + (1 << (bits - 1)) & -(1 << bits)).view(torch.float32)


@pytest.mark.parametrize("bits", [13, 16], ids=["TF32", "bfloat16"])
def test_products_in_less_than_float32_are_found(mocker: MockerFixture, bits: int) -> None:
    def product(host: torch.Tensor, device: torch.device, start: Any, end: Any) -> torch.Tensor:
        start.record()
        made = rounded(host, bits) @ rounded(host, bits)
        end.record()
        return made

    mocker.patch.object(platform_report, "_product", product)
    with pytest.raises(PlatformError, match=r"on cpu differs from the host's by .*e-0[45], .* compute in less\?"):
        platform_report.check()


def test_a_product_that_is_no_number_is_found(mocker: MockerFixture) -> None:
    wrong = (torch.full((512, 512), torch.nan), 1.0)
    mocker.patch.object(platform_report, "_timed_product", return_value=wrong)
    with pytest.raises(PlatformError, match="differs from the host's by nan"):
        platform_report.check()


def test_a_device_without_streams_is_checked_without(mocker: MockerFixture) -> None:
    cls = type(platforms.current_platform)
    mocker.patch.object(cls, "create_stream", side_effect=PlatformError("no streams"))
    used = mocker.spy(cls, "use_stream")
    assert platform_report.check()["max_relative_error"] < 1e-5
    used.assert_not_called()


def test_the_check_uses_every_part_of_the_device(mocker: MockerFixture) -> None:
    cls = type(platforms.current_platform)
    names = (
        *("init_backend", "get_device", "set_device", "seed_everything", "inference_mode", "create_event"),
        *("create_stream", "current_stream", "use_stream", "synchronize", "empty_cache", "is_pin_memory_available"),
    )
    spies = {name: mocker.spy(cls, name) for name in names}
    platform_report.check()
    assert {name for name, spy in spies.items() if not spy.call_count} == set()


def test_classes_and_functions_are_described_by_name(mocker: MockerFixture) -> None:
    cls = type(platforms.current_platform)
    mocker.patch.object(cls, "get_default_attention_backend", return_value=PlatformError)
    mocker.patch.object(cls, "get_compile_backend", return_value=rounded)
    mocker.patch.object(cls, "get_device_capability", return_value=platforms.DeviceCapability(9, 0))
    report = platform_report.describe()
    assert report["attention_backend"] == "runtime.core.errors.PlatformError"
    assert report["compile_backend"] == repr(rounded)
    assert report["capability"] == "9.0"
