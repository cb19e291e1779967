"""The Acme accelerator for the runtime. Nothing here imports torch: who selects another platform pays nothing."""

import os


def activate() -> str | None:
    """The platform's class by name; None where the hardware is not there."""
    return "acme_accelerator.platform:AcmePlatform" if os.environ.get("ACME_VISIBLE_DEVICES") != "" else None
