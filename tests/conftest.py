"""Settings of every test process and of the processes that tests start."""

import os

# Tests run in parallel and start processes of their own: with every one of them spinning a thread per core, small
# matrix products take many times as long. Read by torch and tokenizers when they are imported, so set before that.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Models come from directories that tests make; nothing may ask a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
