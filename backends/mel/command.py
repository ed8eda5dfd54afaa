"""`streaming-daemon mel FILE`: features of an audio file, as NumPy's .npy or a picture, or its text. The main thread.

The file is read piece by piece and the frames are written as they come, so hours of audio take no more memory than a
minute. What is written has a name of its own until it is whole: a file under the wanted name is never a half one.

What reads audio, shows progress and draws is imported when it is needed; a command that lacks it says what to install.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import secrets
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from backends.mel.spec import (
    DIVISOR,
    HOP_SAMPLES,
    MEL_BINS,
    NORMALISATIONS,
    RANGE_DECADES,
    SAMPLE_RATE_HZ,
    WINDOW_SECONDS,
    Normalisation,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    import numpy.typing as npt

    from backends.mel.engine import Frames

PROGRAM = "streaming-daemon mel"
STATUS_FAILED = 1
STATUS_CANNOT_BEGIN = 2
STATUS_INTERRUPTED = 130

READ_SAMPLES_MAX = 65_536
PICTURE_COLUMNS_MAX = 4_000  # more than a screen shows; longer audio is averaged down to it
DTYPES = ("float32", "float16")
SUFFIXES = (".npy", ".png")
SMALL_MAX = 16  # of beams and threads


class CommandError(Exception):
    """The command cannot do what was asked; the message is for the person who asked."""

    def __init__(self, message: str, status: int = STATUS_FAILED) -> None:
        """`status` is the process's: 2 where nothing could begin, 1 where a file is at fault."""
        super().__init__(message)
        self.status = status


class CommandOptions(NamedTuple):
    """The command line, checked."""

    source: Path
    output: Path
    bin_count: int
    normalisation: Normalisation
    dtype: str
    model: str  # a directory; empty where features are wanted, not text
    language: str
    beam_size: int
    threads: int


def main(arguments: Sequence[str]) -> int:
    """Run the command; `arguments` are those behind `mel`. The exit status: 0, 1 for a file's fault, 2, 130."""
    try:
        asked = _parse(arguments)
        _check_libraries(asked)
        if asked.model:
            _transcribe(asked)
        else:
            print(_run(asked))
    except CommandError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return error.status
    except SystemExit as ended:  # argparse has said why
        return STATUS_CANNOT_BEGIN if ended.code else 0
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; nothing was written", file=sys.stderr)
        return STATUS_INTERRUPTED
    return 0


def _parse(arguments: Sequence[str]) -> CommandOptions:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Compute the log-mel features of an audio file (WAV, FLAC, Ogg and what else libsndfile reads), at "
        "any rate and with any number of channels; or, with a model, write down what is said in it.",
        epilog="Exit status: 0, 1 when a file cannot be read or written, 2 when the command line is wrong or a library "
        "is missing.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the audio")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT",
        help="OUT.npy for an array [frame, bin], OUT.png for a picture (default: FILE with the ending .npy)",
    )  # fmt: skip
    parser.add_argument("--bins", type=int, choices=MEL_BINS, default=MEL_BINS[0], help="default: %(default)s")
    parser.add_argument(
        "--normalisation", choices=NORMALISATIONS, default=NORMALISATIONS[0],
        help="none: log10 of power; running: Whisper's, by the maximum so far; whisper: by the maximum of each "
        f"{WINDOW_SECONDS} s, the last filled up with silence (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the array (default: %(default)s)")
    _add_text_options(parser)
    given = parser.parse_args(list(arguments))
    source: Path = given.file
    if given.transcribe is not None and given.output is not None:
        parser.error("--transcribe writes to standard output: leave out --output")
    if not source.name:
        parser.error(f"{source} is a directory")
    output: Path = given.output or source.with_suffix(SUFFIXES[0])
    if output.suffix.lower() not in SUFFIXES:
        parser.error(f"{output} ends in neither {' nor '.join(SUFFIXES)}")
    if _is_same(source, output):
        parser.error(f"{output} would be written over the audio it is made from")
    text = (given.transcribe or "", given.language, given.beam_size, given.threads)
    return CommandOptions(source, output, given.bins, given.normalisation, given.dtype, *text)


def _add_text_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("text")
    group.add_argument(
        "--transcribe", metavar="MODEL_DIR",
        help="print what is said, by the Whisper model of this directory (CTranslate2's form); its times in brackets",
    )  # fmt: skip
    group.add_argument("--language", default="", help="what is spoken, as `de` (default: heard in the first 30 s)")
    group.add_argument("--beam-size", type=_small, default=5, metavar="N", help="default: %(default)s")
    group.add_argument("--threads", type=_small, default=2, metavar="N", help="of the model (default: %(default)s)")


def _small(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= SMALL_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer from 1 to {SMALL_MAX}")
    return int(text)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there, or may not be looked at: said when it is opened
        return one == other


def _check_libraries(asked: CommandOptions) -> None:
    """Say what is not installed, before anything is begun. Raises CommandError."""
    needs = {"soundfile": "mel", "soxr": "mel", "rich": "mel"}
    if asked.output.suffix.lower() == ".png":
        needs["matplotlib"] = "plot"
    if asked.model:
        needs["ctranslate2"] = "transcribe"
    missing = {library: extra for library, extra in needs.items() if not _is_installed(library)}
    if missing:
        extras = ",".join(dict.fromkeys(missing.values()))
        raise CommandError(
            f"{', '.join(missing)} not installed: pip install 'streaming-daemon[{extras}]'", STATUS_CANNOT_BEGIN
        )


def _is_installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ValueError:  # forbidden by a None in sys.modules
        return False


def _run(asked: CommandOptions) -> str:
    """Compute, write, and return the sentence that says what was done. Raises CommandError."""
    started_s = time.monotonic()
    is_picture = asked.output.suffix.lower() == ".png"
    with _whole_or_not_at_all(asked.output) as file:
        if is_picture:
            with tempfile.TemporaryFile(dir=asked.output.parent) as array_file:
                sample_count, frame_count = _write_array(asked, array_file)
                _draw(asked, _mapped(asked, array_file, frame_count), file)
        else:
            sample_count, frame_count = _write_array(asked, file)
    audio_s, took_s = sample_count / SAMPLE_RATE_HZ, time.monotonic() - started_s
    what = f"{frame_count} frames of {asked.bin_count} bins"
    return f"{asked.output}: {what} from {audio_s:.2f} s of audio, in {took_s:.2f} s"


def _transcribe(asked: CommandOptions) -> None:
    """Print each segment as it is heard. Raises CommandError."""
    from backends.mel.engine import EngineError  # noqa: PLC0415  (see `_features`)
    from backends.mel.transcriber import ModelError, Transcriber  # noqa: PLC0415

    try:
        model = Transcriber(asked.model, threads=asked.threads)
    except ModelError as error:
        raise CommandError(str(error), STATUS_CANNOT_BEGIN) from error
    if not model.knows(asked.language):
        raise CommandError(f"--language {asked.language}: the model does not know it", STATUS_CANNOT_BEGIN)
    windows = asked._replace(bin_count=model.bins, normalisation="whisper")
    transcript, sample_count = model.transcript(asked.language, asked.beam_size, lambda: False), 0
    try:
        for samples, frames in _features(windows):
            sample_count += samples
            for text, start_s, end_s in transcript.windows(frames, sample_count / SAMPLE_RATE_HZ):
                print(f"[{start_s:.2f} --> {end_s:.2f}]{text}", flush=True)
    except EngineError as error:
        raise CommandError(str(error)) from error


# ---- audio in


def _pieces(source: Path, audio: IO[bytes]) -> Iterator[tuple[float, npt.NDArray[np.float32]]]:
    """The file's audio, mono at 16 kHz, in pieces, and how much of it has been read with each. Raises CommandError."""
    soundfile: Any = importlib.import_module("soundfile")
    soxr: Any = importlib.import_module("soxr")
    try:
        with soundfile.SoundFile(audio.fileno(), closefd=False) as sound:
            expected, rate_hz, read = sound.frames, sound.samplerate, 0
            resampler = None
            if rate_hz != SAMPLE_RATE_HZ:
                resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32")
            while len(channels := sound.read(READ_SAMPLES_MAX, dtype="float32", always_2d=True)) > 0:
                read += len(channels)
                mono = channels[:, 0] if channels.shape[1] == 1 else channels.mean(axis=1, dtype=np.float32)
                piece = mono if resampler is None else resampler.resample_chunk(mono)
                yield read / max(read, expected), np.ascontiguousarray(piece)
            if resampler is not None and read > 0:
                yield 1.0, resampler.resample_chunk(np.empty(0, np.float32), last=True)
    except soundfile.LibsndfileError as error:
        raise CommandError(f"{source}: {str(error.error_string).removeprefix('Error : ').rstrip('.')}") from error
    if read == 0:
        raise CommandError(f"{source}: there is no audio in it")
    if read < expected:
        raise CommandError(f"{source}: it is cut: {read / rate_hz:.2f} s of {expected / rate_hz:.2f} s are there")


@contextmanager
def _opened(source: Path) -> Generator[IO[bytes]]:
    """The file, opened here: libsndfile would say no more than that something failed. Raises CommandError."""
    try:
        opened = source.open("rb")
    except OSError as error:
        raise CommandError(f"{source}: {error.strerror}") from error
    with opened:
        yield opened


# ---- frames out


@contextmanager
def _whole_or_not_at_all(output: Path) -> Generator[IO[bytes]]:
    """A new file that takes the wanted name when all went well, and goes when it did not. Raises CommandError."""
    partial = output.parent / f".mel-{secrets.token_hex(8)}.part"
    try:
        with partial.open("xb+") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(output)
    except OSError as error:
        raise CommandError(f"{output}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _write_array(asked: CommandOptions, file: IO[bytes]) -> tuple[int, int]:
    """Write the features as .npy, and leave the file where its numbers begin; how many samples and frames there were.

    NumPy leaves room in a head for the first axis to grow, so it is written again when the length is known.
    """
    _write_head(asked, file, 0)
    first_byte = file.tell()
    sample_count = frame_count = 0
    for samples, frames in _features(asked):
        sample_count += samples
        frame_count += len(frames)
        file.write(frames.astype(asked.dtype, copy=False).tobytes())
    file.seek(0)
    _write_head(asked, file, frame_count)
    file.flush()
    assert file.tell() == first_byte, f"the head has grown from {first_byte} to {file.tell()} bytes"
    return sample_count, frame_count


def _write_head(asked: CommandOptions, file: IO[bytes], frame_count: int) -> None:
    description = np.lib.format.dtype_to_descr(np.dtype(asked.dtype))
    head = {"descr": description, "fortran_order": False, "shape": (frame_count, asked.bin_count)}
    np.lib.format.write_array_header_1_0(file, cast("Any", head))


def _features(asked: CommandOptions) -> Iterator[tuple[int, Frames]]:
    """For each piece of audio its length and the frames that it completes; a bar shows how far it is, on a terminal."""
    from rich.console import Console  # noqa: PLC0415  (not installed without the extra)
    from rich.markup import escape  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    with _opened(asked.source) as audio:
        from backends.mel.cpu import CpuEngine  # noqa: PLC0415  (imports Numba)
        from backends.mel.stream import MelStream  # noqa: PLC0415

        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            task = progress.add_task(escape(asked.source.name), total=1.0)
            stream = MelStream(CpuEngine(asked.bin_count), asked.normalisation, np.float32)
            for done, samples in _pieces(asked.source, audio):
                yield len(samples), stream.push(samples)
                progress.update(task, completed=done)
            yield 0, stream.finish()


# ---- a picture


def _mapped(asked: CommandOptions, array_file: IO[bytes], frame_count: int) -> npt.NDArray[Any]:
    """What `_write_array` has written, [frame, bin], without a copy. Raises CommandError."""
    if frame_count == 0:
        raise CommandError(f"{asked.source}: it is too short for a picture")
    return np.memmap(array_file, asked.dtype, "r", array_file.tell(), (frame_count, asked.bin_count))


def _draw(asked: CommandOptions, frames: npt.NDArray[Any], file: IO[bytes]) -> None:
    """The spectrogram as PNG: time to the right, pitch upwards."""
    figures: Any = importlib.import_module("matplotlib.figure")
    columns = _averaged(frames)
    loudest = float(columns.max())
    quietest = loudest - (RANGE_DECADES if asked.normalisation == "none" else RANGE_DECADES / DIVISOR)
    figure = figures.Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(
        columns.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=max(quietest, float(columns.min())),
        vmax=loudest,
        extent=(0, len(frames) * HOP_SAMPLES / SAMPLE_RATE_HZ, 0, asked.bin_count),
    )
    axes.set(xlabel="seconds", ylabel="mel bin")
    axes.set_title(asked.source.name, parse_math=False)
    label = "log10 of power" if asked.normalisation == "none" else f"Whisper's scale ({asked.normalisation})"
    figure.colorbar(image, label=label)
    figure.savefig(file, format="png", dpi=100)


def _averaged(frames: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """As many columns as a picture can show, each the mean of its frames. Float32 [columns, bins]."""
    per_column = -(-len(frames) // PICTURE_COLUMNS_MAX)
    firsts = range(0, len(frames), per_column)
    return np.stack([frames[first : first + per_column].mean(axis=0, dtype=np.float32) for first in firsts])
