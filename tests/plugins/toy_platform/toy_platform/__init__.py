"""Whether the toy is there is for `TOY_PLATFORM` to say: `yes`, `no` (the default) or `fails`.

Everything worth knowing from outside the process is written to the file that `PLATFORM_TRACE` names.
"""

import os


def trace(line: str) -> None:
    with open(os.environ["PLATFORM_TRACE"], "a") as file:
        file.write(f"{line}\n")


trace("import toy_platform")


def activate() -> str | None:
    trace("activate toy")
    state = os.environ.get("TOY_PLATFORM", "no")
    if state == "fails":
        raise OSError("the toy's driver is too old")
    return "toy_platform.platform:ToyPlatform" if state == "yes" else None


def activate_second() -> None:
    trace("activate toy_second")
