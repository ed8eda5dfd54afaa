"""Measures the mel frames of a GPU beside PyTorch and the CPU.

    python -m scripts.gpu_mel --out DIRECTORY            both measurements
    python -m scripts.gpu_mel --out DIRECTORY engine     the engine alone, beside PyTorch and torchaudio
    python -m scripts.gpu_mel --out DIRECTORY --audio speech.wav backend

Needs a GPU, numba-cuda, PyCUDA, and for `engine` PyTorch and torchaudio; matplotlib is used where it is installed.
CUDA_VISIBLE_DEVICES=0 leaves one GPU of several. Leaves results.json, results.md and pictures. A part that fails is
in both, and the others go on. Whether the frames are right is what the tests marked `gpu` check.
"""
