"""A platform that is there when `OTHER_PLATFORM` is `yes`."""

import os

with open(os.environ["PLATFORM_TRACE"], "a") as file:
    file.write("import other_platform\n")


def activate():
    if os.environ.get("OTHER_PLATFORM") != "yes":
        return None
    from runtime.platforms import PlatformEnum, SRTPlatform
    from runtime.platforms.cpu import CpuDeviceMixin

    class OtherPlatform(CpuDeviceMixin, SRTPlatform):
        _enum = PlatformEnum.OOT
        device_name = "other"

    return OtherPlatform
