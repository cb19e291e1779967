"""Compiles the device. Everything else is in `pyproject.toml`."""

import os

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

# Host kernels do the work: there is nothing here for the compiler to make faster, and it is done in half the time.
FLAGS = ["-O0", "-g0"]

setup(
    ext_modules=[
        CppExtension(
            "acme_accelerator._device",
            ["csrc/acme.cpp"],
            include_dirs=[os.path.abspath("csrc")],
            depends=[os.path.join("csrc", name) for name in sorted(os.listdir("csrc"))],
            extra_compile_args=FLAGS,
        )
    ],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=False, no_python_abi_suffix=True)},
)
