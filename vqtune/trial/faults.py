"""Whose fault an error is: the config's, which ends the trial, or the machine's, after which it is tried again."""

from __future__ import annotations

from vqtune.errors import InputError

_DEVICE_TROUBLE = ("CUDA error", "cuDNN", "CUBLAS", "NCCL")


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the device or beside it."""
    import torch

    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or on_cpu


def blames_machine(error: Exception) -> bool:
    """Files, processes and devices that fail are the machine's fault: the trial is worth another try."""
    import torch

    if is_out_of_memory(error) or isinstance(error, InputError):
        return False
    if isinstance(error, OSError | torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _DEVICE_TROUBLE)


def free_memory() -> None:
    """Gives back what a trial that is gone held."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
