"""What the runtime ships beside its code: one small model, and the script that trained it.

`stdlib_llama/` is a Llama-architecture checkpoint in Hugging Face layout. `python -m runtime.assets.train`
makes it again from the docstrings of the running interpreter's own standard library.
"""

from pathlib import Path

EMBEDDED_MODEL_DIR: Path = Path(__file__).resolve().parent / "stdlib_llama"
"""The folder of the embedded checkpoint: give it to anything that takes a Hugging Face model path."""
