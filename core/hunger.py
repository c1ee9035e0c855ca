"""Whether what a library says means that memory ran out, whoever's and however it is put."""

from __future__ import annotations

SIGNS = (
    *("out of memory", "outofmemory", "bad alloc", "badalloc", "memoryerror", "not enough memory"),
    *("insufficient memory", "lack of memory", "more memory than", "allocate memory", "failed to allocate"),
    *("unable to allocate", "failed allocation", "out of host memory", "out of device memory"),
    *("resource exhausted", "out of resources", "object allocation failure"),
)
"""In lower case, with spaces for underscores: of C++, the system, numpy, PyTorch, ONNX Runtime, CUDA, HIP, OpenCL,
Vulkan and IREE.
"""

ADVICE = "Free memory, ask for a smaller size or fewer pictures, or take a narrower type under [precision]."


def is_hunger(words: str | BaseException) -> bool:
    """Whether an error, or a library's words, mean that there was too little memory."""
    if isinstance(words, MemoryError):
        return True
    text = str(words).lower().replace("_", " ")
    return any(sign in text for sign in SIGNS)
