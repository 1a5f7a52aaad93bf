"""Where kernels run."""

from interpreted import device as device
