"""Checks the mel frames of a GPU and measures them beside PyTorch and torchaudio, in one run on one machine.

    python -m scripts.gpu_mel --out DIRECTORY            everything: about three minutes
    python -m scripts.gpu_mel --out DIRECTORY check device
    python -m scripts.gpu_mel --out DIRECTORY --gpus 1 --audio speech.wav backend daemon
    python -m scripts.gpu_mel --out DIRECTORY --audio speech.wav several faults     on two GPUs

Needs a GPU, numba-cuda, PyCUDA, PyTorch and torchaudio; compute-sanitizer, ncu, nvidia-smi and matplotlib are used
where they are. Leaves results.json, results.md and pictures. A part that fails is said in both, and the others go on.
"""
