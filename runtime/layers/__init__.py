"""Building blocks of models: plain classes around tensors.

They are no `torch.nn.Module`s: nothing here is trained or moved, and a module's `__call__` and attribute lookup would
cost a tenth of a small model's decode step. Weights are allocated uninitialised; the loader fills them.
"""
