"""Checks the mel frames of a GPU and measures them beside PyTorch and torchaudio, in one run on one machine.

    python -m scripts.gpu_mel --out DIRECTORY            everything: about three minutes
    python -m scripts.gpu_mel --out DIRECTORY check device

Needs a GPU, numba-cuda, PyCUDA, PyTorch and torchaudio; compute-sanitizer, ncu, nvidia-smi and matplotlib are used
where they are. Leaves results.json, results.md and pictures. A part that fails is said in both, and the others go on.
"""
